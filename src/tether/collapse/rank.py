"""How many dimensions features fill: effective rank (linear) and TwoNN (along the manifold)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tether.collapse.checks import SAME_POINT, as_features, as_groups, check_spread
from tether.collapse.distances import nearest_two_groups
from tether.errors import TetherError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["effective_rank", "intrinsic_dimension"]

# TwoNN leaves out the share of largest ratios, as Facco et al. do: they come from the edge of the
# data and from near-duplicates, where the density is not constant.
_KEPT_SHARE = 0.9


def effective_rank(features: ArrayLike) -> float:
    r"""Effective rank of the centred features (RankMe).

    .. math:: \exp\Bigl(-\sum_i p_i \ln p_i\Bigr), \qquad p_i = \sigma_i \Big/ \sum_j \sigma_j

    with the singular values :math:`\sigma` of the features after their mean was taken off; the
    mean alone would else count as a large direction. Between 1 and the number of features, without
    change under rotation, shift and scaling of the features.

    Parameters
    ----------
    features : array, shape (n, n_features)
        One row a point.

    Returns
    -------
    float
        Dimensions.

    Raises
    ------
    TetherError
        For no more points than features (the rank would be that of the sample), features that
        coincide in one point, or values that are not finite.

    References
    ----------
    Garrido et al., RankMe, ICML 2023 (arXiv 2210.02885); Roy and Vetterli, EUSIPCO 2007.

    Examples
    --------
    >>> square = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    >>> round(effective_rank(square), 6)
    2.0
    """
    x = as_features(features)
    n, width = x.shape
    if n <= width:
        raise TetherError(
            f"{n} points of {width} features",
            expected="more points than features, better ten times as many",
            fix="look at more atoms",
        )
    check_spread(x)
    centred = x - x.mean(axis=0)
    squares = np.linalg.eigvalsh(centred.T @ centred)
    # What rounding makes of directions that the data do not have is no direction.
    squares = squares[squares > width * np.finfo(np.float64).eps * squares[-1]]
    share = np.sqrt(squares)
    share /= share.sum()
    return float(np.exp(-np.sum(share * np.log(share))))


def intrinsic_dimension(
    features: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    distances: NDArray[np.float64] | None = None,
) -> float:
    r"""Intrinsic dimension of the set of points (TwoNN).

    The ratio :math:`\mu` of the distances to the second and to the first neighbour has the
    density :math:`d\mu^{-d-1}` where points lie evenly on a manifold of dimension d, so that
    :math:`\ln\mu` is exponential with rate d. The tenth with the largest ratios is treated as
    censored, and the likelihood's maximum is corrected for its bias:

    .. math:: d = (r - 1) \Big/ \Bigl(\sum_{i \le r} \ln\mu_{(i)} + (n - r) \ln\mu_{(r)}\Bigr)

    (Facco et al. fit a line to the same nine tenths). Unchanged by rotation, shift and scaling.

    Parameters
    ----------
    features : array, shape (n, n_features)
        One row a point.
    groups : array, shape (n,), optional
        Structure of each point. The two neighbours are then the nearest points of two other
        structures: atoms that a symmetry maps onto each other have the same features, and would
        be a point's first and second neighbour at one distance.
    distances : ndarray, shape (n, n), optional
        `pair_distances` of the features, to save computing them again.

    Returns
    -------
    float
        Dimensions.

    Raises
    ------
    TetherError
        For fewer than 20 points, more than half of them coinciding with another, or values that
        are not finite.

    References
    ----------
    Facco et al., Sci. Rep. 7, 12140 (2017).
    """
    x = as_features(features, least=20)
    spread = check_spread(x)
    found = nearest_two_groups(x, groups=as_groups(groups, len(x)), distances=distances)
    apart = found[:, 0] > SAME_POINT * spread
    if 2 * int(apart.sum()) < len(x):
        raise TetherError(
            f"{int((~apart).sum())} of {len(x)} points coincide with another one",
            expected="at most half of them",
            fix="look at less alike structures",
        )
    logs = np.sort(np.log(found[apart, 1] / found[apart, 0]))
    n = len(logs)
    kept = int(_KEPT_SHARE * n)
    total = float(logs[:kept].sum() + (n - kept) * logs[kept - 1])
    if not total > 0:
        raise TetherError(
            "first and second neighbours are equally far everywhere",
            expected="points that lie irregularly",
            fix="none: points on a lattice have no dimension in this sense",
        )
    return (kept - 1) / total

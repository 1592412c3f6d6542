"""How alike two feature sets of the same points are, whatever their rotation: debiased CKA."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tether.collapse.checks import as_features, check_spread
from tether.errors import TetherError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["debiased_cka"]


def debiased_cka(before: ArrayLike, after: ArrayLike) -> float:
    r"""Linear centred kernel alignment with the unbiased estimator of HSIC.

    .. math::
        \frac{H(X, Y)}{\sqrt{H(X, X) H(Y, Y)}}, \qquad
        H(X, Y) = \lVert X^\top Y \rVert_F^2
        - \frac{n}{n - 2} \sum_i \lVert x_i \rVert^2 \lVert y_i \rVert^2
        + \frac{\lVert X \rVert_F^2 \lVert Y \rVert_F^2}{(n - 1)(n - 2)}

    for centred X and Y, which is Song's U-statistic without any n × n matrix. The plain estimator
    calls unrelated features alike when there are few points; this one is 0 on average. Unchanged
    by rotation, shift and scaling of either side.

    Parameters
    ----------
    before, after : array, shape (n, n_features) and (n, m_features)
        Two feature sets of the same points, row by row.

    Returns
    -------
    float
        At most about 1; 1 = alike up to rotation and scale, around 0 = unrelated. Exactly 1 for
        equal arrays.

    Raises
    ------
    TetherError
        For other numbers of rows, fewer than 4 points, features that coincide in one point or are
        noise only (no positive HSIC with themselves), or values that are not finite.

    References
    ----------
    Kornblith et al., ICML 2019 (arXiv 1905.00414); Song et al., JMLR 13, 1393 (2012); Nguyen et
    al., ICLR 2021 (arXiv 2010.15327).
    """
    x, y = as_features(before, "before", least=4), as_features(after, "after", least=4)
    if len(x) != len(y):
        raise TetherError(
            f"`before` has {len(x)} points and `after` {len(y)}",
            expected="the same points",
            fix="extract both from the same atoms",
        )
    # One scale for a side changes nothing but keeps fourth powers in range.
    x = (x - x.mean(axis=0)) / check_spread(x, "before")
    y = (y - y.mean(axis=0)) / check_spread(y, "after")
    cross, own_x, own_y = _hsic(x, y), _hsic(x, x), _hsic(y, y)
    if not (own_x > 0 and own_y > 0):
        raise TetherError(
            "the features' similarity to themselves is not above what noise gives",
            expected="more points, or features with structure",
            fix="look at more atoms",
        )
    return float(cross / np.sqrt(own_x * own_y))


def _hsic(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """H of `debiased_cka`, for centred arrays."""
    n = len(x)
    # A copy, so that X'X takes the same path through BLAS as X'Y: equal arrays give exactly 1.
    product = x.T @ y.copy()
    rows_x, rows_y = (np.einsum("ij,ij->i", a, a) for a in (x, y))
    bias = n / (n - 2) * (rows_x @ rows_y) - rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2))
    return float(np.sum(product * product) - bias)

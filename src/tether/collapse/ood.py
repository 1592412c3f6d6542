"""OOD detection: AUROC of the distance to training structures in feature space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from tether.collapse.checks import as_features, check_same_width, check_spread
from tether.errors import TetherError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Detection", "auroc", "knn_distance", "ood_auroc"]


@dataclass(frozen=True)
class Detection:
    """AUROC with DeLong's interval.

    Attributes
    ----------
    value : float
        0.5 = cannot tell, 1 = always.
    low, high : float
        Ends of the interval, no further than 0 and 1.
    half_width : float
        Of the interval before it is cut off there. 0 where the variance is 0: where scores are told
        apart without an error (or are all tied), the structures at hand do not say how rare errors
        are, and ``[1, 1]`` is no interval of the AUROC of others.
    """

    value: float
    low: float
    high: float
    half_width: float


def ood_auroc(train: ArrayLike, inside: ArrayLike, outside: ArrayLike, *, k: int = 10) -> Detection:
    """AUROC of the distance to training structures as a detector of OOD structures.

    It needs to be known which structures are OOD, not their labels. Standardising column by column
    makes it depend on the axes: it is not quite unchanged by a rotation.

    Parameters
    ----------
    train : array, shape (n_train, n_features)
        Fingerprints of training structures.
    inside, outside : array, shape (n, n_features) and (m, n_features)
        Fingerprints of held-out structures inside and outside the distribution.
    k : int
        Neighbours, see `knn_distance`.

    Returns
    -------
    Detection
        With the 95 % interval over test structures.

    Raises
    ------
    TetherError
        See `knn_distance` and `auroc`.

    References
    ----------
    Sun et al., Out-of-distribution detection with deep nearest neighbors, ICML 2022
    (arXiv 2204.06507).
    """
    return auroc(knn_distance(train, inside, k=k), knn_distance(train, outside, k=k))


def knn_distance(train: ArrayLike, points: ArrayLike, *, k: int = 10) -> NDArray[np.float64]:
    """Mean distance of points to their nearest training points.

    Features are standardised with mean and deviation of `train`, column by column; columns that
    are constant there are left out.

    Parameters
    ----------
    train : array, shape (n_train, n_features)
        Training fingerprints.
    points : array, shape (n, n_features)
        Fingerprints.
    k : int
        Neighbours.

    Returns
    -------
    ndarray, shape (n,)
        In standard deviations of the training fingerprints.

    Raises
    ------
    TetherError
        For fewer than `k` training points, widths that differ, training points that coincide, or
        values that are not finite.
    """
    from sklearn.neighbors import NearestNeighbors

    if k < 1:
        raise TetherError(f"`k` is {k}", expected="at least 1 neighbour", fix="k=10")
    known = as_features(train, "train", least=max(k, 2))
    x = as_features(points, "points", least=1)
    check_same_width(known, x)
    spread = check_spread(known, "train")
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    used = deviation > 1e-6 * spread / np.sqrt(known.shape[1])
    known, x = ((a[:, used] - mean[used]) / deviation[used] for a in (known, x))
    finder = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(known)
    found: NDArray[np.float64] = finder.kneighbors(x)[0].mean(axis=1)
    return found


def auroc(inside: ArrayLike, outside: ArrayLike, *, level: float = 0.95) -> Detection:
    r"""Probability that a score outside is above one inside, ties counting half.

    The interval is DeLong's: the variance is that of the mean placements of both sides,
    :math:`\mathrm{var}(V_{10})/m + \mathrm{var}(V_{01})/n`.

    Parameters
    ----------
    inside, outside : array, shape (n,) and (m,)
        Scores.
    level : float
        Coverage of the interval.

    Returns
    -------
    Detection
        Value and interval.

    Raises
    ------
    TetherError
        For fewer than two scores on a side, or scores that are not finite.

    References
    ----------
    DeLong, DeLong and Clarke-Pearson, Biometrics 44, 837 (1988).

    Examples
    --------
    >>> auroc([1.0, 2, 3], [2.0, 4, 5]).value.__round__(4)
    0.8333
    """
    a, b = (np.asarray(s, dtype=np.float64) for s in (inside, outside))
    for name, side in (("inside", a), ("outside", b)):
        if side.ndim != 1 or len(side) < 2 or not np.isfinite(side).all():
            raise TetherError(
                f"`{name}` has shape {side.shape} with "
                f"{int(side.size - np.isfinite(side).sum())} value(s) that are not finite",
                expected="at least two finite scores",
                fix="evaluate more structures",
            )
    # Share of the other side that lies below, ties half: from ranks, without an n × m matrix.
    placements = [
        (
            np.searchsorted(np.sort(there), here, "left")
            + np.searchsorted(np.sort(there), here, "right")
        )
        / (2 * len(there))
        for here, there in ((b, a), (a, b))
    ]
    value = float(placements[0].mean())
    variance = sum(float(p.var(ddof=1)) / len(p) for p in placements)
    width = float(stats.norm.ppf((1 + level) / 2)) * variance**0.5
    return Detection(value, max(0.0, value - width), min(1.0, value + width), width)

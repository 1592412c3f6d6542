r"""Intervals and nulls from random halves of the structures.

Drawing points *with* repeats, as a bootstrap does, biases every measure made of distances between
points: a point's double is its nearest neighbour, and lies at distance 0 in transport. So
structures are drawn without repeats. A random split gives two disjoint halves A and B, and a
measure :math:`\theta` is taken on each. Half their difference

.. math:: \delta = (\theta_A - \theta_B) / 2

has mean 0, and the variance that :math:`\theta` of *all* structures has: halves have twice its
variance, their difference four times, and the 2 takes those away. Whatever bias the measure has at
a given number of points is the same in both halves and drops out. So

* the 95 % interval is :math:`\theta \pm t \, \mathrm{rms}(\delta)`, with Student's t of
  :math:`1 / (1 / (G - 1) + 1 / S)` degrees of freedom for G structures and S splits, both of which
  leave the rms uncertain;
* the null of a measure of one feature set — the value that *other* structures, as many, would have
  given in the pretrained features — is :math:`\theta_0 \pm t \sqrt2 \, \mathrm{rms}(\delta_0)`.

Atoms of one structure are alike, which is why structures are drawn and not atoms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from tether.collapse.checks import as_groups
from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

__all__ = ["half_differences", "half_width", "some_groups", "split_halves"]

#: Fewest groups and fewest usable splits for which an interval is given.
MIN_GROUPS = 4
MIN_SPLITS = 4


def split_halves(
    groups: ArrayLike, *, n_splits: int = 20, seed: int = 0
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Random halves of the groups, each with the points of its groups.

    Parameters
    ----------
    groups : array, shape (n,)
        Structure of each point.
    n_splits : int
        How many.
    seed : int
        Of the draws.

    Returns
    -------
    list of (ndarray, ndarray)
        Points of the first and of the second half, ascending; disjoint, together all points (but
        for one group where their number is odd).

    Raises
    ------
    TetherError
        For fewer than `MIN_GROUPS` groups.

    Examples
    --------
    >>> first, second = split_halves([0, 0, 1, 1, 2, 2, 3, 3], n_splits=1)[0]
    >>> len(first), len(second), sorted([*first.tolist(), *second.tolist()])
    (4, 4, [0, 1, 2, 3, 4, 5, 6, 7])
    """
    group = as_groups(groups, len(np.asarray(groups)))
    n_groups = int(group.max()) + 1 if len(group) else 0
    if n_groups < MIN_GROUPS:
        raise TetherError(
            f"the points are of {n_groups} structure(s)",
            expected=f"at least {MIN_GROUPS}",
            fix="look at atoms of more structures",
        )
    generator = np.random.default_rng(seed)
    half = n_groups // 2
    halves = []
    for _ in range(n_splits):
        rank = generator.permutation(n_groups)[group]
        halves.append(
            (np.flatnonzero(rank < half), np.flatnonzero((rank >= half) & (rank < 2 * half)))
        )
    return halves


def half_differences(
    statistic: Callable[[NDArray[np.intp]], ArrayLike],
    halves: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
) -> NDArray[np.float64]:
    """Half the difference of statistics between the two halves of each split.

    Parameters
    ----------
    statistic : callable
        Takes the points of one half, returns one value or several; NaN where not computable.
    halves : list of (ndarray, ndarray)
        From `split_halves`.

    Returns
    -------
    ndarray, shape (n_splits, n_values)
        Deviates with the spread of the statistics of all points.
    """
    pairs = [[np.atleast_1d(statistic(half)) for half in pair] for pair in halves]
    return np.array([(first - second) / 2 for first, second in pairs], dtype=np.float64)


def half_width(
    differences: NDArray[np.float64], n_groups: int, *, level: float = 0.95
) -> NDArray[np.float64]:
    """Half the width of the interval around each statistic.

    Parameters
    ----------
    differences : ndarray, shape (n_splits, n_values)
        From `half_differences`.
    n_groups : int
        Structures in both halves.
    level : float
        Coverage.

    Returns
    -------
    ndarray, shape (n_values,)
        NaN where fewer than `MIN_SPLITS` splits gave a value.

    Examples
    --------
    >>> half_width(np.array([[1.0], [-1], [1], [-1]]), 1001).round(2)  # 4 splits: 2.78 = t of 4
    array([2.78])
    """
    usable = np.isfinite(differences)
    n = usable.sum(axis=0)
    freedom = 1 / (1 / (n_groups - 1) + 1 / np.maximum(n, 1))
    squares = np.sum(np.where(usable, differences, 0) ** 2, axis=0)
    rms = np.sqrt(squares / np.maximum(n, 1))
    return np.where(n >= MIN_SPLITS, stats.t.ppf((1 + level) / 2, freedom) * rms, np.nan)


def some_groups(groups: ArrayLike, most: int, *, seed: int = 0) -> NDArray[np.intp]:
    """Points of randomly drawn whole groups, at most so many.

    Parameters
    ----------
    groups : array, shape (n,)
        Structure of each point.
    most : int
        Points.
    seed : int
        Of the draw.

    Returns
    -------
    ndarray, shape (at most `most`,)
        Points, ascending; all of them where there are no more.

    Raises
    ------
    TetherError
        When no group is as small as `most`.
    """
    group = as_groups(groups, len(np.asarray(groups)))
    if len(group) <= most:
        return np.arange(len(group))
    counts = np.bincount(group)
    order = np.random.default_rng(seed).permutation(len(counts))
    taken = order[np.cumsum(counts[order]) <= most]
    if not len(taken):
        raise TetherError(
            f"a structure has {int(counts[order[0]])} points",
            expected=f"at most {most}",
            fix="sample fewer atoms of each structure",
        )
    return np.flatnonzero(np.isin(group, taken))

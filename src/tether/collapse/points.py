"""Feature sets with what is known of their points, and intervals of anything measured on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tether.collapse.checks import as_features, as_groups
from tether.collapse.distances import pair_distances
from tether.collapse.intervals import half_differences, half_width, some_groups, split_halves
from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

__all__ = ["N_SPLITS", "Points", "interval_width", "pair_points", "some_points"]

#: Splits in halves, for an interval and for a null.
N_SPLITS = 20


@dataclass(frozen=True)
class Points:
    """Features of points; the distances between all of them are computed when asked for.

    Attributes
    ----------
    features : ndarray, shape (n, n_features), float64
        One row a point.
    classes : ndarray of str, shape (n,)
        Class of each point.
    groups : ndarray, shape (n,)
        Number of each point's structure.
    """

    features: NDArray[np.float64]
    classes: NDArray[np.str_]
    groups: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def distances(self) -> NDArray[np.float64]:
        """Distances between all points, shape (n, n)."""
        return pair_distances(as_features(self.features))

    @property
    def n_groups(self) -> int:
        """Number of structures."""
        return len(np.unique(self.groups))

    def take(self, idx: NDArray[np.intp]) -> Points:
        """Some of the points.

        Parameters
        ----------
        idx : ndarray of int
            Which.

        Returns
        -------
        Points
            In that order.
        """
        return Points(self.features[idx], self.classes[idx], self.groups[idx])

    def of_known_classes(self, least: int) -> NDArray[np.intp]:
        """Points of classes that have enough of them.

        Parameters
        ----------
        least : int
            Enough.

        Returns
        -------
        ndarray of int
            Points, ascending.
        """
        _, codes, counts = np.unique(self.classes, return_inverse=True, return_counts=True)
        return np.flatnonzero(counts[codes] >= least)


def pair_points(
    before: ArrayLike, after: ArrayLike, labels: ArrayLike, groups: ArrayLike | None
) -> tuple[Points, Points]:
    """Two feature sets of the same points; what is in the features is not looked at.

    Parameters
    ----------
    before, after : array, shape (n, n_features)
        Pretrained and adapted features.
    labels : array of str, shape (n,)
        Class of each point.
    groups : array, shape (n,), or None
        Structure of each point.

    Returns
    -------
    before, after : Points
        With the same classes and groups.

    Raises
    ------
    TetherError
        For shapes that do not fit.
    """
    x, y = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    classes = np.asarray(labels).astype(np.str_)
    if x.ndim != 2 or x.shape != y.shape or classes.shape != x.shape[:1]:
        raise TetherError(
            f"`before` has shape {x.shape}, `after` {y.shape} and `labels` {classes.shape}",
            expected="(n, n_features) twice and (n,)",
            fix="extract the same layer of the same atoms from both models",
        )
    group = as_groups(groups, len(x))
    return Points(x, classes, group), Points(y, classes, group)


def some_points(before: Points, after: Points, most: int, *, seed: int) -> tuple[Points, Points]:
    """At most so many points, of whole structures where that is possible.

    Parameters
    ----------
    before, after : Points
        Two feature sets of the same points.
    most : int
        Points.
    seed : int
        Of the draw.

    Returns
    -------
    before, after : Points
        The same points of both.
    """
    try:
        idx = some_groups(before.groups, most, seed=seed)
    except TetherError:
        # No structure is small enough to be kept whole.
        idx = np.sort(np.random.default_rng(seed).permutation(len(before))[:most])
    return before.take(idx), after.take(idx)


def interval_width(
    statistic: Callable[[NDArray[np.intp]], ArrayLike], points: Points, *, n_values: int, seed: int
) -> NDArray[np.float64]:
    """Half the width of the 95 % interval of statistics, see `tether.collapse.intervals`.

    Parameters
    ----------
    statistic : callable
        Takes numbers of points, returns one value or several; NaN where not computable.
    points : Points
        Say which points belong together.
    n_values : int
        Values that `statistic` returns.
    seed : int
        Of the splits.

    Returns
    -------
    ndarray, shape (n_values,)
        NaN where there are too few structures for an interval.
    """
    try:
        halves = split_halves(points.groups, n_splits=N_SPLITS, seed=seed)
    except TetherError:
        return np.full(n_values, np.nan)
    return half_width(half_differences(statistic, halves), points.n_groups)

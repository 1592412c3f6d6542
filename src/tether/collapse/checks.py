"""What every measure asks of its arrays before it counts anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tether.errors import TetherError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["as_classes", "as_features", "as_groups", "check_same_width", "check_spread"]

#: Features are float32: points nearer than this share of their spread are one point.
SAME_POINT = 1e-6


def as_features(
    features: ArrayLike, name: str = "features", *, least: int = 2
) -> NDArray[np.float64]:
    """Features as doubles, or an error.

    Parameters
    ----------
    features : array, shape (n, n_features)
        One row a point.
    name : str
        For the error.
    least : int
        Fewest points that the measure can work with.

    Returns
    -------
    ndarray, shape (n, n_features), float64
        The same numbers.

    Raises
    ------
    TetherError
        For another number of axes, no columns, too few points, or a value that is not finite.
    """
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise TetherError(
            f"`{name}` has shape {array.shape}",
            expected="one row a point and one column a feature",
            fix="pass an array of shape (n, n_features)",
        )
    if len(array) < least:
        raise TetherError(
            f"`{name}` has {len(array)} points",
            expected=f"at least {least}",
            fix="look at more atoms",
        )
    wrong = int(array.size - np.isfinite(array).sum())
    if wrong:
        raise TetherError(
            f"`{name}` has {wrong} value(s) that are not finite, of {array.size}",
            expected="finite features",
            fix="look at the run: its weights may have diverged",
        )
    return array


def as_classes(
    classes: ArrayLike, n: int, *, least: int = 2
) -> tuple[NDArray[np.str_], NDArray[np.intp]]:
    """Class names, sorted, and the number of each point's class.

    Parameters
    ----------
    classes : array of str, shape (n,)
        Class of each point.
    n : int
        Points.
    least : int
        Fewest points that each class must have.

    Returns
    -------
    names : ndarray of str, shape (n_classes,)
        Sorted.
    codes : ndarray, shape (n,)
        Place of each point's class in `names`.

    Raises
    ------
    TetherError
        For another length, a single class, or a class with fewer than `least` points.
    """
    array = np.asarray(classes)
    if array.shape != (n,):
        raise TetherError(
            f"`classes` has shape {array.shape}",
            expected=f"({n},), one class a point",
            fix="pass the classes of exactly these points",
        )
    names, codes, counts = np.unique(array, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise TetherError(
            f"all {n} points are of the class {str(names[0])!r}"
            if n
            else "no class has enough points",
            expected="at least two classes",
            fix="sample atoms of several classes",
        )
    if counts.min() < least:
        rare = names[counts.argmin()]
        raise TetherError(
            f"class {str(rare)!r} has {counts.min()} point(s)",
            expected=f"at least {least} points a class",
            fix="leave rare classes out, or look at more atoms",
        )
    return names.astype(np.str_), codes


def as_groups(groups: ArrayLike | None, n: int) -> NDArray[np.intp]:
    """Number of each point's group, counted from 0 without gaps.

    Parameters
    ----------
    groups : array, shape (n,), or None
        What the points of one group share, such as their structure; None: each is its own.
    n : int
        Points.

    Returns
    -------
    ndarray, shape (n,)
        Group of each point.

    Raises
    ------
    TetherError
        For another length.
    """
    if groups is None:
        return np.arange(n)
    array = np.asarray(groups)
    if array.shape != (n,):
        raise TetherError(
            f"`groups` has shape {array.shape}",
            expected=f"({n},), one group a point",
            fix="pass the structure of each of these points",
        )
    return np.unique(array, return_inverse=True)[1]


def check_same_width(before: NDArray[np.float64], after: NDArray[np.float64]) -> None:
    """Both feature sets must have the same columns.

    Parameters
    ----------
    before, after : ndarray, shape (n, n_features) and (m, n_features)
        Two sets.

    Raises
    ------
    TetherError
        For widths that differ.
    """
    if before.shape[1] != after.shape[1]:
        raise TetherError(
            f"the features have {before.shape[1]} and {after.shape[1]} columns",
            expected="the same width",
            fix="compare the same layer of the same architecture",
        )


def check_spread(features: NDArray[np.float64], name: str = "features") -> float:
    """Root mean squared distance of the points to their mean.

    Parameters
    ----------
    features : ndarray, shape (n, n_features)
        One row a point.
    name : str
        For the error.

    Returns
    -------
    float
        Positive, in the unit of the features.

    Raises
    ------
    TetherError
        When all points coincide within the rounding of float32.
    """
    centred = features - features.mean(axis=0)
    spread = float(np.sqrt(np.mean(np.sum(centred * centred, axis=1))))
    if not spread > SAME_POINT * float(np.abs(features).max()):
        raise TetherError(
            f"all points of `{name}` coincide",
            expected="points that differ",
            fix="none: these features have collapsed to a point, which has no structure to measure",
        )
    return spread

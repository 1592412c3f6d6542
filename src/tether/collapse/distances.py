"""Euclidean distances between all points, in blocks of rows that fit in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["distance_rows", "nearest", "nearest_two_groups", "pair_distances"]

# Numbers held by one block of rows: 64 MiB of doubles.
_BLOCK = 8_388_608


def pair_distances(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances between all points of one set.

    Parameters
    ----------
    features : ndarray, shape (n, n_features), float64
        One row a point.

    Returns
    -------
    ndarray, shape (n, n)
        In the unit of the features; exactly 0 on the diagonal. Right to about 1e-8 of the size of
        the features, for it comes from a matrix product.
    """
    found = np.empty((len(features), len(features)))
    for start, rows in distance_rows(features):
        found[start : start + len(rows)] = rows
    return found


def distance_rows(
    features: NDArray[np.float64], distances: NDArray[np.float64] | None = None
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Blocks of rows of the distance matrix.

    Parameters
    ----------
    features : ndarray, shape (n, n_features), float64
        One row a point.
    distances : ndarray, shape (n, n), optional
        The matrix, where it is there already; it is not changed.

    Yields
    ------
    start : int
        Point of the first row.
    rows : ndarray, shape (n_rows, n)
        Distances of the points from `start` on to all points.

    Raises
    ------
    TetherError
        When `distances` has another shape.
    """
    n = len(features)
    if distances is not None and distances.shape != (n, n):
        raise TetherError(
            f"`distances` has shape {distances.shape}",
            expected=f"({n}, {n})",
            fix="pass pair_distances(features)",
        )
    centred = features - features.mean(axis=0)
    squares = np.einsum("ij,ij->i", centred, centred)
    step = max(1, _BLOCK // n)
    for start in range(0, n, step):
        stop = min(start + step, n)
        if distances is not None:
            yield start, distances[start:stop]
            continue
        rows = centred[start:stop] @ centred.T
        rows *= -2
        rows += squares
        rows += squares[start:stop, None]
        np.maximum(rows, 0, out=rows)
        np.sqrt(rows, out=rows)
        rows[np.arange(stop - start), np.arange(start, stop)] = 0
        yield start, rows


def nearest(
    features: NDArray[np.float64],
    n_nearest: int,
    *,
    groups: NDArray[np.intp],
    distances: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Nearest points of each point that are not of its own group.

    Parameters
    ----------
    features : ndarray, shape (n, n_features), float64
        One row a point.
    n_nearest : int
        How many.
    groups : ndarray, shape (n,)
        Group of each point.
    distances : ndarray, shape (n, n), optional
        See `distance_rows`.

    Returns
    -------
    idx : ndarray, shape (n, n_nearest)
        Nearest first.
    distance : ndarray, shape (n, n_nearest)
        In the unit of the features.

    Raises
    ------
    TetherError
        When some point has fewer than `n_nearest` points outside its group.
    """
    n = len(features)
    outside = n - int(np.bincount(groups).max())
    if outside < n_nearest:
        raise TetherError(
            f"{outside} points lie outside the largest structure",
            expected=f"at least k = {n_nearest}",
            fix="look at atoms of more structures",
        )
    idx = np.empty((n, n_nearest), dtype=np.intp)
    distance = np.empty((n, n_nearest))
    for start, rows in distance_rows(features, distances):
        here = slice(start, start + len(rows))
        masked = np.where(groups[here, None] == groups, np.inf, rows)
        found = np.argpartition(masked, n_nearest - 1, axis=1)[:, :n_nearest]
        length = np.take_along_axis(masked, found, axis=1)
        order = np.argsort(length, axis=1, kind="stable")
        idx[here] = np.take_along_axis(found, order, axis=1)
        distance[here] = np.take_along_axis(length, order, axis=1)
    return idx, distance


def nearest_two_groups(
    features: NDArray[np.float64],
    *,
    groups: NDArray[np.intp],
    distances: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Distance of each point to the two nearest other groups.

    Parameters
    ----------
    features : ndarray, shape (n, n_features), float64
        One row a point.
    groups : ndarray, shape (n,)
        Group of each point.
    distances : ndarray, shape (n, n), optional
        See `distance_rows`.

    Returns
    -------
    ndarray, shape (n, 2)
        Nearest first; the nearest point of each of the two groups counts.

    Raises
    ------
    TetherError
        For fewer than three groups.
    """
    n_groups = len(np.unique(groups))
    if n_groups < 3:
        raise TetherError(
            f"the points are of {n_groups} structure(s)",
            expected="at least 3",
            fix="look at atoms of more structures",
        )
    found = np.empty((len(features), 2))
    for start, rows in distance_rows(features, distances):
        here, each = slice(start, start + len(rows)), np.arange(len(rows))
        masked = np.where(groups[here, None] == groups, np.inf, rows)
        first = masked.argmin(axis=1)
        found[here, 0] = masked[each, first]
        masked[groups[first][:, None] == groups] = np.inf
        found[here, 1] = masked.min(axis=1)
    return found

"""Shares of a batch, about equal in atoms: one for each rank, or for each pass of a step."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["balanced_shares"]


def balanced_shares(sizes: ArrayLike, n_shares: int) -> list[NDArray[np.int64]]:
    """Part structures into shares whose sums of atoms are about equal.

    The largest structure that is left goes to the share with the fewest atoms (R. L. Graham, 1969),
    so that two shares differ by no more than one structure.

    Parameters
    ----------
    sizes : array of int, shape (n_systems,)
        Atoms of each structure.
    n_shares : int
        How many; with fewer structures than shares some are empty.

    Returns
    -------
    list of ndarray of int
        Places in `sizes`, ascending in each share; every place in one of them. A function of its
        arguments alone.

    Examples
    --------
    >>> [share.tolist() for share in balanced_shares([9, 3, 5, 2], 2)]
    [[0], [1, 2, 3]]
    """
    sizes = np.asarray(sizes)
    shares: list[list[int]] = [[] for _ in range(n_shares)]
    # Of shares with equally many atoms the one with fewer structures, then the first.
    lightest = [(0, 0, share) for share in range(n_shares)]
    for place in np.argsort(-sizes, kind="stable").tolist():
        atoms, systems, share = lightest[0]
        shares[share].append(place)
        heapq.heapreplace(lightest, (atoms + int(sizes[place]), systems + 1, share))
    return [np.array(sorted(share), dtype=np.int64) for share in shares]

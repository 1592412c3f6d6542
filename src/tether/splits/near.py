"""Near-duplicates: structures of different sets whose fingerprints all but coincide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree

from tether.errors import TetherError
from tether.splits.cluster import standardised

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tether.splits.split import Split

__all__ = ["NEAR_TOLERANCE", "near_duplicates"]

#: Default tolerance: a hundredth of the spread of the data in each feature.
NEAR_TOLERANCE = 0.01

# A k-d tree is fast in few dimensions only; distances in these bound those in all from below.
_TREE_DIMENSIONS = 8
# Pairs that are in memory at once, 160 MB, and then too many to call them near-duplicates.
_MAX_PAIRS = 10_000_000


def near_duplicates(
    split: Split, fingerprints: ArrayLike, *, tolerance: float = NEAR_TOLERANCE
) -> dict[str, Any]:
    r"""Find pairs of structures in different sets with nearly the same fingerprint.

    The distance is the root mean square difference of the standardised features,

    .. math:: d_{ij} = \sqrt{\frac{1}{D} \sum_k \left(\frac{x_{ik} - x_{jk}}{\sigma_k}\right)^2},

    with :math:`\sigma_k` over all structures of the split: two structures drawn at random are
    :math:`\sqrt 2` apart, and a pair within 0.01 differs by a hundredth of the spread of the data
    in each feature. It does not grow with the number of features. Exact duplicates are counted too.

    Parameters
    ----------
    split : Split
        The sets.
    fingerprints : array, shape (n_systems, n_features)
        One row a structure of the store. What "near" means is theirs to say: with a descriptor of
        the composition, polymorphs are duplicates.
    tolerance : float
        Pairs at this distance or less.

    Returns
    -------
    dict
        ``"tolerance"``, ``"n_features"`` (those that vary) and ``"pairs"``: one entry for each
        two sets that have a pair, with ``"sets"`` (two names), ``"n_pairs"`` and ``"rows"`` (by
        set, all rows that are in a pair).

    Raises
    ------
    TetherError
        For a tolerance that is not positive, fingerprints that do not fit, and more than ten
        million pairs between two sets.
    """
    if not tolerance > 0:
        raise TetherError(
            f"`tolerance` is {tolerance}", expected="a positive number", fix="tolerance=0.01"
        )
    table = np.asarray(fingerprints, dtype=np.float64)
    last = max(int(rows[-1]) for rows in split.indices.values())
    n_systems = split.store.n_systems or last + 1
    if len(table) < n_systems or table.ndim != 2:
        raise TetherError(
            f"fingerprints have shape {table.shape}",
            expected=f"({n_systems}, n_features)",
            fix="give one row for each structure of the store",
        )
    used = np.concatenate(list(split.indices.values()))
    scaled = standardised(table[used])
    reach = tolerance * np.sqrt(scaled.shape[1])
    bounds = np.cumsum([len(rows) for rows in split.indices.values()])[:-1]
    points = dict(zip(split.indices, np.split(scaled, bounds), strict=True))
    projected = np.split(_leading_axes(scaled), bounds)
    trees = dict(zip(split.indices, map(cKDTree, projected), strict=True))
    names, found = list(split.indices), []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            one, two = _close_pairs(
                (trees[first], points[first]),
                (trees[second], points[second]),
                reach,
                (first, second),
            )
            if len(one):
                rows = {
                    name: split.indices[name][np.unique(members)].tolist()
                    for name, members in ((first, one), (second, two))
                }
                found.append({"sets": [first, second], "n_pairs": len(one), "rows": rows})
    return {"tolerance": tolerance, "n_features": scaled.shape[1], "pairs": found}


def _leading_axes(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Project on the axes of largest variance; that never makes a distance larger."""
    if points.shape[1] <= _TREE_DIMENSIONS:
        return points
    _, axes = np.linalg.eigh(points.T @ points)
    return np.asarray(points @ axes[:, -_TREE_DIMENSIONS:], dtype=np.float64)


def _close_pairs(
    one: tuple[Any, NDArray[np.float64]],
    two: tuple[Any, NDArray[np.float64]],
    reach: float,
    names: tuple[str, str],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # Rounding may lift a projected distance by a hair above the true one.
    wide = reach * (1 + 1e-9)
    n_candidates = int(one[0].count_neighbors(two[0], wide))
    if n_candidates > _MAX_PAIRS:
        raise TetherError(
            f"{n_candidates:,} pairs of {names[0]!r} and {names[1]!r} may be near-duplicates",
            expected=f"at most {_MAX_PAIRS:,}",
            fix="lower the tolerance, give fingerprints that tell these structures apart, or do "
            "not look for near-duplicates (--near 0)",
        )
    pairs = one[0].sparse_distance_matrix(two[0], wide, output_type="ndarray")
    first, second = pairs["i"].astype(np.int64), pairs["j"].astype(np.int64)
    near = np.zeros(len(first), dtype=bool)
    step = max(1, _MAX_PAIRS // one[1].shape[1])
    for start in range(0, len(first), step):
        piece = slice(start, start + step)
        difference = one[1][first[piece]] - two[1][second[piece]]
        near[piece] = np.einsum("pk,pk->p", difference, difference) <= reach**2
    return first[near], second[near]

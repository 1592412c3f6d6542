"""What a split does not say of itself: shared structures, and how far OOD reaches beyond ID."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from tether.splits.split import Split

__all__ = ["extrapolation_report", "leakage_report", "structure_hashes"]

# Shifts the rounding grid, so that values which people like (0, 0.5, 1.2345) are not on an edge,
# where the last bit would decide.
_GRID_SHIFT = 0.28711


def structure_hashes(
    numbers: ArrayLike,
    positions: ArrayLike,
    ptr: ArrayLike,
    *,
    decimals: int = 3,
    cell: ArrayLike | None = None,
) -> NDArray[np.int64]:
    r"""One number a structure, equal for equal structures.

    Invariant to the order of atoms, to translation, rotation and reflection. Each atom gives its
    element and three invariants about the centroid, rounded: :math:`r_i`,
    :math:`\sum_{ab} S_{ab} x_a x_b / \operatorname{tr} S` and
    :math:`\sum_{abc} T_{abc} x_a x_b x_c / \sum_j Z_j r_j^3`, with the moments
    :math:`S = \sum_j Z_j x_j x_j` and :math:`T = \sum_j Z_j x_j x_j x_j`. The third tells
    conformers apart that differ by a rotation about a symmetric axis, which distances from the
    centroid do not. A structure's hash is the sum of its atoms' 64-bit hashes.

    Meant for *exact* duplicates. A copy whose coordinates differ by δ is missed with a chance of
    about ``n_atoms * δ * 10**decimals``: negligible for a rotation in double precision, not for one
    stored in single. Mirror images count as equal. Periodic structures need their `cell` and are
    equal only in the same setting of it (same origin up to translation, same images of the atoms).

    Parameters
    ----------
    numbers : array, shape (n_atoms,)
        Atomic numbers.
    positions : array, shape (n_atoms, 3)
        Å.
    ptr : array, shape (n_systems + 1,)
        Offsets: the atoms of system s are ``ptr[s]:ptr[s + 1]``.
    decimals : int
        Digits of the rounding: 3 is 0.001 Å for the distances.
    cell : array, shape (n_systems, 3, 3), optional
        Lattice vectors as rows, Å; their metric tensor enters the hash. Zero where there is none.

    Returns
    -------
    array, shape (n_systems,), int64
        Hashes, the same on every machine.

    Raises
    ------
    TetherError
        For arrays that do not fit each other.
    """
    numbers = np.asarray(numbers, dtype=np.int64)
    positions = np.asarray(positions, dtype=np.float64)
    ptr = np.asarray(ptr, dtype=np.int64)
    _check_ragged(numbers, positions, ptr)
    system = np.repeat(np.arange(len(ptr) - 1), np.diff(ptr))
    features = _atom_invariants(numbers, positions, system, len(ptr) - 1)
    words = [numbers, *_rounded(features, decimals).T]
    running = np.zeros(len(numbers) + 1, dtype=np.uint64)
    np.cumsum(_mix(words), out=running[1:])
    # Differences of a wrapped running sum are exact modulo 2**64, and right for empty systems.
    total: NDArray[np.uint64] = running[ptr[1:]] - running[ptr[:-1]]
    if cell is not None:
        lattice = np.asarray(cell, dtype=np.float64).reshape(len(ptr) - 1, 3, 3)
        metric = (lattice @ lattice.transpose(0, 2, 1))[:, *np.triu_indices(3)]
        total = total + _mix(list(_rounded(metric, decimals).T))
    hashes: NDArray[np.int64] = total.view(np.int64)
    return hashes


def _atom_invariants(
    numbers: NDArray[np.int64],
    positions: NDArray[np.float64],
    system: NDArray[np.int64],
    n_systems: int,
) -> NDArray[np.float64]:
    def per_system(atom_values: NDArray[np.float64]) -> NDArray[np.float64]:
        sums = np.bincount(system, weights=atom_values, minlength=n_systems)
        # Without any atom numpy forgets the weights and counts in integers.
        return sums.astype(np.float64)

    counts = np.maximum(per_system(np.ones(len(system))), 1.0)
    centroid = np.stack([per_system(positions[:, a]) / counts for a in range(3)], axis=1)
    x = positions - centroid[system]
    radius = np.sqrt(np.square(x).sum(axis=1))
    second = np.zeros(len(system))
    third = np.zeros(len(system))
    for a in range(3):
        for b in range(a, 3):
            pair = x[:, a] * x[:, b]
            # Off-diagonal elements of a symmetric tensor occur several times in the contraction.
            second += (1 if a == b else 2) * per_system(numbers * pair)[system] * pair
            for c in range(b, 3):
                repeats = {1: 1, 2: 3, 3: 6}[len({a, b, c})]
                triple = pair * x[:, c]
                third += repeats * per_system(numbers * triple)[system] * triple
    trace = per_system(numbers * radius**2)[system]
    cube = per_system(numbers * radius**3)[system]
    second = np.divide(second, trace, out=np.zeros_like(second), where=trace > 0)
    third = np.divide(third, cube, out=np.zeros_like(third), where=cube > 0)
    return np.stack([radius, second, third], axis=1)


def _rounded(values: NDArray[np.float64], decimals: int) -> NDArray[np.int64]:
    return np.rint(values * 10.0**decimals + _GRID_SHIFT).astype(np.int64)


def _mix(words: Sequence[NDArray[np.int64]]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele et al. 2014) over the words of each row."""
    state = np.full(len(words[0]), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for word in words:
        state = state + word.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def _check_ragged(
    numbers: NDArray[np.int64], positions: NDArray[np.float64], ptr: NDArray[np.int64]
) -> None:
    if positions.shape != (len(numbers), 3):
        raise TetherError(
            f"`positions` has shape {positions.shape}",
            expected=f"({len(numbers)}, 3) for {len(numbers)} atomic numbers",
            fix="pass flat arrays of the same atoms",
        )
    if not len(ptr) or ptr[0] != 0 or ptr[-1] != len(numbers) or np.any(np.diff(ptr) < 0):
        raise TetherError(
            f"`ptr` runs from {ptr[:1].tolist()} to {ptr[-1:].tolist()}",
            expected=f"offsets that rise from 0 to {len(numbers)}",
            fix="pass the ptr of the batch",
        )


def leakage_report(split: Split, hashes: ArrayLike) -> dict[str, Any]:
    """Find structures that occur in more than one set, or more than once in a set.

    Parameters
    ----------
    split : Split
        The sets.
    hashes : array, shape (n_systems,) or (n_systems, n_kinds)
        One hashable a row of the store, equal for equal structures: `structure_hashes`, SMILES, …
        Structures that are equal in one of several kinds of hash are equal.

    Returns
    -------
    dict
        ``"pairs"``: one entry for each pair of sets that share a structure, with ``"sets"`` (two
        names), ``"n_structures"`` (different structures shared) and ``"rows"`` (by set, all rows
        that carry them); ``"n_repeats"``: by set, rows beyond the first of each structure.

    Raises
    ------
    TetherError
        When there are fewer hashes than rows.
    """
    array = np.asarray(hashes)
    last = max(int(rows[-1]) for rows in split.indices.values())
    if len(array) <= last or (split.store.n_systems or len(array)) != len(array):
        raise TetherError(
            f"there are {len(array)} hashes for {split.store.n_systems or last + 1} structures",
            expected="one a structure",
            fix="hash the whole store",
        )
    codes = _codes(array)
    by_set = {name: codes[rows] for name, rows in split.indices.items()}
    names = list(by_set)
    pairs = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = np.intersect1d(by_set[first], by_set[second])
            if len(shared):
                rows = {
                    name: split.indices[name][np.isin(by_set[name], shared)].tolist()
                    for name in (first, second)
                }
                entry = {"sets": [first, second], "n_structures": len(shared), "rows": rows}
                pairs.append(entry)
    repeats = {name: len(code) - len(np.unique(code)) for name, code in by_set.items()}
    return {"pairs": pairs, "n_repeats": repeats}


def _codes(hashes: NDArray[Any]) -> NDArray[np.int64]:
    if hashes.ndim == 2:
        return _linked(hashes)
    if hashes.dtype != object:
        return np.unique(hashes, return_inverse=True)[1].reshape(-1).astype(np.int64)
    # Objects need not be sortable, only hashable.
    known: dict[object, int] = {}
    return np.array([known.setdefault(h, len(known)) for h in hashes], dtype=np.int64)


def _linked(hashes: NDArray[Any]) -> NDArray[np.int64]:
    """Component of each row, where rows that share a hash of one kind are linked."""
    n_rows, n_kinds = hashes.shape
    codes = [_codes(column) for column in hashes.T]
    offsets = n_rows + np.cumsum([0, *(int(code.max(initial=-1)) + 1 for code in codes)])
    nodes = np.concatenate([code + start for code, start in zip(codes, offsets, strict=False)])
    links = (np.ones(len(nodes), dtype=np.int8), (np.tile(np.arange(n_rows), n_kinds), nodes))
    graph = coo_array(links, shape=(offsets[-1], offsets[-1]))
    components: NDArray[np.int64] = connected_components(graph, directed=False)[1][:n_rows]
    return components


def extrapolation_report(split: Split, values: ArrayLike) -> dict[str, Any]:
    """Say how many points of each set lie outside the range of the training values.

    Parameters
    ----------
    split : Split
        With a "train" set.
    values : array, shape (n_systems,)
        The property; rows of the sets must be labelled.

    Returns
    -------
    dict
        ``"id_low"``, ``"id_high"``: range of "train"; ``"sets"``: by set ``n, low, high, mean,
        n_below, n_above, n_outside, fraction_outside``.

    Raises
    ------
    TetherError
        Without "train", for values that are no scalars, and for unlabelled rows in a set.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or "train" not in split.indices:
        raise TetherError(
            f"values of shape {array.shape} and sets {', '.join(split.indices)}",
            expected="one number a structure and a set `train`",
            fix="report the range of scalar targets only",
        )
    train = array[split.indices["train"]]
    low, high = float(train.min()), float(train.max())
    sets = {}
    for name, rows in split.indices.items():
        these = array[rows]
        if np.isnan(these).any():
            raise TetherError(
                f"set {name!r} has {int(np.isnan(these).sum())} unlabelled row(s)",
                expected="labelled rows only",
                fix="make the split for this target",
            )
        below, above = int((these < low).sum()), int((these > high).sum())
        sets[name] = {
            "n": len(these),
            "low": float(these.min()),
            "high": float(these.max()),
            "mean": float(these.mean()),
            "n_below": below,
            "n_above": above,
            "n_outside": below + above,
            "fraction_outside": (below + above) / len(these),
        }
    return {"id_low": low, "id_high": high, "sets": sets}

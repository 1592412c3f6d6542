"""Overlap with what a backbone was pretrained on: structures that are not new to it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.errors import TetherError
from tether.splits.elements import element_pairs
from tether.splits.leakage import leakage_report
from tether.splits.near import near_duplicates

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tether.splits.split import Split
    from tether.splits.table import Table

__all__ = ["composition_codes", "overlap_report"]

# A set of a split has to have a name that one may have.
_NAME = "test/pretraining"


def composition_codes(numbers: ArrayLike, ptr: ArrayLike) -> NDArray[np.void]:
    """Name each structure's composition: its elements in their smallest whole ratio.

    Parameters
    ----------
    numbers : array of int, shape (n_atoms,)
        Atomic numbers, 1 to 118.
    ptr : array of int, shape (n_systems + 1,)
        Offsets of the structures.

    Returns
    -------
    array of bytes, shape (n_systems,)
        Equal for equal compositions, in any set: Si2 and Si8 are the same, as the primitive and
        the conventional cell of a crystal should be.
    """
    system, element, count = element_pairs(numbers, ptr)
    counts = np.zeros((len(np.asarray(ptr)) - 1, 119), dtype=np.int32)
    counts[system, element] = count
    divisor = np.maximum(1, np.gcd.reduce(counts, axis=1, keepdims=True))
    # One opaque value a row: numpy can sort it, compare it and look it up.
    reduced = np.ascontiguousarray(counts // divisor)
    return reduced.view(np.dtype((np.void, reduced.itemsize * reduced.shape[1]))).reshape(-1)


def overlap_report(
    split: Split, table: Table, pretraining: Table, *, near: float | None = None
) -> dict[str, Any]:
    """Count the structures of each set that a backbone has seen in pretraining.

    Their property labels it has not seen. A test set whose structures are in the pretraining set
    is no less a test of the property, but it is none of how the backbone does on new structures.

    Parameters
    ----------
    split : Split
        The sets.
    table : Table
        What it was made from: hashes, and compositions; descriptors for near-duplicates.
    pretraining : Table
        The same columns of the pretraining structures, or of a sample of them.
    near : float, optional
        Tolerance of near-duplicates, see `near_duplicates`; None = do not look for them.

    Returns
    -------
    dict
        ``n_pretraining``, and ``sets``: by set ``n`` and how many have the ``same_structure``
        (equal hash), the ``same_composition`` and, where asked for, a ``near_duplicate`` among
        the pretraining structures.

    Raises
    ------
    TetherError
        For a table without hashes or compositions, or without the descriptors of the other.
    """
    for name in ("hashes", "compositions", *(["descriptors"] if near is not None else [])):
        if getattr(table, name) is None or getattr(pretraining, name) is None:
            raise TetherError(
                f"a table has no {name}",
                expected=f"{name} of the store and of the pretraining structures",
                fix="make both with split_table(..., compositions=True) and the same descriptors",
            )
    n, more = table.n_systems, pretraining.n_systems
    both = replace(
        split,
        indices={**split.indices, _NAME: np.arange(n, n + more)},
        store=replace(split.store, n_systems=n + more),
    )
    found = {
        "same_structure": leakage_report(both, _joined(table.hashes, pretraining.hashes)),
        "same_composition": leakage_report(
            both, _joined(table.compositions, pretraining.compositions)
        ),
    }
    if near is not None:
        descriptors = _joined(table.descriptors, pretraining.descriptors)
        found["near_duplicate"] = near_duplicates(both, descriptors, tolerance=near)
    sets = {name: {"n": size, **dict.fromkeys(found, 0)} for name, size in split.sizes.items()}
    for what, report in found.items():
        for pair in report["pairs"]:
            first, second = pair["sets"]
            if second == _NAME:
                sets[first][what] = len(pair["rows"][first])
    return {"n_pretraining": more, "sets": sets}


def _joined(one: ArrayLike | None, two: ArrayLike | None) -> NDArray[Any]:
    assert one is not None
    assert two is not None
    return np.concatenate([np.asarray(one), np.asarray(two)])

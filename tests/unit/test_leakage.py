"""Hashes of structures, structures shared by sets, and ranges of values."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tether.errors import TetherError
from tether.splits.leakage import extrapolation_report, leakage_report, structure_hashes
from tether.splits.split import Split

if TYPE_CHECKING:
    from numpy.typing import NDArray


def molecules(n: int = 50) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(3)
    counts = rng.integers(2, 20, n)  # single atoms of an element are all alike
    ptr = np.concatenate([[0], np.cumsum(counts)])
    return rng.choice([1, 6, 7, 8], ptr[-1]), rng.normal(size=(ptr[-1], 3)) * 2, ptr


def moved(
    numbers: NDArray[Any], positions: NDArray[Any], ptr: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Each molecule rotated, shifted and its atoms shuffled."""
    rng = np.random.default_rng(4)
    pieces = [rng.permutation(np.arange(a, b)) for a, b in itertools.pairwise(ptr)]
    order = np.concatenate(pieces)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return numbers[order], positions[order] @ rotation + [5.0, -3.0, 1.0], ptr


def test_hash_is_invariant() -> None:
    first = structure_hashes(*molecules())
    assert len(np.unique(first)) == 50
    assert (structure_hashes(*moved(*molecules())) == first).all()


def test_hash_does_not_depend_on_the_neighbours_in_the_array() -> None:
    numbers, positions, ptr = molecules()
    alone = [
        structure_hashes(numbers[a:b], positions[a:b], [0, b - a])[0]
        for a, b in itertools.pairwise(ptr)
    ]
    assert (structure_hashes(numbers, positions, ptr) == alone).all()


def test_hash_sees_small_changes() -> None:
    numbers, positions, ptr = molecules()
    nudged = positions.copy()
    nudged[ptr[:-1], 0] += 0.05
    assert (structure_hashes(numbers, nudged, ptr) != structure_hashes(*molecules())).all()
    swapped = numbers.copy()
    swapped[ptr[:-1]] = 9
    assert (structure_hashes(swapped, positions, ptr) != structure_hashes(*molecules())).all()


def test_hash_tells_conformers_with_equal_centroid_distances_apart() -> None:
    def ethane(twist: float) -> NDArray[np.float64]:
        angle = np.arange(3) * 2 * np.pi / 3
        low = np.stack([np.cos(angle), np.sin(angle), np.full(3, -1.16)], axis=1)
        high = np.stack([np.cos(angle + twist), np.sin(angle + twist), np.full(3, 1.16)], axis=1)
        return np.concatenate([[[0, 0, -0.76], [0, 0, 0.76]], low, high])

    numbers = np.array([6, 6, 1, 1, 1, 1, 1, 1] * 2)
    positions = np.concatenate([ethane(0.0), ethane(np.pi / 3)])
    radius = np.linalg.norm(positions, axis=1)
    np.testing.assert_allclose(np.sort(radius[:8]), np.sort(radius[8:]))  # what hides them
    eclipsed, staggered = structure_hashes(numbers, positions, [0, 8, 16])
    assert eclipsed != staggered


def test_hash_of_round_numbers_survives_a_rotation() -> None:
    # Half of 1.401 is 0.7005: on the edge of an unshifted grid.
    angles = np.linspace(0, 3, 200)
    axis = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    positions = np.stack([axis * 0.7005, -axis * 0.7005], axis=1).reshape(-1, 3)
    hashes = structure_hashes(np.ones(400), positions, np.arange(0, 401, 2))
    assert len(np.unique(hashes)) == 1


def test_hash_of_crystals_needs_the_cell() -> None:
    numbers, positions, ptr = np.array([29, 29]), np.zeros((2, 3)), [0, 1, 2]
    cell = np.stack([np.eye(3) * 3.6, np.eye(3) * 3.7])
    assert len(np.unique(structure_hashes(numbers, positions, ptr))) == 1
    assert len(np.unique(structure_hashes(numbers, positions, ptr, cell=cell))) == 2


def test_hash_edge_cases() -> None:
    empty = structure_hashes(np.array([8, 1]), np.eye(3)[:2], [0, 0, 2, 2])
    assert empty[0] == empty[2] != empty[1]
    with pytest.raises(TetherError, match=r"`positions` has shape \(2, 3\)"):
        structure_hashes([1], np.zeros((2, 3)), [0, 1])
    with pytest.raises(TetherError, match="rise from 0 to 2"):
        structure_hashes([1, 1], np.zeros((2, 3)), [0, 1])


@pytest.mark.parametrize("kind", [np.int64, object])
def test_leakage_rows(kind: type) -> None:
    hashes = np.array([7, 8, 7, 9, 8, 7, 1], dtype=kind)
    split = Split("s", "file", {}, {"train": [0, 1, 2], "val": [3, 4], "test/id": [5, 6]})
    report = leakage_report(split, hashes)
    assert report["pairs"] == [
        {"sets": ["train", "val"], "n_structures": 1, "rows": {"train": [1], "val": [4]}},
        {
            "sets": ["train", "test/id"],
            "n_structures": 1,
            "rows": {"train": [0, 2], "test/id": [5]},
        },
    ]
    assert report["n_repeats"] == {"train": 1, "val": 0, "test/id": 0}
    assert leakage_report(split, np.arange(7))["pairs"] == []
    with pytest.raises(TetherError, match="6 hashes for 7 structures"):
        leakage_report(split, hashes[:6])


def test_leakage_by_several_kinds_of_hash() -> None:
    # 0 and 2 agree in the first kind, 2 and 3 in the second: all three are one structure.
    hashes = np.array([[1, 5], [2, 6], [1, 7], [3, 7]])
    split = Split("s", "file", {}, {"train": [0, 1], "test/id": [2, 3]})
    assert leakage_report(split, hashes)["pairs"] == [
        {"sets": ["train", "test/id"], "n_structures": 1, "rows": {"train": [0], "test/id": [2, 3]}}
    ]


def test_extrapolation_counts_both_sides() -> None:
    values = np.array([1.0, 2.0, 3.0, 0.0, 3.5, 2.0, 3.0])
    split = Split("s", "file", {}, {"train": [0, 1, 2], "test/ood": [3, 4, 5, 6]})
    report = extrapolation_report(split, values)
    assert (report["id_low"], report["id_high"]) == (1.0, 3.0)
    row = report["sets"]["test/ood"]
    assert (row["n_below"], row["n_above"], row["fraction_outside"]) == (1, 1, 0.5)
    with pytest.raises(TetherError, match="set 'test/ood' has 1 unlabelled"):
        extrapolation_report(split, np.where(values == 3.5, np.nan, values))

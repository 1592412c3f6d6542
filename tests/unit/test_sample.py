"""Samples: balanced, drawn once, numbered as the stream of structures is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk, molecule

from tether.collapse.classes import PAPER_CLASSES, atom_classes
from tether.data.chunks import Chunk
from tether.data.pieces import pieces
from tether.data.store import Store, write_store
from tether.errors import TetherError
from tether.extract import edge_list
from tether.sample import MAX_CLASSES, MAX_SYSTEMS, sample_atoms, sample_edges, some_rows
from tether.structures import from_ase
from tether.targets import Target
from tether.testing.tiny import TinyBackbone

ROWS = np.arange(3, 36)


@pytest.fixture(scope="module")
def store(workspace: Any) -> Store:
    return Store.open(workspace.store)


def test_atoms_are_numbered_over_their_structures(store: Store) -> None:
    found = sample_atoms(store, ROWS, per_class=8, seed=0)
    assert set(found.rows) <= set(ROWS)
    assert set(found.system) == set(range(len(found.rows)))  # none without a sampled atom
    batch = store.batch(found.rows)
    np.testing.assert_array_equal(found.numbers, batch.numbers)
    np.testing.assert_array_equal(found.ptr, batch.ptr)
    np.testing.assert_array_equal(found.chosen, found.ptr[found.system] + found.atom_idx)
    assert (np.diff(found.chosen) > 0).all()
    classes = atom_classes(found.numbers, batch.positions, found.ptr)
    np.testing.assert_array_equal(found.classes, classes[found.chosen])


def test_classes_are_balanced_and_of_the_paper(store: Store) -> None:
    found = sample_atoms(store, ROWS, per_class=8, seed=0)
    names, counts = np.unique(found.classes, return_counts=True)
    assert set(names) <= set(PAPER_CLASSES)
    assert len(names) > 3
    assert (counts == 8).all()  # rarer ones are left out
    assert len(np.unique(found.system)) > 10  # over many structures, not a few
    most = sample_atoms(store, ROWS, per_class=8, seed=0, most=20)
    assert len(most.chosen) <= 20
    assert set(most.classes) == set(names)


def test_one_water_among_crystals_does_not_hide_their_metal(tmp_path: Path) -> None:
    frames = [bulk("MgO", "rocksalt", a=4.2, cubic=True) for _ in range(5)]
    frames += [molecule("H2O", cell=[9, 9, 9])]
    batch = from_ase(frames, labels={"gap": np.arange(6.0)})
    write_store(tmp_path / "s.arrow", [Chunk(batch, ("x",) * 6)], [Target("gap", unit="eV")])
    mixed = Store.open(tmp_path / "s.arrow")
    found = sample_atoms(mixed, np.arange(6), per_class=12, seed=0)
    elements, counts = np.unique(found.numbers[found.chosen], return_counts=True)
    assert (elements.tolist(), counts.tolist()) == ([8, 12], [12, 12])
    assert found.n_left_out == 2  # H and O2, too few of each
    assert found.share_left_out == pytest.approx(3 / 43)
    # Control: the water alone is of the paper's classes.
    alone = sample_atoms(mixed, np.array([5]), per_class=12, seed=0)
    assert set(alone.classes) == {"H", "O2"}
    assert (alone.n_left_out, alone.share_left_out) == (0, 0.0)


@pytest.mark.parametrize(("per_class", "n_classes"), [(3, 3), (12, 12), (50, MAX_CLASSES)])
def test_of_hundreds_of_classes_the_most_frequent(
    store: Store, monkeypatch: pytest.MonkeyPatch, per_class: int, n_classes: int
) -> None:
    n = store.batch(ROWS).n_atoms
    # Sixty classes, the first ones more frequent.
    code = np.minimum(np.arange(n) % 60, np.arange(n) % 45)
    classes = np.char.add("Mg", code.astype(str))
    monkeypatch.setattr("tether.sample.atom_classes", lambda *_: classes)
    monkeypatch.setattr("tether.sample.LEAST_PER_CLASS", 1 if per_class == 50 else 10)
    found = sample_atoms(store, ROWS, per_class=per_class, seed=0)
    names, counts = np.unique(classes, return_counts=True)
    kept, _ = np.unique(found.classes, return_counts=True)
    assert len(kept) == n_classes
    assert counts[np.isin(names, kept)].min() >= counts[~np.isin(names, kept)].max()
    assert len(found.chosen) <= 10 * per_class
    assert found.n_left_out == len(names) - n_classes
    assert found.share_left_out == pytest.approx(np.mean(~np.isin(classes, kept)))


def test_the_seed_decides(store: Store) -> None:
    one, two, other = (sample_atoms(store, ROWS, per_class=5, seed=s) for s in (0, 0, 1))

    def atoms(found: Any) -> set[tuple[int, int]]:
        return set(zip(found.rows[found.system].tolist(), found.atom_idx.tolist(), strict=True))

    assert atoms(one) == atoms(two)
    assert atoms(one) != atoms(other)


def test_rare_classes_stay_where_nothing_else_is_left(store: Store) -> None:
    found = sample_atoms(store, ROWS[:1], per_class=50, seed=0)
    assert len(found.rows) == 1
    assert len(found.chosen) > 0


def test_edges_are_those_of_the_backbone(store: Store) -> None:
    atoms = sample_atoms(store, ROWS, per_class=8, seed=0)
    known = edge_list(TinyBackbone(n_features=8), pieces(store, 64, indices=atoms.rows))
    assert known is not None
    found = sample_edges(atoms, known, per_class=6, seed=0)
    names, counts = np.unique(found.classes, return_counts=True)
    assert "" not in names
    assert {"C–H bonded", "C–H 3–4 Å"} <= set(names)
    assert counts.max() == 6
    batch = store.batch(atoms.rows)
    places = batch.positions.numpy()[atoms.ptr[found.system] + found.atom_idx]
    apart = np.linalg.norm(places[0] - places[1], axis=1)
    np.testing.assert_allclose(apart, found.distance, rtol=1e-5)
    sizes = np.diff(atoms.ptr)[found.system]
    assert (found.atom_idx >= 0).all()
    assert (found.atom_idx < sizes).all()
    bonded = np.char.endswith(found.classes, "bonded")
    assert found.distance[bonded].max() < 2.0 < found.distance[~bonded].min()


def test_no_edge_of_a_class_is_an_empty_sample(store: Store) -> None:
    water = [row for row in range(36) if 6 not in store.batch([row]).numbers.tolist()][:1]
    atoms = sample_atoms(store, np.array(water), per_class=5, seed=0)
    known = edge_list(TinyBackbone(n_features=8), pieces(store, 64, indices=atoms.rows))
    assert known is not None
    assert sample_edges(atoms, known, per_class=6, seed=0).chosen.size == 0


def test_some_rows_keep_their_order_and_differ_by_seed() -> None:
    rows = np.arange(100, 200)
    found = some_rows(rows, 30, seed=0)
    assert len(set(found.tolist())) == 30
    assert (np.diff(found) > 0).all()
    assert set(found) <= set(rows)
    assert not np.array_equal(found, some_rows(rows, 30, seed=1))
    assert some_rows(rows, 100, seed=0) is rows
    assert MAX_SYSTEMS > 1000


def test_bad_input(store: Store) -> None:
    with pytest.raises(TetherError, match="`per_class` is 0; expected a positive integer"):
        sample_atoms(store, ROWS, per_class=0, seed=0)
    with pytest.raises(TetherError, match="no structure to sample atoms of"):
        sample_atoms(store, ROWS[:0], per_class=5, seed=0)

"""The audit finds planted defects, each by id, and nothing in clean data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from tether.data.audit import audit
from tether.data.chunks import Chunk
from tether.data.geometry import geometry_hashes, shortest_distances
from tether.data.store import Store, write_store
from tether.errors import TetherError
from tether.graph import has_flat_cell
from tether.structures import AtomBatch, from_ase
from tether.targets import Target

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ["H2O", "CH4", "NH3", "C2H6", "C6H6", "CH3OH", "C2H4", "CO2"]
ENERGY = Target("energy", unit="eV", kind="extensive")


def batch_of(frames: list[Atoms], **labels: np.ndarray) -> AtomBatch:
    return from_ase(frames, labels=labels, ids=[f"s{k}" for k in range(len(frames))])


def found(batch: AtomBatch, **options: object) -> dict[str, list[str]]:
    result = audit([batch], **options)  # type: ignore[arg-type]
    return {f.code: [name for name, _ in f.structures] for f in result.findings}


def test_clean_data_have_no_findings() -> None:
    frames = [molecule(name) for name in NAMES] + [bulk("Cu"), bulk("NaCl", "rocksalt", a=5.6)]
    result = audit([batch_of(frames)])
    assert result.findings == ()
    assert result.keep.all()


def test_unusable_structures_are_left_out_each_with_its_reason() -> None:
    frames = [molecule(name) for name in NAMES]
    frames[1].positions[1] = frames[1].positions[0] + [0.1, 0, 0]
    frames[2].positions[0, 0] = np.nan
    frames[3] = Atoms()
    frames[4].numbers[0] = 92
    frames[5].pbc = True
    frames[6].info["charge"], frames[7].info["spin"] = np.nan, np.inf
    result = audit([batch_of(frames)], supported_elements=[1, 6, 7, 8])
    reasons = {f.code: f.structures for f in result.findings}
    assert reasons == {
        "no-atoms": (("s3", "it has no atoms"),),
        "non-finite-positions": (("s2", "a position is NaN or infinite"),),
        "flat-cell": (("s5", "periodic, but its cell has no extent or is not finite"),),
        "non-finite-charge": tuple(
            (name, "its charge or spin is NaN or infinite") for name in ("s6", "s7")
        ),
        "unsupported-element": (("s4", "it contains U"),),
        "overlapping-atoms": (("s1", "two atoms are 0.100 Å apart"),),
    }
    assert {f.severity for f in result.findings} == {"left out"}
    assert np.flatnonzero(~result.keep).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert result.n_kept == 1


def test_molecules_whose_spin_does_not_fit_their_electrons() -> None:
    frames = [molecule("CH3"), molecule("CH3"), molecule("CH4"), molecule("NH3"), bulk("Cu")]
    frames[1].info["spin"] = 1
    frames[2].info["spin"] = 1
    frames[3].info["charge"] = 1
    result = audit([batch_of(frames)])
    finding = result.finding("spin-parity")
    assert finding is not None
    assert finding.severity == "reported"
    assert [name for name, _ in finding.structures] == ["s0", "s2", "s3"]


def test_uranium_is_fine_where_it_is_supported() -> None:
    atoms = molecule("H2O")
    atoms.numbers[0] = 92
    assert found(batch_of([atoms])) == {}


def test_overlap_across_the_cell_boundary() -> None:
    atoms = Atoms("H2", positions=[[0.1, 0, 0], [4.9, 0, 0]], cell=[5, 5, 5], pbc=True)
    assert found(batch_of([atoms])) == {"overlapping-atoms": ["s0"]}
    atoms.pbc = False
    assert found(batch_of([atoms])) == {}


def test_slab_whose_cell_has_no_third_vector() -> None:
    slab = fcc111("Cu", (2, 2, 3))
    assert not slab.cell[2].any()
    batch = batch_of([slab, slab])
    assert has_flat_cell(batch).tolist() == [False, False]
    assert found(batch) == {"duplicate": ["s1"]}


def test_a_vector_along_an_open_direction_may_be_anything() -> None:
    chain = Atoms("CO", [[0, 0, 0], [1.2, 0, 0]], cell=[[3, 0, 0], [6, 0, 0], [0, 0, 5]])
    chain.pbc = [True, False, False]
    moved = chain.copy()
    moved.positions += [0.5, 0.1, 0.2]
    assert found(batch_of([chain, moved])) == {"duplicate": ["s1"]}


def test_large_structure_goes_through_the_neighbour_list() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(13.0)] * 3), axis=-1).reshape(-1, 3) * 2
    good = Atoms(f"He{len(grid)}", positions=grid)
    bad = good.copy()
    bad.positions[7] = bad.positions[8] + [0, 0, 0.2]
    assert shortest_distances(batch_of([good, bad]), 0.4).tolist() == [
        np.inf,
        pytest.approx(0.2),
    ]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_moved_turned_and_permuted_copies_are_found(seed: int) -> None:
    random = np.random.default_rng(seed)
    frames = [molecule(name) for name in NAMES]
    for atoms in frames:
        atoms.rattle(0.05, rng=random)
    copy = frames[5][random.permutation(len(frames[5]))]
    turn = Rotation.random(random_state=int(random.integers(2**31))).as_matrix()
    copy.positions = copy.positions @ turn.T + 3.0
    other = frames[5].copy()
    other.positions[0] += 0.02
    assert found(batch_of([*frames, copy, other])) == {"duplicate": ["s8"]}


def test_copies_of_a_crystal() -> None:
    salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    moved, changed, charged = salt.copy(), salt.copy(), salt.copy()
    moved.translate([0.3, 0.1, 0.7])
    moved.wrap()
    changed.set_cell(salt.cell * 1.01, scale_atoms=True)
    charged.info["charge"] = 1
    assert found(batch_of([salt, moved, changed, charged])) == {"duplicate": ["s1"]}


def test_same_positions_of_other_elements_are_no_copies() -> None:
    one, other = molecule("CO2"), molecule("CO2")
    other.numbers[0] = 14
    assert len(set(geometry_hashes(batch_of([one, other])).tolist())) == 2


def test_copies_with_another_label() -> None:
    frames = [molecule(name) for name in NAMES]
    gap = np.arange(10.0)
    gap[9] = gap[1]
    batch = batch_of([*frames, frames[0], frames[1]], gap=gap)
    result = audit([batch], targets=[Target("gap")])
    conflict = result.finding("conflicting-label:gap")
    assert conflict is not None
    assert conflict.structures == (("s8", "same geometry as s0, but `gap` differs by 8"),)
    assert [name for name, _ in result.finding("duplicate").structures] == ["s8", "s9"]  # type: ignore[union-attr]


def test_missing_labels_are_counted_by_target() -> None:
    frames = [molecule(name) for name in NAMES]
    some, none = np.arange(8.0), np.full(8, np.nan)
    some[[2, 5]] = np.nan, np.inf
    result = audit(
        [batch_of(frames, gap=some, mu=none)], targets=[Target("gap"), Target("mu"), Target("x")]
    )
    severities = {f.code: (f.severity, len(f.structures)) for f in result.findings}
    assert severities == {
        "no-label:mu": ("error", 8),
        "no-label:x": ("error", 8),
        "no-label:gap": ("reported", 2),
        "infinite-label:gap": ("reported", 1),
    }
    assert result.keep.all()


def test_zero_forces() -> None:
    frames = [molecule("H2O"), molecule("CH4"), Atoms("He")]
    forces = np.zeros((9, 3))
    forces[1, 2] = 1e-9
    batch = from_ase(frames, atom_labels={"forces": forces}, ids=["a", "b", "c"])
    target = Target("forces", level="atom", kind="vector", n_components=3)
    assert found(batch, targets=[target]) == {"zero-forces": ["b"]}


def test_energy_in_another_unit_is_an_outlier() -> None:
    random = np.random.default_rng(1)
    frames = [molecule(name) for name in NAMES * 5]
    for atoms in frames:
        atoms.rattle(0.05, rng=random)
    n_hydrogen = np.array([(a.numbers == 1).sum() for a in frames])
    n_heavy = np.array([(a.numbers > 1).sum() for a in frames])
    energy = -13.6 * n_hydrogen - 1000.0 * n_heavy
    energy += random.normal(0, 0.1, len(frames))
    assert found(batch_of(frames, energy=energy), targets=[ENERGY]) == {}
    energy[17] /= 27.2114
    batch = batch_of(frames, energy=energy)
    assert found(batch, targets=[ENERGY]) == {"outlier:energy": ["s17"]}
    # An intensive label has no per-element reference.
    assert found(batch, targets=[Target("energy", unit="eV")]) == {}


def test_repeated_ids_are_an_error() -> None:
    batch = from_ase([molecule("H2O"), molecule("CH4")], ids=["a", "a"])
    (finding,) = audit([batch]).findings
    assert (finding.code, finding.severity) == ("repeated-id", "error")
    assert finding.structures == (("a", "2 structures"),)


def test_nothing_to_audit() -> None:
    with pytest.raises(TetherError, match="no structure to audit"):
        audit([])


def test_store_and_batches_agree(tmp_path: Path) -> None:
    frames = [molecule(name) for name in NAMES]
    frames[1].positions[1] = frames[1].positions[0]
    batch = batch_of(frames, energy=np.arange(8.0))
    write_store(tmp_path / "s.arrow", [Chunk(batch, ("f",) * 8)], [ENERGY])
    of_store = audit(Store.open(tmp_path / "s.arrow"))
    halves = [batch.select(torch.arange(4)), batch.select(torch.arange(4, 8))]
    assert of_store.to_dict() == audit(halves, targets=[ENERGY]).to_dict()
    assert of_store.n_kept == 7

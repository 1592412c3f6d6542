"""Reading structures: every format, labels with their units, ids, and the errors."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write

from tether.data.qm9 import QM9_TARGETS, qm9_folder, read_qm9
from tether.data.read import read_structures
from tether.errors import TetherError
from tether.structures import AtomBatch, collate
from tether.targets import Target

if TYPE_CHECKING:
    from tether.data.chunks import Chunk

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the real data in {DATA}")
needs_qm9 = pytest.mark.skipif(
    importlib.util.find_spec("qm9pack") is None, reason="needs pip install tether[qm9]"
)


def everything(path: Path, **options: object) -> tuple[AtomBatch, list[Chunk]]:
    chunks = list(read_structures(path, **options))  # type: ignore[arg-type]
    return collate([chunk.batch for chunk in chunks]), chunks


def crystal(energy: float) -> Atoms:
    atoms = bulk("Cu", cubic=True)
    stress = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    forces = np.arange(12.0).reshape(4, 3)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=stress)
    return atoms


def test_extended_xyz_labels_of_info_arrays_and_calculator(tmp_path: Path) -> None:
    frames = [crystal(-1.0), crystal(-2.0)]
    frames[0].info.update(gap=0.5, note="text is no label", charge=1)
    frames[1].arrays["weight"] = np.arange(4.0)
    path = tmp_path / "cu.xyz"
    write(path, frames)
    batch, chunks = everything(path)
    assert batch.labels["energy"].tolist() == [-1.0, -2.0]
    full = [1.0, 6.0, 5.0, 6.0, 2.0, 4.0, 5.0, 4.0, 3.0]
    assert batch.labels["stress"][0].tolist() == pytest.approx(full)
    assert batch.atom_labels["forces"][:4].tolist() == np.arange(12.0).reshape(4, 3).tolist()
    assert batch.labels["gap"][0] == 0.5
    assert torch.isnan(batch.labels["gap"][1])
    assert torch.isnan(batch.atom_labels["weight"][:4]).all()
    assert batch.atom_labels["weight"][4:].tolist() == [0, 1, 2, 3]
    assert "note" not in batch.labels
    assert batch.charge.tolist() == [1.0, 0.0]
    assert batch.ids == ("cu:0", "cu:1")
    assert chunks[0].sources == ("cu.xyz", "cu.xyz")
    assert chunks[0].targets["energy"] == Target("energy", unit="eV", kind="extensive")
    assert chunks[0].targets["gap"].unit == ""


def test_compressed_file_equals_plain_file(tmp_path: Path) -> None:
    plain, packed = tmp_path / "cu.xyz", tmp_path / "cu.xyz.gz"
    write(plain, [crystal(-1.0), crystal(-2.0)])
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, other = everything(plain)[0], everything(packed)[0]
    assert torch.equal(one.positions, other.positions)
    assert one.ids == other.ids
    assert torch.equal(one.labels["energy"], other.labels["energy"])


def test_chunks_are_small_and_ids_run_on(tmp_path: Path) -> None:
    path = tmp_path / "m.xyz"
    write(path, [molecule("H2O")] * 5)
    batch, chunks = everything(path, chunk_size=2)
    assert [chunk.batch.n_systems for chunk in chunks] == [2, 2, 1]
    assert batch.ids == tuple(f"m:{row}" for row in range(5))


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_blank_lines_are_no_end_of_the_file(tmp_path: Path, suffix: str) -> None:
    frame = "1\n{}\nH 0 0 0\n"
    text = frame.format("") + "\n" + frame.format("gap=1") + " \n\n" + frame.format("") + "\n\n"
    path = tmp_path / f"b.xyz{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix else text.encode())
    assert everything(path)[0].counts.tolist() == [1, 1, 1]


def test_bare_words_of_a_comment_are_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "words.xyz"
    path.write_text("1\nmolecule done gap=0.5\nH 0 0 0\n")
    assert list(everything(path)[0].labels) == ["gap"]
    wanted = everything(path, targets=[Target("done")])[0]
    assert {name: value.tolist() for name, value in wanted.labels.items()} == {"done": [1.0]}
    assert everything(path, targets=[])[0].labels == {}


@pytest.mark.parametrize(
    ("comment", "message"),
    [
        ("charge", "`charge` of structure w:1 is True; expected a number; fix: correct it"),
        ("spin", "`spin` of structure w:1 is True"),
        ("charge=neutral", "`charge` of structure w:1 is 'neutral'"),
        ('spin="1 2"', r"`spin` of structure w:1 is \[1, 2\]"),
    ],
)
def test_charge_and_spin_are_numbers(tmp_path: Path, comment: str, message: str) -> None:
    (tmp_path / "w.xyz").write_text(f"1\n\nH 0 0 0\n1\n{comment}\nH 0 0 0\n")
    with pytest.raises(TetherError, match=message):
        everything(tmp_path / "w.xyz")


def test_structure_without_atoms_says_nothing_of_per_atom_labels(tmp_path: Path) -> None:
    form = "Properties=species:S:1:pos:R:3:forces:R:3 gap=1"
    (tmp_path / "z.xyz").write_text(f"0\n{form}\n1\n{form}\nH 0 0 0 1 2 3\n")
    batch, _ = everything(tmp_path / "z.xyz")
    assert batch.counts.tolist() == [0, 1]
    assert batch.labels["gap"].tolist() == [1, 1]
    assert batch.atom_labels["forces"].tolist() == [[1, 2, 3]]


def test_own_ids_are_kept(tmp_path: Path) -> None:
    frames = [molecule("H2O"), molecule("CH4")]
    for atoms, name in zip(frames, ("water", "methane"), strict=True):
        atoms.info["id"] = name
    write(tmp_path / "m.xyz", frames)
    batch, _ = everything(tmp_path / "m.xyz")
    assert batch.ids == ("water", "methane")
    assert "id" not in batch.labels


def test_label_that_changes_size_is_refused_unless_declared_per_atom(tmp_path: Path) -> None:
    frames = [molecule("H2O"), molecule("CH4")]
    for atoms in frames:
        atoms.info["shift"] = np.arange(float(len(atoms)))
    path = tmp_path / "m.xyz"
    write(path, frames)
    with pytest.raises(TetherError, match=r"label `shift` of structure m:1 .* has 5 values; exp"):
        everything(path)
    assert everything(path, targets=[])[0].n_systems == 2
    batch, _ = everything(path, targets=[Target("shift", level="atom")])
    assert batch.atom_labels["shift"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]


def test_database_key_values_and_data_are_labels(tmp_path: Path) -> None:
    path = tmp_path / "d.db"
    with connect(path) as database:
        database.write(crystal(-3.0), gap=0.1, data={"moment": [1.0, 2.0, 3.0]})
        database.write(molecule("H2O"), gap=0.2)
    batch, chunks = everything(path)
    assert batch.labels["gap"].tolist() == [0.1, 0.2]
    assert batch.labels["moment"][0].tolist() == [1.0, 2.0, 3.0]
    assert batch.labels["energy"][0] == -3.0
    assert torch.isnan(batch.labels["energy"][1])
    assert batch.ids == ("d:1", "d:2")
    assert batch.counts.tolist() == [4, 3]
    assert chunks[0].targets["moment"].n_components == 3


def flat(**more: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {
        "n_atoms": np.array([2, 1]),
        "numbers": np.array([1, 1, 8], dtype=np.uint8),
        "positions": np.arange(9.0, dtype=np.float32).reshape(3, 3),
    }
    return {**arrays, **more}


def test_flat_npz(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    cell = np.stack([np.eye(3), np.zeros((3, 3))])
    np.savez(path, **flat(gap=np.array([0.1, 0.2]), q=np.arange(3.0), cell=cell))
    batch, _ = everything(path, chunk_size=1)
    assert batch.positions.dtype == torch.float64
    assert batch.counts.tolist() == [2, 1]
    assert batch.labels["gap"].tolist() == [0.1, 0.2]
    assert batch.atom_labels["q"].tolist() == [0, 1, 2]
    assert batch.pbc.tolist() == [[True] * 3, [False] * 3]
    assert list(everything(path, targets=[Target("gap")])[0].atom_labels) == []
    np.savez(path, **flat(gap=np.array([0.1, 0.2]), odd=np.zeros(5)))
    assert list(everything(path, targets=[Target("gap")])[0].labels) == ["gap"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (flat(gap=np.zeros(5)), r"array `gap` of .* shape \(5,\); expected a leading axis of 2"),
        (flat(n_atoms=np.array([2, 2])), r"array `numbers` of .* has shape \(3,\); expected \(4,"),
        (
            flat(n_atoms=np.array(3)),
            r"`n_atoms` of .* shape \(\) and type int64; expected the number",
        ),
        (flat(n_atoms=np.array([4, -1])), r"array `n_atoms` of .* holds -1"),
        (flat(charge=np.array(["a", "b"])), r"array `charge` of .* has type <U1; expected numbers"),
        ({"x": np.zeros(2)}, r"has the arrays x; expected n_atoms, numbers, positions"),
        (flat(gap=np.array([{}, {}])), r"cannot be read: Object arrays cannot be loaded"),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(TetherError, match=message):
        everything(tmp_path / "bad.npz")


@pytest.mark.parametrize("name", ["bad.npz", "bad.db", "bad.xyz", "bad.xyz.gz"])
def test_unreadable_files_are_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"3\nnot a structure\n" + bytes(range(200)))
    with pytest.raises(TetherError, match=rf"{name} cannot be read") as caught:
        everything(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(TetherError, match="no such file; expected a file of structures"):
        everything(tmp_path / "none.xyz")
    with pytest.raises(TetherError, match="a folder; expected a file of structures"):
        everything(tmp_path)


@needs_data
def test_rmd17_becomes_electronvolt() -> None:
    path = DATA / "forcefield" / "rmd17_ethanol_test_01.npz"
    batch, chunks = everything(path)
    raw = np.load(path)
    factor = units.kcal / units.mol
    assert factor == pytest.approx(0.0433641, rel=1e-5)
    np.testing.assert_allclose(batch.labels["energy"].numpy(), raw["energies"] * factor)
    np.testing.assert_allclose(
        batch.atom_labels["forces"].numpy(), raw["forces"].reshape(-1, 3) * factor
    )
    assert batch.counts.unique().tolist() == [9]
    assert sorted(chunks[0].targets) == ["energy", "forces"]


@needs_data
def test_real_crystals_have_energy_forces_stress() -> None:
    batch, _ = everything(DATA / "forcefield" / "random-TP.xyz.gz")
    assert batch.n_systems == 693
    assert sorted(batch.labels) == ["energy", "stress"]
    assert batch.atom_labels["forces"].shape == (batch.n_atoms, 3)
    assert bool(batch.pbc.all())
    assert not torch.isnan(batch.labels["energy"]).any()


@needs_qm9
def test_qm9_first_molecules_and_random_sample() -> None:
    (chunk,) = read_qm9(limit=3)
    batch = chunk.batch
    assert batch.ids == ("qm9:1", "qm9:2", "qm9:3")
    assert batch.numbers.tolist() == [6, 1, 1, 1, 1, 7, 1, 1, 1, 8, 1, 1]
    # The first line of dsgdb9nsd_000001.xyz (methane) in the original publication.
    assert batch.positions[0].tolist() == [-0.0126981359, 1.0858041578, 0.0080009958]
    first = {name: float(value[0]) for name, value in batch.labels.items()}
    assert first["gap"] == 0.5048
    assert first["u0"] == -40.47893
    assert first["cv"] == 6.469
    assert first["a"] == 157.7118
    assert set(chunk.targets) == set(QM9_TARGETS)
    assert QM9_TARGETS["u0"].kind == "extensive"
    assert QM9_TARGETS["gap"] == Target("gap", unit="Ha")


def small_qm9(folder: Path, rows: list[str]) -> Path:
    with (qm9_folder() / "qm9_part1.csv").open() as file:
        header = file.readline()
    for part in (1, 2, 3):
        (folder / f"qm9_part{part}.csv").write_text(header + rows[part - 1])
    return folder


@needs_qm9
def test_qm9_random_sample_is_seeded_and_bad_files_are_refused(tmp_path: Path) -> None:
    with (qm9_folder() / "qm9_part1.csv").open() as file:
        next(file)
        rows = [next(file) for _ in range(3)]
    folder = small_qm9(tmp_path, rows)
    draws = {tuple(next(read_qm9(folder=folder, limit=2, seed=s)).batch.ids) for s in range(9)}
    assert len(draws) == 3
    again = [next(read_qm9(folder=folder, limit=2, seed=5)).batch.ids for _ in range(2)]
    assert again[0] == again[1]
    small_qm9(tmp_path, [rows[0].replace("'H','H'", "'H'"), rows[1], rows[2]])
    with pytest.raises(TetherError, match="do not add up: 12 atoms, 10 elements, 36 coord"):
        next(read_qm9(folder=folder))
    (tmp_path / "qm9_part2.csv").write_text("a,b\n1,2\n")
    with pytest.raises(TetherError, match="cannot be read"):
        next(read_qm9(folder=folder))


def test_qm9_missing_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TetherError, match=r"not installed; .*fix: pip install tether\[qm9\]"):
        next(read_structures("qm9"))

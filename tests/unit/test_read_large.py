"""Converters of large data sets: HDF5 layouts, LMDB, and extended XYZ without an index."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import read, write

from tether.data.prepare import prepare
from tether.data.read import read_structures
from tether.data.store import Store
from tether.errors import TetherError
from tether.structures import AtomBatch, collate
from tether.targets import Target

if TYPE_CHECKING:
    from tether.data.chunks import Chunk


def everything(path: Path, **options: object) -> tuple[AtomBatch, list[Chunk]]:
    chunks = list(read_structures(path, **options))  # type: ignore[arg-type]
    return collate([chunk.batch for chunk in chunks]), chunks


def spice(path: Path) -> dict[str, np.ndarray]:
    """Two molecules, water with 3 conformations and hydroxide with 2, in atomic units."""
    random, raw = np.random.default_rng(0), {}
    with h5py.File(path, "w") as file:
        for name, numbers, n, smiles in (
            ("water", [8, 1, 1], 3, "[O:1]([H:2])[H:3]"),
            ("hydroxide", [8, 1], 2, "[O-:1][H:2]"),
        ):
            group = file.create_group(name)
            group["atomic_numbers"] = np.array(numbers, dtype=np.int16)
            group.create_dataset("smiles", data=[smiles], dtype=h5py.string_dtype())
            group.create_dataset("subset", data=["test"], dtype=h5py.string_dtype())
            for key, shape in (
                ("conformations", (n, len(numbers), 3)),
                ("dft_total_energy", (n,)),
                ("dft_total_gradient", (n, len(numbers), 3)),
                ("formation_energy", (n,)),
                ("scf_dipole", (n, 3)),
                ("mbis_charges", (n, len(numbers), 1)),
            ):
                raw[f"{name}/{key}"] = random.normal(size=shape).astype(np.float32)
                group[key] = raw[f"{name}/{key}"]
    return raw


def ani1x(path: Path) -> dict[str, np.ndarray]:
    random, raw = np.random.default_rng(1), {}
    with h5py.File(path, "w") as file:
        for name, numbers, n in (("C1H4", [6, 1, 1, 1, 1], 3), ("H2O1", [8, 1, 1], 2)):
            group = file.create_group(name)
            group["atomic_numbers"] = np.array(numbers, dtype=np.uint8)
            energy = random.normal(size=n)
            cc = np.where(np.arange(n) == 1, np.nan, energy)
            for key, value in (
                ("coordinates", random.normal(size=(n, len(numbers), 3)).astype(np.float32)),
                ("wb97x_dz.energy", energy),
                ("wb97x_dz.forces", random.normal(size=(n, len(numbers), 3)).astype(np.float32)),
                ("ccsd(t)_cbs.energy", cc),
                ("wb97x_tz.mbis_charges", random.normal(size=(n, len(numbers)))),
            ):
                group[key] = raw[f"{name}/{key}"] = value
    return raw


def test_spice_becomes_electronvolt_and_angstrom(tmp_path: Path) -> None:
    raw = spice(tmp_path / "SPICE.hdf5")
    batch, chunks = everything(tmp_path / "SPICE.hdf5")
    # HDF5 lists groups by name.
    assert batch.ids[:3] == ("SPICE:hydroxide:0", "SPICE:hydroxide:1", "SPICE:water:0")
    assert batch.numbers.tolist() == [8, 1] * 2 + [8, 1, 1] * 3
    assert batch.charge.tolist() == [-1.0, -1.0, 0.0, 0.0, 0.0]
    assert not batch.pbc.any()

    def flat(key: str, *shape: int) -> np.ndarray:
        parts = [raw[f"{name}/{key}"].astype(float) for name in ("hydroxide", "water")]
        return np.concatenate([part.reshape(-1, *shape) for part in parts])

    # CODATA: 1 Hartree = 27.2114 eV, 1 Bohr = 0.529177 Å; a force is minus a gradient.
    close = {"rtol": 1e-5}
    np.testing.assert_allclose(batch.positions, flat("conformations", 3) * 0.529177, **close)
    np.testing.assert_allclose(batch.labels["energy"], flat("dft_total_energy") * 27.2114, **close)
    forces = -flat("dft_total_gradient", 3) * 27.2114 / 0.529177
    np.testing.assert_allclose(batch.atom_labels["forces"], forces, **close)
    np.testing.assert_allclose(batch.labels["dipole"], flat("scf_dipole", 3) * 0.529177, **close)
    assert sorted(batch.labels) == ["dipole", "energy", "formation_energy"]
    assert chunks[0].targets["energy"] == Target("energy", unit="eV", kind="extensive")


def test_ani1x_keeps_nan_and_reads_what_is_wanted(tmp_path: Path) -> None:
    raw = ani1x(tmp_path / "ani1x.h5")
    batch, _ = everything(tmp_path / "ani1x.h5")
    coordinates = [raw[f"{n}/coordinates"].astype(float).reshape(-1, 3) for n in ("C1H4", "H2O1")]
    np.testing.assert_array_equal(batch.positions, np.concatenate(coordinates))
    forces = raw["H2O1/wb97x_dz.forces"].astype(float).reshape(-1, 3) * units.Hartree
    np.testing.assert_allclose(batch.atom_labels["forces"][15:], forces)
    assert torch.isnan(batch.labels["energy_ccsd"]).tolist() == [False, True, False, False, True]
    assert not torch.isnan(batch.labels["energy"]).any()
    only, _ = everything(tmp_path / "ani1x.h5", targets=[Target("energy")])
    assert list(only.labels) == ["energy"]
    assert not only.atom_labels
    report = prepare([tmp_path / "ani1x.h5"], tmp_path / "s", targets=["energy", "forces"])
    assert report.n_systems == Store.open(tmp_path / "s").n_systems == 5


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
def test_chunks_of_hdf5_cross_groups(tmp_path: Path, size: int) -> None:
    ani1x(tmp_path / "a.h5")
    whole, _ = everything(tmp_path / "a.h5")
    batch, chunks = everything(tmp_path / "a.h5", chunk_size=size)
    assert [c.batch.n_systems for c in chunks][:-1] == [size] * ((5 - 1) // size)
    assert batch.ids == whole.ids
    assert torch.equal(batch.positions, whole.positions)
    assert all(len(c.sources) == c.batch.n_systems for c in chunks)


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [("[NH3+:1][C@@H:2]C", 1), ("[Ca+2]", 2), ("[Ca++]", 2), ("[O-]S(=O)(=O)[O-].[Na+]", -1)],
)
def test_charge_of_a_smiles(tmp_path: Path, smiles: str, charge: int) -> None:
    spice(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5", "a") as file:
        del file["water/smiles"]
        file["water"].create_dataset("smiles", data=[smiles], dtype=h5py.string_dtype())
    assert everything(tmp_path / "s.h5")[0].charge[-1] == charge


def test_bad_hdf5_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bad.h5"
    spice(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(TetherError, match=r"bad\.h5 cannot be read") as caught:
        everything(path)
    assert "\n" not in str(caught.value)
    for member in ("x", "x/species"):
        with h5py.File(path, "w") as file:
            file[member] = np.zeros(2)
        with pytest.raises(TetherError, match=r"has at 'x': .*expected atomic_numbers and conf"):
            everything(path)
    spice(path)
    with h5py.File(path, "a") as file:
        del file["water/dft_total_energy"]
        file["water/dft_total_energy"] = np.zeros(1)
    with pytest.raises(TetherError, match=r"/water/dft_total_energy has shape \(1,\)"):
        everything(path)
    monkeypatch.setattr("tether.packages.find_spec", lambda _: None)
    with pytest.raises(TetherError, match=r"needs the package h5py.*pip install 'tether\[hdf5\]'"):
        everything(path)


def labelled(seed: int) -> Atoms:
    atoms = molecule("CH3OH")
    atoms.rattle(0.05, seed=seed)
    forces = np.random.default_rng(seed).normal(size=(len(atoms), 3))
    atoms.calc = SinglePointCalculator(atoms, energy=float(seed), forces=forces)
    return atoms


@pytest.mark.skipif(
    importlib.util.find_spec("ase_db_backends") is None, reason="needs pip install tether[lmdb]"
)
def test_ase_lmdb_equals_the_ase_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("d.db", "d.aselmdb"):
        database = connect(str(tmp_path / name), use_lock_file=False)
        for seed in range(5):
            database.write(labelled(seed), data={"bulk": [1.0, 2.0], "sid": f"random{seed}"})
        del database
    (tmp_path / "d.aselmdb").chmod(0o444)
    one, other = everything(tmp_path / "d.db")[0], everything(tmp_path / "d.aselmdb")[0]
    assert other.ids == one.ids == tuple(f"d:{k}" for k in range(1, 6))
    assert torch.equal(one.positions, other.positions)
    assert other.labels["energy"].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(one.atom_labels["forces"], other.atom_labels["forces"])
    assert other.labels["bulk"][0].tolist() == [1.0, 2.0]
    monkeypatch.setattr("tether.packages.find_spec", lambda _: None)
    with pytest.raises(TetherError, match=r"ase-db-backends.*pip install 'tether\[lmdb\]'"):
        everything(tmp_path / "d.aselmdb")


@pytest.mark.parametrize("name", ["m.xyz", "m.extxyz", "m.xyz.gz"])
def test_xyz_is_read_a_frame_at_a_time(tmp_path: Path, name: str) -> None:
    frames = [labelled(seed) for seed in range(6)]
    write(tmp_path / "plain.xyz", frames, format="extxyz")
    text = (tmp_path / "plain.xyz").read_text()
    # What stands behind the first frames is not looked at before it is reached.
    broken = text + "this is no frame\n"
    pack = gzip.compress if name.endswith("gz") else bytes
    (tmp_path / name).write_bytes(pack(broken.encode()))
    stream = read_structures(tmp_path / name, chunk_size=3)
    first, second = next(stream), next(stream)
    with pytest.raises(TetherError, match="cannot be read after structure 6"):
        next(stream)
    expected = read(tmp_path / "plain.xyz", ":")
    batch = collate([first.batch, second.batch])
    np.testing.assert_array_equal(batch.positions, np.concatenate([a.positions for a in expected]))
    np.testing.assert_array_equal(
        batch.atom_labels["forces"], np.concatenate([a.get_forces() for a in expected])
    )
    assert batch.labels["energy"].tolist() == [0, 1, 2, 3, 4, 5]


def test_xyz_with_cell_lines_below_its_atoms(tmp_path: Path) -> None:
    frame = "1\n\nH 0 0 0\n" + "".join(
        f"VEC{k} {v}\n" for k, v in enumerate(("9 0 0", "0 8 0", "0 0 7"), 1)
    )
    (tmp_path / "v.xyz").write_text(frame * 2)
    batch, _ = everything(tmp_path / "v.xyz")
    assert batch.cell[1].diagonal().tolist() == [9.0, 8.0, 7.0]
    assert batch.n_systems == 2

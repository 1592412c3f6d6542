"""Descriptors of structures: every structure keeps its row, whatever is known about it."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from tether.errors import TetherError
from tether.outside.fingerprint import GRAPH_DESCRIPTORS, column_names, fingerprint_matrix
from tether.structures import from_ase

pytest.importorskip("rdkit", reason="the extra splits is not installed")
pytest.importorskip("featomic", reason="the extra splits is not installed")

NAMES = np.array(column_names())
MORGAN = np.char.startswith(NAMES, "morgan")
GRAPH = MORGAN | np.isin(NAMES, GRAPH_DESCRIPTORS)
SIZE = np.char.startswith(NAMES, "gyration") | np.isin(NAMES, ["n_atoms", "volume_per_atom"])
COUNT = np.char.startswith(NAMES, "count")


def rows(*atoms: Atoms) -> np.ndarray:
    for one in atoms:
        one.info.clear()
    return fingerprint_matrix(from_ase(list(atoms)))


def value(row: np.ndarray, name: str) -> float:
    return float(row[NAMES.tolist().index(name)])


def test_each_column_has_one_name() -> None:
    assert rows(molecule("H2O")).shape == (1, len(NAMES)) == (1, len(set(NAMES.tolist())))


def test_a_molecule_has_composition_geometry_and_graph() -> None:
    benzene, ethanol, carbon_dioxide = rows(molecule("C6H6"), molecule("CH3CH2OH"), molecule("CO2"))
    assert np.isnan(benzene).sum() == 1  # of a volume
    assert (value(benzene, "count C"), value(benzene, "share H")) == (6, 0.5)
    assert [value(row, "NumAromaticRings") for row in (benzene, ethanol)] == [1, 0]
    assert [value(row, "NumHBD") for row in (benzene, ethanol)] == [0, 1]
    # Six equal atoms: each environment of radius 0, 1 and 2 counts six times.
    assert np.unique(benzene[MORGAN]).tolist() == [0, 6]
    assert (benzene[MORGAN] > 0).sum() == 3
    flat, line = (row[np.char.startswith(NAMES, "gyration")] for row in (benzene, carbon_dioxide))
    assert flat[0] == pytest.approx(0, abs=1e-6)
    assert flat[1] == pytest.approx(flat[2], rel=1e-5)
    assert line[:2] == pytest.approx(0, abs=1e-6)
    assert line[2] == pytest.approx(2 * molecule("CO2").get_distance(0, 1) ** 2 / 3, rel=1e-5)


def test_a_crystal_has_no_graph_and_does_not_depend_on_the_cell() -> None:
    salt, super_salt, other = rows(
        bulk("NaCl", "rocksalt", a=5.64),
        bulk("NaCl", "rocksalt", a=5.64).repeat((2, 1, 2)),
        bulk("NaCl", "rocksalt", a=5.8),
    )
    assert np.isnan(salt[GRAPH]).all()
    assert np.isnan(salt[COUNT]).all()
    assert np.isfinite(salt[~(GRAPH | COUNT | SIZE)]).all()
    assert value(salt, "volume_per_atom") == pytest.approx(5.64**3 / 8, rel=1e-6)
    np.testing.assert_allclose(super_salt, salt, rtol=1e-4, atol=1e-6)
    assert not np.allclose(other, salt, rtol=1e-2, equal_nan=True)  # the geometry is seen


def test_without_perceived_bonds_a_molecule_keeps_its_row() -> None:
    # A nitrogen monoxide radical, and gold that RDKit has no valence for.
    odd, gold, water = rows(molecule("NO"), Atoms("Au3", np.eye(3) * 2.6), molecule("H2O"))
    for row in (odd, gold):
        assert np.isnan(row[GRAPH]).all()
        assert np.isfinite(row[~GRAPH & (NAMES != "volume_per_atom")]).all()
    assert value(gold, "count Au") == 3
    assert np.isfinite(water[GRAPH]).all()


def test_rotation_order_and_company_change_nothing() -> None:
    ethanol, turned, shuffled = (molecule("CH3CH2OH") for _ in range(3))
    turned.rotate(50, (1, 2, 3))
    turned.translate((3, 0, 1))
    shuffled = shuffled[np.random.default_rng(0).permutation(len(shuffled))]
    first, *others = rows(ethanol, turned, shuffled, ethanol)
    for other in (*others, rows(ethanol)[0]):
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-5)
    stretched = ethanol.copy()
    stretched.positions *= 1.05
    assert not np.allclose(rows(stretched)[0], first, rtol=1e-2, equal_nan=True)


def test_a_charge_is_given_to_the_perception() -> None:
    ion = molecule("NH3")
    ion = Atoms("NH4", 1.02 / 3**0.5 * np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1],
                                                  [-1, -1, 1]]))  # fmt: skip
    neutral = fingerprint_matrix(from_ase(ion))[0]
    ion.info["charge"] = 1
    charged = fingerprint_matrix(from_ase(ion))[0]
    assert np.isfinite(charged[GRAPH]).all()
    assert np.isnan(neutral[GRAPH]).all()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tether.packages.find_spec", lambda _: None)
    with pytest.raises(TetherError, match=r"needs the package rdkit; .*pip install 'tether\[split"):
        rows(molecule("H2O"))

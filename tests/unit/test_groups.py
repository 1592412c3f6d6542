"""Bonds perceived from geometries, and the functional groups that they give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from rdkit import Chem

from tether.bonds import perceived_molecule
from tether.data.chunks import Chunk
from tether.data.store import Store, write_store
from tether.drift.groups import UNKNOWN, atom_groups
from tether.structures import from_ase

if TYPE_CHECKING:
    from pathlib import Path


def perceive(atoms: Atoms, charge: int = 0) -> Chem.Mol:
    found = perceived_molecule(atoms.numbers, atoms.positions, charge=charge)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "smiles"),
    [
        ("CH3CH2OH", "CCO"),
        ("CH3COCH3", "CC(C)=O"),
        ("CH3CN", "CC#N"),
        ("C5H5N", "c1ccncc1"),
        ("bicyclobutane", "C1C2CC12"),
    ],
)
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_bonds_are_those_of_the_molecule_in_any_order(
    name: str, smiles: str, seed: int | None
) -> None:
    atoms = molecule(name)
    if seed is not None:
        atoms = atoms[np.random.default_rng(seed).permutation(len(atoms))]
    found = perceive(atoms)
    assert [atom.GetAtomicNum() for atom in found.GetAtoms()] == atoms.numbers.tolist()
    assert Chem.MolToSmiles(Chem.RemoveHs(found)) == Chem.CanonSmiles(smiles)


def test_the_charge_is_taken_into_account() -> None:
    atoms = molecule("CH3COOH")
    to_oxygen = atoms.get_all_distances()[atoms.numbers == 8].min(axis=0)
    del atoms[int(np.argmin(np.where(atoms.numbers == 1, to_oxygen, np.inf)))]
    assert Chem.GetFormalCharge(perceive(atoms, charge=-1)) == -1


def test_a_geometry_without_bonds_has_no_molecule() -> None:
    atoms = molecule("CH3CH2OH")
    atoms.positions *= 3
    assert perceived_molecule(atoms.numbers, atoms.positions) is None


def test_groups_of_atoms_of_a_store(tmp_path: Path) -> None:
    torn = molecule("CH3CN")
    torn.positions *= 3
    frames = [molecule("CH3CH2OH"), bulk("NaCl", "rocksalt", a=5.6), torn, molecule("CH3COCH3")]
    path = tmp_path / "store.arrow"
    write_store(path, [Chunk(from_ase(frames), ("here",) * 4)], [])
    store = Store.open(path)
    # Out of order and repeated, as a sample of atoms is.
    rows = np.array([3, 0, 1, 2, 0, 3])
    oxygen, carbonyl = (frames[at].numbers.tolist().index(8) for at in (0, 3))
    methyl = int(np.argmax(frames[3].get_all_distances()[carbonyl] * (frames[3].numbers == 6)))
    found = atom_groups(store, rows, np.array([carbonyl, oxygen, 0, 0, 0, methyl]))
    assert found[[0, 1, 5]].tolist() == ["ketone", "alcohol", "alkane"]
    assert found[[2, 3]].tolist() == [UNKNOWN, UNKNOWN]  # a crystal; no bonds
    assert atom_groups(store, rows[:0], rows[:0]).shape == (0,)

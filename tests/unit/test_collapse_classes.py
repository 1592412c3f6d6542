"""Chemical classes: known molecules and crystals, a second bond finder, RDKit groups."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.collapse.classes import (
    BOND_FACTOR,
    PAPER_CLASSES,
    atom_classes,
    balanced_sample,
    coordination,
    edge_classes,
)
from tether.collapse.groups import FUNCTIONAL_GROUPS, functional_groups
from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Sequence


def arrays(structures: Sequence[Atoms]) -> tuple[Any, ...]:
    """Numbers, positions, ptr, cell and pbc of a batch."""
    ptr = np.cumsum([0, *(len(a) for a in structures)])
    return (
        np.concatenate([a.numbers for a in structures]),
        np.concatenate([a.positions for a in structures]),
        ptr,
        np.stack([a.cell.array for a in structures]),
        np.stack([a.pbc for a in structures]),
    )


def by_ase(atoms: Atoms) -> list[int]:
    """Coordination by another neighbour list with one cutoff an atom: radius × 1.15."""
    i = neighbor_list("i", atoms, (BOND_FACTOR * covalent_radii[atoms.numbers]).tolist())
    return np.bincount(i, minlength=len(atoms)).tolist()


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("CH4", ["C4", "H", "H", "H", "H"]),
        ("C2H4", ["C3", "C3", "H", "H", "H", "H"]),
        ("HCN", ["C2", "N1", "H"]),
        ("H2CO", ["O1", "C3", "H", "H"]),
        ("NH3", ["N3", "H", "H", "H"]),
        ("CH3OH", ["C4", "O2", "H", "H", "H", "H"]),
        ("CF4", ["C4", "F", "F", "F", "F"]),
        ("CO2", ["C2", "O1", "O1"]),
    ],
)
def test_classes_of_known_molecules(name: str, classes: list[str]) -> None:
    atoms = molecule(name)
    assert atom_classes(atoms.numbers, atoms.positions, [0, len(atoms)]).tolist() == classes
    assert set(classes) <= set(PAPER_CLASSES)


def test_classes_of_crystals_count_periodic_neighbours() -> None:
    crystals = [bulk("Si"), bulk("NaCl", "rocksalt", a=5.64), bulk("C", "diamond", a=3.567)]
    found = atom_classes(*arrays(crystals))
    assert found.tolist() == ["Si4", "Si4", "Na6", "Cl6", "C4", "C4"]
    # Control: the same atoms without their images have at most one neighbour.
    numbers, positions, ptr, _, _ = arrays(crystals)
    assert coordination(numbers, positions, ptr).max() <= 1


def test_hydrogen_and_fluorine_without_their_one_neighbour_are_no_paper_class() -> None:
    # A lone hydrogen, and the bridge H–F–H.
    heights = [0, 10, 10.95, 11.9]
    found = atom_classes([1, 1, 9, 1], [[0, 0, z] for z in heights], [0, 4])
    assert found.tolist() == ["H0", "H", "F2", "H"]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_all_routes_agree_with_ase(seed: int) -> None:
    rng = np.random.default_rng(seed)
    structures = []
    for _ in range(rng.integers(1, 5)):
        n = int(rng.integers(1, 12))
        atoms = Atoms(rng.choice([1, 6, 7, 8, 9, 26], n), rng.uniform(0, 4, (n, 3)))
        if rng.random() < 0.4:
            atoms.set_cell(np.diag(rng.uniform(4, 6, 3)))
            atoms.pbc = rng.random(3) < 0.7
        structures.append(atoms)
    known = [count for atoms in structures for count in by_ase(atoms)]
    assert coordination(*arrays(structures)).tolist() == known


def test_large_structures_and_chunks_are_seams_only(monkeypatch: pytest.MonkeyPatch) -> None:
    structures = [molecule(name) for name in ("C6H6", "CH3CH2OH", "H2O", "C60")]
    whole = coordination(*arrays(structures))
    assert whole[-60:].tolist() == [3] * 60
    monkeypatch.setattr("tether.collapse.classes._CHUNK", 100)
    assert (coordination(*arrays(structures)) == whole).all()
    monkeypatch.setattr("tether.collapse.classes._ALL_PAIRS", 8)  # the rest goes to vesin
    assert (coordination(*arrays(structures)) == whole).all()


def test_empty_structures_are_no_trouble() -> None:
    assert coordination([8, 1], [[0, 0, 0], [0, 0, 1]], [0, 0, 2, 2]).tolist() == [1, 1]
    assert coordination([], np.zeros((0, 3)), [0]).tolist() == []


def test_bad_structures() -> None:
    with pytest.raises(TetherError, match=r"`method` is 'voronoi'; expected covalent"):
        atom_classes([1], [[0, 0, 0]], [0, 1], method="voronoi")
    with pytest.raises(TetherError, match=r"`positions` has shape \(1, 2\)"):
        atom_classes([1], [[0, 0]], [0, 1])
    with pytest.raises(TetherError, match=r"`ptr` ends at \[3\]"):
        atom_classes([1], [[0, 0, 0]], [0, 3])
    with pytest.raises(TetherError, match=r"1 atoms have positions that are not finite"):
        atom_classes([1], [[0, np.nan, 0]], [0, 1])
    with pytest.raises(TetherError, match=r"atomic numbers from 0 to 0"):
        atom_classes([0], [[0, 0, 0]], [0, 1])
    with pytest.raises(TetherError, match=r"`pbc` is set and `cell` is not"):
        atom_classes([1], [[0, 0, 0]], [0, 1], pbc=[[True] * 3])


def test_edges_by_pair_and_regime() -> None:
    numbers = [6, 8, 1, 7]
    edges = {
        (0, 1, 1.20): "C–O bonded",
        (1, 0, 1.63): "C–O bonded",  # 1.15 × (0.76 + 0.66) = 1.633
        (0, 1, 1.64): "",
        (0, 1, 2.99): "",
        (0, 1, 3.00): "C–O 3–4 Å",
        (0, 1, 3.99): "C–O 3–4 Å",
        (0, 1, 4.00): "",
        (0, 1, 5.50): "C–O 5–6 Å",
        (0, 1, 6.00): "",
        (2, 0, 1.09): "C–H bonded",
        (2, 0, 3.30): "C–H 3–4 Å",
        (0, 0, 1.40): "",
        (0, 3, 1.40): "",
    }
    idx, distance = np.array([key[:2] for key in edges]).T, [key[2] for key in edges]
    assert edge_classes(numbers, idx, distance).tolist() == list(edges.values())
    found = edge_classes(numbers, [[0], [3]], [1.4], pairs=[("N", "C")])
    assert found.tolist() == ["N–C bonded"]
    assert edge_classes([6], np.zeros((2, 0)), []).shape == (0,)
    with pytest.raises(TetherError, match=r"unknown element 'Xx'"):
        edge_classes(numbers, [[0], [1]], [1.0], pairs=[("Xx", "C")])
    with pytest.raises(TetherError, match=r"`edge_idx` has shape \(1, 2\)"):
        edge_classes(numbers, [[0, 1]], [1.0, 2.0])
    with pytest.raises(TetherError, match=r"0 of them finite"):
        edge_classes(numbers, [[0], [1]], [np.nan])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=80),
    st.integers(1, 10),
    st.integers(0, 5),
)
def test_samples_are_balanced(classes: list[str], per_class: int, seed: int) -> None:
    array = np.array(classes)
    if not any(classes):
        with pytest.raises(TetherError, match=r"no point is of the classes \[\]"):
            balanced_sample(array, per_class=per_class, seed=seed)
        return
    chosen = balanced_sample(array, per_class=per_class, seed=seed)
    assert (np.diff(chosen) > 0).all()
    for name in ("a", "b", "c"):
        wanted = min(per_class, classes.count(name))
        assert np.sum(array[chosen] == name) == wanted
    assert "" not in array[chosen].tolist()
    assert (chosen == balanced_sample(array, per_class=per_class, seed=seed)).all()


def test_a_sample_of_one_class_does_not_depend_on_the_others() -> None:
    classes = np.array(["a", "b"] * 200)
    both = balanced_sample(classes, per_class=20, seed=3)
    alone = balanced_sample(classes, per_class=20, seed=3, keep=["b"])
    assert both[classes[both] == "b"].tolist() == alone.tolist()
    assert balanced_sample(classes, per_class=20, seed=4).tolist() != both.tolist()
    with pytest.raises(TetherError, match=r"`per_class` is 0"):
        balanced_sample(classes, per_class=0, seed=0)
    with pytest.raises(TetherError, match=r"no point is of the classes \['z'\]"):
        balanced_sample(classes, per_class=1, seed=0, keep=["z"])


@pytest.mark.parametrize(
    ("smiles", "groups"),
    [
        ("CC(=O)O", ["alkane", "carboxylic acid", "carboxylic acid", "carboxylic acid"]),
        ("CC(=O)OC", ["alkane", "ester", "ester", "ester", "alkane"]),
        ("CC(=O)NC", ["alkane", "amide", "amide", "amide", "alkane"]),
        ("CC(C)=O", ["alkane", "ketone", "alkane", "ketone"]),
        ("CC=O", ["alkane", "aldehyde", "aldehyde"]),
        ("CCO", ["alkane", "alkane", "alcohol"]),
        ("COC", ["alkane", "ether", "alkane"]),
        ("C1CO1", ["epoxide"] * 3),
        ("CC#N", ["alkane", "nitrile", "nitrile"]),
        ("CN", ["alkane", "amine"]),
        ("C=C", ["alkene", "alkene"]),
        ("C#C", ["alkyne", "alkyne"]),
        ("FC", ["fluoride", "alkane"]),
        ("C[N+](=O)[O-]", ["alkane", "nitro", "nitro", "nitro"]),
        ("Oc1ccccc1", ["phenol", *["aromatic"] * 6]),
        ("[He]", ["other"]),
    ],
)
def test_functional_groups(smiles: str, groups: list[str]) -> None:
    (found,) = functional_groups([smiles])
    assert found[: len(groups)].tolist() == groups
    assert set(groups) <= {*FUNCTIONAL_GROUPS, "other"}


def test_hydrogens_follow_their_atom_and_molecules_keep_their_order() -> None:
    from rdkit import Chem

    methanol = Chem.AddHs(Chem.MolFromSmiles("CO"))
    backwards = Chem.RenumberAtoms(methanol, list(range(methanol.GetNumAtoms()))[::-1])
    one, two = functional_groups(["CO", backwards])
    assert one.tolist() == ["alkane", "alcohol", "alkane", "alkane", "alkane", "alcohol"]
    assert two.tolist() == one.tolist()[::-1]


def test_functional_groups_of_nonsense_and_without_rdkit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TetherError, match=r"RDKit cannot read the SMILES 'C\(\('"):
        functional_groups(["C(("])
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(TetherError, match=r"package RDKit.*pip install 'tether\[collapse\]'"):
        functional_groups(["C"])

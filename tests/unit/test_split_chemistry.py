"""Labels and descriptors that need the extra `splits`: elements, symmetry, scaffolds, SOAP."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from tether import packages
from tether.bonds import perceived_molecule
from tether.errors import TetherError
from tether.packages import require
from tether.splits.composition import PROPERTIES, STATISTICS, composition_descriptors
from tether.splits.elements import element_labels, element_pairs
from tether.splits.geometry import geometry_descriptors
from tether.splits.labels import label_each, with_label
from tether.splits.scaffold import ACYCLIC, scaffolds
from tether.splits.symmetry import space_groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def ragged(frames: Sequence[Atoms]) -> dict[str, NDArray[Any]]:
    return {
        "numbers": np.concatenate([atoms.numbers for atoms in frames]),
        "positions": np.concatenate([atoms.positions for atoms in frames]),
        "ptr": np.concatenate([[0], np.cumsum([len(atoms) for atoms in frames])]),
        "cell": np.stack([np.array(atoms.cell) for atoms in frames]),
        "pbc": np.stack([atoms.pbc for atoms in frames]),
    }


def crystals() -> list[Atoms]:
    return [
        bulk("NaCl", "rocksalt", a=5.64),
        bulk("CsCl", "cesiumchloride", a=4.12),
        bulk("Cu", "fcc", a=3.61, cubic=True),
        bulk("Si", "diamond", a=5.43),
        bulk("ZnS", "zincblende", a=5.41),
        bulk("ZnO", "wurtzite", a=3.25, c=5.2),
        bulk("Fe", "bcc", a=2.87),
        bulk("Mg", "hcp", a=3.2, c=5.2),
        Atoms(
            "LaFeO3",
            scaled_positions=[[0.5] * 3, [0] * 3, [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]],
            cell=[3.9] * 3,
            pbc=True,
        ),
    ]


# --- composition --------------------------------------------------------------------------------


def test_element_pairs_count_atoms() -> None:
    system, element, count = element_pairs([8, 26, 26, 8, 8, 1], [0, 5, 5, 6])
    assert system.tolist() == [0, 0, 2]
    assert element.tolist() == [8, 26, 1]
    assert count.tolist() == [3, 2, 1]


def test_labels_of_lanthanum_ferrite() -> None:
    numbers, ptr = [57, 26, 8, 8, 8, 11, 17], [0, 5, 7]
    expected = {
        "element": {"La", "Fe", "O"},
        "group": {"3", "8", "16"},
        "period": {"6", "4", "2"},
        "chemical-system": {"Fe-La-O"},
    }
    for kind, names in expected.items():
        labels = element_labels(numbers, ptr, kind)  # type: ignore[arg-type]
        assert {n for n in labels.names if with_label(labels, [n])[0]} == names
    assert element_labels(numbers, ptr, "group").names == ("1", "3", "8", "16", "17")
    with pytest.raises(TetherError, match="`kind` is 'row'"):
        element_labels(numbers, ptr, "row")  # type: ignore[arg-type]


def test_magpie_of_hematite_and_of_argon() -> None:
    # Ward et al. 2016, equation by equation: Fe2O3 has 40 % iron.
    table = composition_descriptors([26, 8, 26, 8, 8, 18], [0, 5, 6])
    found = table[0].reshape(len(PROPERTIES), len(STATISTICS))
    assert found[PROPERTIES.index("number")].tolist() == pytest.approx([8, 26, 18, 15.2, 8.64, 8])
    chi = 0.4 * 1.83 + 0.6 * 3.44
    deviation = 0.4 * (chi - 1.83) + 0.6 * (3.44 - chi)
    assert found[PROPERTIES.index("electronegativity")].tolist() == pytest.approx(
        [1.83, 3.44, 1.61, chi, deviation, 3.44]
    )
    # Magpie's own table: iron has 8 valence electrons and lacks 4 d, oxygen has 6 and lacks 2 p.
    assert found[PROPERTIES.index("n_valence"), 3] == pytest.approx(0.4 * 8 + 0.6 * 6)
    assert found[PROPERTIES.index("n_unfilled"), 3] == pytest.approx(0.4 * 4 + 0.6 * 2)
    assert found[PROPERTIES.index("n_f_unfilled")].tolist() == [0] * 6
    argon = table[1].reshape(len(PROPERTIES), len(STATISTICS))
    assert argon[PROPERTIES.index("electronegativity")].tolist() == [0] * 6


def test_elements_without_properties_are_named() -> None:
    with pytest.raises(TetherError, match="2 structure.s. hold Rf, Db; expected elements up to Lr"):
        composition_descriptors([26, 8, 104, 104, 105], [0, 2, 4, 5])


def test_composition_does_not_see_order_size_or_neighbours_in_the_array() -> None:
    once = composition_descriptors([11, 17], [0, 2])
    twice = composition_descriptors([17, 11, 11, 17, 6], [0, 4, 5])
    np.testing.assert_allclose(once[0], twice[0])
    assert not np.allclose(once[0], twice[1])
    # Equally frequent elements: the mode is the lesser value.
    assert once[0].reshape(-1, 6)[PROPERTIES.index("number"), 5] == 11


# --- geometry -----------------------------------------------------------------------------------


def test_geometry_is_invariant_and_blind_to_elements() -> None:
    water = molecule("H2O")
    turned = water.copy()
    turned.rotate(70, (1, 2, 3))
    turned.translate((3, -1, 2))
    turned.numbers[:] = 6
    bent = water.copy()
    bent.set_angle(1, 0, 2, 120)
    frames = [water, turned[[2, 0, 1]], bent]
    arrays = ragged(frames)
    found = geometry_descriptors(*(arrays[k] for k in ("positions", "ptr", "cell", "pbc")))
    assert found.shape == (3, 105)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)
    assert np.abs(found[2] - found[0]).max() > 0.01 * np.abs(found[0]).max()


def test_geometry_of_a_crystal_does_not_depend_on_its_cell() -> None:
    primitive = bulk("Cu", "fcc", a=3.61)
    frames = [primitive, primitive * (2, 1, 1), bulk("Cu", "fcc", a=3.61, cubic=True)]
    arrays = ragged(frames)
    found = geometry_descriptors(*(arrays[k] for k in ("positions", "ptr", "cell", "pbc")))
    np.testing.assert_allclose(found[1:], found[[0, 0]], rtol=1e-6, atol=1e-9)
    # Cubic symmetry forbids l = 1, 2, 3: no rounding noise is left that could pass for a feature.
    assert (found[:, 21:84] == 0).all()
    strained = ragged([bulk("Cu", "fcc", a=3.70)])
    other = geometry_descriptors(*(strained[k] for k in ("positions", "ptr", "cell", "pbc")))
    assert not np.allclose(other[0], found[0], rtol=1e-2)


def test_geometry_of_a_slab_does_not_depend_on_its_vacuum() -> None:
    slabs = []
    for vacuum in (0.0, 8.0, 30.0):
        slab = bulk("Cu", "fcc", a=3.61, cubic=True)
        slab.pbc = (True, True, False)
        slab.cell[2, 2] = vacuum
        slabs.append(slab)
    arrays = ragged(slabs)
    found = geometry_descriptors(*(arrays[k] for k in ("positions", "ptr", "cell", "pbc")))
    np.testing.assert_allclose(found[1:], found[[0, 0]], rtol=1e-9)


# --- space groups -------------------------------------------------------------------------------


def test_space_groups_of_textbook_crystals() -> None:
    arrays = ragged(crystals())
    found = space_groups(*(arrays[k] for k in ("numbers", "positions", "ptr", "cell", "pbc")))
    assert found == ["225", "221", "225", "227", "216", "186", "229", "194", "221"]


def test_space_group_tolerance_and_failures() -> None:
    rattled = bulk("Cu", "fcc", a=3.61, cubic=True) * (2, 1, 1)
    rattled.rattle(0.01, seed=1)
    overlapping = Atoms("Cu2", positions=np.zeros((2, 3)), cell=[3] * 3, pbc=True)
    arrays = ragged([rattled, overlapping])
    inputs = [arrays[k] for k in ("numbers", "positions", "ptr", "cell", "pbc")]
    assert space_groups(*inputs) == ["225", ""]
    assert space_groups(*inputs, tolerance=1e-4)[0] == "1"
    boxed = molecule("H2O", vacuum=3.0)
    for atoms in (molecule("H2O"), boxed):
        arrays = ragged([rattled, atoms, atoms])
        with pytest.raises(TetherError, match="2 of 3 structures are not periodic.*first is 1;"):
            space_groups(*(arrays[k] for k in ("numbers", "positions", "ptr", "cell", "pbc")))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of spglib, for pymatgen's call of it
@pytest.mark.parametrize(
    ("kind", "theirs", "name"),
    [
        ("element", "elements", "Zn"),
        ("group", "periodictablegroups", "group12"),
        ("period", "periodictablerows", "row3"),
        ("chemical-system", "chemsys", "Fe-La-O"),
        ("space-group", "sgnum", "Pm-3m"),
    ],
)
def test_leaving_a_label_out_is_what_matfold_does(
    kind: str, theirs: str, name: str, tmp_path: Path
) -> None:
    pandas = pytest.importorskip("pandas")
    matfold = pytest.importorskip("MatFold")
    from pymatgen.io.ase import AseAtomsAdaptor

    frames = crystals()
    as_dict = {str(i): AseAtomsAdaptor.get_structure(a).as_dict() for i, a in enumerate(frames)}
    with contextlib.redirect_stdout(io.StringIO()):
        folds = matfold.MatFold(pandas.DataFrame({"id": list(as_dict)}), as_dict)
        folds.create_loo_split(theirs, name, output_dir=str(tmp_path))
    left_out = pandas.read_csv(next(tmp_path.glob("*.test.csv")))["id"].tolist()
    arrays = ragged(frames)
    if kind == "space-group":
        found = space_groups(*(arrays[k] for k in ("numbers", "positions", "ptr", "cell", "pbc")))
        labels, ours = label_each(kind, found), "221"
    else:
        labels = element_labels(arrays["numbers"], arrays["ptr"], kind)  # type: ignore[arg-type]
        ours = name.removeprefix("group").removeprefix("row")
    assert np.flatnonzero(with_label(labels, [ours])).tolist() == left_out


# --- scaffolds ----------------------------------------------------------------------------------


def test_scaffolds_of_known_molecules() -> None:
    names = ["C6H6", "CH3CH2OH", "C5H5N", "bicyclobutane", "CH4", "H2O", "cyclobutene"]
    arrays = ragged([molecule(name) for name in names])
    found = scaffolds(*(arrays[k] for k in ("numbers", "positions", "ptr")))
    assert found == ["c1ccccc1", ACYCLIC, "c1ccncc1", "C1C2CC12", ACYCLIC, ACYCLIC, "C1=CCC1"]


def test_scaffolds_agree_with_smiles_and_ignore_side_chains_and_order() -> None:
    from rdkit import Chem
    from rdkit.Chem import AllChem
    from rdkit.Chem.Scaffolds.MurckoScaffold import MurckoScaffoldSmiles

    rng = np.random.default_rng(0)
    smiles = ["CCc1ccc(O)cc1", "O=C1CCCN1", "CC(=O)NCC", "c1ccc(CC2CC2)cc1", "CC1CN1C", "N#CC1CC1F"]
    frames = []
    for text in smiles:
        mol = Chem.AddHs(Chem.MolFromSmiles(text))
        AllChem.EmbedMolecule(mol, randomSeed=1)
        AllChem.MMFFOptimizeMolecule(mol)
        numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        atoms = Atoms(numbers, positions=mol.GetConformer().GetPositions())
        frames.append(atoms[rng.permutation(len(atoms))])
    arrays = ragged(frames)
    found = scaffolds(*(arrays[k] for k in ("numbers", "positions", "ptr")))
    assert found == [MurckoScaffoldSmiles(text) or ACYCLIC for text in smiles]
    assert found[0] == "c1ccccc1"


def test_molecules_without_bond_orders_have_no_scaffold() -> None:
    methyl = molecule("CH3")  # a radical
    ammonium = Atoms("NH4", positions=molecule("CH4").positions * 0.95)
    arrays = ragged([methyl, ammonium, molecule("CH4")])
    inputs = [arrays[k] for k in ("numbers", "positions", "ptr")]
    assert scaffolds(*inputs, [0, 1, 0]) == ["", ACYCLIC, ACYCLIC]
    assert scaffolds(*inputs)[1] == ""  # the same atoms, neutral


def test_small_cages_have_no_bond_across() -> None:
    # RDKit's default reach bonds atoms across a cage, and then no valences fit.
    cage = molecule("bicyclobutane")
    mol = perceived_molecule(cage.numbers, cage.positions)
    assert mol.GetNumBonds() == 11  # six C-H, four sides and the bridge
    prismane = molecule("C6H6")
    prismane.positions *= 0.2
    assert perceived_molecule(prismane.numbers, prismane.positions) is None


# --- packages -----------------------------------------------------------------------------------


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(
        TetherError, match=r"needs the package rdkit.*pip install 'tether\[splits\]'"
    ):
        scaffolds([1, 1], np.eye(3)[:2], [0, 2])
    with pytest.raises(TetherError, match="the structure descriptor needs the package featomic"):
        geometry_descriptors(np.zeros((1, 3)), [0, 1], np.zeros((1, 3, 3)), np.zeros((1, 3), bool))
    with pytest.raises(TetherError, match="method group needs the package pymatgen"):
        element_labels([1], [0, 1], "group")
    element_labels([1], [0, 1], "element")  # the core installation can do this
    monkeypatch.undo()
    require("numpy", "arithmetic", extra="splits")

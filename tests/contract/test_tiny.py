"""`TinyBackbone` passes the whole contract; the shared input checks name what they refuse."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from tether.backbones.checks import OVERLAP_DISTANCE, check_overlaps, check_structures
from tether.backbones.protocol import Backbone, Potential
from tether.errors import TetherError
from tether.graph import neighbour_edges
from tether.structures import AtomBatch, from_ase
from tether.testing import TinyBackbone, validate_backbone
from tether.testing.structures import dimer, isolated_atom, silicon, small_structures, water


def test_passes_the_contract_with_nothing_declared_unused() -> None:
    report = validate_backbone(TinyBackbone())
    assert report.failed == ()
    assert report.skipped == ("cell refused", "molecule refused")


def test_passes_as_a_molecules_only_backbone() -> None:
    report = validate_backbone(TinyBackbone(periodic=False, elements=(1, 6, 8), n_layers=3))
    assert report.failed == ()
    crystals_only = ("lattice translation", "choice of cell", "supercell", "stress")
    assert report.skipped == ("molecule refused", *crystals_only)


def test_passes_as_a_crystals_only_backbone() -> None:
    report = validate_backbone(TinyBackbone(molecules=False))
    assert report.failed == ()
    assert report.skipped == ("cell refused",)


def test_implements_both_protocols_and_is_small() -> None:
    backbone = TinyBackbone()
    assert isinstance(backbone, Backbone)
    assert isinstance(backbone, Potential)
    assert 10_000 < sum(p.numel() for p in backbone.parameters()) < 30_000
    assert [name for name, _ in backbone.blocks()] == ["embedding", "layer 0", "layer 1"]


def test_energy_head_is_in_no_block() -> None:
    backbone = TinyBackbone()
    inside = {id(p) for _, parameters in backbone.blocks() for p in parameters}
    outside = {n.split(".")[0] for n, p in backbone.named_parameters() if id(p) not in inside}
    assert outside == {"energy_hidden", "energy_out", "reference"}


def test_same_seed_same_weights_and_the_global_generator_stays() -> None:
    state = torch.get_rng_state()
    first, again, other = TinyBackbone(seed=1), TinyBackbone(seed=1), TinyBackbone(seed=2)
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


def test_precision_does_not_depend_on_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        backbone = TinyBackbone()
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert backbone.frequencies.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_have_the_precision_of_the_weights(dtype: torch.dtype) -> None:
    backbone = TinyBackbone().to(dtype)
    graph = backbone.prepare(from_ase(small_structures())).differentiable()
    features = backbone(graph)
    outputs = backbone.energy_forces(graph, features)
    assert {v.dtype for v in (features.node, features.edge, *outputs)} == {dtype}


def test_atom_energies_sum_to_the_energy() -> None:
    backbone = TinyBackbone().double()
    backbone.reference.weight.data[8] = -3.0
    graph = backbone.prepare(from_ase([water(), isolated_atom()])).differentiable()
    features = backbone(graph)
    atomic = backbone.atom_energies(graph, features).detach()
    energy = backbone.energy_forces(graph, features)[0]
    torch.testing.assert_close(energy, torch.stack([atomic[:3].sum(), atomic[3]]))


def test_crystal_equals_its_supercell() -> None:
    backbone = TinyBackbone().double()
    primitive = silicon()
    graph = backbone.prepare(from_ase([primitive, primitive * (2, 1, 3)])).differentiable()
    energy, forces, stress = backbone.energy_forces(graph, backbone(graph))
    torch.testing.assert_close(energy[1], 6 * energy[0])
    torch.testing.assert_close(stress[1], stress[0])
    torch.testing.assert_close(forces[2:4], forces[:2])


def test_mirror_images_agree_and_isomers_do_not() -> None:
    backbone = TinyBackbone().double()
    methanol, mirrored = molecule("CH3OH"), molecule("CH3OH")
    mirrored.positions[:, 1] *= -1
    swapped = molecule("CH3OH")
    swapped.numbers[[0, 1]] = swapped.numbers[[1, 0]]
    graph = backbone.prepare(from_ase([methanol, mirrored, swapped])).differentiable()
    energy = backbone.energy_forces(graph, backbone(graph))[0]
    torch.testing.assert_close(energy[1], energy[0])
    assert abs(energy[2] - energy[0]) > 1e-3


def test_refuses_elements_without_an_embedding() -> None:
    with pytest.raises(TetherError, match=r"`elements` is \(1, 101\); expected atomic numbers"):
        TinyBackbone(elements=(1, 101))


def test_importing_the_contract_imports_no_backbone_package() -> None:
    code = (
        "import sys, tether.testing;"
        "heavy = {'so3krates_torch', 'torch_geometric', 'ase', 'vesin'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def named(atoms: list[Atoms], *names: str) -> AtomBatch:
    return from_ase(atoms, ids=names)


def test_unknown_elements_are_named_with_their_structures() -> None:
    spec = TinyBackbone(elements=(1, 8)).spec
    batch = named([water(), dimer(1.1, numbers=(6, 9)), dimer(1.1, numbers=(1, 6))], "a", "b", "c")
    message = r"`tiny` does not know C, F, found in structures `b`, `c`; expected one of H, O"
    with pytest.raises(TetherError, match=message):
        check_structures(batch, spec)
    check_structures(batch.select([0]), spec)


def test_long_lists_are_counted() -> None:
    spec = TinyBackbone(elements=(1,)).spec
    batch = named([water()] * 8, *"abcdefgh")
    with pytest.raises(TetherError, match="`a`, `b`, `c`, `d`, `e` and 3 more; expected one of H;"):
        check_structures(batch, spec)


def test_element_beyond_the_table_is_named_by_number() -> None:
    atoms = Atoms(numbers=[130, 1], positions=[[0, 0, 0], [1, 0, 0]])
    with pytest.raises(TetherError, match="does not know Z=130, found in structure `x`"):
        check_structures(named([atoms], "x"), TinyBackbone().spec)


def test_cells_are_refused_where_none_is_accepted() -> None:
    spec = TinyBackbone(periodic=False).spec
    batch = named([water(), silicon()], "molecule", "crystal")
    with pytest.raises(TetherError, match="accepts no cell, but structure `crystal` is periodic"):
        check_structures(batch, spec)
    boxed = water()
    boxed.set_cell([9, 9, 9])
    check_structures(named([boxed], "box without pbc"), spec)


def test_a_flat_cell_is_refused_and_a_slab_accepted() -> None:
    spec = TinyBackbone().spec
    flat = Atoms("Si", cell=[[1, 0, 0], [0, 1, 0], [1, 1, 0]], pbc=True)
    with pytest.raises(TetherError, match="linearly dependent in structure `flat`"):
        check_structures(named([flat], "flat"), spec)
    slab = Atoms("Si", cell=[3, 3, 0], pbc=[True, True, False])
    check_structures(named([slab], "slab"), spec)
    graph = TinyBackbone().prepare(named([slab], "slab"))
    assert len(graph.edges["pairs"].idx_i) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["positions", "cell", "charge", "spin"])
def test_numbers_that_are_not_finite_are_refused(value: float, where: str) -> None:
    broken = silicon()
    if where in {"charge", "spin"}:
        broken.info[where] = value
    else:
        (broken.positions if where == "positions" else broken.cell)[1, 2] = value
    batch = named([silicon(), broken], "good", "bad")
    with pytest.raises(TetherError, match="cell, charge or spin are not finite in structure `bad`"):
        check_structures(batch, TinyBackbone().spec)


def test_a_structure_without_atoms_is_refused() -> None:
    with pytest.raises(TetherError, match="no atoms in structure `empty`"):
        check_structures(named([water(), Atoms()], "w", "empty"), TinyBackbone().spec)


@pytest.mark.parametrize(("factor", "refused"), [(0.9, True), (1.1, False)])
def test_overlaps_are_refused_below_the_stated_distance(factor: float, refused: bool) -> None:
    close = dimer(factor * OVERLAP_DISTANCE)
    # Far out, where single precision could not tell.
    close.positions += 1000.0
    batch = named([water(), close], "water", "close")
    edges = neighbour_edges(batch, 4.0, full=False)
    if not refused:
        check_overlaps(batch, edges)
        return
    message = r"atoms 0 and 1 are 0.0009 Å apart in structure `close`; expected atoms at least"
    with pytest.raises(TetherError, match=message):
        check_overlaps(batch, edges)
    with pytest.raises(TetherError, match="apart in structure `close`"):
        TinyBackbone().prepare(batch)


def test_overlaps_across_a_cell_boundary_are_refused() -> None:
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.positions[1] = atoms.cell.array.sum(0) + np.array([0, 0, 1e-5])
    with pytest.raises(TetherError, match="apart in structure `twin`"):
        TinyBackbone().prepare(named([atoms], "twin"))


def test_without_ids_structures_are_numbered() -> None:
    batch = AtomBatch(
        numbers=torch.tensor([101]),
        positions=torch.zeros(1, 3),
        ptr=torch.tensor([0, 1]),
        cell=torch.zeros(1, 3, 3),
        pbc=torch.zeros(1, 3, dtype=torch.bool),
        charge=torch.zeros(1),
        spin=torch.zeros(1),
    )
    with pytest.raises(TetherError, match="does not know Md, found in structure number 0"):
        check_structures(batch, TinyBackbone().spec)

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.morse import MorsePotential
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.errors import TetherError
from tether.graph import neighbour_edges
from tether.labels.calculator import FunctionCalculator
from tether.labels.dynamics import short_md
from tether.labels.modes import PairList, mode_displacements, model_hessian, wavenumbers
from tether.labels.perturb import displace, normal_mode_like, strained, unchanged
from tether.labels.proximity import closest_ratio
from tether.labels.samples import MIN_RATIO, Samples
from tether.structures import AtomBatch, collate, from_ase

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

MOLECULES = ("H2O", "C6H6", "CO2", "CH3CH2OH")


def molecules(*names: str) -> AtomBatch:
    return from_ase([molecule(name) for name in names or MOLECULES], ids=names or MOLECULES)


def pairs_of(batch: AtomBatch) -> PairList:
    edges = neighbour_edges(batch, 6.0, full=True)
    vectors = batch.positions[edges.idx_j] - batch.positions[edges.idx_i]
    vectors = vectors + edges.shift.double() @ batch.cell[0]
    return PairList(edges.idx_i.numpy(), edges.idx_j.numpy(), vectors.numpy())


def frequencies(batch: AtomBatch) -> np.ndarray:
    return wavenumbers(
        batch.numbers.numpy(),
        batch.positions.numpy(),
        pairs_of(batch),
        periodic=bool(batch.pbc.any()),
    )


def test_displace_has_the_widths_asked_for() -> None:
    batch = molecules("C6H6")
    samples = displace(batch, widths=(0.02, 0.08), n_per_structure=400, seed=0)
    moves = (samples.batch.positions - batch.select([0] * 400).positions).reshape(400, -1)
    assert not samples.rejected
    assert moves[0::2].std().item() == pytest.approx(0.02, rel=0.03)
    assert moves[1::2].std().item() == pytest.approx(0.08, rel=0.03)
    assert moves.mean().abs().item() < 0.003


def test_samples_carry_ids_and_physics_but_no_labels() -> None:
    atoms = molecule("OH")
    atoms.info.update(charge=-1.0, spin=0.0)
    batch = from_ase(atoms, ids=["a/b"], labels={"gap": np.array([1.0])})
    samples = displace(batch, n_per_structure=2, seed=0)
    assert samples.batch.ids == ("a/b/displace-0", "a/b/displace-1")
    assert samples.batch.charge.tolist() == [-1.0, -1.0]
    assert not samples.batch.labels
    assert not samples.batch.atom_labels
    assert batch.labels["gap"].tolist() == [1.0]


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(len(MOLECULES))), seed=st.integers(0, 2**40))
def test_a_geometry_does_not_depend_on_its_batch(order: list[int], seed: int) -> None:
    batch = molecules()
    whole = normal_mode_like(batch.select(order), temperature=300, n_per_structure=2, seed=seed)
    for s in range(batch.n_systems):
        alone = normal_mode_like(batch.select([s]), temperature=300, n_per_structure=2, seed=seed)
        rows = [i for i, name in enumerate(whole.batch.ids) if name in alone.batch.ids]
        assert torch.equal(whole.batch.select(rows).positions, alone.batch.positions)


def test_seed_kind_and_number_change_the_geometry() -> None:
    batch = molecules("H2O")
    first = displace(batch, n_per_structure=2, widths=(0.05,), seed=0).batch.positions
    again = displace(batch, n_per_structure=2, widths=(0.05,), seed=0).batch.positions
    other = displace(batch, n_per_structure=2, widths=(0.05,), seed=1).batch.positions
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:3], first[3:])


def test_clashing_atoms_are_reported_not_dropped() -> None:
    broken = molecules("H2O", "CH4")
    positions = broken.positions.clone()
    positions[1] = positions[0]
    broken = replace(broken, positions=positions)
    for samples, n in (
        (displace(broken, n_per_structure=3, seed=0, widths=(0.01,)), 3),
        (unchanged(broken), 1),
    ):
        assert samples.batch.n_systems == n
        assert len(samples.rejected) == n
        assert samples.rejected[0].id.startswith("H2O/")
        assert "sum of their covalent radii" in samples.rejected[0].reason
        assert samples.rejected[0].value < MIN_RATIO


def test_clashing_draws_are_drawn_again() -> None:
    # Half an ångström of noise brings many draws too close; redrawing must cure most of them.
    batch = molecules("CH4")
    samples = displace(batch, widths=(0.35,), n_per_structure=200, seed=0)
    assert samples.batch.n_systems + len(samples.rejected) == 200
    assert samples.batch.n_systems > 190
    assert closest_ratio(samples.batch).min() >= MIN_RATIO
    raw = np.random.default_rng(0).normal(0, 0.35, (200, 5, 3))
    tiled = batch.select([0] * 200)
    unguarded = replace(tiled, positions=tiled.positions + torch.from_numpy(raw.reshape(-1, 3)))
    assert (closest_ratio(unguarded) < MIN_RATIO).sum() > 10


def test_closest_ratio_sees_periodic_images_and_nan() -> None:
    argon = bulk("Ar", "sc", a=0.5)
    assert closest_ratio(from_ase(argon)).item() == pytest.approx(0.5 / (2 * 1.06))
    argon.pbc = False
    assert closest_ratio(from_ase(argon)).item() == 0.6
    bad = molecules("H2O", "CH4")
    positions = bad.positions.clone()
    positions[0, 0] = float("nan")
    assert closest_ratio(replace(bad, positions=positions)).tolist() == [0.0, 0.6]


@pytest.mark.parametrize("name", ["H2O", "CO2", "CH3CH2OH"])
def test_model_hessian_is_blind_to_rigid_motion(name: str) -> None:
    batch = molecules(name)
    hessian = model_hessian(batch.numbers.numpy(), pairs_of(batch))
    positions = batch.positions.numpy()
    assert np.allclose(hessian, hessian.T)
    for axis in np.eye(3):
        turn = np.cross(axis, positions - positions.mean(0)).ravel()
        assert np.abs(hessian @ np.tile(axis, len(positions))).max() < 1e-10
        assert np.abs(hessian @ turn).max() < 1e-9
    stretch = positions.ravel()
    assert stretch @ hessian @ stretch > 10.0  # control: breathing is not rigid


def test_torsion_rows_are_the_gradient_of_the_dihedral() -> None:
    from tether.labels.modes import _strength, _torsions

    atoms = molecule("H2O2")
    batch = from_ase(atoms)
    pairs = pairs_of(batch)
    bonds = pairs.select(np.linalg.norm(pairs.vectors, axis=1) < 1.6)
    degree = np.bincount(bonds.idx_i, minlength=4)
    rho = np.ones_like(_strength(batch.numbers.numpy(), bonds))
    places, gradient, _ = _torsions(bonds, rho, degree, np.cumsum(degree) - degree)
    assert len(places) == 2  # one dihedral, from both sides
    for atom in range(4):
        for axis in range(3):
            moved = atoms.copy()
            moved.positions[places[0][atom], axis] += 1e-5
            up = moved.get_dihedral(*places[0])
            moved.positions[places[0][atom], axis] -= 2e-5
            down = moved.get_dihedral(*places[0])
            slope = np.deg2rad(up - down) / 2e-5
            assert abs(abs(slope) - abs(gradient[0, atom, axis])) < 1e-6


def test_wavenumbers_are_of_the_right_size() -> None:
    # Experiment: water 1595, 3657, 3756; CO2 667 (twice), 1333, 2349; copper below 240 cm⁻¹.
    assert np.allclose(frequencies(molecules("H2O")), [1595, 3657, 3756], rtol=0.25)
    carbon_dioxide = frequencies(molecules("CO2"))
    assert len(carbon_dioxide) == 4
    assert carbon_dioxide[0] == pytest.approx(carbon_dioxide[1])
    assert np.allclose(carbon_dioxide, [667, 667, 1333, 2349], rtol=0.25)
    benzene = frequencies(molecules("C6H6"))
    assert len(benzene) == 30
    assert 150 < benzene[0] < 450  # 398, out of plane
    copper = frequencies(from_ase(bulk("Cu", cubic=True)))
    assert len(copper) == 9
    assert 100 < copper.max() < 350


def test_modes_have_the_classical_energy_and_scale_with_temperature() -> None:
    batch = molecules("CH3CH2OH")
    numbers, positions, pairs = batch.numbers.numpy(), batch.positions.numpy(), pairs_of(batch)
    matrix = mode_displacements(numbers, positions, pairs, periodic=False, temperature=300)
    hotter = mode_displacements(numbers, positions, pairs, periodic=False, temperature=1200)
    assert np.allclose(np.abs(hotter), 2 * np.abs(matrix))
    energy = 0.5 * np.diag(matrix.T @ model_hessian(numbers, pairs) @ matrix)
    assert np.allclose(energy, 0.5 * 8.617333e-5 * 300, rtol=1e-4)  # equipartition


def test_modes_spare_bonds_where_isotropic_noise_does_not() -> None:
    batch = molecules("CH3CH2OH")
    pairs = pairs_of(batch)
    bonded = np.linalg.norm(pairs.vectors, axis=1) < 1.6
    i, j = pairs.idx_i[bonded], pairs.idx_j[bonded]

    def spread(samples: Samples) -> tuple[float, float]:
        frames = samples.batch.positions.reshape(-1, 9, 3).numpy()
        bonds = np.linalg.norm(frames[:, i] - frames[:, j], axis=-1)
        return float(bonds.std(0).mean()), float(frames.std(0).mean())

    thermal, amplitude = spread(
        normal_mode_like(batch, temperature=300, n_per_structure=300, seed=0)
    )
    noise, _ = spread(displace(batch, widths=(amplitude,), n_per_structure=300, seed=0))
    assert thermal < 0.06  # about 0.03 Å for C-H at 300 K, plus the second order of torsions
    assert noise > 2.0 * thermal


def test_normal_modes_of_a_crystal_and_of_one_atom() -> None:
    crystal = from_ase(bulk("NaCl", "rocksalt", a=5.64, cubic=True), ids=["salt"])
    atom = from_ase(molecule("H"), ids=["atom"])
    both = collate([crystal, atom])
    samples = normal_mode_like(both, temperature=300, n_per_structure=20, seed=3)
    assert not samples.rejected
    moves = samples.batch.positions - both.select([0] * 20 + [1] * 20).positions
    assert 0.03 < moves[:160].std().item() < 0.5
    assert moves[160:].abs().max().item() == 0.0
    # The centre of mass of a crystal stays where it is.
    masses = torch.tensor([22.98976928, 35.45] * 4, dtype=torch.float64)
    assert torch.einsum("a,sai->si", masses, moves[:160].reshape(20, 8, 3)).abs().max() < 1e-8


def morse() -> Calculator:
    return MorsePotential(epsilon=1.0, r0=2.5, rho0=6.0, rcut1=20.0, rcut2=30.0)


def dimers() -> AtomBatch:
    chain = from_ase(bulk("Cu", a=3.6).repeat((2, 1, 1)), ids=["dimer"])
    return replace(chain, pbc=torch.zeros(1, 3, dtype=torch.bool))


def test_md_moves_reproducibly_and_heats() -> None:
    kwargs = {"steps": 40, "every": 20, "seed": 5}
    samples = short_md(dimers(), morse, temperature=300, **kwargs)
    again = short_md(dimers(), morse, temperature=300, **kwargs)
    hot = short_md(dimers(), morse, temperature=3000, **kwargs)
    assert samples.batch.ids == ("dimer/md-0", "dimer/md-1")
    assert torch.equal(samples.batch.positions, again.batch.positions)
    start = dimers().select([0, 0]).positions
    cold_move = (samples.batch.positions - start).norm()
    assert 0.0 < cold_move < (hot.batch.positions - start).norm()


def test_md_that_fails_is_reported() -> None:
    def explode(atoms: object) -> tuple[float, np.ndarray]:
        raise RuntimeError("SCF not converged")

    samples = short_md(dimers(), lambda: FunctionCalculator(explode), steps=2, every=1, seed=0)
    assert samples.batch.n_systems == 0
    assert [f.id for f in samples.rejected] == ["dimer/md-0", "dimer/md-1"]
    assert "SCF not converged" in samples.rejected[0].reason


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda b: displace(b, n_per_structure=0, seed=0), "`n_per_structure` is 0"),
        (lambda b: displace(b, widths=(0.1, -1), n_per_structure=1, seed=0), "`widths` is"),
        (lambda b: displace(b, widths=(), n_per_structure=1, seed=0), "`widths` is"),
        (
            lambda b: normal_mode_like(b, temperature=0, n_per_structure=1, seed=0),
            "`temperature` is 0",
        ),
        (lambda b: short_md(b, morse, steps=1, every=2, seed=0), "`steps` is 1"),
    ],
)
def test_bad_arguments_are_named(call: object, text: str) -> None:
    with pytest.raises(TetherError, match=text):
        call(molecules("H2O"))  # type: ignore[operator]


def test_a_single_geometry_is_displaced() -> None:
    """A torch index of one element would make numpy return a scalar, and the loop fail."""
    samples = displace(from_ase(molecule("H2O")), widths=(0.05,), n_per_structure=1, seed=3)
    assert samples.batch.n_systems == 1


def strains_of(batch: AtomBatch, samples: Samples) -> np.ndarray:
    """Strain of each geometry, from the cells alone."""
    n = samples.batch.n_systems // batch.n_systems
    before = batch.cell.numpy().repeat(n, axis=0)
    return np.linalg.solve(before, samples.batch.cell.numpy()) - np.eye(3)


def test_strained_cells_are_deformed_symmetrically_and_as_widely_as_asked() -> None:
    batch = from_ase([bulk("Si"), bulk("NaCl", "rocksalt", a=5.64)], ids=["Si", "NaCl"])
    samples = strained(batch, strain=0.03, widths=(0.01,), n_per_structure=200, seed=3)
    assert samples.batch.n_systems == 400
    assert samples.batch.ids[0] == "Si/strain-0"
    found = strains_of(batch, samples)
    np.testing.assert_allclose(found, found.transpose(0, 2, 1), atol=1e-12)
    diagonal, off = np.diagonal(found, axis1=1, axis2=2), found[:, [0, 0, 1], [1, 2, 2]]
    assert diagonal.std() == pytest.approx(0.03, rel=0.1)
    assert off.std() == pytest.approx(0.03 / 2**0.5, rel=0.1)
    # Positions follow the cell; what is left is the noise, of its own width.
    fractions = np.linalg.solve(
        samples.batch.cell.numpy()[samples.batch.system_idx].transpose(0, 2, 1),
        samples.batch.positions.numpy()[:, :, None],
    )[..., 0]
    n = samples.batch.n_systems // batch.n_systems
    original = batch.select(np.repeat([0, 1], n).tolist())
    cell, place = original.cell.numpy()[original.system_idx], original.positions.numpy()
    there = np.linalg.solve(cell.transpose(0, 2, 1), place[:, :, None])[..., 0]
    noise = np.einsum("ni,nij->nj", fractions - there, cell)
    assert noise.std() == pytest.approx(0.01, rel=0.1)


def test_a_strained_geometry_depends_on_its_own_structure_only() -> None:
    batch = from_ase([bulk("Si"), bulk("Cu")], ids=["Si", "Cu"])
    whole = strained(batch, n_per_structure=2, seed=0).batch
    alone = strained(batch.select([1]), n_per_structure=2, seed=0).batch
    assert torch.equal(whole.cell[2:], alone.cell)
    assert not torch.equal(whole.cell[2], whole.cell[3])
    plain = displace(batch, n_per_structure=2, seed=0).batch  # and this kind leaves the cell alone
    assert torch.equal(plain.cell, batch.cell.repeat_interleave(2, dim=0))


@pytest.mark.parametrize("strain", [0.0, -0.1, 0.5, float("nan")])
def test_a_strain_out_of_range_is_refused(strain: float) -> None:
    with pytest.raises(TetherError, match=r"`strain` is .*expected a number above 0, at most 0.3"):
        strained(from_ase(bulk("Si")), strain=strain, n_per_structure=1, seed=0)


def test_a_molecule_cannot_be_strained() -> None:
    mixed = collate([from_ase(bulk("Si"), ids=["Si"]), molecules("H2O")])
    with pytest.raises(TetherError, match="there is no cell in structure `H2O`"):
        strained(mixed, n_per_structure=1, seed=0)

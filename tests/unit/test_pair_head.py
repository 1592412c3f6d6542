"""Vectors from invariant features: they turn with the structure, and fade at the cutoff."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from scipy.spatial.transform import Rotation

from tether.errors import TetherError
from tether.features import Features
from tether.heads.energy import EnergyHead
from tether.heads.pair import PairHead
from tether.model import AdaptedModel
from tether.structures import AtomBatch, from_ase
from tether.testing.structures import ethanol, skewed_silicon, water
from tether.testing.tiny import TinyBackbone

BACKBONE = TinyBackbone(n_features=16).double()
STRUCTURES = [[ethanol(), water()], [skewed_silicon(), bulk("NaCl", "rocksalt", 5.6)]]


class PointsNorth(PairHead):
    """Broken: its vectors lean towards one direction of space."""

    def forward(
        self, features: Features, batch: AtomBatch, known: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        vectors, tensors = super().forward(features, batch, known)
        north = torch.eye(3, dtype=vectors.dtype)[2]
        return vectors + 0.1 * features.node[:, :1] * north, tensors + 0.1 * torch.outer(
            north, north
        )


def head(*, conditioned: bool = True, kind: type[PairHead] = PairHead) -> PairHead:
    return kind(16, cutoff=4.0, n_hidden=8, conditioned=conditioned).double()


def turned(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    copy = atoms.copy()
    copy.set_cell(atoms.cell.array @ matrix, scale_atoms=False)
    copy.positions = atoms.positions @ matrix
    return copy


def outputs(
    module: PairHead, frames: list[Atoms], known: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    graph = BACKBONE.prepare(from_ase(frames))
    vectors, tensors = module(BACKBONE(graph), graph.batch, known)
    return vectors.detach(), tensors.detach()


def defect(module: PairHead, frames: list[Atoms], matrix: np.ndarray) -> float:
    """Largest difference between turning before and after, as a share of the largest output."""
    turn = torch.from_numpy(matrix)
    known = torch.randn(
        sum(map(len, frames)), 3, generator=torch.Generator().manual_seed(1)
    ).double()
    vectors, tensors = outputs(module, frames, known)
    after, tensors_after = outputs(module, [turned(a, matrix) for a in frames], known @ turn)
    assert float(vectors.abs().max()) > 1e-4
    assert float(tensors.abs().max()) > 1e-6
    return max(
        float((after - vectors @ turn).abs().max() / vectors.abs().max()),
        float((tensors_after - turn.T @ tensors @ turn).abs().max() / tensors.abs().max()),
    )


@pytest.mark.parametrize("frames", STRUCTURES, ids=["molecules", "crystals"])
@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_vectors_and_tensors_turn_with_the_structure(frames: list[Atoms], mirror: float) -> None:
    matrix = mirror * Rotation.from_rotvec([0.4, -0.8, 1.1]).as_matrix()
    assert defect(head(), frames, matrix) < 1e-9
    assert defect(head(kind=PointsNorth), frames, matrix) > 1e-3


@pytest.mark.parametrize("frames", STRUCTURES, ids=["molecules", "crystals"])
def test_each_structure_is_on_its_own_and_its_mean_is_zero(frames: list[Atoms]) -> None:
    known = torch.zeros(sum(map(len, frames)), 3, dtype=torch.float64)
    together, tensors = outputs(head(), frames, known)
    apart = [outputs(head(), [a], known[: len(a)]) for a in frames]
    torch.testing.assert_close(together, torch.cat([v for v, _ in apart]))
    torch.testing.assert_close(tensors, torch.cat([t for _, t in apart]))
    for vectors, _ in apart:
        assert float(vectors.sum(0).abs().max()) < 1e-12
    torch.testing.assert_close(tensors, tensors.transpose(1, 2))


def test_what_is_known_enters_the_result() -> None:
    known = torch.ones(3, 3, dtype=torch.float64) * torch.arange(3.0)[:, None]
    with_it, _ = outputs(head(), [water()], known)
    without, _ = outputs(head(), [water()], torch.zeros_like(known))
    assert float((with_it - without).abs().max()) > 1e-3


def test_a_neighbour_at_the_cutoff_counts_nothing() -> None:
    def pull(distance: float) -> float:
        graph = BACKBONE.prepare(from_ase([Atoms("HO", [[0, 0, 0], [0, 0, distance]])]))
        vectors, _ = head(conditioned=False)(BACKBONE(graph), graph.batch)
        return float(vectors.detach().norm())

    assert pull(3.999) < 1e-5
    assert pull(2.0) > 1e-3


def test_a_lone_atom_has_zero_vectors() -> None:
    vectors, tensors = outputs(head(), [Atoms("O")], torch.zeros(1, 3, dtype=torch.float64))
    assert not vectors.any()
    assert not tensors.any()


def test_features_without_edges_are_refused() -> None:
    graph = BACKBONE.prepare(from_ase([water()]))
    bare = replace(BACKBONE(graph), edge_vector=None)
    with pytest.raises(TetherError, match="features have no edges"):
        head()(bare, graph.batch)


@pytest.mark.parametrize("frames", STRUCTURES, ids=["molecules", "crystals"])
def test_an_energy_heads_forces_are_its_gradient_or_direct(frames: list[Atoms]) -> None:
    direct = head(conditioned=False)
    heads = {
        "derived": EnergyHead(16, scale=1.5).double(),
        "direct": EnergyHead(16, scale=1.5, direct=direct).double(),
    }
    model = AdaptedModel(BACKBONE, [], potentials=heads)
    graph = BACKBONE.prepare(from_ase(frames))
    step, atom, axis = 1e-4, 1, 2

    def energy(shift: float) -> float:
        positions = graph.batch.positions.clone()
        positions[atom, axis] += shift
        moved = replace(graph, batch=graph.batch.with_geometry(positions))
        return float(model.energy_forces(moved, head="derived")[0].sum())

    derived, found, stress = model.energy_forces(graph, head="derived")
    slope = (energy(step) - energy(-step)) / (2 * step)
    assert float(found[atom, axis]) == pytest.approx(-slope, rel=1e-5, abs=1e-9)
    assert (stress is not None) == graph.batch.is_periodic
    same, forces, none = model.energy_forces(graph, head="direct")
    torch.testing.assert_close(same, derived)
    vectors, _ = direct(BACKBONE(graph), graph.batch)
    torch.testing.assert_close(forces, 1.5 * vectors.detach())
    assert none is None

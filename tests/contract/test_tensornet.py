"""TensorNet: our forward pass is the package's, to rounding, and passes the contract."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from tether.adapt import HeadChoice, adapt
from tether.backbones.load import load_backbone
from tether.errors import TetherError
from tether.graph import Graph, neighbour_edges
from tether.inputs import BackboneChoice
from tether.recipe import named_recipe
from tether.structures import AtomBatch, from_ase
from tether.testing import validate_backbone

pytest.importorskip("torchmdnet", reason="the extra tensornet is not installed")
# The package's dependencies warn about deprecated calls, at import.
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {"n_features": 8, "n_layers": 2, "n_radial": 6}


class OurNeighbours(torch.nn.Module):
    """In place of the package's search, which knows no small cells: full lists, and self loops."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, pos: Any, batch: Any, box: Any) -> tuple[torch.Tensor, ...]:
        edges = self.graph.edges["full"]
        own = torch.arange(len(pos))
        # The package's convention: a vector points to the receiving atom.
        vectors = torch.cat([-self.graph.vectors("full"), torch.zeros_like(pos)])
        index = torch.cat([torch.stack([edges.idx_i, edges.idx_j]), torch.stack([own, own])], dim=1)
        distances = vectors[: len(edges.idx_i)].norm(dim=1)
        return index, torch.cat([distances, torch.zeros_like(pos[:, 0])]), vectors


def package_forward(
    backbone: Any, batch: AtomBatch, monkeypatch: pytest.MonkeyPatch
) -> dict[str, torch.Tensor]:
    """The package's forward pass in plain torch: its warp kernels keep eight digits in double."""
    from torchmdnet.models import tensornet

    for name in ("compose_tensor", "decompose_tensor", "tensor_matmul_o3", "tensor_matmul_so3"):
        monkeypatch.setattr(tensornet, name, getattr(tensornet, f"_{name}"))
    network = copy.deepcopy(backbone.network)
    for module in network.modules():
        if hasattr(module, "opt"):
            module.opt = False
    full = neighbour_edges(batch, backbone.spec.cutoff, full=True)
    graph = Graph(batch, {"full": full}).to(dtype=torch.float64).differentiable()
    network.distance = OurNeighbours(graph)
    moved = graph.batch
    node, *_ = network(moved.numbers, moved.positions, moved.system_idx, q=moved.charge)
    atomic = backbone.energy(node).squeeze(1)
    energy = atomic.new_zeros(moved.n_systems).index_add(0, moved.system_idx, atomic)
    assert graph.leaves is not None
    (gradient,) = torch.autograd.grad(energy.sum(), graph.leaves[:1])
    return {"node": node.detach(), "energy": energy.detach(), "forces": -gradient}


def rattled(*frames: Atoms) -> list[Atoms]:
    rng = np.random.default_rng(0)
    for atoms in frames:
        atoms.info.clear()
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
    return list(frames)


MOLECULES = ("H2O", "CH3CH2OH", "C6H6", "CH3SH", "PH3", "HF", "CO2")


@pytest.mark.parametrize(
    "frames",
    [
        rattled(*(molecule(name) for name in MOLECULES)),
        # In the second cell an atom is a neighbour of its own images.
        rattled(bulk("NaCl", "rocksalt", a=5.64).repeat(2), bulk("Si"), bulk("Cu")),
    ],
    ids=["molecules", "crystals"],
)
def test_agrees_with_the_package(frames: list[Atoms], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_backbone("tensornet", seed=1).double()  # type: ignore[attr-defined]
    graph = backbone.prepare(from_ase(frames)).differentiable()
    features = backbone(graph)
    energy, forces, _ = backbone.energy_forces(graph, features)
    theirs = package_forward(backbone, from_ase(frames), monkeypatch)
    exact = {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(features.node.detach(), theirs["node"], **exact)
    torch.testing.assert_close(energy, theirs["energy"], **exact)
    torch.testing.assert_close(forces, theirs["forces"], **exact)
    assert float(forces.abs().max()) > 1e-3


def test_agrees_with_the_package_on_charges(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = rattled(molecule("NH3"), molecule("H2O"))
    backbone = load_backbone("tensornet").double()  # type: ignore[attr-defined]
    neutral = backbone(backbone.prepare(from_ase(frames))).node
    frames[0].info["charge"] = 1
    charged = backbone(backbone.prepare(from_ase(frames))).node
    theirs = package_forward(backbone, from_ase(frames), monkeypatch)["node"]
    torch.testing.assert_close(charged.detach(), theirs, rtol=1e-12, atol=1e-13)
    assert float((charged - neutral)[:4].abs().max()) > 1e-6  # charge is not ignored
    assert torch.equal(charged[4:], neutral[4:])


def test_passes_the_contract() -> None:
    report = validate_backbone(load_backbone("tensornet", options=SMALL, seed=3))
    assert report.failed == ()
    assert set(report.skipped) == {"cell refused", "molecule refused"}


def test_size_seed_and_features() -> None:
    backbone, again, other = (load_backbone("tensornet", seed=seed) for seed in (0, 0, 1))
    weights = [torch.cat([p.flatten() for p in b.parameters()]) for b in (backbone, again, other)]
    assert 100_000 < len(weights[0]) < 500_000
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert [name for name, _ in backbone.blocks()] == ["embedding", "layer 0", "layer 1"]
    features = backbone(backbone.prepare(from_ase(molecule("H2O"))))
    assert [layer.shape for layer in features.layers] == [(3, 192), (3, 64)]
    assert features.edge is not None
    assert features.edge.shape == (3, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_layers": 0}, "`n_layers` is 0; expected 1 or more"),
        ({"cutoff": -1.0}, "`cutoff` is -1.0; expected a positive distance"),
        ({"n_heads": 4}, "options .*n_heads.* of backbone 'tensornet'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TetherError, match=message):
        load_backbone("tensornet", options=options)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(TetherError, match=r"needs the package torchmd-net.*'tether\[tensornet"):
        load_backbone("tensornet")


def test_it_is_trained_from_scratch_and_as_a_potential(
    workspace: Any, settings: Any, tmp_path: Any
) -> None:
    for name in ("scratch", "mft"):
        run = adapt(
            workspace.inputs(),
            named_recipe(name),
            settings,
            out=tmp_path / name,
            backbone=BackboneChoice("tensornet", SMALL),
            head=HeadChoice(n_hidden=8),
        )
        assert run.is_complete

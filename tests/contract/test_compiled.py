"""Every backbone's force-field loss can be traced, for batches of any size, to the plain one."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from ase.build import bulk, molecule

from tether.backbones.load import load_backbone
from tether.data.loader import GraphStream
from tether.heads.denoising import DenoisingHead
from tether.heads.pair import PairHead
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.structures import from_ase
from tether.targets import Target
from tether.tasks.denoising import DenoisingTask, NoisyStream
from tether.tasks.forcefield import ForceFieldTask
from tether.training.compiled import CompiledLoss

if TYPE_CHECKING:
    from ase import Atoms

    from tether.backbones.protocol import Backbone
    from tether.graph import Graph

MOLECULES = [molecule(name) for name in ("CH3CH2OH", "C6H6", "H2O")]
CRYSTALS = [
    bulk("NaCl", "rocksalt", 5.64, cubic=True),
    bulk("Si", cubic=True),
    bulk("MgO", "rocksalt", 4.2),
]


def labelled(backbone: Backbone, structures: list[Atoms]) -> Graph:
    """With made-up energies, forces and, for crystals, stress."""
    rattled = [atoms.copy() for atoms in structures]
    for seed, atoms in enumerate(rattled):
        atoms.rattle(0.05, seed=seed)
    batch = from_ase(rattled)
    generator = torch.Generator().manual_seed(0)
    labels = {"energy": torch.randn(batch.n_systems, generator=generator).double()}
    if batch.is_periodic:
        labels["stress"] = torch.randn(batch.n_systems, 9, generator=generator).double() / 100
    forces = torch.randn(batch.n_atoms, 3, generator=generator)
    graph = backbone.prepare(batch)
    return replace(graph, batch=replace(graph.batch, labels=labels, atom_labels={"forces": forces}))


def takes_everything(node: torch.fx.Node) -> bool:
    """Whether it is the backward pass of a slice that Inductor fails at for any size."""
    is_slice = node.target is torch.ops.aten.slice_backward.default
    return is_slice and node.args[3:] == (0, sys.maxsize, 1)


@pytest.mark.parametrize("name", ["so3lr", "chgnet", "sevennet", "tensornet"])
def test_the_trace_is_the_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    traces: list[torch.fx.GraphModule] = []

    def keep(traced: torch.fx.GraphModule, **_: object) -> torch.fx.GraphModule:
        traces.append(traced)
        return traced

    monkeypatch.setattr(torch, "compile", keep)
    backbone = load_backbone(name)
    structures = CRYSTALS if backbone.spec.periodic else MOLECULES
    graph = labelled(backbone, structures)
    head = PropertyHead(Target("gap", "eV"), backbone.spec.n_features)
    model = AdaptedModel(backbone, [head])
    task = ForceFieldTask(GraphStream(graph, batch_size=3), scale=1.0)
    compiled, used = CompiledLoss(model, task), list(model.parameters())
    compiled(graph)
    assert not any(takes_everything(node) for node in traces[0].graph.nodes)
    for chosen in (structures, structures[:2], [*structures, structures[0]]):
        batch = labelled(backbone, chosen)
        losses = compiled(batch), task.loss(model, batch)
        found, wanted = (torch.autograd.grad(loss, used, allow_unused=True) for loss in losses)
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
        for ours, plain in zip(found, wanted, strict=True):
            assert (ours is None) == (plain is None)
            if ours is not None:
                torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["pair", "gradient"])
@pytest.mark.parametrize("structures", [MOLECULES, CRYSTALS], ids=["molecules", "crystals"])
def test_the_trace_of_denoising_is_the_loss(
    kind: str, structures: list[Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda traced, **_: traced)
    backbone = load_backbone("tiny", options={"n_features": 8})
    pair = PairHead(8, cutoff=4.0, conditioned=True)
    head = pair if kind == "pair" else DenoisingHead(8, n_hidden=8)
    model = AdaptedModel(backbone, [], head)

    def task_of(chosen: list[Atoms]) -> DenoisingTask:
        stream = GraphStream(labelled(backbone, chosen), batch_size=len(chosen))
        return DenoisingTask(NoisyStream(stream, (0.05, 0.1), strain=0.02), head)

    compiled = CompiledLoss(model, task_of(structures))
    for step, chosen in enumerate((structures, structures[:2], [*structures, structures[0]])):
        task = task_of(chosen)
        batch = task.stream.batch(step)
        losses = compiled(batch), task.loss(model, batch)
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
        moving = [p for p in head.parameters() if p.requires_grad]
        for ours, plain in zip(
            *(torch.autograd.grad(loss, moving) for loss in losses), strict=True
        ):
            torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)

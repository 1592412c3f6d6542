"""Nothing that a step computes with is left on the CPU.

No accelerator is needed to see that: on torch's ``meta`` device shapes are computed and values are
not, and an operation between it and the CPU is refused as one between two real devices is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from ase.build import bulk, molecule

from tether.backbones.load import load_backbone
from tether.data.loader import GraphStream
from tether.heads.denoising import DenoisingHead
from tether.heads.energy import EnergyHead
from tether.heads.pair import PairHead
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.structures import from_ase
from tether.targets import Target
from tether.tasks.denoising import DenoisingTask, NoisyStream
from tether.tasks.distillation import distillation_task
from tether.tasks.forcefield import ForceFieldTask
from tether.tasks.property import PropertyTask
from tether.testing.tiny import TinyBackbone

if TYPE_CHECKING:
    from tether.features import Features
    from tether.graph import Graph

OTHER = torch.device("meta")
TARGETS = [
    Target("gap", "eV"),
    Target("mu", "D"),
    Target("r2", kind="extensive"),
    Target("top", kind="max"),
]
POOLINGS: list[Any] = ["mean", "dipole", "extent", "max"]


class Forgetful(TinyBackbone):
    """Broken: it makes a tensor without saying where."""

    def forward(self, graph: Graph) -> Features:
        features = super().forward(graph)
        here = torch.linspace(1.0, 2.0, graph.batch.n_atoms)
        return replace(features, node=features.node * here[:, None])


def labelled(backbone: Any, *, periodic: bool) -> Graph:
    crystals = [bulk("NaCl", "rocksalt", 5.6, cubic=True), bulk("Si")]
    frames = crystals if periodic else [molecule("CH3CH2OH"), molecule("H2O")]
    graph: Graph = backbone.prepare(from_ase(frames))
    n, n_atoms = graph.n_systems, graph.batch.n_atoms
    labels = {target.name: torch.arange(n).double() for target in TARGETS}
    labels |= {"energy": torch.zeros(n).double(), "stress": torch.zeros(n, 9).double()}
    forces = {"forces": torch.ones(n_atoms, 3).double()}
    return replace(graph, batch=replace(graph.batch, labels=labels, atom_labels=forces))


def tasks_of(backbone: Any, *, periodic: bool) -> tuple[AdaptedModel, list[Any]]:
    graph, width = labelled(backbone, periodic=periodic), backbone.spec.n_features
    chosen = [0, 3] if periodic else range(4)  # a crystal has no dipole
    heads = [PropertyHead(TARGETS[k], width, pooling=POOLINGS[k]) for k in chosen]
    pair = PairHead(width, cutoff=backbone.spec.cutoff, conditioned=True)
    own = {"own": EnergyHead(width, scale=1.0)}
    model = AdaptedModel(backbone, heads, DenoisingHead(width), own)
    model.pair = pair
    for head in model.heads.values():
        head.fit_scale(graph.batch)
    stream = GraphStream(graph, batch_size=2)
    noisy = NoisyStream(stream, (0.05,), strain=0.01)
    assert isinstance(model.denoising, DenoisingHead)
    return model, [
        PropertyTask(stream),
        ForceFieldTask(stream, scale=1.0),
        ForceFieldTask(stream, scale=1.0, head="own", per_structure=True),
        DenoisingTask(noisy, model.denoising),
        DenoisingTask(noisy, pair),
        distillation_task(model, stream),
    ]


def step_elsewhere(backbone: Any, *, periodic: bool) -> None:
    model, tasks = tasks_of(backbone, periodic=periodic)
    counted = [task.counts(model, task.stream.batch(0)) for task in tasks]
    model.to(OTHER)
    for task, counts in zip(tasks, counted, strict=True):
        graph = task.stream.batch(0).to(model.device)
        loss = task.loss(model, graph)
        assert loss.device == OTHER
        loss.backward()
        assert task.loss(model, graph, counts.to(OTHER)).device == OTHER
    assert all(p.grad is None or p.grad.device == OTHER for p in model.parameters())


@pytest.mark.parametrize("name", ["tiny", "so3lr", "chgnet", "sevennet", "tensornet"])
def test_a_step_stays_on_its_device(name: str) -> None:
    backbone = load_backbone(name, options={"n_features": 8} if name == "tiny" else None)
    step_elsewhere(backbone, periodic=not backbone.spec.molecules)
    if name == "tiny":
        step_elsewhere(load_backbone("tiny"), periodic=True)


def test_the_control_fails() -> None:
    with pytest.raises(RuntimeError, match="device"):
        step_elsewhere(Forgetful(n_features=8), periodic=False)

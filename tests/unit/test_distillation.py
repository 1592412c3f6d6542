"""Feature distillation: zero at first, in units of the pretrained spread, and it holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from tether.balance.weighted_sum import WeightedSum
from tether.data.loader import GraphStream
from tether.errors import TetherError
from tether.graph import Graph
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.movement.full import Full
from tether.structures import from_ase
from tether.targets import Target
from tether.tasks.distillation import distillation_task
from tether.tasks.property import PropertyTask
from tether.testing.tiny import TinyBackbone
from tether.training.engine import Trainer
from tether.training.settings import TrainingSettings


def prepared(molecules: list[Atoms]) -> tuple[AdaptedModel, Graph, GraphStream]:
    labels = {"gap": np.random.default_rng(0).normal(size=len(molecules))}
    backbone = TinyBackbone(n_features=16)
    graph = backbone.prepare(from_ase(molecules, labels=labels))
    head = PropertyHead(Target("gap"), 16)
    head.fit_scale(graph.batch)
    return AdaptedModel(backbone, [head]), graph, GraphStream(graph, batch_size=12)


def number(loss: torch.Tensor) -> float:
    return float(loss.detach())


def test_the_loss_is_the_change_in_units_of_the_pretrained_variance(
    molecules: list[Atoms],
) -> None:
    model, graph, stream = prepared(molecules)
    node = model.features(graph).node.detach()
    task = distillation_task(model, stream)
    assert task.variance == pytest.approx(float(node.var(dim=0, correction=0).mean()), rel=0.05)
    assert number(task.loss(model, graph)) == 0.0
    with torch.no_grad():
        model.backbone.embedding.weight.add_(0.1)
    changed = model.features(graph).node.detach()
    expected = float((changed - node).square().mean()) / task.variance
    assert number(task.loss(model, graph)) == pytest.approx(expected, rel=1e-5)
    assert expected > 1e-4


def test_features_that_collapse_to_their_mean_cost_one(molecules: list[Atoms]) -> None:
    model, graph, stream = prepared(molecules)
    task = distillation_task(model, stream)

    class Collapsed:
        device = torch.device("cpu")

        def features(self, graph: Graph) -> Any:
            features = model.features(graph)
            mean = features.node.mean(dim=0, keepdim=True).expand_as(features.node)
            return type(features)(node=mean)

    loss = task.loss(Collapsed(), graph)  # type: ignore[arg-type]
    assert number(loss) == pytest.approx(1.0, rel=0.05)


def test_the_teacher_stays_as_it_was_and_is_no_part_of_the_model(molecules: list[Atoms]) -> None:
    model, _, stream = prepared(molecules)
    names = set(model.tensors())
    task = distillation_task(model, stream)
    before = {n: p.detach().clone() for n, p in task.teacher.named_parameters()}
    trainer = Trainer(
        model,
        [PropertyTask(stream), task],
        groups=Full().apply(model),
        balance=WeightedSum({}),
        settings=TrainingSettings(property_steps=10, lr=1e-2),
    )
    first = trainer.step()
    for _ in range(9):
        last = trainer.step()
    assert first["distillation"] == 0.0
    assert last["distillation"] > 0.0
    assert all(torch.equal(before[n], p) for n, p in task.teacher.named_parameters())
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())
    assert set(model.tensors()) == names


def test_the_larger_the_weight_the_less_the_features_change(molecules: list[Atoms]) -> None:
    found = []
    for weight in (0.0, 1.0, 30.0):
        model, graph, stream = prepared(molecules)
        task = distillation_task(model, stream)
        trainer = Trainer(
            model,
            [PropertyTask(stream), task],
            groups=Full().apply(model),
            balance=WeightedSum({"distillation": weight}),
            settings=TrainingSettings(property_steps=60, lr=3e-3),
        )
        for _ in range(60):
            trainer.step()
        found.append(number(task.loss(model, graph)))
    assert found[0] > 2.0 * found[1] > 4.0 * found[2] > 0.0


def test_features_that_are_all_equal_are_refused(molecules: list[Atoms]) -> None:
    model, _, stream = prepared(molecules)
    with torch.no_grad():
        for parameter in model.backbone.parameters():  # type: ignore[attr-defined]
            parameter.zero_()
    with pytest.raises(TetherError, match=r"features of \d+ atoms are all equal"):
        distillation_task(model, stream)

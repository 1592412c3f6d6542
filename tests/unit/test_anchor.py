"""L2-SP: a decay towards the start, and only that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tether.balance.weighted_sum import WeightedSum
from tether.data.loader import GraphStream
from tether.data.store import Store
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.movement.anchor import anchored
from tether.movement.full import Full
from tether.movement.gradual import Gradual
from tether.movement.groups import Movement
from tether.movement.layerwise import Layerwise
from tether.tasks.property import PropertyTask
from tether.testing.tiny import TinyBackbone
from tether.training.engine import Trainer
from tether.training.settings import TrainingSettings


def trainer(
    workspace: Any, strength: float, movement: Movement | None = None, **changes: Any
) -> Trainer:
    store = Store.open(workspace.store)
    backbone = TinyBackbone(n_features=16)
    head = PropertyHead(store.targets["gap"], 16, n_hidden=8)
    graph = backbone.prepare(store.batch(np.arange(20)))
    head.fit_scale(graph.batch)
    model = AdaptedModel(backbone, [head])
    settings = {"property_steps": 60, "lr": 1e-2, "weight_decay": 0.1, "warmup_fraction": 0.0}
    return Trainer(
        model,
        [PropertyTask(GraphStream(graph, batch_size=8))],
        groups=anchored((movement or Full()).apply(model), strength),
        balance=WeightedSum({}),
        settings=TrainingSettings(**{**settings, **changes}),
    )


def weights(one: Trainer, part: str) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in one.model.named_parameters() if n.startswith(part)}


def distance(one: Trainer, start: dict[str, torch.Tensor]) -> float:
    now = weights(one, "backbone")
    return float(torch.stack([(now[name] - start[name]).norm() for name in start]).norm())


def test_a_step_is_that_of_adamw_without_decay_then_the_pull(workspace: Any) -> None:
    plain = trainer(workspace, 0.0, weight_decay=0.0)
    pulled = trainer(workspace, 5.0, weight_decay=0.0)
    start = weights(plain, "backbone")
    for one in (plain, pulled):
        one.step()
    rate = plain.optimiser.param_groups[0]["lr"]
    after, found = weights(plain, "backbone"), weights(pulled, "backbone")
    for name, value in found.items():
        expected = after[name] - rate * 5.0 * (after[name] - start[name])
        torch.testing.assert_close(value, expected)
    moved = [name for name in start if not torch.equal(after[name], found[name])]
    assert moved
    assert all(
        torch.equal(v, weights(pulled, "heads")[n]) for n, v in weights(plain, "heads").items()
    )


def test_the_heads_keep_their_weight_decay_and_the_backbone_has_none(workspace: Any) -> None:
    groups = trainer(workspace, 5.0).optimiser.param_groups
    assert [group["weight_decay"] for group in groups[::2]] == [0.0, 0.0, 0.1]
    plain = trainer(workspace, 0.0).optimiser.param_groups
    assert [group["weight_decay"] for group in plain] == [0.1, 0.0] * 3  # matrices and others


@pytest.mark.parametrize("movement", [Full(), Layerwise(), Gradual("lp-ft", 0.2)], ids=repr)
def test_the_stronger_the_pull_the_nearer_the_backbone_stays(
    movement: Movement, workspace: Any
) -> None:
    found = []
    for strength in (0.0, 10.0, 50.0):
        one = trainer(workspace, strength, movement)
        start = weights(one, "backbone")
        for _ in range(40):
            one.step()
        found.append(distance(one, start))
    assert found[0] > 1.2 * found[1] > 1.4 * found[2] > 0.0


def test_without_a_gradient_the_pull_is_the_identity(workspace: Any) -> None:
    one = trainer(workspace, 10.0)
    start = weights(one, "backbone.energy")
    for _ in range(5):
        one.step()
    found = weights(one, "backbone.energy")
    assert all(torch.equal(start[name], value) for name, value in found.items())

"""Heads first: what has not started is frozen to the bit, in weights, moments and average."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from tether.balance.weighted_sum import WeightedSum
from tether.data.loader import GraphStream
from tether.data.store import Store
from tether.errors import TetherError
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.movement.gradual import Gradual
from tether.run import Run
from tether.tasks.forcefield import ForceFieldTask, force_scale
from tether.tasks.property import PropertyTask
from tether.testing.tiny import TinyBackbone
from tether.training.engine import Trainer, Validation, train
from tether.training.settings import TrainingSettings

Rule = Literal["lp-ft", "gradual"]
SETTINGS = TrainingSettings(property_steps=20, batch_size=8, lr=1e-2, weight_decay=0.1)


@pytest.fixture
def task_and_model(workspace: Any) -> tuple[PropertyTask, AdaptedModel]:
    store = Store.open(workspace.store)
    backbone = TinyBackbone(n_features=16)
    head = PropertyHead(store.targets["gap"], 16, n_hidden=8)
    graph = backbone.prepare(store.batch(np.arange(20)))
    head.fit_scale(graph.batch)
    return PropertyTask(GraphStream(graph, batch_size=8)), AdaptedModel(backbone, [head])


def trainer(parts: tuple[PropertyTask, AdaptedModel], movement: Gradual) -> Trainer:
    task, model = parts
    found = Trainer(
        model,
        [task],
        groups=movement.apply(model),
        balance=WeightedSum({}),
        settings=SETTINGS,
    )
    found.start_average()
    return found


def test_starts_are_what_the_docstring_says() -> None:
    assert Gradual("lp-ft", 0.4).starts(4) == [0.4] * 4
    assert Gradual("gradual", 0.4).starts(4) == pytest.approx([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize("rule", ["lp-ft", "gradual"])
def test_before_its_start_a_group_is_frozen_bit_for_bit(
    rule: Rule, task_and_model: tuple[PropertyTask, AdaptedModel]
) -> None:
    one = trainer(task_and_model, Gradual(rule, 0.5))
    names = {id(p): name for name, p in one.model.named_parameters()}
    before = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    used = {name for name in before if "energy" not in name and "reference" not in name}
    for step in range(1, 21):
        one.step()
        for group in one.groups:
            since = max(0, step - round(20 * group.starts_at))
            for parameter in group.parameters:
                name = names[id(parameter)]
                if name not in used:  # the potential's head gets no gradient from a property
                    continue
                moved = not torch.equal(parameter.detach(), before[name])
                averaged = not torch.equal(one.average[name], before[name])
                moments = one.optimiser.state.get(parameter, {})
                assert moved == averaged == bool(since), (step, group.name)
                assert (parameter.grad is not None) == bool(since)
                assert float(moments.get("step", 0)) == since
    starts = {group.name: group.starts_at for group in one.groups}
    assert starts["heads"] == 0.0
    assert starts["potential"] == starts["layer 1"]
    assert len(set(starts.values())) == (2 if rule == "lp-ft" else 4)


def test_a_frozen_backbone_costs_no_backward_pass(
    task_and_model: tuple[PropertyTask, AdaptedModel],
) -> None:
    one = trainer(task_and_model, Gradual("lp-ft", 0.5))
    graph = task_and_model[0].stream.batch(0)
    one.step()
    assert not one.model.features(graph).node.requires_grad
    for _ in range(10):
        one.step()
    assert one.model.features(graph).node.requires_grad


def test_a_force_field_is_not_computed_while_it_moves_nothing(
    workspace: Any, tmp_path: Path
) -> None:
    class Counted(ForceFieldTask):
        calls = 0

        def loss(self, *arguments: Any) -> Tensor:
            Counted.calls += 1
            return super().loss(*arguments)

    def started() -> Trainer:
        store, backbone = Store.open(workspace.store), TinyBackbone(n_features=16)
        head = PropertyHead(store.targets["gap"], 16, n_hidden=8)
        graph = backbone.prepare(store.batch(np.arange(20)))
        head.fit_scale(graph.batch)
        labelled = backbone.prepare(Store.open(workspace.auxiliary).batch(np.arange(8)))
        model = AdaptedModel(backbone, [head])
        tasks = [
            PropertyTask(GraphStream(graph, batch_size=8)),
            Counted(GraphStream(labelled, batch_size=4), force_scale(labelled)),
        ]
        return Trainer(
            model,
            tasks,
            groups=Gradual("lp-ft", 0.5).apply(model),
            balance=WeightedSum({}),
            settings=SETTINGS,
        )

    whole = started()
    losses = [set(whole.step()) for _ in range(20)]
    assert losses == [{"property"}] * 10 + [{"property", "forcefield"}] * 10
    assert whole.progress.task_steps == {"property": 20, "forcefield": 10}
    assert Counted.calls == 10
    # Killed while it waits, and gone on with: the same bits.
    first = started()
    for _ in range(5):
        first.step()
    first.save(tmp_path / "checkpoint")
    second = started()
    second.resume(tmp_path / "checkpoint")
    for _ in range(15):
        second.step()
    assert second.progress.task_steps == whole.progress.task_steps
    for name, tensor in whole.model.tensors().items():
        assert torch.equal(tensor, second.model.tensors()[name]), name


def test_a_group_warms_up_when_it_starts(
    task_and_model: tuple[PropertyTask, AdaptedModel],
) -> None:
    parts = task_and_model
    settings = replace(SETTINGS, property_steps=40, warmup_fraction=0.1)
    one = Trainer(
        parts[1],
        [parts[0]],
        groups=Gradual("lp-ft", 0.5).apply(parts[1]),
        balance=WeightedSum({}),
        settings=settings,
    )
    rates = []
    for _ in range(40):
        one.step()
        rates.append([state["lr"] for state in one.optimiser.param_groups])
    backbone, heads = np.array(rates)[:, 0], np.array(rates)[:, -1]
    assert (backbone[:20] == 0.0).all()
    assert backbone[20:24] == pytest.approx(heads[20:24] * [0.25, 0.5, 0.75, 1.0])
    assert backbone[24:] == pytest.approx(heads[24:])


def test_patience_does_not_run_out_on_a_frozen_backbone(
    task_and_model: tuple[PropertyTask, AdaptedModel], tmp_path: Path
) -> None:
    task, model = task_and_model
    progress = train(
        model,
        [task],
        groups=Gradual("lp-ft", 0.5).apply(model),
        balance=WeightedSum({}),
        settings=replace(SETTINGS, validate_every=2, patience=2),
        averaging=False,
        validate=lambda _: Validation(1.0, {}),
        run=Run(tmp_path / "run"),
    )
    # The first validation is the best one; the backbone starts at step 10.
    assert progress.task_steps["property"] == 14


@pytest.mark.parametrize("share", [0.0, 1.0, -0.2])
def test_a_share_that_leaves_no_phase_is_refused(share: float) -> None:
    with pytest.raises(TetherError, match=rf"`unfreeze_by` is {share}"):
        Gradual("lp-ft", share)

"""`AdaptedModel`: parts, predictions, and tensors in and out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tether.data.store import Store
from tether.errors import TetherError
from tether.features import Features
from tether.graph import Graph
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.targets import Target
from tether.testing.tiny import TinyBackbone


def model(*names: str) -> AdaptedModel:
    heads = [PropertyHead(Target(name), 16, seed=i) for i, name in enumerate(names or ("gap",))]
    return AdaptedModel(TinyBackbone(n_features=16), heads)


def graph_of(workspace: Any, one: AdaptedModel) -> Graph:
    return one.backbone.prepare(Store.open(workspace.store).batch(np.arange(30)))


def test_every_parameter_belongs_to_exactly_one_part() -> None:
    one = model("gap", "homo")
    parts = [*one.block_parameters(), *one.potential_parameters(), *one.head_parameters()]
    assert sorted(map(id, parts)) == sorted(map(id, one.parameters()))


def test_predictions_do_not_depend_on_the_batch_size(workspace: Any) -> None:
    one = model()
    graph = graph_of(workspace, one)
    small, large = (one.predict(graph, batch_size=size)["gap"] for size in (7, 64))
    assert small.dtype == np.float64
    assert small.shape == (30,)
    np.testing.assert_allclose(small, large, rtol=1e-5, atol=1e-6)


def test_prediction_keeps_no_graph_and_forces_need_no_caller(workspace: Any) -> None:
    one = model()
    graph = graph_of(workspace, one)
    with torch.no_grad():
        energy, forces, stress = None, None, None
    energy, forces, stress = one.energy_forces(graph)
    assert (energy.requires_grad, forces.requires_grad, stress) == (False, False, None)
    assert forces.shape == (graph.batch.n_atoms, 3)


def test_fingerprint_is_the_mean_of_the_node_features(workspace: Any) -> None:
    one = model()
    batch = Store.open(workspace.store).batch(np.arange(5))
    with torch.no_grad():
        node = one.features(one.backbone.prepare(batch)).node
    by_hand = torch.stack([part.mean(0) for part in node.split(batch.counts.tolist())])
    np.testing.assert_allclose(one.fingerprint(batch, batch_size=2), by_hand, atol=1e-5)


def test_tensors_go_out_and_in_with_the_scale_of_the_labels(workspace: Any) -> None:
    first, second = model(), model()
    graph = graph_of(workspace, first)
    first.heads["gap"].fit_scale(graph.batch)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1)
    second.load({k: v.detach().clone() for k, v in first.tensors().items()})
    assert np.array_equal(first.predict(graph)["gap"], second.predict(graph)["gap"])


def test_weights_of_another_model_are_refused() -> None:
    one = model()
    tensors = dict(one.tensors())
    first = next(iter(tensors))
    for wrong, message in (
        ({k: v for k, v in tensors.items() if k != first}, f"1 tensors do not match.*{first}"),
        ({**tensors, "more": torch.ones(1)}, "1 tensors do not match, the first is 'more'"),
        ({**tensors, first: torch.ones(2, 2)}, rf"tensor '{first}' has shape \(2, 2\)"),
        (model("homo").tensors(), r"tensors do not match"),
    ):
        with pytest.raises(TetherError, match=message):
            one.load(wrong)


@pytest.mark.parametrize("name", ["a.b", "keys", "items", "training", ""])
def test_names_that_torch_cannot_hold_are_refused(name: str) -> None:
    with pytest.raises(TetherError, match=f"target name '{name}'; expected a name without a dot"):
        model(name)


def test_a_target_twice_is_refused() -> None:
    with pytest.raises(TetherError, match="target name 'gap'"):
        model("gap", "gap")


class Plain(nn.Module):
    """A backbone without a potential."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TinyBackbone(n_features=16)
        self.spec, self.prepare, self.blocks = (
            self.inner.spec,
            self.inner.prepare,
            self.inner.blocks,
        )

    def forward(self, graph: Graph) -> Features:
        return self.inner(graph)


def test_a_backbone_without_energy_head_is_no_potential(workspace: Any) -> None:
    one = AdaptedModel(Plain(), [PropertyHead(Target("gap"), 16)])
    assert not one.is_potential
    graph = graph_of(workspace, one)
    assert one.predict(graph)["gap"].shape == (30,)
    with pytest.raises(
        TetherError, match="backbone 'tiny' has no energy head; expected a potential"
    ):
        one.energy_forces(graph)

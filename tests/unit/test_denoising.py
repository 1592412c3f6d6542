"""Noisy Nodes: noise that is a function of seed and step, and a prediction that turns with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from scipy.spatial.transform import Rotation

from tether.balance.weighted_sum import WeightedSum
from tether.data.loader import GraphStream
from tether.graph import Graph
from tether.heads.denoising import DenoisingHead
from tether.heads.derivative import forces_stress
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.movement.full import Full
from tether.structures import from_ase
from tether.targets import Target
from tether.tasks.denoising import DenoisingTask, NoisyStream
from tether.testing.tiny import TinyBackbone
from tether.training.engine import Trainer
from tether.training.settings import TrainingSettings

BACKBONE = TinyBackbone(n_features=16)


def noisy(frames: list[Atoms], *, scale: float = 0.05, seed: int = 0, size: int = 8) -> NoisyStream:
    graph = BACKBONE.prepare(from_ase(frames))
    return NoisyStream(GraphStream(graph, batch_size=size), (scale,), seed)


def model_with_head(n_hidden: int = 16) -> tuple[AdaptedModel, DenoisingHead]:
    head = DenoisingHead(16, n_hidden=n_hidden)
    return AdaptedModel(TinyBackbone(n_features=16), [], head), head


def test_noise_is_a_function_of_seed_and_step(molecules: list[Atoms]) -> None:
    def drawn(seed: int, step: int) -> torch.Tensor:
        return noisy(molecules, seed=seed).batch(step).batch.atom_labels["noise"]

    assert torch.equal(drawn(1, 3), drawn(1, 3))
    for seed, step in ((1, 7), (2, 3)):  # another epoch of the same structures, another seed
        assert not torch.equal(drawn(1, 3)[:5], drawn(seed, step)[:5])


def test_atoms_are_displaced_by_the_noise_and_nothing_else_changes(molecules: list[Atoms]) -> None:
    stream = noisy(molecules, scale=0.1)
    rest, moved = stream.stream.batch(2), stream.batch(2)
    noise = moved.batch.atom_labels["noise"]
    torch.testing.assert_close(moved.batch.positions, rest.batch.positions + 0.1 * noise)
    assert torch.equal(moved.batch.numbers, rest.batch.numbers)
    assert moved.edges.keys() == rest.edges.keys()
    # The centre of each structure stays, and the spread is that of a unit normal.
    total = torch.zeros(8, 3).index_add(0, moved.batch.system_idx, noise)
    assert float(total.abs().max()) < 1e-5
    counts = moved.batch.counts.double()
    expected = float((counts - 1).sum() / counts.sum())
    many = torch.cat([stream.batch(step).batch.atom_labels["noise"] for step in range(200)])
    assert float(many.double().square().mean()) == pytest.approx(expected, rel=0.1)


def test_knowing_nothing_costs_the_variance_of_the_noise(molecules: list[Atoms]) -> None:
    model, head = model_with_head()
    stream = noisy(molecules)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    graph = stream.batch(0)
    loss = DenoisingTask(stream, head).loss(model, graph)
    assert float(loss.detach()) == pytest.approx(
        float(graph.batch.atom_labels["noise"].square().mean())
    )


def predicted(model: AdaptedModel, head: DenoisingHead, graph: Graph) -> torch.Tensor:
    leaf = graph.differentiable()
    return forces_stress(head(model.features(leaf), leaf.batch), leaf, create_graph=False)[0]


def test_the_prediction_turns_with_the_structure(molecules: list[Atoms]) -> None:
    model, head = model_with_head()
    graph = noisy(molecules).batch(0)
    turn = torch.as_tensor(Rotation.random(rng=0).as_matrix(), dtype=torch.float32)
    turned = replace(graph, batch=replace(graph.batch, positions=graph.batch.positions @ turn.T))
    before, after = predicted(model, head, graph), predicted(model, head, turned)
    torch.testing.assert_close(after, before @ turn.T, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(after, before, atol=1e-3)  # control: it is not zero or fixed


@pytest.mark.parametrize("n_hidden", [0, 16])
def test_every_weight_of_head_and_representation_gets_a_gradient(
    n_hidden: int, molecules: list[Atoms]
) -> None:
    model, head = model_with_head(n_hidden)
    stream = noisy(molecules)
    DenoisingTask(stream, head).loss(model, stream.batch(0)).backward()
    for parameter in [*head.parameters(), *model.block_parameters()]:
        assert parameter.grad is not None
        assert float(parameter.grad.abs().sum()) > 0
    assert {id(p) for p in head.parameters()} <= {id(p) for p in model.head_parameters()}


def test_noise_can_be_learnt_beside_a_property(molecules: list[Atoms]) -> None:
    stream = noisy(molecules[:12], size=12)
    model, head = model_with_head()
    task = DenoisingTask(stream, head)
    trainer = Trainer(
        model,
        [task],
        groups=Full().apply(model),
        balance=WeightedSum({}),
        settings=TrainingSettings(property_steps=150, lr=3e-3, warmup_fraction=0.0),
    )
    losses = [trainer.step()["denoising"] for _ in range(150)]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:5])


def test_crystals_are_displaced_too() -> None:
    model, head = model_with_head()
    stream = noisy([bulk("Si", cubic=True), bulk("Cu", cubic=True)], size=2)
    loss = DenoisingTask(stream, head).loss(model, stream.batch(0))
    loss.backward()
    assert torch.isfinite(loss)


def test_predictions_do_not_read_the_denoising_head(molecules: list[Atoms]) -> None:
    heads = [PropertyHead(Target("gap"), 16)]
    with_head = AdaptedModel(TinyBackbone(n_features=16), heads, DenoisingHead(16))
    without = AdaptedModel(TinyBackbone(n_features=16), heads)
    graph = BACKBONE.prepare(from_ase(molecules))
    assert np.array_equal(with_head.predict(graph)["gap"], without.predict(graph)["gap"])
    assert set(with_head.tensors()) - set(without.tensors()) == {
        "denoising.readout.0.weight",
        "denoising.readout.0.bias",
        "denoising.readout.2.weight",
    }

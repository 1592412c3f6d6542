"""Shares of a batch: every structure in one, about equally many atoms, and losses that add up."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st

from tether.data.loader import GraphStream
from tether.data.shares import balanced_shares
from tether.errors import TetherError
from tether.graph import Graph
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
from tether.testing.structures import silicon, sodium_chloride
from tether.testing.tiny import TinyBackbone
from tether.training.ranks import Ranks, SharedLoss, shares_of_batch


@given(st.lists(st.integers(1, 200), max_size=60), st.integers(1, 9))
def test_every_structure_is_in_one_share_and_shares_are_balanced(
    sizes: list[int], n_shares: int
) -> None:
    shares = balanced_shares(sizes, n_shares)
    assert len(shares) == n_shares
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(sizes)))
    assert all((np.diff(share) > 0).all() for share in shares)
    atoms = [np.array(sizes, dtype=int)[share].sum() for share in shares]
    assert max(atoms) - min(atoms) <= max(sizes, default=0)
    again = balanced_shares(np.array(sizes), n_shares)
    assert all(np.array_equal(a, b) for a, b in zip(shares, again, strict=True))


def test_shares_are_more_even_than_every_nth_structure() -> None:
    sizes = np.random.default_rng(0).lognormal(3.0, 0.6, size=64).astype(int)

    def excess(shares: list[Any]) -> float:
        atoms = [sizes[share].sum() for share in shares]
        return float(max(atoms) / np.mean(atoms) - 1.0)

    assert excess(balanced_shares(sizes, 8)) < 0.02
    assert excess([np.arange(first, 64, 8) for first in range(8)]) > 0.1  # the control


def mixture(molecules: list[Atoms]) -> Graph:
    """Molecules and crystals; two properties with different holes, forces, some stresses."""
    batch = from_ase([*molecules[:9], silicon(), sodium_chloride()])
    rng = np.random.default_rng(0)
    n = batch.n_systems
    labels = {name: torch.from_numpy(rng.normal(size=n)) for name in ("a", "b", "energy")}
    labels["b"][torch.arange(n) % 3 > 0] = torch.nan
    stress = torch.from_numpy(rng.normal(size=(n, 9)))
    stress[:-1] = torch.nan
    forces = torch.from_numpy(rng.normal(size=(batch.n_atoms, 3)))
    graph = TinyBackbone(n_features=16).double().prepare(batch)
    labelled = replace(
        graph.batch, labels={**labels, "stress": stress}, atom_labels={"forces": forces}
    )
    return replace(graph, batch=labelled)


def model_of(graph: Graph) -> AdaptedModel:
    heads = [PropertyHead(Target(name), 16, n_hidden=8) for name in ("a", "b")]
    own = {"own": EnergyHead(16, scale=1.0)}
    model = AdaptedModel(TinyBackbone(n_features=16), heads, DenoisingHead(16, n_hidden=8), own)
    for head in model.heads.values():
        head.fit_scale(graph.batch)
    return model.double()


def tasks_of(model: AdaptedModel, graph: Graph) -> dict[str, Any]:
    stream = GraphStream(graph, batch_size=graph.n_systems)
    assert isinstance(model.denoising, DenoisingHead)
    pair = PairHead(16, cutoff=4.0, conditioned=True).double()
    model.pair = pair
    tasks = {
        "property": PropertyTask(stream),
        "huber": PropertyTask(stream, "huber"),
        "forcefield": ForceFieldTask(stream, scale=1.5, stress_weight=2.0),
        "distillation": distillation_task(model, stream),
        "denoising": DenoisingTask(NoisyStream(stream, (0.05,)), model.denoising),
        "by structure": ForceFieldTask(stream, scale=1.5, per_structure=True, head="own"),
        "cells": DenoisingTask(NoisyStream(stream, (0.05, 0.1), strain=0.05), pair),
    }
    with torch.no_grad():
        for parameter in model.backbone.parameters():  # type: ignore[attr-defined]
            parameter.mul_(1.1)
    return tasks


def gradients(model: AdaptedModel, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters()}


def distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    known = [name for name, gradient in first.items() if gradient is not None]
    assert known == [name for name, gradient in second.items() if gradient is not None]
    off = sum(float((first[n] - second[n]).square().sum()) for n in known)
    return float((off / sum(float(first[n].square().sum()) for n in known)) ** 0.5)


@pytest.mark.parametrize(
    "name",
    ["property", "huber", "forcefield", "distillation", "denoising", "by structure", "cells"],
)
@pytest.mark.parametrize("n_passes", [3, 20])  # 20: more than there are structures
def test_shares_add_up_to_the_whole(molecules: list[Atoms], name: str, n_passes: int) -> None:
    graph = mixture(molecules)
    model = model_of(graph)
    task = tasks_of(model, graph)[name]

    def loss_of(part: Graph, counts: torch.Tensor | None = None) -> torch.Tensor:
        loss: torch.Tensor = task.loss(model, part, counts)
        return loss

    whole = loss_of(task.stream.batch(1))
    shared = SharedLoss(model, task, loss_of, ranks=Ranks(), n_passes=n_passes)(1)
    assert shared.item() == pytest.approx(whole.item(), rel=1e-12)
    wanted, found = gradients(model, 3 * whole), gradients(model, 3 * shared)
    assert distance(wanted, found) < 1e-12
    # The control: the mean of means over unequal shares is another loss.
    parts = [g for g in shares_of_batch(task.stream, 1, n_passes, range(n_passes)) if g.n_systems]
    naive = torch.stack([loss_of(part) for part in parts]).mean()
    assert naive.item() != pytest.approx(whole.item(), rel=1e-4)
    assert distance(wanted, gradients(model, 3 * naive)) > 1e-3


def test_only_shares_of_a_graph_stream_are_built(molecules: list[Atoms]) -> None:
    stream = GraphStream(TinyBackbone().prepare(from_ase(molecules)), batch_size=12, seed=3)
    shares = shares_of_batch(stream, 2, 3, [2, 0])
    sizes = [
        stream.graph.batch.counts[stream.indices(2)][
            balanced_shares(stream.graph.batch.counts.numpy()[stream.indices(2)], 3)[one]
        ]
        for one in (2, 0)
    ]
    assert [s.batch.counts.tolist() for s in shares] == [size.tolist() for size in sizes]
    assert sum(s.n_systems for s in shares_of_batch(stream, 2, 3, range(3))) == 12


def test_a_stream_that_gives_shares_is_not_parted_again(molecules: list[Atoms]) -> None:
    graph = mixture(molecules)
    model = model_of(graph)
    whole = GraphStream(graph, batch_size=graph.n_systems)
    own = SimpleNamespace(n_ranks=2, batch=lambda step: shares_of_batch(whole, step, 2, [1])[0])
    here = torch.device("cpu")
    fabric = SimpleNamespace(
        world_size=2, global_rank=1, device=here, all_reduce=lambda t, reduce_op: t
    )
    seen: list[int] = []

    def loss(part: Graph, counts: torch.Tensor) -> torch.Tensor:
        seen.append(part.n_systems)
        return PropertyTask(whole).loss(model, part, counts)

    def shared(stream: Any) -> torch.Tensor:
        task = PropertyTask(stream)
        return SharedLoss(model, task, loss, ranks=Ranks(fabric), n_passes=2)(0)

    of_share = shared(own).item()
    assert (len(seen), sum(seen)) == (2, own.batch(0).n_systems)
    seen.clear()
    shared(whole)
    assert sum(seen) == pytest.approx(graph.n_systems / 2, abs=2)
    plain = PropertyTask(whole).loss(model, own.batch(0)).item()
    assert of_share == pytest.approx(plain, rel=1e-12)
    for wrong in (SimpleNamespace(n_ranks=3), NoisyStream(own, (0.1,))):
        with pytest.raises(TetherError, match="the stream of task 'property' gives shares"):
            shared(wrong)

"""Losses: missing labels do not count, wrong keys are never a loss of 0.0."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from tether.backbones.protocol import LevelErrors
from tether.data.loader import GraphStream
from tether.errors import TetherError
from tether.evaluation import forcefield_errors
from tether.graph import Graph
from tether.heads.readout import PropertyHead
from tether.labels.pseudo import pseudo_label
from tether.model import AdaptedModel
from tether.structures import from_ase
from tether.targets import Target
from tether.tasks.forcefield import ForceFieldTask, force_scale
from tether.tasks.property import PropertyTask
from tether.testing.structures import silicon, sodium_chloride
from tether.testing.tiny import TinyBackbone


def number(loss: torch.Tensor) -> float:
    return float(loss.detach())


def model_for(graph: Graph, *names: str) -> AdaptedModel:
    model = AdaptedModel(TinyBackbone(n_features=16), [PropertyHead(Target(n), 16) for n in names])
    for head in model.heads.values():
        head.fit_scale(graph.batch)
    return model


def labelled(molecules: list[Atoms], **labels: np.ndarray) -> Graph:
    return TinyBackbone().prepare(from_ase(molecules, labels=labels))


def property_task(graph: Graph, loss: Any = "l1") -> PropertyTask:
    return PropertyTask(GraphStream(graph, batch_size=8), loss)


@pytest.mark.parametrize("loss", ["l1", "mse", "huber"])
def test_missing_labels_do_not_count(loss: Any, molecules: list[Atoms]) -> None:
    values = np.random.default_rng(0).normal(size=len(molecules))
    values[::3] = np.nan
    graph = labelled(molecules, gap=values)
    model = model_for(graph, "gap")
    known = graph.select(np.nonzero(~np.isnan(values))[0])
    task = property_task(graph, loss)
    whole, subset = task.loss(model, graph), task.loss(model, known)
    assert number(whole) == pytest.approx(number(subset), rel=1e-6)
    assert number(whole) > 0.01


def test_losses_are_those_of_the_formula(molecules: list[Atoms]) -> None:
    graph = labelled(molecules, gap=np.random.default_rng(0).normal(size=len(molecules)))
    model = model_for(graph, "gap")
    error = (model(graph)["gap"] - model.heads["gap"].standardise(graph.batch)).detach().abs()
    huber = torch.where(error < 1.0, 0.5 * error**2, error - 0.5)
    for name, expected in (("l1", error), ("mse", error**2), ("huber", huber)):
        found = number(property_task(graph, name).loss(model, graph))
        assert found == pytest.approx(float(expected.mean()), rel=1e-5)


def test_targets_with_different_holes_count_equally(molecules: list[Atoms]) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, len(molecules)))
    first[:30] = np.nan
    second[::2] = np.nan
    graph = labelled(molecules, a=first, b=second)
    model = model_for(graph, "a", "b")
    task = property_task(graph)
    alone = []
    for name, values in (("a", first), ("b", second)):
        single = AdaptedModel(model.backbone, [model.heads[name]])
        alone.append(number(task.loss(single, graph.select(np.nonzero(~np.isnan(values))[0]))))
    assert number(task.loss(model, graph)) == pytest.approx(np.mean(alone), rel=1e-5)


def test_a_batch_without_any_label_moves_nothing(molecules: list[Atoms]) -> None:
    values = np.random.default_rng(0).normal(size=len(molecules))
    values[:5] = np.nan
    graph = labelled(molecules, gap=values)
    model = model_for(graph, "gap")
    loss = property_task(graph).loss(model, graph.select(torch.arange(5)))
    loss.backward()
    assert number(loss) == 0.0
    assert all(float(p.grad.abs().sum()) == 0.0 for p in model.head_parameters())


def test_a_label_key_that_does_not_match_raises(molecules: list[Atoms]) -> None:
    graph = labelled(molecules, gap=np.random.default_rng(0).normal(size=len(molecules)))
    model = model_for(graph, "gap")
    renamed = replace(graph, batch=replace(graph.batch, labels={"Gap": graph.batch.labels["gap"]}))
    with pytest.raises(TetherError, match="no label 'gap'; expected one of Gap"):
        property_task(renamed).loss(model, renamed)


def forcefield(molecules: list[Atoms], seed: int = 0) -> tuple[AdaptedModel, Graph]:
    rng = np.random.default_rng(seed)
    frames = [a.copy() for a in molecules]
    for atoms in frames:
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
    backbone = TinyBackbone(n_features=16)
    energy, forces, _ = pseudo_label(backbone, from_ase(frames))
    labels, atom_labels = {"energy": energy.numpy()}, {"forces": forces.numpy()}
    graph = backbone.prepare(from_ase(frames, labels=labels, atom_labels=atom_labels))
    return AdaptedModel(backbone, []), graph


def test_forcefield_loss_is_zero_at_its_own_labels_and_follows_the_formula(
    molecules: list[Atoms],
) -> None:
    model, graph = forcefield(molecules)
    scale = force_scale(graph)
    stream = GraphStream(graph, batch_size=4)
    assert number(ForceFieldTask(stream, scale).loss(model, graph)) < 1e-4
    forces, energy = graph.batch.atom_labels["forces"], graph.batch.labels["energy"]
    assert scale == pytest.approx(float(forces.norm(dim=1).square().mean().sqrt()))
    moved = replace(
        graph,
        batch=replace(
            graph.batch,
            atom_labels={"forces": forces + torch.tensor([0.3, 0.0, 0.4])},
            labels={"energy": energy + 0.2 * graph.batch.counts},
        ),
    )
    for weights, expected in (((1.0, 0.0), 0.5), ((0.0, 1.0), 0.2), ((2.0, 3.0), 1.6)):
        found = ForceFieldTask(stream, scale, *weights).loss(model, moved)
        assert number(found) == pytest.approx(expected / scale, rel=1e-3)


def test_forcefield_gradient_reaches_representation_and_energy_head(
    molecules: list[Atoms],
) -> None:
    _, graph = forcefield(molecules)
    model = AdaptedModel(TinyBackbone(n_features=16, seed=5), [])
    ForceFieldTask(GraphStream(graph, batch_size=4), 1.0).loss(model, graph).backward()
    for parameter in model.block_parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().sum()) > 0
    assert any(float(p.grad.abs().sum()) > 0 for p in model.potential_parameters())


def test_poisoned_force_data_are_refused(molecules: list[Atoms]) -> None:
    _, graph = forcefield(molecules)
    zero = {"forces": torch.zeros_like(graph.batch.atom_labels["forces"])}
    with pytest.raises(TetherError, match=r"all \d+ forces are zero; .* label the structures"):
        force_scale(replace(graph, batch=replace(graph.batch, atom_labels=zero)))
    with pytest.raises(TetherError, match="lack 'forces'"):
        force_scale(replace(graph, batch=replace(graph.batch, atom_labels={})))
    energy = graph.batch.labels["energy"].clone()
    energy[3] = float("nan")
    with pytest.raises(TetherError, match="lack 'energy'"):
        force_scale(replace(graph, batch=replace(graph.batch, labels={"energy": energy})))


def crystals() -> tuple[AdaptedModel, Graph]:
    """Two crystals with the model's own labels, stress included."""
    backbone = TinyBackbone(n_features=16).double()
    frames = [silicon(), sodium_chloride()]
    found = pseudo_label(backbone, from_ase(frames))
    assert found.stress is not None
    labels = {"energy": found.energy.numpy(), "stress": found.stress.numpy()}
    atom_labels = {"forces": found.forces.numpy()}
    graph = backbone.prepare(from_ase(frames, labels=labels, atom_labels=atom_labels))
    return AdaptedModel(backbone, []), graph


def with_stress(graph: Graph, stress: torch.Tensor) -> Graph:
    labels = {**graph.batch.labels, "stress": stress}
    return replace(graph, batch=replace(graph.batch, labels=labels))


def test_the_stress_term_follows_the_formula_and_its_weight() -> None:
    model, graph = crystals()
    stream, scale = GraphStream(graph, batch_size=2), force_scale(graph)
    task = ForceFieldTask(stream, scale)
    assert number(task.loss(model, graph)) < 1e-8
    shift = torch.zeros(2, 9).double()
    shift[1, [0, 1, 3]] = torch.tensor([0.02, 0.01, 0.01]).double()
    moved = with_stress(graph, graph.batch.labels["stress"] + shift)
    volume = float(torch.linalg.det(graph.batch.cell[1]).abs())
    expected = 0.5 * volume / 2 * float(shift[1].norm()) / scale
    assert number(task.loss(model, moved)) == pytest.approx(expected, rel=1e-6)
    assert number(replace(task, stress_weight=3.0).loss(model, moved)) == pytest.approx(
        3 * expected, rel=1e-6
    )
    assert number(replace(task, stress_weight=0.0).loss(model, moved)) < 1e-8


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 0.5, 3.0)])
def test_published_errors_amount_to_the_loss_of_labels_that_are_off_by_them(
    weights: tuple[float, float, float],
) -> None:
    errors = LevelErrors(energy=0.03, force=0.07, stress=0.002)
    backbone = TinyBackbone(n_features=16).double()
    frames = [silicon(), sodium_chloride()] * 200
    found = pseudo_label(backbone, from_ase(frames))
    assert found.stress is not None
    rng = np.random.default_rng(0)
    off = {"energy": found.energy, "forces": found.forces, "stress": found.stress}
    size = {"energy": 0.03 * 2, "forces": 0.07, "stress": 0.002}  # two atoms in each cell
    noisy = {
        name: value.numpy() + np.sqrt(np.pi / 2) * rng.normal(scale=size[name], size=value.shape)
        for name, value in off.items()
    }
    atom_labels = {"forces": noisy.pop("forces")}
    graph = backbone.prepare(from_ase(frames, labels=noisy, atom_labels=atom_labels))
    force, energy, stress = weights
    task = ForceFieldTask(GraphStream(graph, batch_size=2), force_scale(graph), *weights)
    loss = number(task.loss(AdaptedModel(backbone, []), graph))
    volume = graph.batch.cell.det().abs().div(2).clamp(max=20.0).mean()
    assert float(volume) > 19.9  # silicon's 20 Å³ an atom; salt's 22.6 counts as that
    # The formula takes means of norms as root mean squares, and leaves the salt's excess out.
    assert task.loss_of(errors, graph) == pytest.approx(loss, rel=0.08)
    assert replace(task, force_weight=0.0).loss_of(errors, graph) < 0.7 * loss
    terms = [force * 2 * 0.07, energy * 0.03, stress * float(volume) * 3 * 1.2533 * 0.002]
    assert task.loss_of(errors, graph) == pytest.approx(sum(terms) / task.scale, rel=1e-3)


def test_vacuum_does_not_raise_what_published_errors_amount_to() -> None:
    _, graph = crystals()
    task = ForceFieldTask(GraphStream(graph, batch_size=2), force_scale(graph))
    errors = LevelErrors(energy=0.03, force=0.07, stress=0.002)
    wide = replace(graph, batch=replace(graph.batch, cell=2.0 * graph.batch.cell))
    dense = replace(graph, batch=replace(graph.batch, cell=0.5 * graph.batch.cell))
    assert task.loss_of(errors, wide) == pytest.approx(task.loss_of(errors, graph), rel=0.01)
    assert task.loss_of(errors, dense) < 0.7 * task.loss_of(errors, graph)


def test_structures_without_a_stress_label_are_left_out_of_its_mean() -> None:
    model, graph = crystals()
    task = ForceFieldTask(GraphStream(graph, batch_size=2), force_scale(graph))
    stress = graph.batch.labels["stress"].clone()
    stress[1] += 0.01
    both = number(task.loss(model, with_stress(graph, stress)))
    stress[0] = float("nan")
    partly = with_stress(graph, stress)
    loss = task.loss(model, partly)
    assert number(loss) == pytest.approx(2 * both, rel=1e-6)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(g).all()) for g in gradients)
    none = with_stress(graph, torch.full_like(stress, float("nan")))
    assert number(task.loss(model, none)) < 1e-8
    assert forcefield_errors(model, partly)["stress_mae"] == pytest.approx(0.01, rel=1e-6)
    assert "stress_mae" not in forcefield_errors(model, none)


def test_a_stress_label_teaches_the_stress() -> None:
    model, graph = crystals()
    model = AdaptedModel(TinyBackbone(n_features=16, seed=4).double(), [])
    task = ForceFieldTask(
        GraphStream(graph, batch_size=2), 1.0, force_weight=0.0, energy_weight=0.0
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = forcefield_errors(model, graph)["stress_mae"]
    for _ in range(40):
        optimiser.zero_grad()
        task.loss(model, graph).backward()
        optimiser.step()
    assert forcefield_errors(model, graph)["stress_mae"] < 0.5 * before

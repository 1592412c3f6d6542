"""Energies of another level of theory are brought to the head's own reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

import tether.level
from tether.backbones.protocol import LevelErrors
from tether.data.loader import GraphStream
from tether.data.store import Store
from tether.errors import TetherError
from tether.evaluation import forcefield_errors
from tether.graph import Graph
from tether.labels.pseudo import pseudo_label
from tether.level import (
    Level,
    align_energies,
    bring_to_level,
    element_offsets,
    pretrained_level,
    shift_energies,
    shift_held_out,
)
from tether.model import AdaptedModel
from tether.structures import from_ase
from tether.tasks.forcefield import ForceFieldTask, force_scale
from tether.testing.tiny import TinyBackbone


def own_labels(frames: list[Atoms]) -> tuple[AdaptedModel, Graph]:
    backbone = TinyBackbone(n_features=16)
    energy, forces, _ = pseudo_label(backbone, from_ase(frames))
    labels, atom_labels = {"energy": energy.numpy()}, {"forces": forces.numpy()}
    graph = backbone.prepare(from_ase(frames, labels=labels, atom_labels=atom_labels))
    return AdaptedModel(backbone, []), graph


def shifted(graph: Graph, per_element: dict[int, float]) -> Graph:
    table = torch.zeros(119, dtype=torch.float64)
    for number, value in per_element.items():
        table[number] = value
    shift = torch.zeros(graph.n_systems, dtype=torch.float64)
    shift.index_add_(0, graph.batch.system_idx, table[graph.batch.numbers])
    energy = graph.batch.labels["energy"] + shift
    return replace(graph, batch=replace(graph.batch, labels={"energy": energy}))


def test_own_labels_are_not_moved(molecules: list[Atoms]) -> None:
    model, graph = own_labels(molecules)
    aligned, level = align_energies(model, graph)
    moved = (aligned.batch.labels["energy"] - graph.batch.labels["energy"]).abs().max()
    assert float(moved) < 1e-4
    assert level.errors["force_mae"] < 1e-5
    assert level.errors["energy_mae_per_atom"] < 1e-5


def forcefield_task(graph: Graph) -> ForceFieldTask:
    return ForceFieldTask(GraphStream(graph, batch_size=8), force_scale(graph))


def test_own_labels_leave_the_error_that_the_authors_publish(molecules: list[Atoms]) -> None:
    model, graph = own_labels(molecules)
    assert pretrained_level(model, forcefield_task(graph)) < 1e-3
    errors = LevelErrors(energy=0.03, force=0.07)
    model.backbone.spec = replace(model.backbone.spec, errors=errors)
    task = forcefield_task(graph)
    level = pretrained_level(model, task)
    assert level == pytest.approx((2 * 0.07 + 0.03) / task.scale, rel=1e-6)


def test_on_labels_of_others_the_error_is_the_measured_one(molecules: list[Atoms]) -> None:
    model, graph = own_labels(molecules)
    forces = graph.batch.atom_labels["forces"] * 1.1
    other = replace(graph, batch=replace(graph.batch, atom_labels={"forces": forces}))
    measured = pretrained_level(model, forcefield_task(other))
    assert 0.01 < measured < 0.2
    huge = LevelErrors(energy=10.0, force=10.0)
    model.backbone.spec = replace(model.backbone.spec, errors=huge)
    assert pretrained_level(model, forcefield_task(other)) == measured


def test_atomic_energies_of_another_level_are_taken_out(molecules: list[Atoms]) -> None:
    model, graph = own_labels(molecules)
    other = shifted(graph, {1: -13.6, 6: -1030.0, 7: -1485.0, 8: -2042.0})
    aligned, level = align_energies(model, other)
    torch.testing.assert_close(
        aligned.batch.labels["energy"], graph.batch.labels["energy"], rtol=0, atol=1e-3
    )
    assert level.errors["energy_mae_per_atom"] < 1e-4
    assert float((other.batch.labels["energy"] - graph.batch.labels["energy"]).abs().min()) > 100


def test_an_element_outside_the_sample_is_fitted_too(
    molecules: list[Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tether.level, "N_FITTED", 12)
    hydrocarbons = [a for a in molecules if set(a.numbers.tolist()) <= {1, 6}] * 3
    oxygen = [a for a in molecules if 8 in a.numbers and set(a.numbers.tolist()) <= {1, 6, 8}][:1]
    frames = [*hydrocarbons[:-1], *oxygen, *hydrocarbons[-1:]]
    model, graph = own_labels(frames)
    chosen = torch.linspace(0, len(frames) - 1, 12).long()
    assert 8 not in graph.batch.select(chosen).numbers  # the case is the one meant
    aligned, _ = align_energies(model, shifted(graph, {8: -2000.0}))
    difference = aligned.batch.labels["energy"] - graph.batch.labels["energy"]
    assert float(difference.abs().max()) < 1e-2


def test_forces_are_left_alone(workspace: Any) -> None:
    store = Store.open(workspace.auxiliary)
    model = AdaptedModel(TinyBackbone(n_features=16), [])
    graph = model.backbone.prepare(store.batch(np.arange(10)))
    aligned, level = align_energies(model, graph)
    assert torch.equal(aligned.batch.atom_labels["forces"], graph.batch.atom_labels["forces"])
    assert level.errors["force_mae"] > 1e-3  # labels of another network: what `level_check` reports


ATOMIC = {1: -13.6, 6: -1030.0, 7: -1485.0, 8: -2042.0}


def test_energies_of_elements_that_were_not_fitted_are_unknown(molecules: list[Atoms]) -> None:
    model, graph = own_labels(molecules)
    other = shifted(graph, ATOMIC)
    has_oxygen = torch.tensor([8 in atoms.numbers for atoms in molecules])
    _, level = align_energies(model, other.select(torch.nonzero(~has_oxygen).flatten()))
    moved = bring_to_level(model, other, level)
    assert torch.equal(moved.batch.labels["energy"].isnan(), has_oxygen)
    errors = forcefield_errors(model, moved)
    assert errors["n_energies"] == int((~has_oxygen).sum())
    assert errors["energy_mae_per_atom"] < 1e-4
    # Its own labels need no offset: what the model says of oxygen is known.
    _, level = align_energies(model, graph.select(torch.nonzero(~has_oxygen).flatten()))
    moved = bring_to_level(model, graph, level)
    assert torch.equal(
        moved.batch.labels["energy"],
        shift_energies(graph, level.offsets.per_element).batch.labels["energy"],
    )
    assert "n_energies" not in forcefield_errors(model, moved)


def test_a_single_composition_tells_of_its_multiples_only() -> None:
    water, far = Atoms("OH2", [[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]]), [9.0, 0.0, 0.0]
    pair = water.copy()
    pair.extend(Atoms("OH2", water.positions + far))
    peroxide = Atoms("H2O2", [[0.8, 0.9, 0.6], [-0.8, -0.9, 0.6], [0, 0.7, 0], [0, -0.7, 0]])
    model, graph = own_labels([water, pair, peroxide])
    other = shifted(graph, ATOMIC)
    offsets = element_offsets(model, other.select(torch.tensor([0])))
    assert offsets.know(graph.batch).tolist() == [True, True, False]
    moved = shift_held_out(other, offsets)
    error = moved.batch.labels["energy"] - graph.batch.labels["energy"]
    assert float(error[:2].abs().max()) < 1.0
    for rows, n_known in (([1, 2], 1), ([2], 0)):
        found = forcefield_errors(model, moved.select(torch.tensor(rows)))
        assert found["n_energies"] == n_known
        assert "energy_mae_per_atom" not in found
        assert found["force_mae"] < 1e-5
        with pytest.raises(TetherError, match=f"for {n_known} of {len(rows)} structures, .* tell"):
            bring_to_level(model, other.select(torch.tensor(rows)), Level(offsets, {}))


def test_a_full_fit_knows_all_to_the_same_bits(molecules: list[Atoms]) -> None:
    model, graph = own_labels(molecules)
    other = shifted(graph, ATOMIC)
    offsets = element_offsets(model, other.select(torch.arange(0, 36, 2)))
    plain = shift_energies(other, offsets.per_element)
    assert torch.equal(
        shift_held_out(other, offsets).batch.labels["energy"], plain.batch.labels["energy"]
    )

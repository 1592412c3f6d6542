"""Energies of another level of theory are brought to the head's own reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

import tether.level
from tether.data.store import Store
from tether.graph import Graph
from tether.labels.pseudo import pseudo_label
from tether.level import align_energies
from tether.model import AdaptedModel
from tether.structures import from_ase
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

"""How far auxiliary labels are from the pretrained head; energies brought to its reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from tether.data.statistics import fit_element_reference
from tether.evaluation import forcefield_errors
from tether.heads.readout import element_counts

if TYPE_CHECKING:
    from torch import Tensor

    from tether.graph import Graph
    from tether.model import AdaptedModel
    from tether.tasks.task import Task

__all__ = [
    "Level",
    "align_energies",
    "bring_to_level",
    "element_offsets",
    "pretrained_level",
    "shift_energies",
]

#: Structures that the per-element offsets are fitted on.
N_FITTED = 512
#: Batches that the pretrained loss is averaged over: enough to know it to some per cent.
N_BATCHES = 32


@dataclass(frozen=True)
class Level:
    """How far labels are from the head before training.

    Attributes
    ----------
    offsets : Tensor, shape (119,), double precision
        eV, what is added to the labels for each atom, by atomic number.
    errors : dict
        What is left, `forcefield_errors`: how far their level of theory is from the head's own.
    """

    offsets: Tensor
    errors: dict[str, float]


def align_energies(model: AdaptedModel, graph: Graph) -> tuple[Graph, Level]:
    """Shift energy labels by a per-element fit to what the head predicts now, before training.

    Levels of theory differ in the energy of each atom by thousands of eV, which says nothing about
    the potential-energy surface. For the model's own pseudo-labels the shift is zero.

    Parameters
    ----------
    model : AdaptedModel
        Not yet trained.
    graph : Graph
        Auxiliary structures with ``energy`` and ``forces``.

    Returns
    -------
    graph : Graph
        The same with shifted ``energy``.
    level : Level
        The shift, and the errors of the untrained head on the shifted labels.
    """
    offsets = element_offsets(model, graph)
    aligned = shift_energies(graph, offsets)
    return aligned, Level(offsets, forcefield_errors(model, aligned.select(_sample(graph))))


def bring_to_level(model: AdaptedModel, graph: Graph, level: Level | None) -> Graph:
    """Shift the energies of held-out labels as those that are trained on.

    Parameters
    ----------
    model : AdaptedModel
        Not yet trained.
    graph : Graph
        Structures with ``energy``, of the auxiliary labels' level of theory.
    level : Level or None
        Of the auxiliary labels; without any, the shift is fitted to these.

    Returns
    -------
    Graph
        With shifted ``energy``.
    """
    return shift_energies(graph, level.offsets if level else element_offsets(model, graph))


def element_offsets(model: AdaptedModel, graph: Graph, *, head: str | None = None) -> Tensor:
    """What the head predicts now less the labels, fitted as a sum over elements.

    Parameters
    ----------
    model : AdaptedModel
        Not yet trained.
    graph : Graph
        Structures with ``energy``; up to `N_FITTED` are looked at.
    head : str, optional
        Of the model's `potentials`; default: the backbone's own.

    Returns
    -------
    Tensor, shape (119,), double precision
        eV, by atomic number; zero for elements that do not occur.
    """
    sample = graph.select(_sample(graph))
    energies = []
    for start in range(0, sample.n_systems, 64):
        piece = sample.select(torch.arange(start, min(start + 64, sample.n_systems)))
        energy, _, _ = model.energy_forces(piece.to(model.device), head=head)
        energies.append(energy.double().cpu())
    difference = torch.cat(energies) - sample.batch.labels["energy"]
    counts = element_counts(sample.batch)
    elements, offsets = fit_element_reference(counts, difference.numpy())
    per_element = torch.zeros(counts.shape[1], dtype=torch.float64)
    per_element[torch.as_tensor(elements)] = torch.as_tensor(offsets)
    return per_element


def shift_energies(graph: Graph, offsets: Tensor) -> Graph:
    """Add an energy of each atom to the labels.

    Parameters
    ----------
    graph : Graph
        With ``energy``.
    offsets : Tensor, shape (119,)
        eV, by atomic number; see `element_offsets`.

    Returns
    -------
    Graph
        With shifted ``energy``.
    """
    batch = graph.batch
    shift = torch.zeros(graph.n_systems, dtype=torch.float64)
    shift.index_add_(0, batch.system_idx, offsets[batch.numbers])
    labels = {**batch.labels, "energy": batch.labels["energy"] + shift}
    return replace(graph, batch=replace(batch, labels=labels))


def pretrained_level(model: AdaptedModel, task: Task) -> float:
    """Loss of the untrained model: the mean over the first batches of the task's own stream.

    A function of model, data and seed alone, so that a run that is started again finds the same.

    Parameters
    ----------
    model : AdaptedModel
        Not yet trained.
    task : Task
        Usually the force field.

    Returns
    -------
    float
        In the unit of the task's loss.
    """
    losses = [
        task.loss(model, task.stream.batch(step).to(model.device)).detach().double()
        for step in range(N_BATCHES)
    ]
    return torch.stack(losses).mean().item()


def _sample(graph: Graph) -> Tensor:
    """Structures spread over the set, and one for each element that these do not hold."""
    chosen = torch.linspace(0, graph.n_systems - 1, min(N_FITTED, graph.n_systems)).long()
    missing = set(graph.batch.numbers.tolist()) - set(graph.batch.select(chosen).numbers.tolist())
    first = [
        int(graph.batch.system_idx[graph.batch.numbers == element][0])
        for element in sorted(missing)
    ]
    return torch.cat([chosen, torch.tensor(first, dtype=torch.int64)])

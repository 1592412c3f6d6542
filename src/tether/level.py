"""How far auxiliary labels are from the pretrained head; energies brought to its reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from tether.data.statistics import fit_element_reference
from tether.errors import TetherError
from tether.evaluation import potential_errors, predict_potential
from tether.heads.readout import element_counts

if TYPE_CHECKING:
    from torch import Tensor

    from tether.graph import Graph
    from tether.model import AdaptedModel
    from tether.structures import AtomBatch
    from tether.tasks.forcefield import ForceFieldTask

__all__ = [
    "Level",
    "Offsets",
    "align_energies",
    "bring_to_level",
    "element_offsets",
    "pretrained_level",
    "shift_energies",
    "shift_held_out",
]

#: Structures that the per-element offsets are fitted on.
N_FITTED = 512
#: eV: labels whose fitted offsets are all below count energies as the head does, its own above all.
OWN_LEVEL = 0.01
#: Units of the labels' force spread: a loss below it is rounding, the labels are the model's own.
OWN_LOSS = 1e-3
#: Batches that the pretrained loss is averaged over: enough to know it to some per cent.
N_BATCHES = 32


@dataclass(frozen=True)
class Offsets:
    """What is added to labels for each atom, as far as the structures of the fit tell.

    Attributes
    ----------
    per_element : Tensor, shape (119,), double precision
        eV, by atomic number; zero for elements that do not occur.
    unknown : Tensor, shape (119, n_unknown), double precision
        Orthonormal directions of composition that the fit says nothing about: elements that do not
        occur, and ratios that are the same in all its structures.
    """

    per_element: Tensor
    unknown: Tensor

    def know(self, batch: AtomBatch) -> Tensor:
        """Which structures they hold for, shape (n_systems,): mixtures of what was fitted."""
        along = torch.from_numpy(element_counts(batch)) @ self.unknown
        # Compositions are whole numbers: what is no mixture is far off.
        known: Tensor = along.norm(dim=1) < 1e-6 * batch.counts
        return known


@dataclass(frozen=True)
class Level:
    """How far labels are from the head before training.

    Attributes
    ----------
    offsets : Offsets
        What is added to the labels for each atom.
    errors : dict
        What is left, `forcefield_errors`: how far their level of theory is from the head's own.
    """

    offsets: Offsets
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
    sample = graph.select(_sample(graph))
    found = predict_potential(model, sample)  # once for both: it takes longer than anything else
    offsets = _fitted(found.energy, sample)
    errors = potential_errors(found, shift_energies(sample, offsets.per_element).batch)
    return shift_energies(graph, offsets.per_element), Level(offsets, errors)


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
        With shifted ``energy``, see `shift_held_out`.

    Raises
    ------
    TetherError
        Where the auxiliary labels tell the shift of fewer than two structures: without an energy
        error, forgetting is not measured.
    """
    moved = shift_held_out(graph, level.offsets if level else element_offsets(model, graph))
    n_known = int(torch.isfinite(moved.batch.labels["energy"]).sum())
    if n_known < min(2, graph.n_systems):
        raise TetherError(
            f"held-out force-field labels: for {n_known} of {graph.n_systems} structures, the "
            "auxiliary ones tell how far this level of theory is from the backbone's energies",
            expected="two or more, whose elements and their ratios occur in the auxiliary set",
            fix="add such structures to the auxiliary set, or leave `forcefield_test` out",
        )
    return moved


def element_offsets(model: AdaptedModel, graph: Graph, *, head: str | None = None) -> Offsets:
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
    Offsets
        Where all are zero, up to `OWN_LEVEL`, nothing is unknown.
    """
    sample = graph.select(_sample(graph))
    return _fitted(predict_potential(model, sample, head=head).energy, sample)


def _fitted(energy: Tensor, sample: Graph) -> Offsets:
    difference = energy - sample.batch.labels["energy"]
    counts = element_counts(sample.batch)
    elements, offsets = fit_element_reference(counts, difference.numpy())
    per_element = torch.zeros(counts.shape[1], dtype=torch.float64)
    per_element[torch.as_tensor(elements)] = torch.as_tensor(offsets)
    if float(per_element.abs().max()) < OWN_LEVEL:
        return Offsets(per_element, torch.zeros(counts.shape[1], 0, dtype=torch.float64))
    _, singular, axes = np.linalg.svd(counts)
    rank = int((singular > 1e-9 * singular[0]).sum())
    return Offsets(per_element, torch.from_numpy(axes[rank:].T.copy()))


def shift_energies(graph: Graph, offsets: Tensor) -> Graph:
    """Add an energy of each atom to the labels.

    Parameters
    ----------
    graph : Graph
        With ``energy``.
    offsets : Tensor, shape (119,)
        eV, by atomic number; see `Offsets`.

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


def shift_held_out(graph: Graph, offsets: Offsets) -> Graph:
    """Shift the energies of structures that the offsets were not fitted on.

    Parameters
    ----------
    graph : Graph
        With ``energy``.
    offsets : Offsets
        From `element_offsets`.

    Returns
    -------
    Graph
        With shifted ``energy``; NaN for compositions that the fit does not know, whose error would
        be that of the missing share, hundreds of eV.
    """
    shifted = shift_energies(graph, offsets.per_element)
    energy = shifted.batch.labels["energy"]
    energy = torch.where(offsets.know(graph.batch), energy, torch.nan)
    labels = {**shifted.batch.labels, "energy": energy}
    return replace(shifted, batch=replace(shifted.batch, labels=labels))


def pretrained_level(model: AdaptedModel, task: ForceFieldTask) -> float:
    """Loss of the untrained model: the mean over the first batches of the task's own stream.

    On labels that the model made itself, the loss is zero, and says nothing about how good the
    model is at its level of theory. There, the loss that the errors published by its authors amount
    to stands for it, where they are known: what it would have on the labels that it imitates.

    A function of model, data and seed alone, so that a run that is started again finds the same.

    Parameters
    ----------
    model : AdaptedModel
        Not yet trained.
    task : ForceFieldTask
        With its labels.

    Returns
    -------
    float
        In the unit of the task's loss.
    """
    batches = [task.stream.batch(step) for step in range(N_BATCHES)]
    losses = [task.loss(model, batch.to(model.device)).detach().double() for batch in batches]
    measured = torch.stack(losses).mean().item()
    errors = model.backbone.spec.errors
    if errors is None or measured > OWN_LOSS:
        return measured
    return sum(task.loss_of(errors, batch) for batch in batches) / len(batches)


def _sample(graph: Graph) -> Tensor:
    """Structures spread over the set, and one for each element that these do not hold."""
    chosen = torch.linspace(0, graph.n_systems - 1, min(N_FITTED, graph.n_systems)).long()
    missing = set(graph.batch.numbers.tolist()) - set(graph.batch.select(chosen).numbers.tolist())
    first = [
        int(graph.batch.system_idx[graph.batch.numbers == element][0])
        for element in sorted(missing)
    ]
    return torch.cat([chosen, torch.tensor(first, dtype=torch.int64)])

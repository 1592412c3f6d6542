"""The force-field task: energies, forces and stress of the pretrained head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tether.errors import TetherError
from tether.tasks.task import mean

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from tether.backbones.protocol import LevelErrors
    from tether.graph import Graph
    from tether.model import AdaptedModel
    from tether.structures import AtomBatch
    from tether.tasks.task import Stream

__all__ = ["ForceFieldTask", "force_scale"]

#: Å³ an atom, of a dense crystal. Vacuum about a layer adds to the volume, and not to the virial.
BULK_VOLUME = 20.0


@dataclass(frozen=True)
class ForceFieldTask:
    """Loss on forces, energies and stress, in units of the force spread of the data.

    ``force_weight * mean_atoms ‖ΔF‖ / s + energy_weight * mean_systems |ΔE| / (n_atoms s a)
    + stress_weight * mean_systems ‖V Δσ‖ / (n_atoms s a)``
    with the force scale ``s`` (eV/Å) and ``a`` = 1 Å. The force term is the L2 norm of JMP
    (arXiv 2310.16802); with `per_structure` also its mean, over the atoms of each structure and
    then over structures, so that large ones do not count more. Stress enters as the virial an
    atom, an energy like the others, so that its weight does not depend on the density; structures
    without a label of it are left out of the mean.

    Attributes
    ----------
    stream : GraphStream
        Structures with ``energy`` (eV) and ``forces`` (eV/Å); crystals may have ``stress``
        (eV/Å³, 9 components row by row, positive under tension).
    scale : float
        ``s``, eV/Å; see `force_scale`.
    force_weight, energy_weight, stress_weight : float
        Of the three terms.
    name : str
        In logs.
    head : str or None
        One of the model's `potentials`; None: the backbone's own.
    per_structure : bool
        How forces are averaged.
    """

    stream: Stream
    scale: float
    force_weight: float = 1.0
    energy_weight: float = 1.0
    stress_weight: float = 1.0
    name: str = "forcefield"
    head: str | None = None
    per_structure: bool = False

    def loss(self, model: AdaptedModel, graph: Graph, counts: Tensor | None = None) -> Tensor:
        """Loss of one batch, differentiable twice.

        Parameters
        ----------
        model : AdaptedModel
            Its backbone has a potential.
        graph : Graph
            A labelled batch.
        counts : Tensor, optional
            Of the batch that this one is a share of, see `counts`.

        Returns
        -------
        Tensor
            Scalar.
        """
        energy, forces, stress = model.energy_forces(graph, create_graph=True, head=self.head)
        batch = graph.batch
        n_atoms, n_systems, n_stresses = (None, None, None) if counts is None else counts
        force_error = (forces - batch.atom_labels["forces"].to(forces.dtype)).norm(dim=-1)
        if self.per_structure:
            force_error = force_error / batch.counts.index_select(0, batch.system_idx)
            mean_force = force_error.sum() / (batch.n_systems if counts is None else n_systems)
        else:
            mean_force = mean(force_error, n_atoms)
        loss: Tensor = self.force_weight * mean_force / self.scale
        if self.energy_weight:
            # Total energies are thousands of eV: the difference is taken in double precision.
            per_atom = ((energy.double() - batch.labels["energy"]) / batch.counts).to(forces.dtype)
            loss = loss + self.energy_weight * mean(per_atom.abs(), n_systems) / self.scale
        if self.stress_weight and stress is not None and "stress" in batch.labels:
            virial = _virial_error(stress, batch, n_stresses)
            loss = loss + self.stress_weight * virial / self.scale
        return loss

    def loss_of(self, errors: LevelErrors, graph: Graph) -> float:
        """Loss that errors of a published size would amount to on a batch.

        Parameters
        ----------
        errors : LevelErrors
            Mean absolute errors of a potential; that of stress in bulk crystals.
        graph : Graph
            A labelled batch: stress counts with its volume an atom, without vacuum.

        Returns
        -------
        float
            In units of the force spread, as `loss`.
        """
        # Of a vector of any direction, a component is half the length in the mean.
        loss = self.force_weight * 2.0 * errors.force + self.energy_weight * errors.energy
        batch = graph.batch
        if errors.stress is not None and "stress" in batch.labels:
            known = _has_stress(batch)
            volume = (torch.linalg.det(batch.cell).abs() / batch.counts).clamp(max=BULK_VOLUME)
            mean_volume = float((volume * known).sum() / known.sum().clamp(min=1))
            # Nine components, normally distributed: root mean square over mean, times three.
            norm = 3.0 * math.sqrt(math.pi / 2.0) * errors.stress
            loss += self.stress_weight * mean_volume * norm
        return loss / self.scale

    def weights(self, model: AdaptedModel) -> list[Parameter]:
        """Backbone and the head of energies."""
        if self.head is None:
            return [*model.block_parameters(), *model.potential_parameters()]
        return [*model.block_parameters(), *model.potentials[self.head].parameters()]

    def counts(self, model: AdaptedModel, graph: Graph) -> Tensor:  # noqa: ARG002
        """Atoms, structures, and those of them with a label of stress."""
        batch = graph.batch
        n_stresses = int(_has_stress(batch).sum()) if "stress" in batch.labels else 0
        return torch.tensor([batch.n_atoms, batch.n_systems, n_stresses])


def _has_stress(batch: AtomBatch) -> Tensor:
    return torch.isfinite(batch.labels["stress"]).flatten(1).all(dim=1)


def _virial_error(stress: Tensor, batch: AtomBatch, n_known: Tensor | None) -> Tensor:
    """Mean over labelled structures of the norm of the virial's error an atom, eV."""
    wanted = batch.labels["stress"].to(stress.dtype).reshape(-1, 3, 3)
    known = _has_stress(batch)
    volume = torch.linalg.det(batch.cell.detach()).abs() / batch.counts
    # NaN is replaced before the difference: masked afterwards, its gradient would still be NaN.
    error = stress - torch.where(known[:, None, None], wanted, stress.detach())
    norm = error.flatten(1).norm(dim=1)
    total: Tensor = (norm * volume * known).sum()
    return total / (known.sum() if n_known is None else n_known).clamp(min=1)


def force_scale(graph: Graph) -> float:
    """Root mean square length of the force on an atom, eV/Å.

    Parameters
    ----------
    graph : Graph
        Labelled structures.

    Returns
    -------
    float
        Positive.

    Raises
    ------
    TetherError
        When forces are missing, NaN, or all zero, which would poison the task silently.
    """
    for where, name in ((graph.batch.atom_labels, "forces"), (graph.batch.labels, "energy")):
        if name not in where or bool(torch.isnan(where[name]).any()):
            raise TetherError(
                f"force-field data lack {name!r} for some structures",
                expected="energy (eV) and forces (eV/Å) for every structure",
                fix="make them with `tether label`, or drop the unlabelled ones",
            )
    scale = float(graph.batch.atom_labels["forces"].double().square().sum(-1).mean().sqrt())
    if scale == 0.0:
        raise TetherError(
            f"all {graph.batch.n_atoms} forces are zero",
            expected="forces of off-equilibrium structures, eV/Å",
            fix="the file's converter dropped them: label the structures again",
        )
    return scale

"""The force-field task: energies, forces and stress of the pretrained head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tether.errors import TetherError

if TYPE_CHECKING:
    from torch import Tensor

    from tether.graph import Graph
    from tether.model import AdaptedModel
    from tether.structures import AtomBatch
    from tether.tasks.task import Stream

__all__ = ["ForceFieldTask", "force_scale"]


@dataclass(frozen=True)
class ForceFieldTask:
    """Loss on forces, energies and stress, in units of the force spread of the data.

    ``force_weight * mean_atoms ‖ΔF‖ / s + energy_weight * mean_systems |ΔE| / (n_atoms s a)
    + stress_weight * mean_systems ‖V Δσ‖ / (n_atoms s a)``
    with the force scale ``s`` (eV/Å) and ``a`` = 1 Å. The force term is the structure-wise L2
    norm of JMP (arXiv 2310.16802). Stress enters as the virial an atom, an energy like the others,
    so that its weight does not depend on the density; structures without a label of it are left
    out of the mean.

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
    """

    stream: Stream
    scale: float
    force_weight: float = 1.0
    energy_weight: float = 1.0
    stress_weight: float = 1.0
    name: str = "forcefield"
    head: str | None = None

    def loss(self, model: AdaptedModel, graph: Graph) -> Tensor:
        """Loss of one batch, differentiable twice.

        Parameters
        ----------
        model : AdaptedModel
            Its backbone has a potential.
        graph : Graph
            A labelled batch.

        Returns
        -------
        Tensor
            Scalar.
        """
        energy, forces, stress = model.energy_forces(graph, create_graph=True, head=self.head)
        batch = graph.batch
        force_error = (forces - batch.atom_labels["forces"].to(forces.dtype)).norm(dim=-1).mean()
        loss: Tensor = self.force_weight * force_error / self.scale
        if self.energy_weight:
            # Total energies are thousands of eV: the difference is taken in double precision.
            per_atom = ((energy.double() - batch.labels["energy"]) / batch.counts).to(forces.dtype)
            loss = loss + self.energy_weight * per_atom.abs().mean() / self.scale
        if self.stress_weight and stress is not None and "stress" in batch.labels:
            virial = _virial_error(stress, batch)
            loss = loss + self.stress_weight * virial / self.scale
        return loss


def _virial_error(stress: Tensor, batch: AtomBatch) -> Tensor:
    """Mean over labelled structures of the norm of the virial's error an atom, eV."""
    wanted = batch.labels["stress"].to(stress.dtype).reshape(-1, 3, 3)
    known = torch.isfinite(wanted).flatten(1).all(dim=1)
    volume = torch.linalg.det(batch.cell.detach()).abs() / batch.counts
    # NaN is replaced before the difference: masked afterwards, its gradient would still be NaN.
    error = stress - torch.where(known[:, None, None], wanted, stress.detach())
    norm = error.flatten(1).norm(dim=1)
    mean: Tensor = (norm * volume * known).sum() / known.sum().clamp(min=1)
    return mean


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

"""Denoising: displaced atoms, and the question where they came from. It needs no labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from tether.heads.derivative import forces_stress
from tether.heads.pair import PairHead
from tether.tasks.task import mean

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from tether.graph import Graph
    from tether.heads.denoising import DenoisingHead
    from tether.model import AdaptedModel
    from tether.structures import AtomBatch
    from tether.tasks.task import Stream

__all__ = ["DenoisingTask", "NoisyStream"]


@dataclass(frozen=True)
class NoisyStream:
    """A stream with Gaussian noise on positions and cells, a function of seed and step.

    The noise of the atoms goes into ``atom_labels["noise"]``, in units of its scale. Its mean over
    each structure is taken out: no invariant function of the positions can tell a shift of all
    atoms. Cells are strained, atoms with them, so that fractional coordinates stay; the strain
    goes into ``labels["cell_noise"]``, in units of `strain`, and is zero where there is no cell.
    Neighbour lists are those of the structures at rest, so that pairs which the noise brings
    within the cutoff are missed; what they would add fades to zero there.

    Attributes
    ----------
    stream : Stream
        Structures at rest, or off it where their forces are known.
    scales : tuple of float
        Å, standard deviation of each coordinate; one is drawn for each structure.
    seed : int
        Of the noise.
    strain : float
        Standard deviation of the strain's components; 0: cells are left as they are.
    """

    stream: Stream
    scales: tuple[float, ...]
    seed: int = 0
    strain: float = 0.0

    def batch(self, step: int) -> Graph:
        """Batch `step` of the stream, displaced."""
        graph = self.stream.batch(step)
        batch = graph.batch
        generator = np.random.default_rng([self.seed, step])
        drawn = generator.normal(size=(batch.n_atoms, 3))
        noise = batch.centred(torch.from_numpy(drawn).to(batch.positions))
        positions = batch.positions + self._scales(batch, generator) * noise
        labels, cell = batch.labels, None
        if self.strain and batch.is_periodic:
            strain = _symmetric(batch, generator)
            stretch = torch.eye(3).to(strain) + self.strain * strain
            turned = stretch.index_select(0, batch.system_idx)
            positions = torch.einsum("ni,nij->nj", positions, turned)
            cell = batch.cell @ stretch
            labels = {**labels, "cell_noise": strain}
        moved = batch.with_geometry(positions, cell)
        atom_labels = {**batch.atom_labels, "noise": noise}
        return replace(graph, batch=replace(moved, labels=labels, atom_labels=atom_labels))

    def _scales(self, batch: AtomBatch, generator: np.random.Generator) -> Tensor | float:
        """Å: one number, or that of each atom."""
        if len(self.scales) == 1:
            return self.scales[0]
        chosen = generator.choice(self.scales, size=batch.n_systems)
        of_system = torch.from_numpy(chosen).to(batch.positions)
        return of_system.index_select(0, batch.system_idx)[:, None]


def _symmetric(batch: AtomBatch, generator: np.random.Generator) -> Tensor:
    drawn = torch.from_numpy(generator.normal(size=(batch.n_systems, 3, 3))).to(batch.cell)
    # Scaled so that each component has unit variance; a molecule has no cell to strain.
    symmetric = (drawn + drawn.transpose(1, 2)) / 2**0.5
    diagonal = torch.diagonal(symmetric, dim1=1, dim2=2)
    symmetric = symmetric - torch.diag_embed(diagonal * (1.0 - 0.5**0.5))
    return symmetric * batch.pbc.any(dim=1)[:, None, None]


@dataclass(frozen=True)
class DenoisingTask:
    """Mean squared error of the predicted noise, a component, in units of its variance.

    Knowing nothing costs (n − 1)/n for n atoms; rotations of a whole structure cannot be known.
    With a `DenoisingHead` this is the auxiliary task of J. Godwin et al., arXiv 2106.07971, with
    two departures: the property is learnt on the structures at rest, not on the displaced ones, so
    that it means the same in all recipes; and the prediction is the negative gradient of a scalar.
    With a `PairHead` it is the pretraining of S. Zaidi et al., arXiv 2206.00133. Structures off
    equilibrium can be denoised where the head is told the forces before the noise (Y.-L. Liao et
    al., arXiv 2403.09549): without them there are many places that an atom may have come from.
    Here the head is told, not the backbone, so that any backbone will do.

    Attributes
    ----------
    stream : NoisyStream
        Displaced structures; with ``forces`` where the head is conditioned on them.
    head : DenoisingHead or PairHead
        Also the model's, so that it is trained and saved with it.
    force_scale : float
        eV/Å, unit of the forces that a conditioned head sees.
    name : str
        In logs.
    """

    stream: NoisyStream
    head: DenoisingHead | PairHead
    force_scale: float = 1.0
    name: str = "denoising"

    def loss(self, model: AdaptedModel, graph: Graph, counts: Tensor | None = None) -> Tensor:
        """Loss of one batch; with a `DenoisingHead`, differentiable twice.

        Parameters
        ----------
        model : AdaptedModel
            With the head.
        graph : Graph
            From the stream.
        counts : Tensor, optional
            Of the batch that this one is a share of, see `counts`.

        Returns
        -------
        Tensor
            Scalar.
        """
        batch, strain = graph.batch, None
        if isinstance(self.head, PairHead):
            features, known = model.features(graph), None
            if self.head.conditioned:
                known = batch.atom_labels["forces"].to(features.node.dtype) / self.force_scale
            predicted, strain = self.head(features, batch, known)
        else:
            leaf = graph.differentiable()
            scalar = self.head(model.features(leaf), leaf.batch)
            predicted, _ = forces_stress(scalar, leaf, create_graph=True)
        n_coordinates, n_cells = (None, None) if counts is None else counts
        error: Tensor = predicted - batch.atom_labels["noise"].to(predicted.dtype)
        loss = mean(error.square(), n_coordinates)
        if strain is not None and "cell_noise" in batch.labels:
            is_cell = batch.pbc.any(dim=1)
            wanted = batch.labels["cell_noise"].to(strain.dtype)
            of_cells = (strain * is_cell[:, None, None] - wanted).square().mean(dim=(1, 2))
            n_cells = is_cell.sum() if n_cells is None else n_cells
            loss = loss + of_cells.sum() / n_cells.clamp(min=1)
        return loss

    def weights(self, model: AdaptedModel) -> list[Parameter]:
        """Backbone and head."""
        return [*model.block_parameters(), *self.head.parameters()]

    def counts(self, model: AdaptedModel, graph: Graph) -> Tensor:  # noqa: ARG002
        """Coordinates, and structures with a cell."""
        batch = graph.batch
        return torch.tensor([3 * batch.n_atoms, int(batch.pbc.any(dim=1).sum())])

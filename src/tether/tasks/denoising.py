"""Noisy Nodes: displaced atoms, and the question where they came from. It needs no labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from tether.heads.derivative import forces_stress
from tether.tasks.task import mean

if TYPE_CHECKING:
    from torch import Tensor

    from tether.graph import Graph
    from tether.heads.denoising import DenoisingHead
    from tether.model import AdaptedModel
    from tether.tasks.task import Stream

__all__ = ["DenoisingTask", "NoisyStream"]


@dataclass(frozen=True)
class NoisyStream:
    """A stream with Gaussian noise on the positions, a function of seed and step.

    The noise goes into ``atom_labels["noise"]``, in units of `scale`. Its mean over each structure
    is taken out: no invariant function of the positions can tell a shift of all atoms. Neighbour
    lists are those of the structures at rest, so that pairs which the noise brings within the
    cutoff are missed; what they would add fades to zero there.

    Attributes
    ----------
    stream : Stream
        Structures at rest.
    scale : float
        Å, standard deviation of each coordinate.
    seed : int
        Of the noise.
    """

    stream: Stream
    scale: float
    seed: int = 0

    def batch(self, step: int) -> Graph:
        """Batch `step` of the stream, displaced."""
        graph = self.stream.batch(step)
        batch = graph.batch
        drawn = np.random.default_rng([self.seed, step]).normal(size=(batch.n_atoms, 3))
        noise = torch.from_numpy(drawn).to(batch.positions)
        noise = batch.centred(noise)
        moved = replace(
            batch,
            positions=batch.positions + self.scale * noise,
            atom_labels={**batch.atom_labels, "noise": noise},
        )
        return replace(graph, batch=moved)


@dataclass(frozen=True)
class DenoisingTask:
    """Mean squared error of the predicted noise, a coordinate, in units of its variance.

    After J. Godwin et al., arXiv 2106.07971, with two departures: the property is learnt on the
    structures at rest, not on the displaced ones, so that it means the same in all recipes; and
    the prediction is the negative gradient of a scalar, see `DenoisingHead`. Knowing nothing costs
    (n − 1)/n for n atoms; rotations of a whole structure cannot be known.

    Attributes
    ----------
    stream : NoisyStream
        Displaced structures.
    head : DenoisingHead
        Also the model's, so that it is trained and saved with it.
    name : str
        In logs.
    """

    stream: NoisyStream
    head: DenoisingHead
    name: str = "denoising"

    def loss(self, model: AdaptedModel, graph: Graph, counts: Tensor | None = None) -> Tensor:
        """Loss of one batch, differentiable twice.

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
        leaf = graph.differentiable()
        scalar = self.head(model.features(leaf), leaf.batch)
        predicted, _ = forces_stress(scalar, leaf, create_graph=True)
        error: Tensor = predicted - graph.batch.atom_labels["noise"].to(predicted.dtype)
        return mean(error.square(), None if counts is None else counts[0])

    def counts(self, model: AdaptedModel, graph: Graph) -> Tensor:  # noqa: ARG002
        """Coordinates."""
        return torch.tensor([3 * graph.batch.n_atoms])

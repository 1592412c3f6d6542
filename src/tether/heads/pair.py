"""`PairHead`: invariant features → a vector at each atom, as a sum over its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tether.errors import TetherError

if TYPE_CHECKING:
    from tether.features import Features
    from tether.structures import AtomBatch

__all__ = ["PairHead"]


class PairHead(nn.Module):
    """Vectors along the edges, weighted by a perceptron of both atoms and their distance.

    ``v_i = Σ_j w(h_i, h_j, r_ij) r̂_ij``, less the mean over each structure: equivariant whatever
    the backbone is, without a derivative, and no function of the positions alone can tell a shift
    of all atoms. The direct forces of GemNet (arXiv 2106.08903) are of this form. A second weight
    gives a symmetric tensor of each structure, the mean of ``w' r̂ r̂`` over its edges.

    Parameters
    ----------
    n_features : int
        Width of the node features.
    cutoff : float
        Å; the weights fade to zero there.
    n_hidden, n_radial : int
        Width of the hidden layer; radial basis functions.
    conditioned : bool
        Whether a known vector of each atom (`forward`) enters the weights, and the result.
    seed : int
        Of the initial weights; the global generator is left as it was.
    """

    def __init__(
        self,
        n_features: int,
        *,
        cutoff: float,
        n_hidden: int = 64,
        n_radial: int = 16,
        conditioned: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.cutoff, self.conditioned = cutoff, conditioned
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.own = nn.Linear(n_features, n_hidden)
            self.other = nn.Linear(n_features, n_hidden, bias=False)
            self.radial = nn.Linear(n_radial + 2 * conditioned, n_hidden, bias=False)
            self.weights = nn.Linear(n_hidden, 2, bias=False)
            if conditioned:
                self.gate = nn.Linear(n_features, 1)
        frequencies = torch.arange(1, n_radial + 1) * torch.pi / cutoff
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: Tensor

    def forward(
        self, features: Features, batch: AtomBatch, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Vectors of the atoms, and a symmetric tensor of each structure.

        Parameters
        ----------
        features : Features
            Of the batch, edges included.
        batch : AtomBatch
            For its system indices.
        known : Tensor, shape (n_atoms, 3), optional
            The vector that the head is conditioned on.

        Returns
        -------
        vectors : Tensor, shape (n_atoms, 3)
            Their mean over each structure is zero.
        tensors : Tensor, shape (n_systems, 3, 3)
            Zero for a structure without an edge.

        Raises
        ------
        TetherError
            When the backbone gives no edges.
        """
        pairs = _both_ends(features, self.cutoff)
        radial = torch.sin(pairs.distances * self.frequencies) / pairs.distances
        if known is not None:
            along = [
                (known.index_select(0, atoms) * pairs.directions).sum(1, keepdim=True)
                for atoms in (pairs.receivers, pairs.senders)
            ]
            radial = torch.cat([radial, *along], dim=1)
        hidden = silu(
            self.own(features.node).index_select(0, pairs.receivers)
            + self.other(features.node).index_select(0, pairs.senders)
            + self.radial(radial)
        )
        weight, stretch = (self.weights(hidden) * pairs.envelope).split(1, dim=1)
        n_atoms, n_systems = batch.n_atoms, batch.n_systems
        vectors = weight.new_zeros(n_atoms, 3)
        vectors = vectors.index_add(0, pairs.receivers, weight * pairs.directions)
        if known is not None:
            vectors = vectors + self.gate(features.node) * known
        outer = pairs.directions.unsqueeze(2) * pairs.directions.unsqueeze(1)
        of_system = batch.system_idx.index_select(0, pairs.receivers)
        tensors = weight.new_zeros(n_systems, 3, 3)
        tensors = tensors.index_add(0, of_system, stretch.unsqueeze(2) * outer)
        counted = pairs.envelope.new_zeros(n_systems, 1)
        counted = counted.index_add(0, of_system, torch.ones_like(pairs.envelope))
        return batch.centred(vectors), tensors / counted.clamp(min=1.0).unsqueeze(2)


@dataclass(frozen=True)
class _Pairs:
    """Both directions of every edge, shape (2 n_edges, …)."""

    receivers: Tensor
    senders: Tensor
    directions: Tensor
    distances: Tensor
    envelope: Tensor


def _both_ends(features: Features, cutoff: float) -> _Pairs:
    if features.edge_idx is None or features.edge_vector is None:
        raise TetherError(
            "the backbone's features have no edges",
            expected="`edge_idx` and `edge_vector`",
            fix="choose another backbone, or forces by derivative",
        )
    first, second = features.edge_idx
    vectors = features.edge_vector
    distances = vectors.norm(dim=1, keepdim=True)
    directions = vectors / distances
    envelope = 0.5 + 0.5 * torch.cos(torch.pi * distances.clamp(max=cutoff) / cutoff)
    return _Pairs(
        torch.cat([first, second]),
        torch.cat([second, first]),
        torch.cat([directions, -directions]),
        torch.cat([distances, distances]),
        torch.cat([envelope, envelope]),
    )

"""`DenoisingHead`: node features → a scalar whose downhill direction is the noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tether.features import Features
    from tether.structures import AtomBatch

__all__ = ["DenoisingHead"]


class DenoisingHead(nn.Module):
    """An atom-wise perceptron, summed over each structure; it is read by derivative only.

    Backbones offer invariant features, from which no direction can be read. The negative gradient
    of an invariant scalar with respect to the positions is equivariant, as a force is.

    Parameters
    ----------
    n_features : int
        Width of the node features.
    n_hidden : int
        Width of the hidden layer; 0 makes the head linear.
    seed : int
        Of the initial weights; the global generator is left as it was.
    """

    def __init__(self, n_features: int, *, n_hidden: int = 128, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # No bias at the end: a constant has no gradient, and so would never be trained.
            if n_hidden:
                self.readout: nn.Module = nn.Sequential(
                    nn.Linear(n_features, n_hidden), nn.SiLU(), nn.Linear(n_hidden, 1, bias=False)
                )
            else:
                self.readout = nn.Linear(n_features, 1, bias=False)

    def forward(self, features: Features, batch: AtomBatch) -> Tensor:
        """The scalar of each structure, shape (n_systems,), Å.

        Parameters
        ----------
        features : Features
            Of the batch.
        batch : AtomBatch
            For its system indices.

        Returns
        -------
        Tensor
            Its negative gradient is noise in units of its standard deviation.
        """
        atomic: Tensor = self.readout(features.node).squeeze(1)
        return atomic.new_zeros(batch.n_systems).index_add(0, batch.system_idx, atomic)

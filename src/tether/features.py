"""`Features`: what a backbone computes, invariant under rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Features"]


@dataclass(frozen=True)
class Features:
    """Invariant features of one forward pass.

    Attributes
    ----------
    node : Tensor, shape (n_atoms, n_features)
        Of the last layer; heads read these.
    layers : tuple of Tensor, each of shape (n_atoms, n_features of that layer)
        Input to output; the last one is `node`.
    edge : Tensor or None, shape (n_edges, n_edge_features)
        Symmetric in the two atoms where each pair is listed once.
    edge_idx : Tensor or None, shape (2, n_edges)
        The atoms of each edge.
    edge_distance : Tensor or None, shape (n_edges,)
        Å.
    edge_vector : Tensor or None, shape (n_edges, 3)
        Å, from the first atom of each edge to the second: the one entry that turns with the
        structure. Heads that predict vectors read it.
    pretrained : Tensor or None, shape (n_atoms, n_features)
        What `node` is with the pretrained weights, where a model keeps them beside its own.
    """

    node: Tensor
    layers: tuple[Tensor, ...] = ()
    edge: Tensor | None = None
    edge_idx: Tensor | None = None
    edge_distance: Tensor | None = None
    edge_vector: Tensor | None = None
    pretrained: Tensor | None = None

    def to(self, device: torch.device | str) -> Features:
        """The same numbers on a device."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return Features(
            node=self.node.to(device),
            layers=tuple(layer.to(device) for layer in self.layers),
            edge=moved(self.edge),
            edge_idx=moved(self.edge_idx),
            edge_distance=moved(self.edge_distance),
            edge_vector=moved(self.edge_vector),
            pretrained=moved(self.pretrained),
        )

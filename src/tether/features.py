"""`Features`: what a backbone computes, invariant under rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """

    node: Tensor
    layers: tuple[Tensor, ...] = ()
    edge: Tensor | None = None
    edge_idx: Tensor | None = None
    edge_distance: Tensor | None = None
    edge_vector: Tensor | None = None

    def to(self, device: torch.device | str) -> Features:
        """The same numbers on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def detach(self) -> Features:
        """The same numbers without their autograd graph."""
        return self._each(lambda tensor: tensor.detach())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Features:
        def changed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        return Features(
            node=change(self.node),
            layers=tuple(change(layer) for layer in self.layers),
            edge=changed(self.edge),
            edge_idx=changed(self.edge_idx),
            edge_distance=changed(self.edge_distance),
            edge_vector=changed(self.edge_vector),
        )

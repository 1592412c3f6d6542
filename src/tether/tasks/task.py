"""What a task is: a stream of structures, and a loss on the shared model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from tether.data.loader import GraphStream
    from tether.graph import Graph
    from tether.model import AdaptedModel

__all__ = ["Task"]


class Task(Protocol):
    """A stream, a head inside the model, and a loss."""

    @property
    def name(self) -> str:
        """Names the task in the log."""
        ...

    @property
    def stream(self) -> GraphStream:
        """Batches of structures, without end."""
        ...

    def loss(self, model: AdaptedModel, graph: Graph) -> Tensor:
        """Scalar loss of one batch."""
        ...

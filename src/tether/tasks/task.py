"""What a task is: a stream of structures, and a loss on the shared model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from tether.graph import Graph
    from tether.model import AdaptedModel

__all__ = ["Stream", "Task"]


class Stream(Protocol):
    """Batches without end, addressed by step; `tether.data.loader.GraphStream` is one."""

    def batch(self, step: int) -> Graph:
        """Batch number `step`, counted from 0: the same whenever it is asked for."""
        ...


class Task(Protocol):
    """A stream, a head inside the model, and a loss."""

    @property
    def name(self) -> str:
        """Names the task in the log."""
        ...

    @property
    def stream(self) -> Stream:
        """Where its batches come from."""
        ...

    def loss(self, model: AdaptedModel, graph: Graph) -> Tensor:
        """Scalar loss of one batch."""
        ...

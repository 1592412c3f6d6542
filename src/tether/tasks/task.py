"""What a task is: a stream of structures, and a loss on the shared model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

    from tether.graph import Graph
    from tether.model import AdaptedModel

__all__ = ["Stream", "Task", "mean"]


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

    def weights(self, model: AdaptedModel) -> list[Parameter]:
        """What its loss depends on; with all of it frozen, the task is not computed."""
        ...

    def loss(self, model: AdaptedModel, graph: Graph, counts: Tensor | None = None) -> Tensor:
        """Scalar loss of one batch; with the `counts` of a larger one, the part of its loss."""
        ...

    def counts(self, model: AdaptedModel, graph: Graph) -> Tensor:
        """What each mean in the loss is taken over, shape (n_means,), int64.

        Those of the shares of a batch add up to its own, and so do their losses with these counts.
        """
        ...


def mean(values: Tensor, count: Tensor | None) -> Tensor:
    """Mean of all entries, or what a share contributes to a mean over more.

    Parameters
    ----------
    values : Tensor
        Any shape.
    count : Tensor or None
        Entries of all shares, a scalar; None where these are all.

    Returns
    -------
    Tensor
        Scalar.
    """
    return values.mean() if count is None else values.sum() / count

"""One training over several processes, and one step over several passes: shares of each batch.

Every rank has the whole model and takes a share of the batch. What its losses are means over is
counted over all shares first, so that losses *and gradients* of the shares add up to those of the
batch; they are added before a balance sees them. A balance, the clip and AdamW then do on every
rank what they do in one process, and one process gets the same curve to rounding.

torch's DDP and FSDP are not used: their hooks expect one backward pass, but forces are derivatives
inside the loss (``benchmarks/hooks.py`` measures what becomes of it).
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from tether.data.loader import GraphStream
from tether.data.shares import balanced_shares
from tether.errors import TetherError
from tether.packages import require
from tether.training.compiled import attach_gradients
from tether.training.device import find_device
from tether.workers import end_with_parent, n_ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from tether.graph import Graph
    from tether.model import AdaptedModel
    from tether.tasks.task import Stream, Task

__all__ = ["Ranks", "SharedLoss", "join_ranks", "shares_of_batch"]

_T = TypeVar("_T")

#: The longest that one rank waits for another, which may be validating or compiling.
TIMEOUT = timedelta(minutes=30)


class Ranks:
    """The processes of one training; without `fabric` this one alone.

    Parameters
    ----------
    fabric : lightning_fabric.Fabric, optional
        Launched, see `join_ranks`.
    device : torch.device, optional
        Of this process; default that of `fabric`, or the CPU.
    """

    def __init__(self, fabric: Any = None, device: torch.device | None = None) -> None:
        self.fabric = fabric
        self.device: torch.device = fabric.device if fabric else device or torch.device("cpu")
        self.n: int = fabric.world_size if fabric else 1
        self.rank: int = fabric.global_rank if fabric else 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, the same bits on each.

        Parameters
        ----------
        tensor : Tensor
            Of one shape on all; may be overwritten.

        Returns
        -------
        Tensor
            On every rank.
        """
        if self.fabric is None:
            return tensor
        total: Tensor = self.fabric.all_reduce(tensor, reduce_op="sum")
        return total

    def once(self, compute: Callable[[], _T]) -> _T:
        """What the first rank computes; the others wait for it.

        Parameters
        ----------
        compute : callable
            May write files.

        Returns
        -------
        Any
            On every rank.
        """
        value: Any = compute() if self.is_first else None
        result: _T = value if self.fabric is None else self.fabric.broadcast(value)
        return result

    def start_alike(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the first one's tensors: machines round differently.

        Parameters
        ----------
        tensors : iterable of Tensor
            Changed in place.
        """
        if self.fabric is not None:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.detach(), 0)

    def check_step(self, step: int) -> None:
        """Refuse to go on from different checkpoints.

        Parameters
        ----------
        step : int
            That this rank starts from.

        Raises
        ------
        TetherError
            When the first rank starts from another step.
        """
        first = self.once(lambda: step)
        if step != first:
            raise TetherError(
                f"rank {self.rank} starts at step {step}, the first at step {first}",
                expected="one run folder that all ranks see",
                fix="put it on a file system that the machines share",
            )


def join_ranks(device: str = "auto") -> Ranks:
    """Join the processes that torchrun or SLURM's srun started with this one, by Lightning Fabric.

    Parameters
    ----------
    device : str
        Of this process where it is alone, see `find_device`; several have one of that type each.

    Returns
    -------
    Ranks
        This process alone where nothing started others.

    Raises
    ------
    TetherError
        When lightning-fabric is missing, or SLURM does not say how the processes are spread.
    """
    if n_ranks() == 1:
        return Ranks(device=find_device(device))
    require(
        "lightning_fabric",
        f"a training over {n_ranks()} processes",
        extra="distributed",
        package="lightning-fabric",
    )
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    torchrun = "WORLD_SIZE" in os.environ
    n_here = os.environ.get("LOCAL_WORLD_SIZE" if torchrun else "SLURM_NTASKS_PER_NODE")
    if n_here is None:
        raise TetherError(
            f"{n_ranks()} processes on no one knows how many machines",
            expected="torchrun, or srun in a job with --ntasks-per-node",
            fix="give sbatch --ntasks-per-node instead of --ntasks",
        )
    end_with_parent()
    kind = find_device(device).type
    # What a balance learns stays on the CPU, whatever the model is on.
    backend = "gloo" if kind == "cpu" else "cpu:gloo,cuda:nccl"
    fabric = Fabric(
        accelerator=kind,
        devices=int(n_here),
        num_nodes=n_ranks() // int(n_here),
        strategy=DDPStrategy(process_group_backend=backend, timeout=TIMEOUT),
        plugins=[TorchElasticEnvironment() if torchrun else SLURMEnvironment()],
    )
    fabric.launch()
    return Ranks(fabric)


def shares_of_batch(stream: Stream, step: int, n_shares: int, wanted: Sequence[int]) -> list[Graph]:
    """Some shares of batch `step` of a stream.

    Parameters
    ----------
    stream : Stream
        Of whole batches. Of a `GraphStream` only the shares are built.
    step : int
        Number of the batch.
    n_shares : int
        See `balanced_shares`.
    wanted : sequence of int
        Which of them.

    Returns
    -------
    list of Graph
        A share may be empty.
    """
    if isinstance(stream, GraphStream):
        graph, rows = stream.graph, stream.indices(step)
    else:
        # What a stream draws for a batch, it draws for the whole of it.
        graph = stream.batch(step)
        rows = np.arange(graph.n_systems)
    shares = balanced_shares(graph.batch.counts.numpy()[rows], n_shares)
    return [graph.select(rows[shares[one]]) for one in wanted]


def _n_ranks(stream: object) -> int:
    n: int = getattr(stream, "n_ranks", 1)
    return n


class SharedLoss:
    """A task's loss of a whole batch, of which this rank computes a share in one or more passes.

    Parameters
    ----------
    model : AdaptedModel
        The same on every rank.
    task : Task
        Its stream gives whole batches, or, where it has an ``n_ranks``, this rank's share of each.
    loss : callable
        The task's loss, of a graph and counts, see `Task.loss`.
    ranks : Ranks
        Who takes part.
    n_passes : int
        Of each rank.

    Raises
    ------
    TetherError
        When the stream gives shares for another number of ranks, or adds noise to shares.
    """

    def __init__(
        self,
        model: AdaptedModel,
        task: Task,
        loss: Callable[[Graph, Tensor], Tensor],
        *,
        ranks: Ranks,
        n_passes: int,
    ) -> None:
        self.model, self.task, self.loss, self.ranks = model, task, loss, ranks
        self.n_shares, first = ranks.n * n_passes, ranks.rank * n_passes
        if _n_ranks(task.stream) > 1:
            self.n_shares, first = n_passes, 0
        self.own = range(first, first + n_passes)
        below = getattr(task.stream, "stream", None)  # of one that adds noise
        if _n_ranks(task.stream) not in {1, ranks.n} or _n_ranks(below) > 1:
            raise TetherError(
                f"the stream of task {task.name!r} gives shares of its batches",
                expected=f"shares for {ranks.n} ranks, or whole batches, as noise is drawn for",
                fix="make the stream with n_ranks=1",
            )

    def __call__(self, step: int) -> Tensor:
        """Loss of batch `step`, the same on every rank, with the whole batch's gradients behind it.

        Parameters
        ----------
        step : int
            Place in the task's stream.

        Returns
        -------
        Tensor
            Scalar; can be differentiated once.
        """
        device = self.model.device
        shares = shares_of_batch(self.task.stream, step, self.n_shares, self.own)
        graphs = [share.to(device) for share in shares]
        # A rank without a structure, too, says what it counted: none.
        counted = torch.stack([self.task.counts(self.model, graph) for graph in graphs])
        counts = self.ranks.total(counted.sum(dim=0).to(device))
        moving = [p for p in self.model.parameters() if p.requires_grad]
        sizes = [p.numel() for p in moving]
        # One tensor, one exchange: the gradients, which of them there are, and the loss.
        n_weights = sum(sizes)
        sums = moving[0].new_zeros(n_weights + len(moving) + 1)
        gradients = sums[:n_weights].split(sizes)
        for graph in (graph for graph in graphs if graph.n_systems):
            loss = self.loss(graph, counts)
            sums[-1] += loss.detach()
            found = (
                torch.autograd.grad(loss, moving, allow_unused=True) if loss.requires_grad else ()
            )
            for place, gradient in enumerate(found):
                if gradient is not None:
                    gradients[place].add_(gradient.flatten())
                    sums[n_weights + place] = 1.0
        sums = self.ranks.total(sums)
        gradients, known = sums[:n_weights].split(sizes), sums[n_weights:-1].tolist()
        # A weight that no share's loss knows keeps no gradient at all, as after backward().
        used = [(g.view_as(p), p) for g, p, n in zip(gradients, moving, known, strict=True) if n]
        return attach_gradients(sums[-1], [g for g, _ in used], [p for _, p in used])

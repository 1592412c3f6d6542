"""Gradient surgery: what one task's gradient would undo of another's is cut off first."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from tether.packages import require

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

__all__ = ["GradientSurgery", "load_pcgrad"]


@dataclass(frozen=True)
class GradientSurgery:
    """PCGrad (T. Yu et al., arXiv 2001.06782), by TorchJD, on the weights that tasks share.

    Each task's gradient is projected onto the normal plane of every other that it conflicts with,
    and the results are added: without a conflict, this is the weighted sum. Weights that belong
    to one task (heads, the potential's own) get their gradient as it is. The order in which the
    others are taken is random for three tasks or more, and a function of seed and step.

    Attributes
    ----------
    shared : sequence of Parameter
        The representation.
    weights : mapping of str to float
        Of the losses, by task name; 1 where none is given.
    seed : int
        Of the order.
    state : dict of str to Tensor
        ``step``: backward passes so far.
    """

    shared: Sequence[nn.Parameter]
    weights: Mapping[str, float]
    seed: int = 0
    state: dict[str, Tensor] = field(
        default_factory=lambda: {"step": torch.zeros((), dtype=torch.int64)}
    )

    @cached_property
    def _aggregate(self) -> Any:
        return load_pcgrad()

    def tensors(self) -> dict[str, Tensor]:
        """Backward passes so far: the order depends on it."""
        return self.state

    def choose(self, step: int, names: Sequence[str]) -> list[str]:  # noqa: ARG002
        """Tasks of this step: all of them."""
        return list(names)

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Accumulate the gradients: of the shared weights after surgery."""
        moving = [parameter for parameter in self.shared if parameter.requires_grad]
        rows, used = [], [False] * len(moving)
        for name, loss in losses.items():
            (self.weights.get(name, 1.0) * loss).backward()
            if moving:
                used = [u or p.grad is not None for u, p in zip(used, moving, strict=True)]
                rows.append(_taken(moving))
        if rows:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed + 1_000_003 * int(self.state["step"]))
                combined = self._aggregate(torch.stack(rows))
            sizes = [parameter.numel() for parameter in moving]
            for parameter, piece, has in zip(moving, combined.split(sizes), used, strict=True):
                # A gradient of zero in place of none would let the weight decay.
                parameter.grad = piece.view_as(parameter) if has else None
        self.state["step"] += 1


def _taken(parameters: Sequence[nn.Parameter]) -> Tensor:
    """All gradients as one row, and none left behind; zero where a task gave none."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    row = torch.cat([gradient.flatten() for gradient in gradients])
    for parameter in parameters:
        parameter.grad = None
    return row


def load_pcgrad() -> Any:
    """TorchJD's aggregator.

    Returns
    -------
    torchjd.aggregation.PCGrad
        Takes gradients, shape (n_tasks, n_weights), and gives one.

    Raises
    ------
    TetherError
        When the package is not installed.
    """
    require("torchjd.aggregation", "balance `surgery`", extra="surgery", package="torchjd")
    from torchjd.aggregation import PCGrad

    return PCGrad()

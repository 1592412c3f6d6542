"""Weights of the losses learnt with the model, as the uncertainty of each task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["Uncertainty"]

#: Step of gradient descent on the log scales: a loss that stays at L is known after some 100 steps.
RATE = 0.02


class Uncertainty:
    """``Σ exp(−s) · loss + s`` over the tasks, each with a log scale s that is learnt.

    A. Kendall et al., arXiv 1705.07115, for errors that follow a Laplace distribution of scale
    exp(s): the losses here are mean absolute errors, or lengths of errors; their formula for
    squared errors is the same but for factors of ½. At the optimum exp(s) is the loss itself, so
    that a task weighs the more the better it is learnt; nothing holds the force field at a level,
    as `Constraint` does. The log scales take plain steps of gradient descent, without AdamW's
    moments and weight decay.

    Parameters
    ----------
    names : sequence of str
        Tasks.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._log_scales = {name: torch.zeros((), dtype=torch.float64) for name in names}

    def tensors(self) -> dict[str, Tensor]:
        """Log scale of each task."""
        return self._log_scales

    def choose(self, step: int, names: Sequence[str]) -> list[str]:  # noqa: ARG002
        """Tasks of this step: all of them."""
        return list(names)

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Accumulate the gradient of the weighted sum, then move the log scales."""
        for name, loss in losses.items():
            scale = self._log_scales[name]
            precision = torch.exp(-scale).item()
            (precision * loss).backward()
            # At most one unit a step of the rate: the first losses may be far from their scale.
            slope = 1.0 - precision * loss.detach().item()
            scale -= RATE * max(-1.0, min(1.0, slope))

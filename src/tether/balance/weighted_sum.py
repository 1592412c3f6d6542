"""Every task at every step, losses added with fixed weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["WeightedSum"]


@dataclass(frozen=True)
class WeightedSum:
    """``Σ weight[task] * loss[task]``.

    Attributes
    ----------
    weights : mapping of str to float
        By task name; 1 where none is given.
    """

    weights: Mapping[str, float]

    def choose(self, step: int, names: Sequence[str]) -> list[str]:  # noqa: ARG002
        """Tasks of this step: all of them."""
        return list(names)

    def tensors(self) -> dict[str, Tensor]:
        """Nothing changes in training."""
        return {}

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Accumulate the gradient of the weighted sum."""
        for name, loss in losses.items():
            (self.weights.get(name, 1.0) * loss).backward()

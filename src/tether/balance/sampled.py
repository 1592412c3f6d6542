"""One task a step, drawn with given probabilities: the form of DPA's multi-task fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["Sampled"]


@dataclass(frozen=True)
class Sampled:
    """Draw one task a step (arXiv 2601.08486); the draw depends on seed and step alone.

    Attributes
    ----------
    probabilities : mapping of str to float
        By task name; normalised over the tasks there are.
    seed : int
        Of the draws.
    """

    probabilities: Mapping[str, float]
    seed: int = 0

    def choose(self, step: int, names: Sequence[str]) -> list[str]:
        """The one task of this step."""
        weights = np.array([self.probabilities.get(name, 1.0) for name in names])
        draw = np.random.default_rng([self.seed, step]).random()
        cumulative = np.cumsum(weights / weights.sum())
        return [names[int(np.searchsorted(cumulative[:-1], draw, side="right"))]]

    def tensors(self) -> dict[str, Tensor]:
        """Nothing changes in training."""
        return {}

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Accumulate the gradient of the drawn task."""
        for loss in losses.values():
            loss.backward()

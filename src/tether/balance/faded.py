"""Every task at every step, with weights that may fall to zero: a schedule of objectives."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["Faded"]


class Faded:
    """``Σ weight[task] * (1 - step / end[task]) * loss[task]``; a task has gone at its end.

    Parameters
    ----------
    weights : mapping of str to float
        At the first step, by task name.
    ends : mapping of str to int
        Step at which the weight is zero, linearly; tasks that are not named keep their weight.
    """

    def __init__(self, weights: Mapping[str, float], ends: Mapping[str, int]) -> None:
        self.weights, self.ends = weights, ends
        self._now: dict[str, float] = {}

    def choose(self, step: int, names: Sequence[str]) -> list[str]:
        """Tasks of this step: those that have not gone."""
        left = {n: 1.0 - step / self.ends[n] if n in self.ends else 1.0 for n in names}
        self._now = {n: self.weights[n] * share for n, share in left.items() if share > 0.0}
        return list(self._now)

    def tensors(self) -> dict[str, Tensor]:
        """Nothing is learnt: the weights are a function of the step."""
        return {}

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Accumulate the gradient of the weighted sum of this step."""
        for name, loss in losses.items():
            (self._now[name] * loss).backward()

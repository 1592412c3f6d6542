"""Property loss subject to a bound on the force-field loss; the multiplier is found in training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["FLOOR", "Constraint"]

CONSTRAINED = "forcefield"
#: Pretrained losses below this count as this, in units of the labels' force spread. A pretrained
#: model has no error at all on labels that it made itself, and (1 + ε) × 0 cannot be kept. What it
#: misses its own level of theory by is known for some (`tether.level.pretrained_level`); it is a
#: few per cent of the spread for good ones (SO3LR on ethanol: 0.036 eV/Å), so that a smaller drift
#: from pseudo-labels is no loss of physics.
FLOOR = 0.04
#: Share of the newest batch in the running loss: batches scatter by a fifth, forty steps by 3 %.
SMOOTHING = 0.05
#: Largest change of the log multiplier in a step: a factor e in 100 steps, slow beside AdamW.
RATE = 0.01
#: The multiplier stays within 1/100 … 100, so that it is back soon when things turn.
LIMIT = math.log(100.0)


class Constraint:
    """Minimise the other losses subject to ``forcefield loss ≤ (1 + ε) · max(reference, floor)``.

    Dual ascent on the log of the multiplier μ of the Lagrangian ``property + μ · forcefield``:
    ``log μ += RATE · clip(log(running loss / bound), ±1)``. In logs the multiplier stays positive
    without projection, and a loss twice too large moves it as much as one twice too small. Two
    things damp it: the running mean, and the clip. The gradient is that of the Lagrangian divided
    by 1 + μ, so that its size does not follow μ.

    One bound serves all labels. The force-field loss is in units of the labels' force spread
    (`ForceFieldTask`); on real or xTB labels the reference is the pretrained model's distance from
    them and the bound relative; on pseudo-labels it is what the model's authors say of its errors;
    where they say nothing it is zero, and the floor takes over.

    Parameters
    ----------
    reference : float
        Loss of the pretrained model on the same stream, see `tether.level.pretrained_level`.
    tolerance : float
        ε.
    floor : float
        In units of the labels' force spread.
    weights : mapping of str to float, optional
        Of the tasks beside the property and the force field; 1 where none is given.

    Raises
    ------
    TetherError
        For a negative tolerance, or a bound that is not positive and finite.

    Notes
    -----
    Why an undamped multiplier oscillates: A. Stooke et al., arXiv 2007.03964.
    """

    def __init__(
        self,
        reference: float,
        *,
        tolerance: float = 0.1,
        floor: float = FLOOR,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.weights = dict(weights or {})
        if not (math.isfinite(tolerance) and tolerance >= 0.0):
            raise TetherError(
                f"`tolerance` is {tolerance}",
                expected="a number of 0 or more",
                fix="set tolerance=0.1",
            )
        bound = (1.0 + tolerance) * max(reference, floor)
        if not (math.isfinite(bound) and bound > 0.0):
            raise TetherError(
                f"the pretrained force-field loss is {reference}, the floor {floor}",
                expected="one of them positive, both finite",
                fix="check the auxiliary labels",
            )
        # The running loss starts at the bound: nothing is known yet that would move μ from 1.
        self._state = {
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in (("bound", bound), ("running", bound), ("log_multiplier", 0.0))
        }

    @property
    def multiplier(self) -> float:
        """μ: weight of the force-field loss beside a property loss of weight 1."""
        return math.exp(self._state["log_multiplier"].item())

    @property
    def bound(self) -> float:
        """Largest force-field loss allowed, in units of the labels' force spread."""
        return self._state["bound"].item()

    def tensors(self) -> dict[str, Tensor]:
        """Bound, running loss and log multiplier, for the checkpoint."""
        return self._state

    def choose(self, step: int, names: Sequence[str]) -> list[str]:  # noqa: ARG002
        """Tasks of this step: all of them."""
        return list(names)

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Accumulate the gradient of the scaled Lagrangian, then move the multiplier."""
        share = self.multiplier / (1.0 + self.multiplier)
        for name, loss in losses.items():
            objective = (1.0 - share) * self.weights.get(name, 1.0)
            ((share if name == CONSTRAINED else objective) * loss).backward()
        if CONSTRAINED not in losses:
            return
        running, log_multiplier = self._state["running"], self._state["log_multiplier"]
        running += SMOOTHING * (losses[CONSTRAINED].detach().item() - running)
        # A running loss of zero is as good as one far below the bound.
        excess = math.log(max(running.item() / self.bound, math.exp(-1.0)))
        log_multiplier += RATE * min(excess, 1.0)
        log_multiplier.clamp_(-LIMIT, LIMIT)

"""Parameter groups: which weights move, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn

    from tether.model import AdaptedModel

__all__ = ["Movement", "ParameterGroup"]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with one learning rate and one time at which they start to move.

    Attributes
    ----------
    name : str
        In logs.
    parameters : list of Parameter
        What moves.
    multiplier : float
        Of the base learning rate. The schedule's floor is divided by it, so that all groups end
        at the same rate (JMP, arXiv 2310.16802).
    starts_at : float
        Share of the property steps before which the group is frozen bit for bit: no gradient, no
        moments, no weight decay. It warms up when it starts.
    anchor : float
        Rate of decay towards the starting weights, in units of the learning rate; where it is not
        0, it replaces the weight decay.
    """

    name: str
    parameters: list[nn.Parameter]
    multiplier: float = 1.0
    starts_at: float = 0.0
    anchor: float = 0.0


class Movement(Protocol):
    """A value of the axis *movement*: one method."""

    def apply(self, model: AdaptedModel) -> list[ParameterGroup]:
        """Freeze what must not move, and return groups of what may.

        The property heads always move at the base rate; the potential's own parameters belong
        to the backbone and move with it.
        """
        ...

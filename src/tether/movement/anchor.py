"""L2-SP: the backbone is pulled back to the weights that it started from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tether.movement.groups import ParameterGroup

__all__ = ["anchored"]


def anchored(groups: Sequence[ParameterGroup], strength: float) -> list[ParameterGroup]:
    """Replace the weight decay of all groups but the heads by decay towards the start.

    L2-SP (X. Li et al., arXiv 1802.01483) adds ``α/2 ‖w − w₀‖²`` to the loss in place of the
    backbone's weight decay; new layers keep theirs. Here the decay is decoupled, as all weight
    decay of AdamW is: ``w ← w − lr · α · (w − w₀)`` after each step. With plain gradient descent
    the two are the same; with AdamW, a penalty in the loss would be rescaled weight by weight.
    AdamW's steps are about as long as the rate, so that a weight strays by about 1/α at most.

    Parameters
    ----------
    groups : sequence of ParameterGroup
        From a movement.
    strength : float
        α; 0 changes nothing.

    Returns
    -------
    list of ParameterGroup
        In the same order.
    """
    if not strength:
        return list(groups)
    return [g if g.name == "heads" else replace(g, anchor=strength) for g in groups]

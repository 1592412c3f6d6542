"""When a group of weights moves, and how fast."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tether.movement.groups import ParameterGroup
    from tether.training.settings import TrainingSettings

__all__ = ["first_step", "optimiser_of", "set_rates", "thaw"]


def first_step(group: ParameterGroup, settings: TrainingSettings) -> int:
    """First property step at which a group moves."""
    return round(group.starts_at * settings.property_steps)


def thaw(groups: Sequence[ParameterGroup], done: int, settings: TrainingSettings) -> bool:
    """Let those groups have gradients whose time has come: AdamW passes over the others.

    Parameters
    ----------
    groups : sequence of ParameterGroup
        Those that move from the beginning are left as they are.
    done : int
        Property steps so far.
    settings : TrainingSettings
        Length of the run.

    Returns
    -------
    bool
        Whether a weight moves now that did not, or the other way round.
    """
    changed = False
    for group in groups:
        if group.starts_at:
            moves = done >= first_step(group, settings)
            for parameter in group.parameters:
                changed |= parameter.requires_grad != moves
                parameter.requires_grad_(moves)
    return changed


def optimiser_of(groups: Sequence[ParameterGroup], settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW over these groups, in this order; anchored ones decay towards their start instead.

    Parameters
    ----------
    groups : sequence of ParameterGroup
        What moves.
    settings : TrainingSettings
        Rates, betas and weight decay.

    Returns
    -------
    AdamW
        Its rates are the peak ones until `set_rates`.
    """
    return torch.optim.AdamW(
        [
            {
                "params": g.parameters,
                "lr": settings.lr * g.multiplier,
                "weight_decay": 0.0 if g.anchor else settings.weight_decay,
            }
            for g in groups
        ],
        betas=settings.betas,
        foreach=True,
    )


def set_rates(
    optimiser: torch.optim.Optimizer,
    groups: Sequence[ParameterGroup],
    done: int,
    settings: TrainingSettings,
) -> None:
    """Linear warm-up of each group and cosine over the property steps; all end at one rate.

    Parameters
    ----------
    optimiser : torch.optim.Optimizer
        Of these groups, in this order.
    groups : sequence of ParameterGroup
        What moves.
    done : int
        Property steps so far.
    settings : TrainingSettings
        Peak rate and schedule.
    """
    warm = max(1, round(settings.warmup_fraction * settings.property_steps))
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(done / settings.property_steps, 1.0)))
    for group, state in zip(groups, optimiser.param_groups, strict=True):
        floor = min(settings.final_lr_fraction / group.multiplier, 1.0)
        warmth = min(1.0, max(0, done + 1 - first_step(group, settings)) / warm)
        factor = warmth * (floor + (1.0 - floor) * cosine)
        state["lr"] = settings.lr * group.multiplier * factor

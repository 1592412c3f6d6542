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

    Of each group come first the matrices, then what is none: biases, scales of normalisations, and
    constants of physics (energies of single atoms, frequencies) that no loss would bring back.

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
                "params": [p for p in g.parameters if (p.ndim > 1) == is_matrix],
                "lr": settings.lr * g.multiplier,
                "weight_decay": settings.weight_decay if decays and not g.anchor else 0.0,
            }
            for g in groups
            for is_matrix, decays in ((True, True), (False, settings.decayed == "all"))
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
    for place, state in enumerate(optimiser.param_groups):
        group = groups[place // 2]  # see `optimiser_of`
        floor = min(settings.final_lr_fraction / group.multiplier, 1.0)
        warmth = min(1.0, max(0, done + 1 - first_step(group, settings)) / warm)
        factor = warmth * (floor + (1.0 - floor) * cosine)
        state["lr"] = settings.lr * group.multiplier * factor

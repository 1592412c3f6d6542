"""`TrainingSettings`: optimiser, schedule and length of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tether.errors import TetherError

__all__ = ["TrainingSettings"]


@dataclass(frozen=True)
class TrainingSettings:
    """Plain numbers of the training loop.

    Attributes
    ----------
    property_steps : int
        Gradient steps on the property; the same for every recipe of a fair comparison.
    batch_size, forcefield_batch_size : int
        Structures in a batch of each task.
    max_atoms : int or None
        Atom budget of a property batch.
    lr : float
        Peak learning rate of AdamW.
    weight_decay, betas : float, (float, float)
        Of AdamW.
    warmup_fraction, final_lr_fraction : float
        Linear warm-up, then a cosine to this fraction of the peak.
    clip_norm : float
        Gradient-norm clip; 0: none.
    ema_decay : float
        Of the exponential moving average of the weights.
    validate_every : int
        Property steps between validations; each also writes a checkpoint.
    patience : int
        Validations without a new best before the run stops; 0: never.
    select_by : {"rmse", "mae"}
        Error on the ID validation set (standardised, mean over targets) that picks the best step.
    loss : {"l1", "mse", "huber"}
        Of the property task.
    force_weight, energy_weight : float
        Inside the force-field task.
    """

    property_steps: int = 4000
    batch_size: int = 32
    forcefield_batch_size: int = 8
    max_atoms: int | None = None
    lr: float = 5e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_fraction: float = 0.05
    final_lr_fraction: float = 0.01
    clip_norm: float = 5.0
    ema_decay: float = 0.999
    validate_every: int = 250
    patience: int = 0
    select_by: Literal["rmse", "mae"] = "rmse"
    loss: Literal["l1", "mse", "huber"] = "l1"
    force_weight: float = 1.0
    energy_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("property_steps", "batch_size", "forcefield_batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise TetherError(
                    f"`training.{name}` is {getattr(self, name)}",
                    expected="a positive integer",
                    fix=f"set training.{name}=1 or more",
                )
        if self.lr <= 0:
            raise TetherError(
                f"`training.lr` is {self.lr}",
                expected="a positive number",
                fix="set training.lr=5e-4",
            )
        if not 0.0 <= self.ema_decay < 1.0:
            raise TetherError(
                f"`training.ema_decay` is {self.ema_decay}",
                expected="a number in [0, 1)",
                fix="set training.ema_decay=0.999",
            )

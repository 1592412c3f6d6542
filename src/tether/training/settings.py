"""`TrainingSettings`: optimiser, schedule and length of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tether.errors import TetherError
from tether.run import identity_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TrainingSettings"]

#: Fields in the identity of every run, see `identity_of`.
_FIRST_FIELDS = frozenset({
    "property_steps", "batch_size", "forcefield_batch_size", "max_atoms", "lr", "weight_decay",
    "betas", "warmup_fraction", "final_lr_fraction", "clip_norm", "ema_decay", "validate_every",
    "patience", "select_by", "loss", "force_weight", "energy_weight",
})  # fmt: skip


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
    decayed : {"matrices", "all"}
        Weights that decay. ``all`` takes biases, normalisations and physical constants with them,
        as single-atom energies of 100 eV: of the first version, for runs that were made with it.
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
    force_weight, energy_weight, stress_weight : float
        Inside the force-field task; stress counts where there are labels of it.
    compile : bool
        Compile the steps on property, force field and noise, see `tether.training.compiled`:
        minutes at the first run on a machine, then faster steps. Needs a C++ compiler.
    device : str
        ``auto`` (a CUDA device where there is one), ``cpu``, ``cuda`` or ``cuda:<number>``.
    accumulate : int
        Passes that a step's batch is split over: as many times less memory, the same result.
    precision : {"32-true", "tf32", "bf16-mixed"}
        Of the products in a step, see `tether.training.precision`; validation is in single.
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
    stress_weight: float = 1.0
    compile: bool = False
    device: str = "auto"
    accumulate: int = 1
    precision: Literal["32-true", "tf32", "bf16-mixed"] = "32-true"
    decayed: Literal["matrices", "all"] = "matrices"

    def identity(self) -> dict[str, Any]:
        """What tells its runs from others: `Run.claim` compares it.

        Returns
        -------
        dict
            Fields by name; the later ones only where they are not at the value that they had before
            there was a field. How the steps are computed (`compile`, `device`) is none of them, as
            the number of threads is none.
        """
        found = identity_of(replace(self, compile=False, device="auto"), first=_FIRST_FIELDS)
        found.pop("decayed", None)
        return found if self.decayed == "all" else {**found, "decayed": self.decayed}

    def __post_init__(self) -> None:
        for name in (
            "property_steps", "batch_size", "forcefield_batch_size", "validate_every", "accumulate",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise TetherError(
                    f"`training.{name}` is {getattr(self, name)}",
                    expected="a positive integer",
                    fix=f"set training.{name}=1 or more",
                )
        for name, example in (("clip_norm", "5"), ("weight_decay", "0.01")):
            self._require(name, lambda v: v >= 0.0, "a number of 0 or more", example)
        self._require("lr", lambda v: v > 0.0, "a positive number", "5e-4")
        self._require("ema_decay", lambda v: v < 1.0, "a number in [0, 1)", "0.999")
        for name, example in (("warmup_fraction", "0.05"), ("final_lr_fraction", "0.01")):
            self._require(name, lambda v: v <= 1.0, "a number in [0, 1]", example)
        for name in ("ema_decay", "warmup_fraction", "final_lr_fraction"):
            self._require(name, lambda v: v >= 0.0, "a number of 0 or more", "0.01")
        for name in ("force_weight", "energy_weight", "stress_weight"):
            self._require(name, lambda v: v >= 0.0, "a number of 0 or more", "1")
        self._require("patience", lambda v: v >= 0, "0 (never) or a number of validations", "0")
        if self.max_atoms is not None:
            self._require("max_atoms", lambda v: v >= 1, "a positive integer or null", "null")
        if self.compile and self.precision == "bf16-mixed":
            raise TetherError(
                "`training.compile` with training.precision=bf16-mixed",
                expected="one of the two: compiled steps are checked to 1e-3, bfloat16 has 4e-3",
                fix="set training.compile=false",
            )
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise TetherError(
                f"`training.betas` is {list(self.betas)}",
                expected="two numbers in [0, 1)",
                fix="set training.betas=[0.9, 0.99]",
            )

    def _require(
        self, name: str, accepts: Callable[[float], bool], expected: str, example: str
    ) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and accepts(value)):
            raise TetherError(
                f"`training.{name}` is {value}",
                expected=expected,
                fix=f"set training.{name}={example}",
            )

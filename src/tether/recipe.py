"""`Recipe`: a point on the four axes; the named methods of the literature are such points."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tether.errors import TetherError
from tether.movement.frozen import Frozen
from tether.movement.full import Full
from tether.movement.layerwise import Layerwise

if TYPE_CHECKING:
    from tether.movement.groups import Movement

__all__ = ["RECIPES", "Recipe", "named_recipe"]

Initialisation = Literal["pretrained", "random"]
MovementName = Literal["frozen", "full", "layerwise", "layerwise-jmp"]
BalanceName = Literal["sum", "sampled"]
Averaging = Literal["ema", "none"]
_NAME = re.compile(r"\w[\w.+-]*")


@dataclass(frozen=True)
class Recipe:
    """How a model is adapted.

    Attributes
    ----------
    name : str
        Of the row in every table.
    initialisation : {"pretrained", "random"}
        Where the backbone's weights come from.
    movement : {"frozen", "full", "layerwise", "layerwise-jmp"}
        Which weights move, and how fast.
    decay : float
        Of the geometric layer-wise rule.
    forcefield : bool
        Whether the force-field task is trained beside the property: multi-task fine-tuning.
    balance : {"sum", "sampled"}
        How the two combine: a weighted sum, or one task a step.
    forcefield_weight : float
        Weight of the force-field loss (sum), λ.
    property_probability : float
        Of a property step (sampled).
    averaging : {"ema", "none"}
        Which weights are evaluated and kept.
    lr : float or None
        Base learning rate; None: that of the training settings.
    """

    name: str
    initialisation: Initialisation = "pretrained"
    movement: MovementName = "full"
    decay: float = 0.6
    forcefield: bool = False
    balance: BalanceName = "sum"
    forcefield_weight: float = 0.2
    property_probability: float = 0.5
    averaging: Averaging = "ema"
    lr: float | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise TetherError(
                f"recipe name {self.name!r}",
                expected="letters, digits and . _ + -, as it names a folder",
                fix="choose another name",
            )
        if not 0.0 < self.property_probability <= 1.0:
            raise TetherError(
                f"`property_probability` of recipe {self.name!r} is {self.property_probability}",
                expected="a number in (0, 1]",
                fix="set property_probability=0.5",
            )
        if not (math.isfinite(self.forcefield_weight) and self.forcefield_weight >= 0.0):
            raise TetherError(
                f"`forcefield_weight` of recipe {self.name!r} is {self.forcefield_weight}",
                expected="a number of 0 or more",
                fix="set forcefield_weight=0.2",
            )
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0.0):
            raise TetherError(
                f"`lr` of recipe {self.name!r} is {self.lr}",
                expected="a positive number",
                fix="leave it out, or set lr=5e-4",
            )
        self.build_movement()  # refuses its own parameters
        if self.forcefield and self.movement == "frozen":
            raise TetherError(
                f"recipe {self.name!r} trains a force field on a frozen backbone",
                expected="a movement that moves it",
                fix="set movement=full or forcefield=false",
            )

    def build_movement(self) -> Movement:
        """The movement of this recipe."""
        match self.movement:
            case "frozen":
                return Frozen()
            case "full":
                return Full()
            case "layerwise":
                return Layerwise("geometric", self.decay)
            case "layerwise-jmp":
                return Layerwise("jmp")


#: Name → (what it is, the point).
RECIPES: dict[str, tuple[str, Recipe]] = {
    "scratch": (
        "random weights of the same architecture",
        Recipe("scratch", initialisation="random"),
    ),
    "probe": ("frozen backbone, trained head", Recipe("probe", movement="frozen")),
    "full": ("all weights at one learning rate", Recipe("full")),
    "layerwise": (
        "learning rate 0.6 times smaller with each block towards the input",
        Recipe("layerwise", movement="layerwise"),
    ),
    "layerwise-jmp": (
        "JMP's table of learning rates",
        Recipe("layerwise-jmp", movement="layerwise-jmp"),
    ),
    "mft": ("property and force field together, weighted sum", Recipe("mft", forcefield=True)),
    "mft-sampled": (
        "property or force field, drawn at each step",
        Recipe("mft-sampled", forcefield=True, balance="sampled"),
    ),
    "mft-layerwise": (
        "mft with layer-wise learning rates",
        Recipe("mft-layerwise", forcefield=True, movement="layerwise"),
    ),
}


def named_recipe(name: str, /, **changes: Any) -> Recipe:
    """A named recipe, with changes.

    Parameters
    ----------
    name : str
        One of `RECIPES`.
    **changes
        Fields of `Recipe` to set differently.

    Returns
    -------
    Recipe
        The point.

    Raises
    ------
    TetherError
        For an unknown name or field.

    Examples
    --------
    >>> named_recipe("mft", name="mft-strong", forcefield_weight=1.0).forcefield_weight
    1.0
    """
    if name not in RECIPES:
        raise TetherError(
            f"unknown recipe {name!r}",
            expected=f"one of {', '.join(RECIPES)}",
            fix="see `tether list`, or write a new point in the config",
        )
    unknown = sorted(changes.keys() - Recipe.__dataclass_fields__.keys())
    if unknown:
        raise TetherError(
            f"unknown field {unknown[0]!r} of recipe {name!r}",
            expected=f"one of {', '.join(Recipe.__dataclass_fields__)}",
            fix="correct the spelling",
        )
    return replace(RECIPES[name][1], **changes)

"""`Recipe`: a point on the four axes; the named methods of the literature are such points."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tether.errors import TetherError
from tether.movement.frozen import Frozen
from tether.movement.full import Full
from tether.movement.gradual import Gradual
from tether.movement.layerwise import Layerwise
from tether.movement.lora import Lora
from tether.run import identity_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.movement.groups import Movement

__all__ = ["NAME", "RECIPES", "Recipe", "named_recipe"]

Initialisation = Literal["pretrained", "random"]
MovementName = Literal["frozen", "full", "layerwise", "layerwise-jmp", "lp-ft", "gradual", "lora"]
BalanceName = Literal["sum", "sampled", "uncertainty", "surgery", "constraint"]
Averaging = Literal["ema", "none", "wise"]
#: Name of what has a folder of its own.
NAME = re.compile(r"\w[\w.+-]*")
#: Fields in the identity of every run, see `identity_of`.
_FIRST_FIELDS = frozenset({
    "name", "initialisation", "movement", "decay", "forcefield", "balance", "forcefield_weight",
    "property_probability", "averaging", "lr",
})  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How a model is adapted.

    Attributes
    ----------
    name : str
        Of the row in every table.
    initialisation : {"pretrained", "random"}
        Where the backbone's weights come from.
    movement : {"frozen", "full", "layerwise", "layerwise-jmp", "lp-ft", "gradual", "lora"}
        Which weights move, how fast, and from when on.
    decay : float
        Of the geometric layer-wise rule.
    forcefield : bool
        Whether the force-field task is trained beside the property: multi-task fine-tuning.
    balance : {"sum", "sampled", "uncertainty", "surgery", "constraint"}
        How the tasks combine: a weighted sum, one task a step, weights learnt as the tasks'
        uncertainty, a weighted sum without what conflicts, or the property subject to a bound on
        the force-field loss.
    forcefield_weight : float
        Weight of the force-field loss (sum, surgery), λ.
    property_probability : float
        Of a property step (sampled).
    averaging : {"ema", "none", "wise"}
        Which weights are evaluated and kept: a moving average or the last ones; ``wise``: the
        moving average, mixed with the starting weights after training.
    lr : float or None
        Base learning rate; None: that of the training settings.
    tolerance : float
        Of the constraint: the force-field loss may exceed the pretrained one by this share, ε.
    unfreeze_by : float
        Of ``lp-ft`` and ``gradual``: share of the property steps after which everything moves.
    anchor : float
        L2-SP: decay of the backbone towards its starting weights, in units of the learning rate.
    distillation : float
        Weight of the task that keeps the features near the pretrained ones (not with
        uncertainty, which learns it); 0: no such task.
    denoising : float
        Weight of the task that finds displaced atoms' places (Noisy Nodes), in the same way.
    noise : float
        Å, standard deviation of that displacement; 0.05 is that of a heavy atom at room
        temperature.
    rank : int
        Of the updates of ``lora``.
    residual : bool
        Heads read the pretrained features, too, from a frozen copy of the backbone; what moves
        adds to that. After side-tuning (J. O. Zhang et al., arXiv 1912.13503).
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
    tolerance: float = 0.1
    unfreeze_by: float = 0.3
    anchor: float = 0.0
    distillation: float = 0.0
    denoising: float = 0.0
    noise: float = 0.05
    rank: int = 8
    residual: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise TetherError(
                f"recipe name {self.name!r}",
                expected="letters, digits and . _ + -, as it names a folder",
                fix="choose another name",
            )
        self._require("property_probability", lambda v: 0.0 < v <= 1.0, "a number in (0, 1]", "0.5")
        for name, example in (
            ("forcefield_weight", "0.2"),
            ("tolerance", "0.1"),
            ("anchor", "10"),
            ("distillation", "1"),
            ("denoising", "0.2"),
        ):
            self._require(name, lambda v: v >= 0.0, "a number of 0 or more", example)
        self._require("noise", lambda v: v > 0.0, "a positive number", "0.05")
        if self.lr is not None:
            self._require("lr", lambda v: v > 0.0, "a positive number", "5e-4")
        self.build_movement()  # refuses its own parameters
        for name, is_read, where in self._readers():
            default = type(self).__dataclass_fields__[name].default
            if not is_read and getattr(self, name) != default:
                value = getattr(self, name)
                raise TetherError(
                    f"`{name}` of recipe {self.name!r} is {value}, and nothing reads it",
                    expected=where,
                    fix=f"leave `{name}` out",
                )
        for wrong, problem, expected, fix in self._contradictions():
            if wrong:
                raise TetherError(f"recipe {self.name!r} {problem}", expected=expected, fix=fix)

    def _readers(self) -> list[tuple[str, bool, str]]:
        """Fields that a recipe may do without: whether this one reads them, and which do."""
        forcefield = self.forcefield and self.balance in {"sum", "surgery"}
        starts = self.movement in {"lp-ft", "gradual"}
        return [
            ("decay", self.movement == "layerwise", "movement=layerwise"),
            ("unfreeze_by", starts, "movement=lp-ft or gradual"),
            ("rank", self.movement == "lora", "movement=lora"),
            ("forcefield_weight", forcefield, "forcefield=true with balance=sum or surgery"),
            ("property_probability", self.balance == "sampled", "balance=sampled"),
            ("tolerance", self.balance == "constraint", "balance=constraint"),
            ("noise", self.denoising > 0.0, "denoising above 0"),
        ]

    def _contradictions(self) -> list[tuple[bool, str, str, str]]:
        """Choices that make no sense together: whether they are made, problem, expected, fix."""
        more = bool(self.distillation or self.denoising)
        random = self.initialisation == "random"
        return [
            (
                self.movement == "frozen" and (self.forcefield or more),
                f"trains {'a force field' if self.forcefield else 'features'} on a frozen backbone",
                "a movement that moves it",
                "set movement=full, or leave out the task",
            ),
            (
                self.balance == "sampled" and more,
                "draws property or force field, and has another task",
                "a balance that runs all tasks",
                "set balance=sum",
            ),
            (
                self.balance == "constraint" and (random or not self.forcefield),
                "bounds a force-field loss that it does not have",
                "a pretrained force field, and a task that keeps it",
                "set forcefield=true and initialisation=pretrained, or balance=sum",
            ),
            (
                random
                and bool(
                    self.averaging == "wise"
                    or self.distillation
                    or self.residual
                    or self.anchor
                    or self.movement == "lora"
                ),
                "holds on to random weights",
                "initialisation=pretrained for wise, distillation, residual, anchor and lora",
                "set initialisation=pretrained",
            ),
            (
                self.movement == "frozen" and bool(self.averaging == "wise" or self.anchor),
                "holds a frozen backbone where it is",
                "a movement that moves it",
                "set movement=full, or leave out averaging=wise and anchor",
            ),
            (
                self.balance != "sum" and not (self.forcefield or more),
                f"balances one task by {self.balance}",
                "a task beside the property",
                "set forcefield=true, or balance=sum",
            ),
            (
                self.movement == "frozen" and self.residual,
                "adds to the pretrained features what a frozen backbone has: the same",
                "a movement that moves it",
                "set movement=lp-ft, or residual=false",
            ),
        ]

    def _require(
        self, name: str, accepts: Callable[[float], bool], expected: str, example: str
    ) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and accepts(value)):
            raise TetherError(
                f"`{name}` of recipe {self.name!r} is {value}",
                expected=expected,
                fix=f"set {name}={example}",
            )

    def identity(self) -> dict[str, Any]:
        """What tells its runs from others: `Run.claim` compares it.

        Returns
        -------
        dict
            Fields by name; the later ones only where they are not at their default.
        """
        return identity_of(self, first=_FIRST_FIELDS)

    def build_movement(self, seed: int = 0) -> Movement:
        """The movement of this recipe.

        Parameters
        ----------
        seed : int
            Of what starts from random numbers.

        Returns
        -------
        Movement
            To be applied to a model.
        """
        match self.movement:
            case "frozen":
                return Frozen()
            case "full":
                return Full()
            case "layerwise":
                return Layerwise("geometric", self.decay)
            case "layerwise-jmp":
                return Layerwise("jmp")
            case "lp-ft" | "gradual":
                return Gradual(self.movement, self.unfreeze_by)
            case "lora":
                return Lora(self.rank, seed)


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
    "lp-ft": (
        "head first on the frozen backbone, then everything",
        Recipe("lp-ft", movement="lp-ft"),
    ),
    "gradual": (
        "head first, then block after block towards the input",
        Recipe("gradual", movement="gradual"),
    ),
    "lora": (
        "frozen backbone under low-rank updates, merged at the end",
        Recipe("lora", movement="lora"),
    ),
    "l2sp": (
        "all weights, pulled back to where they started",
        Recipe("l2sp", anchor=10.0),
    ),
    "wise": (
        "all weights, then mixed with the pretrained ones as ID validation says",
        Recipe("wise", averaging="wise"),
    ),
    "distillation": (
        "all weights, features kept near the pretrained ones",
        Recipe("distillation", distillation=1.0),
    ),
    "noisy-nodes": (
        "all weights, and displaced atoms to be put back: an auxiliary task without labels",
        Recipe("noisy-nodes", denoising=0.2),
    ),
    "residual": (
        "head first, then all weights, added to what the pretrained features say",
        Recipe("residual", movement="lp-ft", residual=True),
    ),
    "mft": ("property and force field together, weighted sum", Recipe("mft", forcefield=True)),
    "mft-sampled": (
        "property or force field, drawn at each step",
        Recipe("mft-sampled", forcefield=True, balance="sampled"),
    ),
    "mft-uncertainty": (
        "mft with weights learnt as the uncertainty of each task",
        Recipe("mft-uncertainty", forcefield=True, balance="uncertainty"),
    ),
    "mft-surgery": (
        "mft without the parts of the two gradients that undo each other (needs torchjd)",
        Recipe("mft-surgery", forcefield=True, balance="surgery"),
    ),
    "mft-constraint": (
        "property as good as a bound on the force-field loss allows; no weight to tune",
        Recipe("mft-constraint", forcefield=True, balance="constraint"),
    ),
    "mft-layerwise": (
        "mft with layer-wise learning rates",
        Recipe("mft-layerwise", forcefield=True, movement="layerwise"),
    ),
    "mft-wise": (
        "mft, then mixed with the pretrained weights as ID validation says",
        Recipe("mft-wise", forcefield=True, averaging="wise"),
    ),
    "mft-residual": (
        "head first, then mft, added to what the pretrained features say",
        Recipe("mft-residual", movement="lp-ft", forcefield=True, residual=True),
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

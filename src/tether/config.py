"""`Config`: a comparison or a run, from a file and ``key=value`` overrides.

Library functions take plain arguments; this module turns a config into them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tether.closed import Closed, checked, read_config, to_yaml, unknown_name
from tether.errors import TetherError
from tether.heads.readout import Pooling
from tether.inputs import AdaptInputs, BackboneChoice, HeadChoice
from tether.recipe import RECIPES, Recipe, named_recipe
from tether.training.settings import TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Config", "load_config"]


class BackboneConfig(Closed):
    """``backbone:`` name and size; ``{seed}`` in the name stands for the seed of a run."""

    name: str = "so3lr"
    options: dict[str, Any] = Field(default_factory=dict)


class HeadConfig(Closed):
    """``head:`` pooling and width."""

    pooling: Pooling | None = None
    n_hidden: int = Field(default=128, ge=0)


class Config(Closed):
    """A comparison, or a single run: everything that determines the result.

    Attributes
    ----------
    store, split, targets
        Data, from `tether prepare` and `tether split`.
    auxiliary, forcefield_test
        Force-field data, from `tether label`; the second is held out.
    recipes
        Names, or mappings with ``base`` and the fields of `Recipe` to change; ``backbone`` there
        stands for the one above.
    outside
        Task-specific models without a pretrained backbone, as rows beside the recipes.
    references
        Names of recipes; the gain of every other one over each that is run is in the summary.
    seeds
        One run each.
    budget
        ``steps``: every recipe has the same property steps. ``compute``: the same cost, where a
        force-field structure costs `forcefield_cost` property structures.
    workers
        Runs at a time; default one a core.
    watch_collapse
        Log measures of representation collapse at each validation; changes no result.
    """

    store: Path
    split: Path
    targets: tuple[str, ...] = Field(min_length=1)
    auxiliary: Path | None = None
    forcefield_test: Path | None = None
    backbone: BackboneConfig = BackboneConfig()
    head: HeadConfig = HeadConfig()
    recipes: tuple[str | dict[str, Any], ...] = Field(
        default=("scratch", "probe", "full", "layerwise", "mft"), min_length=1
    )
    outside: tuple[Literal["fingerprint"], ...] = ()
    references: tuple[str, ...] = ("scratch", "full")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0, 1, 2), min_length=1)
    training: dict[str, Any] = Field(default_factory=dict)
    budget: Literal["steps", "compute"] = "steps"
    forcefield_cost: float = Field(default=2.5, gt=0)
    workers: int | None = Field(default=None, ge=1)
    watch_collapse: bool = False

    @classmethod
    def of_run(
        cls,
        inputs: AdaptInputs,
        recipe: Recipe,
        settings: TrainingSettings,
        *,
        seed: int,
        backbone: BackboneChoice,
        head: HeadChoice,
        watch_collapse: bool = False,
    ) -> Config:
        """The configuration of one run that plain arguments ask for, see `tether.adapt.adapt`.

        Parameters
        ----------
        inputs, recipe, settings, seed, backbone, head, watch_collapse
            As for `adapt`.

        Returns
        -------
        Config
            Whose methods give them back.
        """
        return cls(
            **asdict(inputs),
            backbone=BackboneConfig(name=backbone.name, options=backbone.options or {}),
            head=HeadConfig(**asdict(head)),
            recipes=({"base": "full", **_fields(recipe)},),
            seeds=(seed,),
            training=asdict(settings),
            watch_collapse=watch_collapse,
        )

    def inputs(self) -> AdaptInputs:
        """What a run reads."""
        return AdaptInputs(
            store=self.store,
            split=self.split,
            targets=self.targets,
            auxiliary=self.auxiliary,
            forcefield_test=self.forcefield_test,
        )

    def settings(self) -> TrainingSettings:
        """Training settings, checked."""
        return checked(TrainingSettings, self.training, "training")

    def points(self) -> list[Recipe]:
        """The recipes.

        Returns
        -------
        list of Recipe
            With names that differ.

        Raises
        ------
        TetherError
            For an unknown recipe or field, or a name that occurs twice.
        """
        points = []
        for entry in self.recipes:
            fields = {"base": entry} if isinstance(entry, str) else dict(entry)
            _pop_backbone(fields)
            base = fields.pop("base", fields.get("name"))
            if not isinstance(base, str):
                raise TetherError(
                    f"recipe {entry!r} has no base",
                    expected="a mapping with `base: <named recipe>`",
                    fix="add base: mft",
                )
            # Checked as a whole: a changed field may have any type that YAML knows.
            fields = {**_fields(named_recipe(base)), **fields}
            points.append(checked(Recipe, fields, f"recipe {base!r}"))
        names = [point.name for point in points]
        for name in names:
            if names.count(name) > 1:
                raise TetherError(
                    f"recipe name {name!r} occurs twice",
                    expected="a name of its own for each recipe",
                    fix=f"add name: {name}-2 to one of them",
                )
        return points

    def check(self) -> None:
        """Refuse what its fields, each right by itself, do not make a comparison of.

        Raises
        ------
        TetherError
            For training settings, recipes or references that are none, and for what is named twice.
        """
        self.settings()
        methods = self.methods()
        for name, values in (
            ("targets", self.targets),
            ("seeds", self.seeds),
            ("references", self.references),
            ("recipes and outside", methods),
        ):
            if len(set(values)) < len(values):
                raise TetherError(
                    f"`{name}` is {list(values)}", expected="each once", fix="remove the repeats"
                )
        # A named recipe need not be run: the defaults stand for any choice of recipes. The config
        # of one run may have the references of its comparison, and makes no gains.
        known = list(dict.fromkeys([*methods, *RECIPES]))
        for reference in self.references:
            if reference not in known and len(methods) > 1:
                problem = f"`references` names {reference!r}, which is no recipe"
                raise unknown_name(problem, reference, known)

    def methods(self) -> list[str]:
        """Names of all rows: recipes, then outside models."""
        return [*(point.name for point in self.points()), *self.outside]

    def single(self, recipe: str | None = None, seed: int | None = None) -> Config:
        """The configuration of one run.

        Parameters
        ----------
        recipe : str, optional
            Name of one of `recipes`, or else of a named recipe; default: the only one that the
            configuration names, or ``mft`` where it names none.
        seed : int, optional
            Its seed; default: the first that the configuration names, or 0.

        Returns
        -------
        Config
            With one recipe, its backbone, and one seed.

        Raises
        ------
        TetherError
            For an unknown recipe, none where there are several, or a negative seed.
        """
        if seed is None:
            seed = self.seeds[0] if "seeds" in self.model_fields_set else 0
        if seed < 0:
            raise TetherError(f"`seed` is {seed}", expected="0 or more", fix="set --seed 0")
        entries = zip(self.points(), self.recipes, strict=True)
        recipe = self._only_recipe() if recipe is None else recipe
        own = [entry for point, entry in entries if point.name == recipe]
        if not own:
            named_recipe(recipe)
        entry, backbone = own[0] if own else recipe, self.backbone
        if isinstance(entry, dict):
            entry = dict(entry)
            backbone = _pop_backbone(entry) or backbone
        name = backbone.name.replace("{seed}", str(seed))
        backbone = backbone.model_copy(update={"name": name})
        return self.model_copy(
            update={"recipes": (entry,), "outside": (), "seeds": (seed,), "backbone": backbone}
        )

    def _only_recipe(self) -> str:
        if "recipes" not in self.model_fields_set:
            return "mft"
        names = [point.name for point in self.points()]
        if len(names) > 1:
            raise TetherError(
                f"the config has {len(names)} recipes, and a run is of one",
                expected=f"one of {', '.join(names)}",
                fix=f"add --recipe {names[0]}, or run all of them with `tether compare`",
            )
        return names[0]

    def backbone_choice(self) -> BackboneChoice:
        """Which backbone."""
        return BackboneChoice(self.backbone.name, dict(self.backbone.options))

    def head_choice(self) -> HeadChoice:
        """Which head."""
        return HeadChoice(self.head.pooling, self.head.n_hidden)

    def to_yaml(self) -> str:
        """The complete configuration, defaults included."""
        return to_yaml(self.model_dump(mode="json"))


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a file and apply overrides.

    Parameters
    ----------
    path : Path or None
        See `read_config`.
    overrides : sequence of str
        The same.

    Returns
    -------
    Config
        Checked.

    Raises
    ------
    TetherError
        For a missing or unreadable file, an unknown key (with the nearest known one), or a value
        of the wrong type.
    """
    config = read_config(Config, path, overrides)
    config.check()
    return config


def _pop_backbone(entry: dict[str, Any]) -> BackboneConfig | None:
    """Take the backbone of its own out of a recipe's entry."""
    if "backbone" not in entry:
        return None
    content = entry.pop("backbone")
    if not isinstance(content, dict):
        raise TetherError(
            f"`backbone` of a recipe is {content!r}",
            expected="a mapping with name and options",
            fix=f"write backbone: {{name: {content}}}",
        )
    return checked(BackboneConfig, content, "backbone of a recipe")


def _fields(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in Recipe.__dataclass_fields__}

"""Configuration files: the only place that knows YAML. Closed and typed; unknown keys are refused.

Library functions take plain arguments; this module turns a file and ``key=value`` overrides into
them.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tether.adapt import AdaptInputs, BackboneChoice, HeadChoice
from tether.errors import TetherError
from tether.recipe import Recipe, named_recipe
from tether.training.settings import TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Config", "load_config"]

T = TypeVar("T")


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneConfig(_Closed):
    """``backbone:`` name and size."""

    name: str = "so3lr"
    options: dict[str, Any] = Field(default_factory=dict)


class HeadConfig(_Closed):
    """``head:`` pooling and width."""

    pooling: Literal["mean", "sum", "max"] | None = None
    n_hidden: int = Field(default=128, ge=0)


class Config(_Closed):
    """A comparison, or a single run: everything that determines the result.

    Attributes
    ----------
    store, split, targets
        Data, from `tether prepare` and `tether split`.
    auxiliary, forcefield_test
        Force-field data, from `tether label`; the second is held out.
    recipes
        Names, or mappings with ``base`` and the fields of `Recipe` to change.
    seeds
        One run each.
    budget
        ``steps``: every recipe has the same property steps. ``compute``: the same cost, where a
        force-field structure costs `forcefield_cost` property structures.
    workers
        Runs at a time; default one a core.
    """

    store: Path
    split: Path
    targets: tuple[str, ...] = Field(min_length=1)
    auxiliary: Path | None = None
    forcefield_test: Path | None = None
    backbone: BackboneConfig = BackboneConfig()
    head: HeadConfig = HeadConfig()
    recipes: tuple[str | dict[str, Any], ...] = ("scratch", "probe", "full", "layerwise", "mft")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    training: dict[str, Any] = Field(default_factory=dict)
    budget: Literal["steps", "compute"] = "steps"
    forcefield_cost: float = Field(default=2.5, gt=0)
    workers: int | None = Field(default=None, ge=1)

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
        return _checked(TrainingSettings, self.training, "training")

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
            base = fields.pop("base", fields.get("name"))
            if not isinstance(base, str):
                raise TetherError(
                    f"recipe {entry!r} has no base",
                    expected="a mapping with `base: <named recipe>`",
                    fix="add base: mft",
                )
            points.append(_checked(Recipe, _fields(named_recipe(base, **fields)), "recipes"))
        names = [point.name for point in points]
        for name in names:
            if names.count(name) > 1:
                raise TetherError(
                    f"recipe name {name!r} occurs twice",
                    expected="a name of its own for each recipe",
                    fix=f"add name: {name}-2 to one of them",
                )
        return points

    def backbone_choice(self) -> BackboneChoice:
        """Which backbone."""
        return BackboneChoice(self.backbone.name, dict(self.backbone.options))

    def head_choice(self) -> HeadChoice:
        """Which head."""
        return HeadChoice(self.head.pooling, self.head.n_hidden)

    def to_yaml(self) -> str:
        """The complete configuration, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read a file and apply overrides.

    Parameters
    ----------
    path : Path or None
        YAML; relative paths in it are taken from the working directory.
    overrides : sequence of str
        ``key=value`` with dots between levels; the value is YAML.

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
    content: Any = {}
    if path is not None:
        if not path.is_file():
            raise TetherError(
                f"there is no file {path}", expected="a YAML file", fix="check --config"
            )
        try:
            content = yaml.safe_load(path.read_text()) or {}
        except yaml.YAMLError as error:
            problem = " ".join(str(error).split())
            raise TetherError(
                f"{path} is not YAML ({problem})", expected="a YAML mapping", fix="mend that line"
            ) from None
    if not isinstance(content, dict):
        raise TetherError(
            f"{path or 'config'} holds a {type(content).__name__}",
            expected="a mapping of keys",
            fix="see the example in the README",
        )
    for override in overrides:
        _apply(content, override)
    config = _checked(Config, content, "config")
    config.settings()
    config.points()
    return config


def _apply(content: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise TetherError(
            f"override {override!r} has no value",
            expected="key=value",
            fix="write for example training.lr=1e-3",
        )
    node = content
    *parents, last = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise TetherError(
                f"override {override!r} goes below the value {parent!r}",
                expected="a mapping there",
                fix="set the whole value",
            )
    # YAML 1.1 reads 1e-3 as text; numbers are what everybody means.
    try:
        node[last] = float(value) if "e" in value.lower() else yaml.safe_load(value)
    except ValueError:
        node[last] = yaml.safe_load(value)


def _fields(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in Recipe.__dataclass_fields__}


def _checked(kind: type[T], content: dict[str, Any], where: str) -> T:
    """Validate a mapping as `kind`, with errors in one line."""
    known = list(
        getattr(kind, "model_fields", None) or kind.__dataclass_fields__  # type: ignore[attr-defined]
    )
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise TetherError(
                f"unknown key {key!r} in {where}",
                expected=f"one of {', '.join(known)}",
                fix=f"did you mean {near[0]!r}?" if near else "remove it",
            )
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise TetherError(
            f"{where}: `{place}` is {first.get('input')!r}",
            expected=str(first["msg"]).removeprefix("Input should be "),
            fix=f"correct `{place}`",
        ) from None

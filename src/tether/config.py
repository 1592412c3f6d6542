"""Configuration files: the only place that knows YAML. Closed and typed; unknown keys are refused.

Library functions take plain arguments; this module turns a file and ``key=value`` overrides into
them.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tether.errors import TetherError
from tether.inputs import AdaptInputs, BackboneChoice, HeadChoice
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
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0, 1, 2), min_length=1)
    training: dict[str, Any] = Field(default_factory=dict)
    budget: Literal["steps", "compute"] = "steps"
    forcefield_cost: float = Field(default=2.5, gt=0)
    workers: int | None = Field(default=None, ge=1)
    watch_collapse: bool = False

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
            # Checked as a whole: a changed field may have any type that YAML knows.
            fields = {**_fields(named_recipe(base)), **fields}
            points.append(_checked(Recipe, fields, f"recipe {base!r}"))
        names = [point.name for point in points]
        for name in names:
            if names.count(name) > 1:
                raise TetherError(
                    f"recipe name {name!r} occurs twice",
                    expected="a name of its own for each recipe",
                    fix=f"add name: {name}-2 to one of them",
                )
        return points

    def single(self, recipe: str, seed: int) -> Config:
        """The configuration of one run.

        Parameters
        ----------
        recipe : str
            Name of one of `recipes`, or else of a named recipe.
        seed : int
            Its seed.

        Returns
        -------
        Config
            With one recipe and one seed.

        Raises
        ------
        TetherError
            For an unknown recipe, or a negative seed.
        """
        if seed < 0:
            raise TetherError(f"`seed` is {seed}", expected="0 or more", fix="set --seed 0")
        entries = zip(self.points(), self.recipes, strict=True)
        own = [entry for point, entry in entries if point.name == recipe]
        if not own:
            named_recipe(recipe)
        return self.model_copy(update={"recipes": (own[0] if own else recipe,), "seeds": (seed,)})

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
    for name, values in (("targets", config.targets), ("seeds", config.seeds)):
        if len(set(values)) < len(values):
            raise TetherError(
                f"`{name}` is {list(values)}", expected="each once", fix="remove the repeats"
            )
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
    node[last] = _value(override, value)


def _value(override: str, text: str) -> Any:
    # YAML 1.1 reads 1e-3 as text; numbers are what everybody means.
    try:
        return float(text) if "e" in text.lower() else yaml.safe_load(text)
    except ValueError:
        pass
    except yaml.YAMLError as error:
        raise _bad_override(override, error) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _bad_override(override, error) from None


def _bad_override(override: str, error: yaml.YAMLError) -> TetherError:
    problem = " ".join(str(error).split())
    return TetherError(
        f"override {override!r} is not YAML ({problem})",
        expected="key=value with a YAML value",
        fix="write for example recipes=[full,mft]",
    )


def _fields(recipe: Recipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in Recipe.__dataclass_fields__}


def _checked(kind: type[T], content: dict[str, Any], where: str) -> T:
    """Validate a mapping as `kind`, with errors in one line."""
    for key in content:
        if key not in _known(kind):
            raise _unknown_key(key, _known(kind), where)
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, TetherError):
        raise cause
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        parent: Any = kind
        for part in first["loc"][:-1]:
            parent = parent.model_fields[part].annotation
        raise _unknown_key(first["loc"][-1], _known(parent), f"{where}.{place.rpartition('.')[0]}")
    if first["type"] == "missing":
        raise TetherError(
            f"{where} has no `{place}`",
            expected="a value for it",
            fix=f"add {place}=… to the config",
        )
    raise TetherError(
        f"{where}: `{place}` is {first.get('input')!r}",
        expected=str(first["msg"]).removeprefix("Input should be "),
        fix=f"correct `{place}`",
    )


def _known(kind: Any) -> list[str]:
    return list(getattr(kind, "model_fields", None) or kind.__dataclass_fields__)


def _unknown_key(key: object, known: Sequence[str], where: str) -> TetherError:
    near = difflib.get_close_matches(str(key), known, n=1)
    return TetherError(
        f"unknown key {key!r} in {where}",
        expected=f"one of {', '.join(known)}",
        fix=f"did you mean {near[0]!r}?" if near else "remove it",
    )

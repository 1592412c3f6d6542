"""Settings from files: closed and typed, unknown keys refused; the only place that knows YAML."""

from __future__ import annotations

import difflib
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = [
    "Closed",
    "apply_override",
    "checked",
    "read_config",
    "read_yaml",
    "to_yaml",
    "unknown_name",
]

T = TypeVar("T")


class Closed(BaseModel):
    """A frozen model without room for unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def read_yaml(path: Path, *, expected: str) -> dict[str, Any]:
    """Read a mapping.

    Parameters
    ----------
    path : Path
        YAML file.
    expected : str
        Where an example stands, for the error.

    Returns
    -------
    dict
        Empty for an empty file.

    Raises
    ------
    TetherError
        For a file that is missing, is not YAML, or holds no mapping.
    """
    if not path.is_file():
        raise TetherError(f"there is no file {path}", expected="a YAML file", fix="check --config")
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise TetherError(
            f"{path} is not YAML ({problem})", expected="a YAML mapping", fix="mend that line"
        ) from None
    if not isinstance(content, dict):
        raise TetherError(
            f"{path} holds a {type(content).__name__}",
            expected="a mapping of keys",
            fix=f"see {expected}",
        )
    return content


def read_config(kind: type[T], path: Path | None, overrides: Sequence[str]) -> T:
    """A configuration from a file and overrides.

    Parameters
    ----------
    kind : type
        A `Closed` model.
    path : Path or None
        YAML; relative paths in it are taken from the working directory.
    overrides : sequence of str
        ``key=value`` with dots between levels; the value is YAML.

    Returns
    -------
    object
        Of that kind.

    Raises
    ------
    TetherError
        For a missing or unreadable file, an unknown key (with the nearest known one), or a value
        of the wrong type.
    """
    content = {} if path is None else read_yaml(path, expected="the example in the README")
    for override in overrides:
        apply_override(content, override)
    return checked(kind, content, "config")


def to_yaml(content: dict[str, Any]) -> str:
    """Write a mapping, its keys in their order.

    Parameters
    ----------
    content : dict
        Plain values.

    Returns
    -------
    str
        YAML.
    """
    return yaml.safe_dump(content, sort_keys=False)


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set one value of a mapping in place.

    Parameters
    ----------
    content : dict
        As read from a file.
    override : str
        ``key=value`` with dots between levels; the value is YAML.

    Raises
    ------
    TetherError
        For an override without a value, below a value, or that is not YAML.
    """
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


def checked(kind: type[T], content: dict[str, Any], where: str) -> T:
    """Validate a mapping, with errors in one line.

    Parameters
    ----------
    kind : type
        A `Closed` model, or a dataclass.
    content : dict
        Its fields.
    where : str
        What the mapping is, for the error.

    Returns
    -------
    object
        Of that type.

    Raises
    ------
    TetherError
        For an unknown key (with the nearest known one), a missing one, or a value that is refused.
    """
    for key in content:
        if key not in _known(kind):
            raise _unknown_key(key, _known(kind), where)
    try:
        return _adapter(kind).validate_python(content)  # type: ignore[no-any-return,arg-type]
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
        expected=_WORDS.get(first["type"]) or str(first["msg"]).removeprefix("Input should be "),
        fix=f"correct `{place}`",
    )


# What pydantic says in Python's words, in those of a YAML file.
_WORDS = {
    "tuple_type": "a list, as [a, b]",
    "too_short": "at least one entry",
    "path_type": "a path",
    "dict_type": "keys and values, as {key: value}",
    "model_type": "keys and values, as {key: value}",
}


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Built once for each type: a suite checks thousands of recipes."""
    return TypeAdapter(kind)


def _known(kind: Any) -> list[str]:
    return list(getattr(kind, "model_fields", None) or kind.__dataclass_fields__)


def _unknown_key(key: object, known: Sequence[str], where: str) -> TetherError:
    return unknown_name(f"unknown key {key!r} in {where}", str(key), known)


def unknown_name(problem: str, name: str, known: Sequence[str]) -> TetherError:
    """Make the error of a name that is none of the known ones, with the nearest of them.

    Parameters
    ----------
    problem : str
        What is wrong, with the name in it.
    name : str
        As the user wrote it.
    known : sequence of str
        What would have been right.

    Returns
    -------
    TetherError
        To be raised.
    """
    near = difflib.get_close_matches(name, known, n=1)
    return TetherError(
        problem,
        expected=f"one of {', '.join(known)}",
        fix=f"did you mean {near[0]!r}?" if near else "remove it",
    )

"""Which labels a store keeps: what the user asks for, reconciled with what the files say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast, get_args

from tether.errors import TetherError
from tether.targets import Kind, Target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["agreed_target", "asked_labels", "choose_targets"]


def asked_labels(asked: Sequence[Target | str] | None) -> list[Target] | None:
    """What to ask a reader for.

    Parameters
    ----------
    asked : sequence of Target or str, or None
        What the user wants; None means everything.

    Returns
    -------
    list of Target or None
        By name only, where the user wrote ``name[:unit[:kind]]``.
    """
    if asked is None:
        return None
    return [t if isinstance(t, Target) else Target(t.split(":")[0]) for t in asked]


def agreed_target(
    target: Target, before: Target | None, path: str, asked: Sequence[Target | str] | None
) -> Target:
    """One target for a label that several inputs have.

    Parameters
    ----------
    target : Target
        As the next input has it.
    before : Target or None
        As the inputs before had it.
    path : str
        The next input, for the message.
    asked : sequence of Target or str, or None
        What the user wants. A stated unit settles the case where one input does not know its own.

    Returns
    -------
    Target
        The one that both are.

    Raises
    ------
    TetherError
        When they differ.
    """
    if before is None or before == target:
        return target
    shape = (target.level, target.n_components)
    if shape != (before.level, before.n_components):
        raise TetherError(
            f"label `{target.name}` of {path} has {target.n_components} value(s) for each "
            f"{target.level}",
            expected=f"{before.n_components} for each {before.level}, as in the inputs before it",
            fix="prepare these files apart, or rename the label",
        )
    named = {(t.name, t.unit) if isinstance(t, Target) else _name_and_unit(t) for t in asked or ()}
    if not before.unit or not target.unit:
        one = target if target.unit else before
        if (target.name, one.unit) in named:
            return one
    if asked is None or target.name in {name for name, _ in named}:
        raise TetherError(
            f"label `{target.name}` of {path} is in {target.unit or 'an unknown unit'}",
            expected=f"{before.unit or 'an unknown unit'}, as in the inputs before it",
            fix="convert one of the files, or rename the label",
        )
    return before


def choose_targets(
    known: Mapping[str, Target], asked: Sequence[Target | str] | None
) -> list[Target]:
    """The targets to keep.

    Parameters
    ----------
    known : mapping of str to Target
        Labels of the inputs.
    asked : sequence of Target or str, or None
        What the user wants; None means everything.

    Returns
    -------
    list of Target
        Completed by what the inputs say about unit, kind and size.

    Raises
    ------
    TetherError
        When a target is malformed, asked for twice, or contradicts the inputs.
    """
    if asked is None:
        return list(known.values())
    chosen = [_resolve(target, known) for target in asked]
    names = [target.name for target in chosen]
    for name in names:
        if names.count(name) > 1:
            raise TetherError(
                f"target `{name}` is asked for twice", expected="each once", fix="remove one"
            )
    return chosen


def _resolve(asked: Target | str, known: Mapping[str, Target]) -> Target:
    """The asked target, completed by what the files say; refused where they contradict."""
    name = asked.name if isinstance(asked, Target) else asked.split(":")[0]
    there = known.get(name)
    if isinstance(asked, Target):
        target = asked if asked.unit or there is None else replace(asked, unit=there.unit)
    else:
        target = _parse(asked, there or Target(name))
    if there is not None and there.unit and target.unit != there.unit:
        raise TetherError(
            f"target `{name}` is asked for in {target.unit}, the data are in {there.unit}",
            expected=there.unit,
            fix=f"use {name}:{there.unit}; tether never converts a target",
        )
    if there is not None and (target.level, target.n_components) != (
        there.level,
        there.n_components,
    ):
        raise TetherError(
            f"target `{name}` is asked for with {target.n_components} value(s) for each "
            f"{target.level}",
            expected=f"{there.n_components} for each {there.level}, as in the data",
            fix="correct the target",
        )
    return target


def _parse(spec: str, default: Target) -> Target:
    name, *rest = spec.split(":")
    if not name or len(rest) > 2 or (len(rest) == 2 and rest[1] not in get_args(Kind)):
        raise TetherError(
            f"target {spec!r}",
            expected=f"name[:unit[:kind]] with a kind of {', '.join(get_args(Kind))}",
            fix="for example gap:eV:intensive",
        )
    unit = rest[0] if rest and rest[0] else default.unit
    kind = cast("Kind", rest[1]) if len(rest) == 2 else default.kind
    return replace(default, unit=unit, kind=kind)


def _name_and_unit(spec: str) -> tuple[str, str]:
    name, *rest = spec.split(":")
    return name, rest[0] if rest else ""

"""Tables and sentences about representation collapse; the template only draws them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tether.report.collapse_read import (
    KINDS,
    CollapseRun,
    layers_of,
    measure_names,
    pool_runs,
    recipes_with,
)
from tether.report.format import (
    MISSING,
    as_number,
    format_interval,
    format_quantity,
    n_decimals,
)
from tether.report.tables import Cell, Column, Table, number_cell

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tether.collapse.pooled import Pooled

__all__ = [
    "class_table",
    "first_entry",
    "label_of",
    "layer_table",
    "measure_tables",
    "sources_table",
    "verdict_on_null",
]

_FAMILIES = {
    "drift": "How far the features moved from the pretrained ones",
    "structure": "How much structure is left in the features",
    "function": "What the model still does",
}
_KIND_WORDS = {"atoms": "atoms", "edges": "edges", "function": "whole structures"}


def measure_tables(runs: Sequence[CollapseRun], kind: str) -> list[Table]:
    """Measures × recipes, a table a family, of the last layer.

    Parameters
    ----------
    runs : sequence of CollapseRun
        Those that have measures.
    kind : {"atoms", "edges", "function"}
        What the measures were taken of.

    Returns
    -------
    list of Table
        Families without a measure are left out.
    """
    tables = []
    for family, words in _FAMILIES.items():
        names = [
            name for name in measure_names(runs, kind) if first_entry(runs, kind, name, family)
        ]
        if names:
            caption = f"{words}: {_KIND_WORDS[kind]}"
            tables.append(_family_table(runs, kind, names, caption))
    return tables


def first_entry(
    runs: Sequence[CollapseRun], kind: str, name: str, family: str | None = None
) -> dict[str, Any] | None:
    """Find the first run's measurement of a name, for the words that all runs share."""
    every = (entry for run in runs for entry in run.entries(kind))
    found = next((entry for entry in every if entry["name"] == name), None)
    return found if found is None or family in {None, found["family"]} else None


def _family_table(
    runs: Sequence[CollapseRun], kind: str, names: Sequence[str], caption: str
) -> Table:
    recipes = recipes_with(runs)
    rows, has_before, has_null = [], False, False
    for name in names:
        first = first_entry(runs, kind, name) or {}
        pooled = [pool_runs(runs, kind, name, recipe=recipe) for recipe in recipes]
        start = pool_runs(runs, kind, name)
        decimals = n_decimals([start.before, *(entry.value for entry in pooled)])
        has_before |= start.before is not None
        has_null |= start.null_low is not None
        null = format_interval(start.null_low, start.null_high, decimals)
        row = [
            Cell(label_of(first), details=_words(first)),
            number_cell(start.before, decimals),
            Cell(null or MISSING, muted=not null),
        ]
        row += [_value_cell(entry, first, start, decimals) for entry in pooled]
        rows.append(row)
    columns = [Column("Measure", numeric=False), Column("Pretrained"), Column("Null")]
    columns += [Column(recipe, group="After fine-tuning") for recipe in recipes]
    keep = [True, has_before, has_null, *(True for _ in recipes)]
    return Table(
        caption,
        [column for column, kept in zip(columns, keep, strict=True) if kept],
        [[cell for cell, kept in zip(row, keep, strict=True) if kept] for row in rows],
        [],
    )


def label_of(entry: Mapping[str, Any]) -> str:
    """Return the words for a measure."""
    return str(entry.get("label") or entry.get("name") or "")


def _direction(entry: Mapping[str, Any]) -> str:
    word = "higher" if entry.get("collapse_means") == "higher" else "lower"
    return f"{word}: {'moved further' if entry.get('family') == 'drift' else 'more collapsed'}"


def _words(entry: Mapping[str, Any]) -> tuple[str, ...]:
    unit = entry.get("unit")
    words = (str(unit) if unit and unit != "1" else "", _direction(entry))
    return tuple(filter(None, words))


def verdict_on_null(
    value: float | None, low: float | None, high: float | None, entry: Mapping[str, Any]
) -> str:
    """Say on which side of the null a value lies.

    Parameters
    ----------
    value, low, high : float or None
        The value, and where it would lie if nothing had changed.
    entry : mapping
        Its `collapse_means` and `family`.

    Returns
    -------
    str
        "" where there is nothing to compare.

    Examples
    --------
    >>> rank = {"collapse_means": "lower", "family": "structure"}
    >>> verdict_on_null(12.0, 20.0, 22.0, rank), verdict_on_null(21.0, 20.0, 22.0, rank)
    ('worse than null', 'within null')
    """
    if value is None or low is None or high is None:
        return ""
    if low <= value <= high:
        return "within null"
    is_worse = (value > high) == (entry.get("collapse_means") == "higher")
    if entry.get("family") == "drift":
        return "beyond null" if is_worse else "closer than null"
    return "worse than null" if is_worse else "better than null"


def _value_cell(pooled: Pooled, entry: Mapping[str, Any], start: Pooled, decimals: int) -> Cell:
    if pooled.value is None:
        return Cell("not computable", details=(pooled.missing,), muted=True)
    verdict = verdict_on_null(pooled.value, start.null_low, start.null_high, entry)
    details = [format_interval(pooled.low, pooled.high, decimals), verdict]
    return Cell(
        format_quantity(pooled.value, decimals),
        pooled.value,
        details=tuple(filter(None, details)),
        tone="worse" if verdict in {"worse than null", "beyond null"} else "",
    )


def layer_table(runs: Sequence[CollapseRun]) -> Table:
    """Every measure of atoms that was taken of more than one layer, layer by layer.

    Parameters
    ----------
    runs : sequence of CollapseRun
        Those that have measures.

    Returns
    -------
    Table
        A row a measure and layer.
    """
    recipes = recipes_with(runs)
    columns = [Column("Measure", numeric=False), Column("Layer"), Column("Pretrained")]
    columns += [Column(recipe, group="After fine-tuning") for recipe in recipes]
    rows = []
    for name in measure_names(runs, "atoms"):
        layers = layers_of(runs, "atoms", name)
        if len(layers) < 2:
            continue
        first = first_entry(runs, "atoms", name) or {}
        pooled = {
            layer: [pool_runs(runs, "atoms", name, layer, recipe=recipe) for recipe in recipes]
            for _, layer in layers
        }
        start = {layer: pool_runs(runs, "atoms", name, layer) for _, layer in layers}
        decimals = n_decimals(
            [
                *(entry.before for entry in start.values()),
                *(entry.value for row in pooled.values() for entry in row),
            ]
        )
        for position, layer in layers:
            row = [Cell(label_of(first)), Cell(str(position), float(position))]
            row.append(number_cell(start[layer].before, decimals))
            row += [_value_cell(entry, first, start[layer], decimals) for entry in pooled[layer]]
            rows.append(row)
    return Table("Every layer; 0 is the first", columns, rows, [])


def class_table(runs: Sequence[CollapseRun], kind: str = "classes") -> Table:
    """Neighbour purity of each class before and after.

    Parameters
    ----------
    runs : sequence of CollapseRun
        Those that have measures.
    kind : {"classes", "groups"}
        Classes by element and neighbours, or functional groups.

    Returns
    -------
    Table
        A row a class; seeds are averaged.
    """
    recipes = recipes_with(runs)
    names = [entry["class"] for run in runs for entry in run.measures[kind]]
    heading = "Class" if kind == "classes" else "Functional group"
    columns = [Column(heading, numeric=False), Column("Points"), Column("Pretrained")]
    columns += [Column(recipe, group="After fine-tuning") for recipe in recipes]
    rows = []
    for name in dict.fromkeys(names):
        count = _class_value(runs, kind, name, "n")
        before = _class_value(runs, kind, name, "purity_before")
        row = [Cell(name), number_cell(count, 0), number_cell(before, 3)]
        for recipe in recipes:
            own = [run for run in runs if run.run.recipe == recipe]
            after = _class_value(own, kind, name, "purity_after")
            change = "" if after is None or before is None else _signed(after - before)
            moved = _class_value(own, kind, name, "displacement")
            details = (change, "" if moved is None else f"moved {moved:.2f}")
            row.append(number_cell(after, 3, details=tuple(filter(None, details))))
        rows.append(row)
    caption = (
        "Share of an atom's nearest neighbours in feature space that are of its class, the change, "
        "and how far the class moved (in spreads of the pretrained features)"
    )
    return Table(caption, columns, rows, [])


def _signed(change: float) -> str:
    text = f"{abs(change):.3f}"
    if float(text) == 0:
        return "unchanged"
    return ("+" if change > 0 else "−") + text


def _class_value(runs: Sequence[CollapseRun], kind: str, name: str, key: str) -> float | None:
    entries = [entry for run in runs for entry in run.measures[kind] if entry["class"] == name]
    values = [as_number(entry.get(key)) for entry in entries]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def sources_table(runs: Sequence[CollapseRun]) -> Table:
    """Say what each measure is, where it comes from and what it can be fooled by.

    Parameters
    ----------
    runs : sequence of CollapseRun
        Those that have measures.

    Returns
    -------
    Table
        A row a measure.
    """
    labels = ("Measure", "Unit", "Direction", "Rotation of the features", "OOD labels", "Source")
    columns = [Column(label, numeric=False) for label in labels]
    rows: dict[str, list[Cell]] = {}
    for kind in KINDS:
        for name in measure_names(runs, kind):
            entry = first_entry(runs, kind, name) or {}
            rows.setdefault(
                name,
                [
                    Cell(label_of(entry)),
                    Cell(str(entry.get("unit") or "1")),
                    Cell(_direction(entry)),
                    Cell("does not change it" if entry.get("invariant") else "changes it"),
                    Cell("needed" if entry.get("needs_ood_labels") else "not needed"),
                    Cell(str(entry.get("source") or "not stated")),
                ],
            )
    return Table("What each measure is", columns, list(rows.values()), [])

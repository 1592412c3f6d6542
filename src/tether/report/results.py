"""Questions to `summary.json`: which recipes, which error, which gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tether.report.format import as_number

__all__ = [
    "REFERENCES",
    "ROUNDING",
    "average_forgetting",
    "best_recipe",
    "gain_of",
    "level_words",
    "pooled_row",
    "recipes_of",
    "reference_lines_of",
    "seed_values",
    "subset_label",
    "subsets_of",
    "targets_of",
    "unit_of",
]

#: Recipes that others are compared with first, where they run; the one of more interest first.
REFERENCES = ("full", "scratch")
#: Errors below this (eV/Å, eV/atom) are single-precision rounding, and count as zero.
ROUNDING = 1e-5

Summary = Mapping[str, Any]


def subset_label(subset: str) -> str:
    """Short name of an index set.

    Examples
    --------
    >>> subset_label("test/ood"), subset_label("test/fold3"), subset_label("val")
    ('OOD', 'fold3', 'val')
    """
    name = subset.removeprefix("test/")
    return name.upper() if name in {"id", "ood"} else name


def _distinct(values: Sequence[object]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values))


def recipes_of(summary: Summary) -> list[str]:
    """Recipes with results, in the order of `summary.json`."""
    return _distinct([row["recipe"] for row in summary["rows"]])


def targets_of(summary: Summary) -> list[str]:
    """Targets with results, in the order of `summary.json`."""
    return _distinct([row["target"] for row in summary["rows"]])


def unit_of(summary: Summary, target: str) -> str:
    """Return the unit of a target, "" if it has none."""
    units = (row.get("unit") for row in summary["rows"] if row["target"] == target)
    return str(next(units, "") or "")


def subsets_of(summary: Summary, target: str) -> list[str]:
    """Test sets of a target: ID first, then OOD, then others; `val` only if there is no test."""
    found = _distinct([row["subset"] for row in summary["rows"] if row["target"] == target])
    tests = [name for name in found if name.startswith("test/")] or found
    first = {"test/id": 0, "test/ood": 1}
    return sorted(tests, key=lambda name: (first.get(name, 2), name))


def _matches(row: Mapping[str, Any], target: str, subset: str, metric: str) -> bool:
    return bool(row["target"] == target and row["subset"] == subset and row["metric"] == metric)


def pooled_row(
    summary: Summary, recipe: str, *, target: str, subset: str, metric: str
) -> dict[str, Any] | None:
    """Find the row pooled over seeds, or the only seed's row, or None.

    Parameters
    ----------
    summary : mapping
        `summary.json`.
    recipe, target, subset, metric : str
        Which number; `metric` is "mae" or "rmse".

    Returns
    -------
    dict or None
        A row of `summary["rows"]`.
    """
    rows = [
        row
        for row in summary["rows"]
        if row["recipe"] == recipe and _matches(row, target, subset, metric)
    ]
    pooled = [row for row in rows if row["seed"] == "pooled"]
    if pooled:
        return dict(pooled[0])
    return dict(rows[0]) if len(rows) == 1 else None


def seed_values(
    summary: Summary, recipe: str, *, target: str, subset: str, metric: str
) -> dict[int, float]:
    """Value of each seed, without those that are missing."""
    values = {
        int(row["seed"]): as_number(row["value"])
        for row in summary["rows"]
        if row["recipe"] == recipe
        and row["seed"] != "pooled"
        and _matches(row, target, subset, metric)
    }
    return {seed: value for seed, value in sorted(values.items()) if value is not None}


def gain_of(
    summary: Summary, recipe: str, reference: str, *, target: str, subset: str, metric: str
) -> dict[str, Any] | None:
    """Gain of a recipe over a reference recipe; positive means a smaller error."""
    for gain in summary["gains"]:
        same = gain["recipe"] == recipe and gain["reference"] == reference
        if same and _matches(gain, target, subset, metric):
            return dict(gain)
    return None


def level_words(summary: Summary) -> str:
    """Name the level of the intervals, where `summary.json` states it.

    Examples
    --------
    >>> level_words({"level": 0.95}), level_words({})
    ('95 % ', '')
    """
    level = as_number(summary.get("level"))
    return "" if level is None else f"{100 * level:.3g} % "


def best_recipe(summary: Summary, *, target: str, subset: str, metric: str) -> str | None:
    """Recipe with the smallest pooled error, or None if nothing was measured."""
    errors: dict[str, float] = {}
    for recipe in recipes_of(summary):
        row = pooled_row(summary, recipe, target=target, subset=subset, metric=metric)
        value = as_number(row["value"]) if row else None
        if value is not None:
            errors[recipe] = value
    return min(errors, key=errors.__getitem__) if errors else None


def reference_lines_of(
    summary: Summary, *, target: str, subset: str, metric: str
) -> dict[str, float]:
    """Error of the predictors that need no model (mean predictor, clip oracle), by name."""
    lines = {
        str(line["name"]): as_number(line["value"])
        for line in summary["reference_lines"]
        if _matches(line, target, subset, metric)
    }
    return {name: value for name, value in lines.items() if value is not None}


def average_forgetting(summary: Summary, recipe: str) -> dict[str, float | None]:
    """Force-field errors of a recipe before and after, averaged over its seeds.

    Parameters
    ----------
    summary : mapping
        `summary.json`.
    recipe : str
        Which recipe.

    Returns
    -------
    dict
        `force_mae_before`, `force_mae_after` (eV/Å), `energy_mae_before`, `energy_mae_after`
        (eV/atom) and `ratio` of the force errors; None where nothing was measured. A model
        against its own pseudo-labels has an error of 0, and no ratio.
    """
    entries = [entry for entry in summary["forgetting"] if entry["recipe"] == recipe]
    pooled = [entry for entry in entries if entry["seed"] == "pooled"]
    result: dict[str, float | None] = {}
    for quantity in ("force_mae", "energy_mae"):
        for when in ("before", "after"):
            name = f"{quantity}_{when}"
            values = [as_number(entry.get(name)) for entry in pooled or entries]
            known = [value for value in values if value is not None]
            mean = sum(known) / len(known) if known else None
            result[name] = 0.0 if mean is not None and mean < ROUNDING else mean
    before, after = result["force_mae_before"], result["force_mae_after"]
    result["ratio"] = after / before if before and after is not None else None
    return result

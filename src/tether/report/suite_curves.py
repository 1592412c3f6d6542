"""Data efficiency of a suite: at which size a recipe reaches the error of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tether.metrics.efficiency import Reached, size_reaching
from tether.report.format import MISSING, format_quantity, n_decimals
from tether.report.results import reference_lines_of, subset_label
from tether.report.suite_read import multitask_recipes, questions_of, suite_recipes, test_subsets
from tether.report.tables import Cell, Column, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Curve", "curve_targets", "curves_of", "efficiency_answers", "reach_table"]

Results = dict[str, Any]
#: Rows of `curves` of one recipe, smallest size first.
Curve = list[dict[str, Any]]
_ORACLE = "clip oracle"


def curve_targets(results: Results) -> list[str]:
    """Targets that have learning curves."""
    return list(dict.fromkeys(str(row["target"]) for row in results["curves"]))


def curves_of(results: Results, target: str, subset: str) -> dict[str, Curve]:
    """Learning curve of each recipe that has at least two sizes.

    Parameters
    ----------
    results : dict
        `results.json`.
    target, subset : str
        Which error.

    Returns
    -------
    dict of str to list of dict
        In the order of the recipes; sizes and errors that have no logarithm are left out.
    """
    found: dict[str, dict[float, dict[str, Any]]] = {}
    for row in results["curves"]:
        here = (row["target"], row["subset"]) == (target, subset)
        if here and float(row["x"]) > 0 and row["value"] > 0:
            found.setdefault(str(row["recipe"]), {})[float(row["x"])] = row
    curves = {name: [found[name][x] for x in sorted(found[name])] for name in found}
    return {name: curves[name] for name in suite_recipes(results) if len(curves.get(name, [])) > 1}


def oracle_of(results: Results, target: str, subset: str) -> tuple[float, float] | None:
    """Size and error of the clip oracle of the largest training set that was run."""
    found = []
    for question in questions_of(results):
        if question.target == target:
            lines = reference_lines_of(
                question.entry, target=target, subset=subset, metric=results["metric"]
            )
            if _ORACLE in lines:
                found.append((float(question.entry["values"][results["axis"]]), lines[_ORACLE]))
    return max(found, default=None)


def _reached(curve: Curve, error: float) -> Reached:
    xs, values = [float(row["x"]) for row in curve], [float(row["value"]) for row in curve]
    return size_reaching(xs, values, error)


def reach_table(results: Results, target: str, subset: str) -> Table:
    """Size at which each recipe reaches the error of each other at its largest size.

    Parameters
    ----------
    results : dict
        `results.json`.
    target, subset : str
        Which error.

    Returns
    -------
    Table
        A row a recipe, a column an error to reach, the clip oracle's among them.
    """
    curves = curves_of(results, target, subset)
    unit = next((str(row["unit"]) for curve in curves.values() for row in curve), "")
    goals = {
        f"{name} at {curve[-1]['x']:,}": (name, float(curve[-1]["value"]))
        for name, curve in curves.items()
    }
    if oracle := oracle_of(results, target, subset):
        goals[_ORACLE] = ("", oracle[1])
    decimals = n_decimals(error for _, error in goals.values())
    columns = [Column("Recipe", numeric=False)]
    columns += [
        Column(f"{label}: {format_quantity(error, decimals)} {unit}".rstrip())
        for label, (_, error) in goals.items()
    ]
    rows = []
    for name, curve in curves.items():
        row = [Cell(name)]
        for owner, error in goals.values():
            row.append(Cell("") if owner == name else _reach_cell(_reached(curve, error), curve))
        rows.append(row)
    caption = (
        f"{target}: {results['axis']} at which a recipe (row) reaches an {subset_label(subset)} "
        f"{results['metric'].upper()} (column)"
    )
    return Table(caption, columns, rows, [])


def _reach_cell(reached: Reached, curve: Curve) -> Cell:
    if reached.size is None:
        return Cell("not reached", muted=True)
    return Cell(("≤ " if reached.at_most else "") + _size(reached.size, curve), reached.size)


def _size(size: float, curve: Curve) -> str:
    """A place on the axis: whole where all its values are."""
    whole = all(float(row["x"]).is_integer() for row in curve)
    return format_quantity(size, 0 if whole else n_decimals([size]))


def efficiency_answers(results: Results) -> list[str]:
    """Say at which size each multi-task recipe does as well as the others with all data.

    Parameters
    ----------
    results : dict
        `results.json`.

    Returns
    -------
    list of str
        Sentences, OOD first; empty without curves.
    """
    answers = []
    for target in curve_targets(results):
        for subset in test_subsets(results):
            curves = curves_of(results, target, subset)
            ours = [name for name in multitask_recipes(results) if name in curves]
            others = [name for name in ("scratch", "full") if name in curves]
            answers += [
                _answer(results, (name, other), curves, (target, subset))
                for name in ours or curves
                for other in others
                if other != name
            ]
    return answers


def _answer(
    results: Results,
    pair: Sequence[str],
    curves: dict[str, Curve],
    where: tuple[str, str],
) -> str:
    name, other = pair
    goal = curves[other][-1]
    found = _reached(curves[name], float(goal["value"]))
    axis, error = results["axis"], f"{subset_label(where[1])} {results['metric'].upper()}"
    number = format_quantity(goal["value"], n_decimals([goal["value"]])) or MISSING
    of = f"the {error} that {other} has at {axis} {goal['x']:,} ({number} {goal['unit']})"
    head = f"{where[0]}: {name} reaches {of}"
    if found.size is None:
        return f"{where[0]}: {name}: {of} is not reached within the sizes run."
    size = _size(found.size, curves[name])
    if found.at_most:
        return f"{head} at {axis} {size} or less, the smallest that was run."
    share = float(goal["x"]) / found.size
    ratio = f", {share:.1f} times fewer" if share >= 1.05 else ""
    return f"{head} at {axis} {size}{ratio}."

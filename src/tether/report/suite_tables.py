"""Tables of a suite's page: recipes are rows and tasks are columns, as in the paper's table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tether.report.format import (
    MISSING,
    as_number,
    counted,
    format_gain,
    format_interval,
    format_p,
    format_quantity,
    n_decimals,
)
from tether.report.results import (
    average_forgetting,
    best_recipe,
    gain_of,
    pooled_row,
    reference_lines_of,
    subset_label,
    unit_of,
)
from tether.report.suite_read import (
    Question,
    over_tasks_row,
    published_rows,
    questions_of,
    reference_of,
    suite_recipes,
    test_subsets,
)
from tether.report.tables import Cell, Column, Table, number_cell

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "error_table",
    "group_tables",
    "limit_table",
    "over_tasks_table",
    "suite_forgetting_table",
]

Results = dict[str, Any]
_MULTIPLY = "×"


def gain_details(gain: Mapping[str, Any] | None, key: str = "gain_percent") -> tuple[str, ...]:
    """Smaller lines below an error: its gain, and the gain's interval."""
    percent = as_number(gain.get(key)) if gain else None
    if gain is None or percent is None:
        return ()
    low, high = as_number(gain.get("low")), as_number(gain.get("high"))
    interval = "" if low is None or high is None else f"[{format_gain(low)}, {format_gain(high)}]"
    return tuple(filter(None, (f"{format_gain(percent)} %", interval)))


def over_tasks_table(results: Results, reference: str) -> Table:
    """Mean gain of every recipe over a reference, over the tasks that both have finished.

    Parameters
    ----------
    results : dict
        `results.json`.
    reference : str
        Which reference recipe.

    Returns
    -------
    Table
        Without rows where no two tasks are finished.
    """
    subsets = test_subsets(results)
    columns = [Column("Recipe", numeric=False), Column("Tasks")]
    for subset in subsets:
        group = f"{subset_label(subset)} {results['metric'].upper()}"
        labels = ("mean gain (%)", "better on", "p (Holm)", "effect size")
        columns += [Column(label, group=group) for label in labels]
    rows = []
    for name in suite_recipes(results):
        found = [over_tasks_row(results, name, reference, subset) for subset in subsets]
        if not any(found):
            continue
        row = [Cell(name), Cell(str(max(int(one["n_tasks"]) for one in found if one)))]
        for one in found:
            row += [Cell(MISSING, muted=True)] * 4 if one is None else _over_cells(one)
        rows.append(row)
    return Table(f"Every recipe against {reference}, over tasks", columns, rows, [])


def _over_cells(row: Mapping[str, Any]) -> list[Cell]:
    percent = float(row["gain_percent"])
    p = format_p(as_number(row["p_holm"])).removeprefix("p ").removeprefix("= ")
    effect = as_number(row["effect_size"])
    return [
        Cell(format_gain(percent), percent, details=gain_details(row)[1:]),
        Cell(f"{row['n_better']} of {row['n_tasks']}"),
        Cell(p or MISSING, as_number(row["p_holm"])),
        Cell(MISSING if effect is None else f"{effect:+.2f}".replace("-", "−"), effect),
    ]


def error_table(results: Results, subset: str) -> Table:
    """Error of every recipe on every task, with reference lines and published figures below.

    Parameters
    ----------
    results : dict
        `results.json`.
    subset : str
        Which test set.

    Returns
    -------
    Table
        Below each error its interval, its gain over the reference and the gain's interval.
    """
    questions, recipes = questions_of(results), suite_recipes(results)
    columns = [Column("Recipe", numeric=False), *(Column(q.label) for q in questions)]
    body = [[Cell(name)] for name in recipes]
    foot: dict[tuple[str, str], list[Cell]] = {}
    decimals = [_decimals(results, question, subset) for question in questions]
    for at, (question, places) in enumerate(zip(questions, decimals, strict=True)):
        for row, name in zip(body, recipes, strict=True):
            row.append(_error_cell(results, question, name, subset, places))
        for key, cell in _foot_cells(results, question, subset, places).items():
            row = foot.setdefault(key, [Cell(key[0], details=(key[1],) if key[1] else ())])
            row += [Cell("")] * (at + 1 - len(row)) + [cell]
    width = len(columns)
    rows = [[*row, *[Cell("")] * (width - len(row))] for row in foot.values()]
    caption = f"{subset_label(subset)} {results['metric'].upper()} of each task"
    return Table(caption, columns, body, rows)


def _query(results: Results, question: Question, subset: str) -> dict[str, str]:
    return {"target": question.target, "subset": subset, "metric": results["metric"]}


def _decimals(results: Results, question: Question, subset: str) -> int:
    query = _query(results, question, subset)
    rows = (pooled_row(question.entry, name, **query) for name in suite_recipes(results))
    return n_decimals(as_number(row["value"]) for row in rows if row)


def _error_cell(
    results: Results, question: Question, name: str, subset: str, decimals: int
) -> Cell:
    query, reference = _query(results, question, subset), reference_of(results)
    row = pooled_row(question.entry, name, **query)
    if row is None:
        return Cell("" if name not in question.entry["steps"] else "to do", muted=True)
    interval = format_interval(as_number(row.get("low")), as_number(row.get("high")), decimals)
    gain = gain_of(question.entry, name, reference, **query) if reference else None
    details = tuple(filter(None, (interval, *gain_details(gain))))
    best = best_recipe(question.entry, **query) == name and len(suite_recipes(results)) > 1
    return number_cell(as_number(row["value"]), decimals, details=details, best=best)


def _foot_cells(
    results: Results, question: Question, subset: str, decimals: int
) -> dict[tuple[str, str], Cell]:
    """(name, source) → cell: predictors without a model, then published figures."""
    lines = reference_lines_of(question.entry, **_query(results, question, subset))
    cells = {(name, ""): number_cell(value, decimals) for name, value in lines.items()}
    names = {question.target, *map(str, question.entry["values"].values())}
    rows = published_rows(results, names, unit_of(question.entry, question.target), subset)
    values = {str(row["method"]): float(row["value"]) for row in rows}
    for row in rows:
        method, value = str(row["method"]), float(row["value"])
        # A model that was trained in several ways has a reference of its own.
        own = f"{method.rpartition(' ')[0]} full"
        details: tuple[str, ...] = ()
        if own in values and method != own:
            details = (f"{format_gain(100 * (1 - value / values[own]))} %",)
        cells[method, str(row["source"])] = number_cell(
            value, max(decimals, n_decimals([value])), details=details
        )
    return cells


def group_tables(results: Results) -> list[Table]:
    """Errors and gains over the folds of each data set.

    Parameters
    ----------
    results : dict
        `results.json`.

    Returns
    -------
    list of Table
        One a data set and target.
    """
    keys = dict.fromkeys((row["group"], row["target"]) for row in results["groups"])
    return [_group_table(results, str(group), str(target)) for group, target in keys]


def _group_table(results: Results, group: str, target: str) -> Table:
    rows = {
        (row["recipe"], row["subset"]): row
        for row in results["groups"]
        if (str(row["group"]), row["target"]) == (group, target)
    }
    recipes = list(dict.fromkeys(recipe for recipe, _ in rows))
    subsets = [s for s in test_subsets(results) if any(s == subset for _, subset in rows)]
    own = [q for q in questions_of(results) if group in map(str, q.entry["values"].values())]
    unit = unit_of(own[0].entry, target) if own else ""
    columns, body = [Column("Recipe", numeric=False)], [[Cell(name)] for name in recipes]
    foot: dict[tuple[str, str], list[Cell]] = {}
    n_folds = max(int(row["n_folds"]) for row in rows.values())
    for subset in subsets:
        metric = results["metric"].upper() + (f" ({unit})" if unit else "")
        references = list(dict.fromkeys(name for row in rows.values() for name in row["gains"]))
        labels = [metric, *(f"gain over {name} (%)" for name in references)]
        columns += [Column(label, group=subset_label(subset)) for label in labels]
        cells = _group_cells(rows, recipes, subset, references)
        for row, more in zip(body, cells, strict=True):
            row.extend(more)
        for found in published_rows(results, {group, target}, unit, subset):
            key = (str(found["method"]), str(found["source"]))
            line = foot.setdefault(key, [Cell(key[0], details=(key[1],))])
            line += [Cell("")] * (len(columns) - len(labels) - len(line))
            line.append(number_cell(float(found["value"]), n_decimals([float(found["value"])])))
    rows_below = [[*line, *[Cell("")] * (len(columns) - len(line))] for line in foot.values()]
    return Table(f"{group}: error over {counted(n_folds, 'fold')}", columns, body, rows_below)


def _group_cells(
    rows: Mapping[tuple[str, str], Mapping[str, Any]],
    recipes: Sequence[str],
    subset: str,
    references: Sequence[str],
) -> list[list[Cell]]:
    values = {name: as_number(rows.get((name, subset), {}).get("value")) for name in recipes}
    known = [value for value in values.values() if value is not None]
    decimals = n_decimals(known)
    cells = []
    for name in recipes:
        row = rows.get((name, subset), {})
        interval = format_interval(as_number(row.get("low")), as_number(row.get("high")), decimals)
        best = len(known) > 1 and values[name] == min(known)
        details = (interval,) if interval else ()
        own = [number_cell(values[name], decimals, details=details, best=best)]
        for reference in references:
            gain = row.get("gains", {}).get(reference)
            if gain is None:
                own.append(Cell("reference" if name == reference else MISSING, muted=True))
                continue
            percent = as_number(gain["percent"])
            more = (*gain_details(gain, "percent")[1:], format_p(as_number(gain.get("p_value"))))
            own.append(Cell(format_gain(percent), percent, details=tuple(filter(None, more))))
        cells.append(own)
    return cells


def limit_table(results: Results) -> Table:
    """Distance to the limit of every recipe on every task.

    Parameters
    ----------
    results : dict
        `results.json`.

    Returns
    -------
    Table
        Without rows where no task has it.
    """
    columns = [Column("Recipe", numeric=False)]
    rows: dict[str, list[Cell]] = {name: [Cell(name)] for name in suite_recipes(results)}
    for question in questions_of(results):
        entries = [e for e in question.entry["limit_distances"] if e["target"] == question.target]
        for subset in dict.fromkeys(str(entry["subset"]) for entry in entries):
            several = len({entry["subset"] for entry in entries}) > 1
            suffix = f", {subset_label(subset)}" if several else ""
            columns.append(Column(question.name + suffix))
            found = {e["recipe"]: e for e in entries if e["subset"] == subset}
            for name, row in rows.items():
                entry = found.get(name, {})
                low, high = as_number(entry.get("low")), as_number(entry.get("high"))
                interval = format_interval(low, high, 2) if name != entry.get("reference") else ""
                value = as_number(entry.get("value"))
                row.append(number_cell(value, 2, details=(interval,) if interval else ()))
    body = list(rows.values()) if len(columns) > 1 else []
    return Table("Distance to the limit: OOD less ID error, full = 1", columns, body, [])


def suite_forgetting_table(results: Results) -> Table:
    """Force error of every recipe on every task, before → after.

    Parameters
    ----------
    results : dict
        `results.json`.

    Returns
    -------
    Table
        Without rows where no run measured a force field.
    """
    tasks = [task for task in results["tasks"] if task["forgetting"]]
    columns = [Column("Recipe", numeric=False), *(Column(str(task["name"])) for task in tasks)]
    rows = []
    for name in suite_recipes(results):
        entries = [average_forgetting(task, name) for task in tasks]
        if any(entry["force_mae_after"] is not None for entry in entries):
            rows.append([Cell(name), *map(_forgetting_cell, entries)])
    return Table("Force MAE (eV/Å) on held-out structures: before → after", columns, rows, [])


def _forgetting_cell(entry: Mapping[str, float | None]) -> Cell:
    before, after, ratio = (entry[key] for key in ("force_mae_before", "force_mae_after", "ratio"))
    if after is None:
        return Cell(MISSING, muted=True)
    first = MISSING if before is None else format_quantity(before, 3)
    details = () if ratio is None else (f"{_MULTIPLY}{format_quantity(ratio, 2)}",)
    return Cell(f"{first} → {format_quantity(after, 3)}", after, details=details)

"""What `tether bench` prints: its stages, the runs done and to do, and the results."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tether.cli.tables import full_width, stack
from tether.report.format import counted, format_gain, format_p, format_quantity, n_decimals
from tether.report.results import subset_label, unit_of
from tether.report.suite_read import (
    FEWEST_TASKS,
    named_recipes,
    reference_of,
    run_counts,
    run_states,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from tether.suites.suite import Stage

__all__ = ["print_results", "print_stages"]


def print_stages(stage: Stage, state: str, console: Console) -> None:
    """Print a stage as one would type it, before it runs.

    Parameters
    ----------
    stage : Stage
        Of the suite.
    state : str
        ``running`` or ``done``; what is done is not shown.
    console : rich.console.Console
        Where to print.
    """
    if state == "running":
        command = escape(shlex.join(stage.arguments))
        console.print(f"[bold]$ tether {command}[/bold]", soft_wrap=True)


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """Print what is done and to do, the errors of each task, and the gains over all tasks.

    Parameters
    ----------
    results : mapping
        ``results.json``.
    console : rich.console.Console
        Where to print.
    """
    tasks = results["tasks"]
    recipes, reference = named_recipes(results), reference_of(results)
    n_done, n_runs = run_counts(results)
    _print_tables(
        f"{n_done} of {n_runs} runs done",
        recipes,
        [(task["name"], [_done_cell(task, recipe) for recipe in recipes]) for task in tasks],
        console,
    )
    subsets = dict.fromkeys(
        row["subset"] for task in tasks for row in task["rows"] if row["subset"] != "val"
    )
    for subset in subsets:
        title = f"{subset}: {results['metric'].upper()}"
        title += f", and below it the gain over {reference}" if reference else ""
        _print_tables(title, recipes, _error_columns(tasks, recipes, subset, reference), console)
    if results["over_tasks"]:
        title = "mean gain over the tasks that both have run, on how many it is better, p (Holm)"
        _print_tables(title, recipes, _over_tasks_columns(results, recipes), console)
    for line in _lines(results, reference):
        console.print(Text(line))


def _print_tables(
    title: str,
    recipes: Sequence[str],
    columns: Sequence[tuple[str, list[Text]]],
    console: Console,
) -> None:
    """Print a row a recipe and a column a task, in as many tables as the width asks for."""
    start = 0
    while start < len(columns):
        end = start + 1
        table = _table(title, recipes, columns[start:end])
        while end < len(columns):
            wider = _table(title, recipes, columns[start : end + 1])
            if full_width(wider, console) > console.width:
                break
            end, table = end + 1, wider
        console.print(table)
        start = end


def _table(title: str, recipes: Sequence[str], columns: Sequence[tuple[str, list[Text]]]) -> Table:
    table = Table(
        title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("")
    for name, _ in columns:
        table.add_column(Text(name), justify="right")
    for idx, recipe in enumerate(recipes):
        cells = [cells[idx] for _, cells in columns]
        if any(cells):
            table.add_row(Text(recipe), *cells)
    return table


def _done_cell(task: Mapping[str, Any], recipe: str) -> Text:
    own = run_states(task, recipe)
    if not own:
        return Text("")
    return Text(f"{sum(own)}/{len(own)}", style="green" if all(own) else "dim")


def _error_columns(
    tasks: Sequence[Mapping[str, Any]], recipes: Sequence[str], subset: str, reference: str | None
) -> list[tuple[str, list[Text]]]:
    """A column a task and target; below each error, its gain over the reference."""
    columns = []
    for task in tasks:
        for target in task["targets"]:
            found = {r["recipe"]: r["value"] for r in _of(task["rows"], target, subset)}
            if not found:
                continue
            gains = {
                row["recipe"]: row["gain_percent"]
                for row in _of(task["gains"], target, subset)
                if row["reference"] == reference
            }
            decimals, best = n_decimals(found.values()), min(found.values())
            name = task["name"] if len(task["targets"]) == 1 else f"{task['name']} {target}"
            unit = unit_of(task, target)
            columns.append(
                (
                    f"{name}\n({unit})" if unit else name,
                    [_cell(found.get(r), gains.get(r), decimals, best) for r in recipes],
                )
            )
    return columns


def _of(rows: Sequence[Mapping[str, Any]], target: str, subset: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if (row["target"], row["subset"]) == (target, subset)]


def _cell(value: float | None, gain: float | None, decimals: int, best: float) -> Text:
    if value is None:
        return Text("")
    below = [] if gain is None else [f"{format_gain(gain)} %"]
    return stack(
        format_quantity(value, decimals), *below, style="bold green" if value == best else ""
    )


def _over_tasks_columns(
    results: Mapping[str, Any], recipes: Sequence[str]
) -> list[tuple[str, list[Text]]]:
    """A column a test set and reference."""
    found = {(r["subset"], r["reference"], r["method"]): r for r in results["over_tasks"]}
    return [
        (
            f"{subset_label(subset)} gain\nvs {reference}",
            [_over_tasks_cell(found.get((subset, reference, recipe))) for recipe in recipes],
        )
        for subset, reference in dict.fromkeys((subset, one) for subset, one, _ in found)
    ]


def _over_tasks_cell(row: Mapping[str, Any] | None) -> Text:
    if row is None:
        return Text("")
    interval = f"[{format_gain(row['low'])}, {format_gain(row['high'])}]"
    better = f"{row['n_better']} of {row['n_tasks']}"
    if row["n_tasks"] < FEWEST_TASKS:
        return stack(f"{format_gain(row['gain_percent'])} %", better)
    p = format_p(row["p_holm"])
    style = "green" if row["low"] > 0 else "red" if row["high"] < 0 else ""
    return stack(f"{format_gain(row['gain_percent'])} %", interval, better, p, style=style)


def _lines(results: Mapping[str, Any], reference: str | None) -> list[str]:
    lines = []
    for row in results["ranks"]:
        ranked = sorted(row["ranks"].items(), key=lambda pair: pair[1])
        text = ", ".join(f"{name} {rank:.2f}" for name, rank in ranked)
        lines.append(
            f"{row['subset']}: mean ranks over {row['n_tasks']} tasks: {text} "
            f"(apart by {row['critical_difference']:.2f} or more can be told apart)"
        )
    for row in results["groups"]:
        gain = row["gains"].get(reference)
        against = f", {format_gain(gain['percent'])} % against {reference}" if gain else ""
        lines.append(
            f"{row['group']}, {row['subset']}: {row['recipe']} {row['value']:.4g} "
            f"[{row['low']:.4g}, {row['high']:.4g}] over "
            f"{counted(row['n_folds'], 'fold')}{against}"
        )
    return lines

"""What `tether bench` prints: its stages, the runs done and to do, and the results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tether.cli.tables import stack
from tether.report.format import MISSING, format_gain, format_p, format_quantity, n_decimals

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
        command = escape(" ".join(stage.arguments))
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
    recipes = list(dict.fromkeys(recipe for task in tasks for recipe in task["steps"]))
    console.print(_progress_table(tasks, recipes))
    subsets = dict.fromkeys(
        row["subset"] for task in tasks for row in task["rows"] if row["subset"] != "val"
    )
    for subset in subsets:
        console.print(_error_table(results, recipes, subset))
    for line in _lines(results):
        console.print(Text(line))


def _table(title: str) -> Table:
    return Table(
        title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )


def _progress_table(tasks: Sequence[Mapping[str, Any]], recipes: Sequence[str]) -> Table:
    runs = [is_done for task in tasks for is_done in task["runs"].values()]
    table = _table(f"{sum(runs)} of {len(runs)} runs done")
    table.add_column("task")
    for recipe in recipes:
        table.add_column(escape(recipe), justify="right")
    for task in tasks:
        cells = []
        for recipe in recipes:
            own = [done for run, done in task["runs"].items() if run.rpartition("-s")[0] == recipe]
            text = f"{sum(own)}/{len(own)}" if own else ""
            cells.append(Text(text, style="green" if own and all(own) else "dim"))
        table.add_row(escape(task["name"]), *cells)
    return table


def _error_table(results: Mapping[str, Any], recipes: Sequence[str], subset: str) -> Table:
    """One row a task; below each error, its gain over full fine-tuning."""
    table = _table(f"{subset}: {results['metric'].upper()}, and below it the gain over full")
    table.add_column("task")
    for recipe in recipes:
        table.add_column(escape(recipe), justify="right")
    for task in results["tasks"]:
        for target in task["targets"]:
            found = {r["recipe"]: r["value"] for r in _of(task["rows"], target, subset)}
            if not found:
                continue
            gains = {
                row["recipe"]: row["gain_percent"]
                for row in _of(task["gains"], target, subset)
                if row["reference"] == "full"
            }
            decimals, best = n_decimals(found.values()), min(found.values())
            cells = [
                _cell(found.get(recipe), gains.get(recipe), decimals, best) for recipe in recipes
            ]
            name = task["name"] if task["name"] == target else f"{task['name']}: {target}"
            table.add_row(stack(name, f"({task['unit']})"), *cells)
    return table


def _of(rows: Sequence[Mapping[str, Any]], target: str, subset: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if (row["target"], row["subset"]) == (target, subset)]


def _cell(value: float | None, gain: float | None, decimals: int, best: float) -> Text:
    if value is None:
        return Text(MISSING, style="dim")
    below = [] if gain is None else [f"{format_gain(gain)} %"]
    return stack(
        format_quantity(value, decimals), *below, style="bold green" if value == best else ""
    )


def _lines(results: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{row['subset']}: {row['method']} against {row['reference']} over {row['n_tasks']} tasks: "
        f"{format_gain(row['gain_percent'])} % [{format_gain(row['low'])}, "
        f"{format_gain(row['high'])}], better on {row['n_better']}, {format_p(row['p_holm'])}"
        for row in results["over_tasks"]
    ]
    for row in results["ranks"]:
        ranked = sorted(row["ranks"].items(), key=lambda pair: pair[1])
        text = ", ".join(f"{name} {rank:.2f}" for name, rank in ranked)
        lines.append(
            f"{row['subset']}: mean ranks over {row['n_tasks']} tasks: {text} "
            f"(apart by {row['critical_difference']:.2f} or more can be told apart)"
        )
    for row in results["groups"]:
        gain = row["gains"].get("full")
        against = f", {format_gain(gain['percent'])} % against full" if gain else ""
        lines.append(
            f"{row['group']}, {row['subset']}: {row['recipe']} {row['value']:.4g} "
            f"[{row['low']:.4g}, {row['high']:.4g}] over {row['n_folds']} folds{against}"
        )
    return lines

"""Tables of what a suite ran: runs done and to do, its recipes, commands and settings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tether.report.format import as_number, format_quantity
from tether.report.provenance import N_ELEMENTS, flatten, key_value_table
from tether.report.suite_read import named_recipes, run_states
from tether.report.tables import Cell, Column, Table, number_cell

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ELEMENTS_ARE",
    "element_words",
    "outside_table",
    "recipes_table",
    "settings_tables",
    "stages_table",
    "suite_runs_table",
]

Results = dict[str, Any]
#: What `element_words` says of each element.
ELEMENTS_ARE = "% of the structures outside (of training)"


def suite_runs_table(results: Results) -> Table:
    """Runs done of each recipe and task, with the time that one took.

    Parameters
    ----------
    results : dict
        `results.json`.

    Returns
    -------
    Table
        A row a recipe, done or not.
    """
    tasks = results["tasks"]
    columns = [Column("Recipe", numeric=False), *(Column(str(task["name"])) for task in tasks)]
    rows = [
        [Cell(name), *(_runs_cell(task, name) for task in tasks)] for name in named_recipes(results)
    ]
    return Table("Runs done of each recipe and task, and seconds a run", columns, rows, [])


def _runs_cell(task: Mapping[str, Any], recipe: str) -> Cell:
    states = run_states(task, recipe)
    if not states:
        return Cell("")
    seconds = next(
        (as_number(row.get("seconds")) for row in task["rows"] if row["recipe"] == recipe), None
    )
    details = () if seconds is None else (f"{format_quantity(seconds, 0)} s",)
    return Cell(f"{sum(states)}/{len(states)}", details=details, muted=not all(states))


def outside_table(results: Results) -> Table:
    """What is held out in each task, by its elements.

    Parameters
    ----------
    results : dict
        `results.json`.

    Returns
    -------
    Table
        A row a task whose split knows; without rows where no element tells any set from training.
    """
    columns = [
        Column("Task", numeric=False),
        Column("Structures outside"),
        Column(f"Elements: {ELEMENTS_ARE}", numeric=False),
    ]
    rows = []
    for task in results["tasks"]:
        words = element_words(task)
        n_outside = as_number(task["sizes"].get("test/ood"))
        if words and n_outside is not None:
            rows.append([Cell(str(task["name"])), number_cell(n_outside, 0), Cell(words)])
    return Table("What is held out", columns, rows, [])


def element_words(task: Mapping[str, Any]) -> str:
    """Elements that tell what a task holds out from its training set.

    Parameters
    ----------
    task : mapping
        Of `results.json`.

    Returns
    -------
    str
        Such as "Fe 98 (3), O 87 (45)", see `ELEMENTS_ARE`; "" where none does.
    """
    found = (task.get("elements") or {}).get("test/ood") or []
    return ", ".join(
        f"{one['element']} {100 * one['share']:.0f} ({100 * one['train_share']:.0f})"
        for one in found[:N_ELEMENTS]
    )


def recipes_table(results: Results) -> Table:
    """What each recipe is.

    Parameters
    ----------
    results : dict
        `results.json`.

    Returns
    -------
    Table
        Its base and what was changed, as the suite's file has it.
    """
    columns = [Column(label, numeric=False) for label in ("Recipe", "Tasks", "Settings")]
    rows = [
        [
            Cell(str(entry["name"])),
            Cell("property and force field" if entry["multitask"] else "property"),
            Cell("; ".join(f"{key} {text}" for key, text in flatten(entry["settings"]))),
        ]
        for entry in results["recipes"]
    ]
    return Table("Recipes", columns, rows, [])


def stages_table(results: Results) -> Table:
    """The commands that made the data.

    Parameters
    ----------
    results : dict
        `results.json`.

    Returns
    -------
    Table
        In their order.
    """
    columns = [Column("Command", numeric=False), Column("State", numeric=False)]
    rows = [
        [Cell(str(stage["command"])), Cell("done" if stage["done"] else "to do")]
        for stage in results["stages"]
    ]
    return Table("Commands that made the data", columns, rows, [])


def settings_tables(results: Results) -> list[Table]:
    """Settings of the tasks; tasks with the same ones share a table.

    Parameters
    ----------
    results : dict
        `results.json`.

    Returns
    -------
    list of Table
        Empty where `results.json` has no settings.
    """
    shared: dict[str, list[str]] = {}
    for task in results["tasks"]:
        if settings := task.get("settings"):
            shared.setdefault(json.dumps(settings, sort_keys=True), []).append(str(task["name"]))
    return [
        key_value_table(f"Settings of {', '.join(names)}", json.loads(text))
        for text, names in shared.items()
    ]

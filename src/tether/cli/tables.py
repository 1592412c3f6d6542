"""The comparison in a terminal: one row a recipe, reference lines below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from tether.report.format import MISSING, as_number, format_quantity, n_decimals
from tether.report.results import (
    average_forgetting,
    pooled_row,
    recipes_of,
    subsets_of,
    targets_of,
    unit_of,
)
from tether.report.tables import Cell, overview_table
from tether.report.tables import Table as Values
from tether.report.verdict import verdict

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["full_width", "print_comparison", "stack"]

#: Characters: wider than any table.
_UNBOUNDED = 10_000


def print_comparison(summary: Mapping[str, Any], console: Console) -> None:
    """Print a comparison: one table a target where it fits, two where it does not.

    Parameters
    ----------
    summary : mapping
        `summary.json`, checked by `tether.report.read.read_summary`.
    console : rich.console.Console
        Where to print; its width decides the layout.
    """
    for target in targets_of(summary):
        console.print()
        console.print(Text(verdict(summary, target)))
        values = overview_table(summary, target)
        tables = [_table(summary, target, values, console, parts=("errors", "gains", "cost"))]
        if full_width(tables[0], console) > console.width:
            tables = [
                _table(summary, target, values, console, parts=parts)
                for parts in (("errors",), ("gains", "cost"))
            ]
        for table in tables:
            console.print(table)
        for line in _limit_lines(values):
            console.print(Text(line))
        for row in values.foot:
            console.print(Text(f"{_reference_line(values, row)}", style="dim"))
    if not targets_of(summary):
        console.print("No run has finished, so there is nothing to compare yet.")


def full_width(table: Table, console: Console) -> int:
    """Characters that a table takes with nothing cut, whatever the console has."""
    options = console.options.update(width=_UNBOUNDED)
    return Measurement.get(console, options, table).maximum


def _table(
    summary: Mapping[str, Any],
    target: str,
    values: Values,
    console: Console,
    *,
    parts: tuple[str, ...],
) -> Table:
    unit = unit_of(summary, target)
    title = f"{target} ({unit})" if unit else target
    table = Table(
        title=Text(f"{title}: {', '.join(parts)}", style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0 if console.width < 120 else 1),
        pad_edge=False,
    )
    recipes = recipes_of(summary)
    columns: list[tuple[str, list[Text]]] = []
    if "errors" in parts:
        columns += _error_columns(values)
    if "gains" in parts:
        columns += _gain_columns(values)
    if "cost" in parts:
        columns += [
            ("Force MAE\n(eV/Å)", _force_cells(summary, recipes)),
            ("Steps\nTime", _cost_cells(summary, target, recipes)),
        ]
    table.add_column("Recipe", no_wrap=False, overflow="fold", max_width=14)
    for label, _ in columns:
        table.add_column(Text(label), justify="right", no_wrap=True)
    for idx, recipe in enumerate(recipes):
        table.add_row(Text(recipe), *(cells[idx] for _, cells in columns))
    return table


def stack(*lines: str, style: str = "") -> Text:
    """Stack a number with smaller print below it; empty lines are left out."""
    text = Text(lines[0], style=style, justify="right")
    for line in filter(None, lines[1:]):
        text.append(f"\n{line}", style="not bold dim")
    return text


def _error_columns(values: Values) -> list[tuple[str, list[Text]]]:
    """RMSE with its interval a test set, then the MAE of all test sets under each other."""
    found, mae_labels, mae_cells = [], [], []
    for idx, column in enumerate(values.columns):
        cells = [row[idx] for row in values.rows]
        subset = column.group.split(" ")[0]
        if column.label == "RMSE":
            below = "[interval]" if any(cell.details for cell in cells) else ""
            found.append((f"{subset} RMSE\n{below}", [_error_cell(cell) for cell in cells]))
        elif column.label == "MAE":
            mae_labels.append(subset)
            mae_cells.append([cell.text for cell in cells])
    stacked = [stack(*texts) for texts in zip(*mae_cells, strict=True)]
    return [*found, (f"MAE\n{'/'.join(mae_labels)}", stacked)]


def _error_cell(cell: Cell) -> Text:
    style = "bold green" if cell.best else ""
    return stack(cell.text, *cell.details, style=style)


def _gain_columns(values: Values) -> list[tuple[str, list[Text]]]:
    """OOD gain in per cent over each reference, p value below; ID gain where there is no OOD."""
    gains = [column for column in values.columns if "gain over" in column.group]
    shown = [column for column in gains if column.label != "ID"] or gains
    found = []
    for idx, column in enumerate(values.columns):
        if column not in shown:
            continue
        reference = column.group.removeprefix("RMSE gain over ").removesuffix(" (%)")
        cells = [_gain_cell(row[idx]) for row in values.rows]
        found.append((f"{column.label} gain\nvs {reference}", cells))
    return found


def _gain_cell(cell: Cell) -> Text:
    if cell.value is None:
        return Text(MISSING, style="dim")
    style = "green" if cell.value > 0 else "red" if cell.value < 0 else ""
    p_value = [detail for detail in cell.details if detail.startswith("p")]
    return stack(f"{cell.text} %", *p_value, style=style)


def _force_cells(summary: Mapping[str, Any], recipes: list[str]) -> list[Text]:
    entries = [average_forgetting(summary, recipe) for recipe in recipes]
    decimals = max(
        n_decimals(entry[key] for entry in entries)
        for key in ("force_mae_before", "force_mae_after")
    )
    cells = []
    for entry in entries:
        before, after, ratio = (
            entry[key] for key in ("force_mae_before", "force_mae_after", "ratio")
        )
        if before is None and after is None:
            cells.append(Text(MISSING, style="dim"))
            continue
        change = f"{format_quantity(before, decimals)}→{format_quantity(after, decimals)}"
        cells.append(stack(change, *([] if ratio is None else [f"×{ratio:.2f}"])))
    return cells


def _cost_cells(summary: Mapping[str, Any], target: str, recipes: list[str]) -> list[Text]:
    cells = []
    for recipe in recipes:
        rows = (
            pooled_row(summary, recipe, target=target, subset=subset, metric="rmse")
            for subset in subsets_of(summary, target)
        )
        row = next(filter(None, rows), {})
        steps, seconds = as_number(row.get("property_steps")), as_number(row.get("seconds"))
        decimals = n_decimals([seconds], significant=2)
        time = MISSING if seconds is None else f"{format_quantity(seconds, decimals)} s"
        cells.append(stack(format_quantity(steps, 0), time))
    return cells


def _limit_lines(values: Values) -> list[str]:
    """Gap between OOD and ID error, in units of the reference's, one line an OOD set."""
    found = []
    for idx, column in enumerate(values.columns):
        if column.group.startswith("Gap to ID"):
            cells = [f"{row[0].text} {row[idx].text}" for row in values.rows]
            what = column.group.replace("Gap", f"{column.label} gap", 1)
            found.append(f"{what}: {', '.join(cells)}")
    return found


def _reference_line(values: Values, row: list[Cell]) -> str:
    parts = [
        f"{column.group.split(' ')[0]} {column.label} {cell.text}"
        for column, cell in zip(values.columns, row, strict=True)
        if column.label in {"MAE", "RMSE"} and cell.value is not None
    ]
    return f"{row[0].text}: {', '.join(parts)}"

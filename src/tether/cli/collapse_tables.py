"""Progress of a collapse measurement, and its tables in a terminal."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tether.cli.tables import stack
from tether.report.collapse_predicts import predicts_table
from tether.report.collapse_read import Collapse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from tether.drift.comparison import MeasureJob

__all__ = ["measure_progress", "print_collapse"]

_TITLES = {
    "atoms": "atoms of {subset}, last layer",
    "edges": "edges of {subset}, last layer",
    "function": "what the model does",
}
MISSING = "–"


@contextmanager
def measure_progress(
    jobs: Sequence[MeasureJob], *, console: Console
) -> Iterator[Callable[[Path, str], None]]:
    """A bar over all stages of the runs that are to be measured.

    Parameters
    ----------
    jobs : sequence of MeasureJob
        Those that are done already do not count.
    console : Console
        Where to draw; a log file gets a plain line a stage.

    Yields
    ------
    callable
        To be called with a run's folder and the stage that is done.
    """
    from tether.drift.run import STAGES

    total = len(STAGES) * sum(not job.is_done for job in jobs)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("measuring", total=total, visible=total > 0)

        def report(folder: Path, stage: str) -> None:
            progress.update(bar, advance=1, description=f"{folder.name}: {stage}")
            if not console.is_terminal:
                console.print(Text(f"{folder.name}: {stage} done"), soft_wrap=True)

        yield report


def print_collapse(content: Mapping[str, Any], console: Console) -> None:
    """A table each for atoms, edges and function; then what foretells the OOD error.

    Parameters
    ----------
    content : mapping
        Of ``collapse.json``.
    console : Console
        Where to print.
    """
    rows = content["pooled"]
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    for points, title in _TITLES.items():
        here = [row for row in rows if row["points"] == points and row["layer"] is None]
        if here:
            console.print(_measure_table(here, recipes, title.format(subset=content["subset"])))
    console.print(
        Text("[…]: 95 % interval; null: where nothing has changed; ↓ ↑: the way of collapse"),
        style="dim",
    )
    # The same atoms of the same set for all runs of a comparison.
    left_out = content["runs"][0].get("left_out", {}) if content["runs"] else {}
    if left_out.get("n_classes"):
        console.print(
            Text(
                f"not sampled: {left_out['n_classes']} rarer classes, "
                f"{100 * left_out['share_of_atoms']:.0f} % of the atoms"
            ),
            style="dim",
        )
    table = _prediction_table(content)
    if table is not None:
        console.print(table)


def _measure_table(rows: list[dict[str, Any]], recipes: list[str], title: str) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("Measure", overflow="fold")
    for heading in ("Null", "Before", *recipes):
        table.add_column(heading, justify="right")
    for name in dict.fromkeys(row["name"] for row in rows):
        found = {row["recipe"]: row for row in rows if row["name"] == name}
        first = next(iter(found.values()))
        unit = "" if first["unit"] in {"", "1"} else f" ({first['unit']})"
        way = "↓" if first["collapse_means"] == "lower" else "↑"
        null = stack(_interval(first, "null_low", "null_high"))
        cells = [_value_cell(found.get(recipe)) for recipe in recipes]
        table.add_row(
            Text(f"{first['label']}{unit} {way}"), null, Text(_number(first["before"])), *cells
        )
    return table


def _prediction_table(content: Mapping[str, Any]) -> Table | None:
    """Measures by how well they rank the runs; none where no correlation could be computed."""
    known = [row for row in content["predicts"] if row["rho"] is not None]
    if not known:
        return None
    shown = predicts_table(Collapse(runs=[], predicts=known))
    title = f"rank correlation of collapse with the OOD error of {content['target']}"
    title += " (ρ > 0: they grow together)"
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for column in shown.columns:
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        table.add_column(column.label, justify=justify, overflow="fold")
    for cells in shown.rows:
        table.add_row(*(Text(cell.text) for cell in cells))
    return table


def _value_cell(row: Mapping[str, Any] | None) -> Text:
    if row is None:
        return Text(MISSING, style="dim")
    if row["value"] is None:
        return Text(row["missing"] or MISSING, style="dim")
    return stack(_number(row["value"]), _interval(row, "low", "high"))


def _interval(row: Mapping[str, Any], low: str, high: str) -> str:
    if row[low] is None or row[high] is None:
        return ""
    return f"[{_number(row[low])}, {_number(row[high])}]"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}"

"""Tables of the report as plain values; the template only draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tether.report.format import (
    MISSING,
    as_number,
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
    recipes_of,
    reference_lines_of,
    seed_values,
    subset_label,
    subsets_of,
    unit_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tether.report.read import Run

__all__ = [
    "Cell",
    "Column",
    "Table",
    "forgetting_table",
    "number_cell",
    "overview_table",
    "runs_table",
    "seeds_table",
]

_METRICS = ("mae", "rmse")


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes
    ----------
    text : str
        What is shown.
    value : float or None
        The exact number behind it, for machines (`<data value>`).
    details : tuple of str
        Smaller lines below.
    best : bool
        Whether it is the best of its column.
    muted : bool
        Whether it says that something is not there.
    tone : {"", "worse"}
        "worse" where it lies on the wrong side of what chance would give; the words say so too.
    """

    text: str
    value: float | None = None
    details: tuple[str, ...] = ()
    best: bool = False
    muted: bool = False
    tone: str = ""


def number_cell(
    value: float | None, decimals: int, *, details: tuple[str, ...] = (), best: bool = False
) -> Cell:
    """Cell of a number with fixed decimals, or a muted dash."""
    text = format_quantity(value, decimals)
    return Cell(text, value, details=details, best=best, muted=value is None)


@dataclass(frozen=True)
class Column:
    """Head of a column.

    Attributes
    ----------
    label : str
        Its own words, with the unit.
    group : str
        Head shared with its neighbours, or "".
    numeric : bool
        Whether its cells are aligned right.
    """

    label: str
    group: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first cell of each row is the row's head.

    Attributes
    ----------
    caption : str
        What it shows.
    columns : list of Column
        Heads.
    rows : list of list of Cell
        Body.
    foot : list of list of Cell
        Reference rows under the body.
    """

    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    foot: list[list[Cell]]

    @property
    def head(self) -> list[list[tuple[Column, int, int]]]:
        """Head rows; each entry is (column, columns spanned, rows spanned)."""
        if not any(column.group for column in self.columns):
            return [[(column, 1, 1) for column in self.columns]]
        top: list[tuple[Column, int, int]] = []
        for column in self.columns:
            if not column.group:
                top.append((column, 1, 2))
            elif top and top[-1][2] == 1 and top[-1][0].label == column.group:
                top[-1] = (top[-1][0], top[-1][1] + 1, 1)
            else:
                top.append((Column(column.group), 1, 1))
        return [top, [(column, 1, 1) for column in self.columns if column.group]]


def overview_table(summary: Mapping[str, Any], target: str) -> Table:
    """Recipes × (errors with intervals, gains with p) for one target.

    Parameters
    ----------
    summary : mapping
        `summary.json`.
    target : str
        Which target.

    Returns
    -------
    Table
        The best error of each column is marked; reference predictors are in the foot.
    """
    recipes, subsets, unit = (
        recipes_of(summary),
        subsets_of(summary, target),
        unit_of(summary, target),
    )
    references = list(dict.fromkeys(str(gain["reference"]) for gain in summary["gains"]))
    columns = [Column("Recipe", numeric=False)]
    body = [[Cell(recipe)] for recipe in recipes]
    queries = [(subset, metric) for subset in subsets for metric in _METRICS]
    lines = {query: _reference_values(summary, target, *query) for query in queries}
    names = list(dict.fromkeys(name for found in lines.values() for name in found))
    foot = [[Cell(name)] for name in names]
    for subset, metric in queries:
        group = f"{subset_label(subset)} error" + (f" ({unit})" if unit else "")
        columns.append(Column(metric.upper(), group=group))
        cells, decimals = _error_column(summary, recipes, target, subset, metric)
        for row, cell in zip(body, cells, strict=True):
            row.append(cell)
        for row, name in zip(foot, names, strict=True):
            value = lines[subset, metric].get(name)
            row.append(number_cell(value, decimals))
    for reference in references:
        for subset in subsets:
            group = f"RMSE gain over {reference} (%)"
            columns.append(Column(subset_label(subset), group=group))
            for row, recipe in zip(body, recipes, strict=True):
                row.append(_gain_cell(summary, recipe, reference, target, subset))
            for row in foot:
                row.append(Cell(""))
    _add_limit_columns(summary, target, columns, (recipes, body, foot))
    pooled = "pooled over seeds" if _n_seeds(summary) > 1 else "one seed"
    caption = f"{target}: error on the test sets, {pooled}"
    return Table(caption, columns, body, foot)


def _add_limit_columns(
    summary: Mapping[str, Any],
    target: str,
    columns: list[Column],
    parts: tuple[Sequence[str], list[list[Cell]], list[list[Cell]]],
) -> None:
    """Distance to the ID limit on each OOD set, where the comparison has it."""
    recipes, body, foot = parts
    entries = {
        (entry["recipe"], entry["subset"]): entry
        for entry in summary["limit_distances"]
        if entry["target"] == target and entry["metric"] == "rmse"
    }
    for subset in dict.fromkeys(subset for _, subset in entries):
        reference = next(e["reference"] for (_, s), e in entries.items() if s == subset)
        columns.append(Column(subset_label(subset), group=f"Gap to ID ({reference} = 1)"))
        for row, recipe in zip(body, recipes, strict=True):
            entry = entries.get((recipe, subset), {})
            value = as_number(entry.get("value"))
            low, high = as_number(entry.get("low")), as_number(entry.get("high"))
            interval = format_interval(low, high, 2)
            details = (interval,) if interval and recipe != reference else ()
            row.append(number_cell(value, 2, details=details))
        for row in foot:
            row.append(Cell(""))


def _reference_values(
    summary: Mapping[str, Any], target: str, subset: str, metric: str
) -> dict[str, float]:
    return reference_lines_of(summary, target=target, subset=subset, metric=metric)


def _n_seeds(summary: Mapping[str, Any]) -> int:
    return len({row["seed"] for row in summary["rows"]} - {"pooled"})


def _error_column(
    summary: Mapping[str, Any], recipes: Sequence[str], target: str, subset: str, metric: str
) -> tuple[list[Cell], int]:
    query = {"target": target, "subset": subset, "metric": metric}
    rows = [pooled_row(summary, recipe, **query) or {} for recipe in recipes]
    values = [as_number(row.get("value")) for row in rows]
    decimals = n_decimals(values)
    best = best_recipe(summary, **query) if len(recipes) > 1 else None
    cells = []
    for recipe, row, value in zip(recipes, rows, values, strict=True):
        interval = format_interval(as_number(row.get("low")), as_number(row.get("high")), decimals)
        details = (interval,) if interval else ()
        cells.append(number_cell(value, decimals, details=details, best=recipe == best))
    return cells, decimals


def _gain_cell(
    summary: Mapping[str, Any], recipe: str, reference: str, target: str, subset: str
) -> Cell:
    if recipe == reference:
        return Cell("reference", muted=True)
    gain = gain_of(summary, recipe, reference, target=target, subset=subset, metric="rmse")
    percent = as_number(gain["gain_percent"]) if gain else None
    if gain is None or percent is None:
        return Cell(MISSING, muted=True)
    low, high = (as_number(gain.get(key)) for key in ("low", "high"))
    interval = "" if low is None or high is None else f"[{format_gain(low)}, {format_gain(high)}]"
    details = (interval, format_p(as_number(gain.get("p_value"))))
    return Cell(format_gain(percent), percent, details=tuple(filter(None, details)))


def seeds_table(summary: Mapping[str, Any], target: str) -> Table:
    """Every seed's RMSE on each test set, for one target.

    Parameters
    ----------
    summary : mapping
        `summary.json`.
    target : str
        Which target.

    Returns
    -------
    Table
        A row a recipe and seed.
    """
    unit = unit_of(summary, target)
    columns = [Column("Recipe", numeric=False), Column("Seed")]
    found: dict[tuple[str, int], list[Cell]] = {}
    queries = [(subset, metric) for subset in subsets_of(summary, target) for metric in _METRICS]
    by_query = []
    for subset, metric in queries:
        group = f"{subset_label(subset)} error" + (f" ({unit})" if unit else "")
        columns.append(Column(metric.upper(), group=group))
        values = {
            (recipe, seed): value
            for recipe in recipes_of(summary)
            for seed, value in seed_values(
                summary, recipe, target=target, subset=subset, metric=metric
            ).items()
        }
        by_query.append((values, n_decimals(values.values())))
        found.update({key: [] for key in values})
    rows = []
    for recipe, seed in sorted(found, key=lambda key: (recipes_of(summary).index(key[0]), key[1])):
        row = [Cell(recipe), Cell(str(seed))]
        for values, decimals in by_query:
            value = values.get((recipe, seed))
            row.append(number_cell(value, decimals))
        rows.append(row)
    return Table(f"{target}: error of every seed", columns, rows, [])


def forgetting_table(summary: Mapping[str, Any]) -> Table:
    """Force-field error before and after fine-tuning, averaged over seeds.

    Parameters
    ----------
    summary : mapping
        `summary.json`.

    Returns
    -------
    Table
        A row a recipe; recipes without a force-field head say so.
    """
    names = [str(entry["recipe"]) for entry in summary["forgetting"]]
    recipes = list(dict.fromkeys([*recipes_of(summary), *names]))
    columns = [Column("Recipe", numeric=False)]
    for quantity, unit in (("Force MAE", "eV/Å"), ("Energy MAE", "eV/atom")):
        columns += [Column(when, group=f"{quantity} ({unit})") for when in ("before", "after")]
    columns.insert(3, Column("ratio", group="Force MAE (eV/Å)"))
    keys = ("force_mae_before", "force_mae_after", "ratio", "energy_mae_before", "energy_mae_after")
    entries = {recipe: average_forgetting(summary, recipe) for recipe in recipes}
    rows = []
    for recipe, entry in entries.items():
        row = [Cell(recipe)]
        for key in keys:
            value, prefix = entry[key], "×" if key == "ratio" else ""
            decimals = 2 if key == "ratio" else n_decimals(e[key] for e in entries.values())
            shown = prefix + format_quantity(value, decimals) if value is not None else MISSING
            row.append(Cell(shown, value, muted=value is None))
        rows.append(row)
    return Table("Force-field error before and after, mean over seeds", columns, rows, [])


def runs_table(runs: Sequence[Run]) -> Table:
    """List what each run cost, and what is missing of it.

    Parameters
    ----------
    runs : sequence of Run
        Run folders.

    Returns
    -------
    Table
        A row a run.
    """
    columns = [Column("Recipe", numeric=False)]
    labels = ("Seed", "Property steps", "Force-field steps", "Best step", "Time (s)")
    columns += [Column(label) for label in labels]
    columns.append(Column("State", numeric=False))
    rows = []
    for run in runs:
        metrics = run.metrics or {}
        row = [Cell(run.recipe), Cell(MISSING if run.seed is None else str(run.seed))]
        for key in ("property_steps", "forcefield_steps", "best_step", "seconds"):
            value = as_number(metrics.get(key))
            # A tiny run takes less than a second.
            decimals = n_decimals([value], significant=2) if key == "seconds" else 0
            row.append(number_cell(value, decimals))
        state = "; ".join(run.problems.values())
        row.append(Cell(f"not available: {state}" if state else "complete", muted=bool(state)))
        rows.append(row)
    return Table("Runs of this comparison", columns, rows, [])

"""Panels of the report: a comparison's files turned into figures with captions and alt texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tether.report.figures import error_bars, learning_curves, parity_plot, subset_colour
from tether.report.format import as_number, format_quantity, n_decimals
from tether.report.provenance import training_range
from tether.report.results import (
    ROUNDING,
    pooled_row,
    recipes_of,
    reference_lines_of,
    seed_values,
    subset_label,
    subsets_of,
    targets_of,
    unit_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import plotly.graph_objects as go

    from tether.report.read import Comparison, Predictions, Run

__all__ = [
    "Panel",
    "bar_panels",
    "curve_panel",
    "curve_panels",
    "or_nan",
    "parity_panels",
    "recipe_positions",
    "subsample",
]

MAX_POINTS = 2000
MAX_CURVE_POINTS = 120
_Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Panel:
    """A figure with its words, or the reason why there is none.

    Attributes
    ----------
    title : str
        Short heading.
    caption : str
        What is shown, and what was left out.
    alt : str
        The figure in words, for those who cannot see it.
    figure : plotly.graph_objects.Figure or None
        None where `missing` says why.
    missing : str
        Reason, "" where there is a figure.
    """

    title: str
    caption: str = ""
    alt: str = ""
    figure: go.Figure | None = None
    missing: str = ""


def bar_panels(summary: Mapping[str, Any], target: str) -> list[Panel]:
    """Make a panel of bars for each error and test set of a target.

    Parameters
    ----------
    summary : mapping
        `summary.json`.
    target : str
        Which target.

    Returns
    -------
    list of Panel
        RMSE first.
    """
    queries = [
        (metric, subset) for metric in ("rmse", "mae") for subset in subsets_of(summary, target)
    ]
    return [_bar_panel(summary, target, subset, metric) for metric, subset in queries]


def _bar_panel(summary: Mapping[str, Any], target: str, subset: str, metric: str) -> Panel:
    query = {"target": target, "subset": subset, "metric": metric}
    recipes = recipes_of(summary)
    rows = [pooled_row(summary, recipe, **query) or {} for recipe in recipes]
    value, low, high = (
        np.array([or_nan(row.get(key)) for row in rows]) for key in ("value", "low", "high")
    )
    title = f"{subset_label(subset)} {metric.upper()}"
    unit = unit_of(summary, target)
    if not np.isfinite(value).any():
        return Panel(title, missing="no finished run has this number")
    lines = reference_lines_of(summary, **query)
    seeds = [list(seed_values(summary, recipe, **query).values()) for recipe in recipes]
    figure, off_scale = error_bars(
        recipes,
        value,
        low,
        high,
        seed_values=seeds if max(map(len, seeds)) > 1 else [[] for _ in recipes],
        reference_lines=lines,
        axis_title=f"{metric.upper()} ({unit})" if unit else metric.upper(),
        colour=subset_colour(subset),
    )
    decimals = n_decimals(value)
    beyond = [f"{name} ({format_quantity(lines[name], decimals)} {unit})" for name in off_scale]
    caption = f"Beyond the axis: {', '.join(beyond)}." if beyond else ""
    numbers = [
        f"{recipe} {format_quantity(number, decimals)}"
        for recipe, number in zip(recipes, value.tolist(), strict=True)
    ]
    numbers += [f"{name} {format_quantity(number, decimals)}" for name, number in lines.items()]
    return Panel(
        title, caption, f"Bars of the {title} in {unit or 'no unit'}: {', '.join(numbers)}.", figure
    )


def or_nan(value: object) -> float:
    """Return the number, or NaN for what is none."""
    number = as_number(value)
    return math.nan if number is None else number


def subsample(n: int, limit: int) -> NDArray[np.int64]:
    """At most `limit` of n positions, sorted, the same ones every time.

    Parameters
    ----------
    n : int
        Number of positions.
    limit : int
        Most that are kept.

    Returns
    -------
    ndarray of shape (min(n, limit),)
        Positions.
    """
    if n <= limit:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, size=limit, replace=False))


def recipe_positions(comparison: Comparison) -> dict[str, int]:
    """Position of each recipe, which gives its colour in every figure of the page."""
    names = [*recipes_of(comparison.summary), *(run.recipe for run in comparison.runs)]
    return {name: idx for idx, name in enumerate(dict.fromkeys(names))}


def parity_panels(comparison: Comparison, target: str) -> list[Panel]:
    """Make a parity panel for each recipe, of its first seed that has predictions.

    Parameters
    ----------
    comparison : Comparison
        The folder.
    target : str
        Which target.

    Returns
    -------
    list of Panel
        In the order of the recipes, on common axes.
    """
    by_recipe: dict[str, list[Run]] = {name: [] for name in recipes_of(comparison.summary)}
    for run in comparison.runs:
        by_recipe.setdefault(run.recipe, []).append(run)
    chosen = {
        recipe: next((run for run in runs if target in run.predictions), None)
        for recipe, runs in by_recipe.items()
    }
    ends: list[float] = []
    for found in filter(None, chosen.values()):
        data = found.predictions[target]
        # Predictions far off the labels must not squeeze the rest into a corner, hence quantiles.
        ends += np.nanquantile(data.true, [0.0, 1.0]).tolist()
        ends += np.nanquantile(data.pred, [0.002, 0.998]).tolist()
    finite = [end for end in ends if math.isfinite(end)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    pad = 0.04 * (high - low) or 0.5
    shade = training_range(
        comparison.summary.get("split") or {},
        target,
        n_targets=len(targets_of(comparison.summary)),
    )
    unit = unit_of(comparison.summary, target)
    panels = []
    for recipe, first in chosen.items():
        if first is None:
            panels.append(Panel(recipe, missing=_why_none(by_recipe[recipe], target)))
            continue
        axis_range = (low - pad, high + pad)
        panels.append(_parity_panel(first, target, axis_range=axis_range, shade=shade, unit=unit))
    return panels


def _why_none(runs: Sequence[Run], target: str) -> str:
    if not runs:
        return "there is no run folder of this recipe"
    problem = runs[0].problems.get("predictions.parquet")
    return problem or f"predictions.parquet has no rows for {target}"


def _parity_panel(
    run: Run,
    target: str,
    *,
    axis_range: tuple[float, float],
    shade: tuple[float, float] | None,
    unit: str,
) -> Panel:
    data = run.predictions[target]
    found = dict.fromkeys(data.subset.tolist())
    subsets = [name for name in found if name.startswith("test/")] or list(found)
    subsets.sort()
    points: dict[str, _Curve] = {}
    labels: dict[str, str] = {}
    limit = MAX_POINTS // max(len(subsets), 1)
    n_all = n_outside = 0
    for name in subsets:
        true, pred = _finite_points(data, name)
        keep = subsample(len(true), limit)
        points[name], labels[name] = (true[keep], pred[keep]), subset_label(name)
        n_all += len(true)
        inside = (pred[keep] >= axis_range[0]) & (pred[keep] <= axis_range[1])
        n_outside += int((~inside).sum())
    n_shown = sum(len(true) for true, _ in points.values())
    figure = parity_plot(
        points, labels=labels, axis_range=axis_range, training_range=shade, unit=unit
    )
    seed = "" if run.seed is None else f"Seed {run.seed}; "
    caption = f"{seed}{n_shown:,} of {n_all:,} test predictions shown."
    if n_outside:
        caption += f" {n_outside:,} of them beyond the axes."
    words = ", ".join(f"{labels[name]} {_slope(*points[name])}" for name in points)
    alt = f"Predicted against true {target} of {run.recipe}; slope of the best line: {words}."
    return Panel(run.recipe, caption, alt, figure)


def _finite_points(data: Predictions, subset: str) -> _Curve:
    keep = (data.subset == subset) & np.isfinite(data.true) & np.isfinite(data.pred)
    return data.true[keep], data.pred[keep]


def _slope(true: NDArray[np.float64], pred: NDArray[np.float64]) -> str:
    centred = true - true.mean() if true.size else true
    spread = float(centred @ centred)
    return f"{float(centred @ pred) / spread:.2f}" if spread > 0 else "unknown"


def curve_panels(comparison: Comparison, target: str) -> list[Panel]:
    """Draw training loss, validation RMSE and force error over the steps.

    Parameters
    ----------
    comparison : Comparison
        The folder.
    target : str
        Whose validation error is drawn.

    Returns
    -------
    list of Panel
        Three panels, each with a line a run.
    """
    unit = unit_of(comparison.summary, target)
    return [
        curve_panel(comparison, "Training loss", "property loss", _train_loss, log_scale=True),
        curve_panel(
            comparison,
            "Validation RMSE",
            f"RMSE of {target} ({unit})" if unit else f"RMSE of {target}",
            lambda event: (event.get("val_rmse") or {}).get(target),
            log_scale=True,
        ),
        curve_panel(
            comparison,
            "Force error",
            "force MAE (eV/Å)",
            _force_error,
            log_scale=True,
        ),
    ]


def _force_error(event: Mapping[str, Any]) -> float | None:
    error = as_number((event.get("forcefield") or {}).get("force_mae"))
    return 0.0 if error is not None and error < ROUNDING else error


def _train_loss(event: Mapping[str, Any]) -> object:
    return (event.get("losses") or {}).get("property")


def curve_panel(
    comparison: Comparison,
    title: str,
    axis_title: str,
    value_of: Callable[[Mapping[str, Any]], object],
    *,
    log_scale: bool,
) -> Panel:
    """Draw one number of the logs over the steps, a line a run.

    Parameters
    ----------
    comparison : Comparison
        The folder.
    title, axis_title : str
        Words, the latter with the unit.
    value_of : callable
        Takes the number out of an event; anything that is none is passed over.
    log_scale : bool
        Whether the vertical axis is logarithmic.

    Returns
    -------
    Panel
        With a reason in the place of the figure where no log has the number.
    """
    curves: dict[str, list[_Curve]] = {}
    was_binned = False
    for run in comparison.runs:
        pairs = [(as_number(event.get("step")), as_number(value_of(event))) for event in run.log]
        kept = np.array([pair for pair in pairs if None not in pair], dtype=np.float64)
        if kept.size:
            steps, values, binned = _thin(kept[:, 0], kept[:, 1])
            was_binned |= binned
            curves.setdefault(run.recipe, []).append((steps, values))
    if not curves:
        return Panel(title, missing="no log.jsonl has this number")
    positions = recipe_positions(comparison)
    figure = learning_curves(
        curves, positions=positions, axis_title=axis_title, log_scale=log_scale
    )
    caption = "One line a run."
    if was_binned:
        caption += f" Averaged to {MAX_CURVE_POINTS} points a run."
    if log_scale and any((values == 0).any() for runs in curves.values() for _, values in runs):
        caption += " Zero is drawn at the bottom of the axis."
    lacking = [name for name in positions if name not in curves]
    if lacking:
        caption += f" Not available for {', '.join(lacking)}."
    ends = [
        f"{name} {np.mean([values[-1] for _, values in runs]):.3g}" for name, runs in curves.items()
    ]
    return Panel(title, caption, f"{title} over steps; last values: {', '.join(ends)}.", figure)


def _thin(
    steps: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """Average neighbours until at most `MAX_CURVE_POINTS` are left."""
    if len(steps) <= MAX_CURVE_POINTS:
        return steps, values, False
    edges = np.linspace(0, len(steps), MAX_CURVE_POINTS + 1).astype(np.int64)[:-1]
    counts = np.diff(np.append(edges, len(steps)))
    return np.add.reduceat(steps, edges) / counts, np.add.reduceat(values, edges) / counts, True

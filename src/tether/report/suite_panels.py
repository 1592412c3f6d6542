"""Panels of a suite's page: its numbers turned into figures with captions and alt texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tether.metrics.tasks import alike
from tether.report.format import as_number, format_p
from tether.report.panels import Panel, or_nan
from tether.report.results import gain_of, subset_label
from tether.report.suite_curves import curve_targets, curves_of, oracle_of
from tether.report.suite_figures import (
    FARTHEST,
    Ratios,
    rank_diagram,
    ratio_rows,
    scaling_curves,
    trade_off,
)
from tether.report.suite_read import (
    FEWEST_TASKS,
    named_recipes,
    over_tasks_row,
    questions_of,
    suite_recipes,
    test_subsets,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["curve_panels", "gain_panels", "rank_panels", "trade_off_panels"]

Results = dict[str, Any]
_INSIDE = "test/id"


def _positions(results: Results) -> dict[str, int]:
    """Position of each recipe, done or not: its colour stays when others come."""
    every = dict.fromkeys([*named_recipes(results), *suite_recipes(results)])
    return {name: at for at, name in enumerate(every)}


def _ratio(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Value, low and high of a gain in percent as a ratio of errors."""
    value, high, low = (1 - or_nan(row.get(key)) / 100 for key in ("gain_percent", "low", "high"))
    return value, low, high


def _ratios(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Ratios:
    table: NDArray[np.float64] = np.array([_ratio(row) for row in rows], dtype=np.float64)
    value, low, high = table.reshape(-1, 3).T
    return Ratios(list(names), value, low, high)


def _task_gains(
    results: Results, recipe: str, reference: str, subset: str
) -> dict[str, dict[str, Any]]:
    """Name of each question → gain of a recipe."""
    found = {}
    for question in questions_of(results):
        query = {"target": question.target, "subset": subset, "metric": results["metric"]}
        gain = gain_of(question.entry, recipe, reference, **query)
        if gain and as_number(gain["gain_percent"]) is not None:
            found[question.name] = gain
    return found


def trade_off_panels(results: Results, reference: str) -> list[Panel]:
    """Draw ID against OOD error relative to the reference, a panel an OOD set.

    Parameters
    ----------
    results : dict
        `results.json`.
    reference : str
        Whose errors are 1.

    Returns
    -------
    list of Panel
        Empty where there is no ID test set or no gain.
    """
    subsets = test_subsets(results)
    if _INSIDE not in subsets:
        return []
    panels = []
    most = max((row["n_tasks"] for row in results["over_tasks"]), default=0)
    for subset in (name for name in subsets if name != _INSIDE):
        tasks, means = {}, {}
        for recipe in suite_recipes(results):
            inside, outside = (
                _task_gains(results, recipe, reference, one) for one in (_INSIDE, subset)
            )
            names = [name for name in outside if name in inside]
            if names:
                tasks[recipe] = (
                    _ratios(names, [inside[name] for name in names]),
                    _ratios(names, [outside[name] for name in names]),
                )
            rows = [over_tasks_row(results, recipe, reference, one) for one in (_INSIDE, subset)]
            # A mean over two of eight tasks has an interval wider than the figure.
            if names and rows[0] and rows[1] and rows[1]["n_tasks"] == most >= FEWEST_TASKS:
                means[recipe] = (_ratios(["mean"], [rows[0]]), _ratios(["mean"], [rows[1]]))
        if tasks:
            panels.append(_trade_off_panel(results, (tasks, means), reference, subset))
    return panels


def _trade_off_panel(
    results: Results,
    points: tuple[dict[str, tuple[Ratios, Ratios]], dict[str, tuple[Ratios, Ratios]]],
    reference: str,
    subset: str,
) -> Panel:
    tasks, means = points
    metric = results["metric"].upper()
    titles = tuple(f"{subset_label(name)} {metric}, {reference} = 1" for name in (_INSIDE, subset))
    figure = trade_off(tasks, means, positions=_positions(results), titles=(titles[0], titles[1]))
    numbers = ", ".join(
        f"{name} ID × {inside.value[0]:.2f}, OOD × {outside.value[0]:.2f}"
        for name, (inside, outside) in (means or tasks).items()
    )
    caption = "Small symbols: one task each"
    caption += ". Large: mean with its interval, of recipes run on most tasks." if means else "."
    far = [
        name for name, pair in tasks.items() if any((one.value > FARTHEST).any() for one in pair)
    ]
    if far:
        caption += f" Beyond the axes: tasks at more than {FARTHEST:g} ({', '.join(far)})."
    return Panel(
        f"{subset_label(subset)} against ID error",
        caption,
        f"{titles[0]} against {titles[1]}: {numbers}.",
        figure,
    )


def gain_panels(results: Results, reference: str) -> list[Panel]:
    """Draw each task's error relative to the reference with its interval, a panel a test set.

    Parameters
    ----------
    results : dict
        `results.json`.
    reference : str
        Whose errors are 1.

    Returns
    -------
    list of Panel
        Empty where there are no gains.
    """
    panels = []
    for subset in test_subsets(results):
        gains = {
            recipe: _task_gains(results, recipe, reference, subset)
            for recipe in suite_recipes(results)
        }
        ratios = {
            recipe: _ratios(list(found), list(found.values()))
            for recipe, found in gains.items()
            if found
        }
        if not ratios:
            continue
        names = [
            question.name
            for question in questions_of(results)
            if any(question.name in found for found in gains.values())
        ]
        title = f"{subset_label(subset)} {results['metric'].upper()}, {reference} = 1"
        figure = ratio_rows(ratios, names=names, positions=_positions(results), axis_title=title)
        best = ", ".join(
            f"{recipe} {one.value.min():.2f} to {one.value.max():.2f}"
            for recipe, one in ratios.items()
        )
        caption = "Left of the dashed line: a smaller error than the reference's."
        far = [recipe for recipe, one in ratios.items() if (one.value > FARTHEST).any()]
        if far:
            caption += f" Arrow: more than {FARTHEST:g} times it ({', '.join(far)})."
        panels.append(Panel(title, caption, f"{title}, a block of lines a task: {best}.", figure))
    return panels


def rank_panels(results: Results) -> list[Panel]:
    """Draw mean ranks with the critical difference, a panel a test set.

    Parameters
    ----------
    results : dict
        `results.json`.

    Returns
    -------
    list of Panel
        Empty where ranks could not be made.
    """
    panels = []
    order = test_subsets(results)
    for row in sorted(results["ranks"], key=lambda row: order.index(row["subset"])):
        names = list(row["ranks"])
        ranks = np.array([row["ranks"][name] for name in names], dtype=np.float64)
        difference = float(row["critical_difference"])
        figure = rank_diagram(
            names,
            ranks,
            alike=alike(ranks, difference),
            critical_difference=difference,
            positions=_positions(results),
        )
        title = f"Ranks by {subset_label(row['subset'])} {results['metric'].upper()}"
        p_text = format_p(as_number(row["p_value"]))
        caption = f"Mean over {row['n_tasks']} tasks. Friedman's test that all are alike: {p_text}."
        ranked = sorted(row["ranks"].items(), key=lambda pair: pair[1])
        words = ", ".join(f"{name} {rank:.2f}" for name, rank in ranked)
        alt = f"{title}: {words}; critical difference {difference:.2f}."
        panels.append(Panel(title, caption, alt, figure))
    return panels


def curve_panels(results: Results) -> list[Panel]:
    """Draw learning curves over the suite's axis, a panel a target and test set.

    Parameters
    ----------
    results : dict
        `results.json`.

    Returns
    -------
    list of Panel
        With a reason in the place of a figure where no recipe has two sizes.
    """
    panels = []
    for target in curve_targets(results):
        for subset in test_subsets(results):
            title = f"{target}: {subset_label(subset)} {results['metric'].upper()}"
            curves = curves_of(results, target, subset)
            if not curves:
                panels.append(Panel(title, missing="no recipe has finished two sizes"))
                continue
            panels.append(_curve_panel(results, title, target, subset))
    return panels


def _curve_panel(results: Results, title: str, target: str, subset: str) -> Panel:
    curves = curves_of(results, target, subset)
    unit = next(str(row["unit"]) for curve in curves.values() for row in curve)
    values = {
        name: Ratios(
            [str(row["x"]) for row in curve],
            *(np.array([or_nan(row[key]) for row in curve]) for key in ("value", "low", "high")),
        )
        for name, curve in curves.items()
    }
    sizes = {name: np.array([float(row["x"]) for row in curve]) for name, curve in curves.items()}
    oracle = oracle_of(results, target, subset)
    metric = results["metric"].upper()
    figure = scaling_curves(
        values,
        sizes,
        positions=_positions(results),
        reference=None if oracle is None else ("clip oracle", oracle[1]),
        titles=(str(results["axis"]), f"{metric} ({unit})" if unit else metric),
    )
    words = ", ".join(
        f"{name} {curve[0]['value']:.3g} to {curve[-1]['value']:.3g}"
        for name, curve in curves.items()
    )
    alt = f"{title} against {results['axis']}, both logarithmic, smallest to largest: {words}."
    return Panel(title, "Bands: intervals of the errors.", alt, figure)

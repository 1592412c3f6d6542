"""Figures of the report: arrays in, one plotly figure out; nothing here reads a file.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; recipes
beyond the sixth repeat them with another dash. Backgrounds are transparent, and the page sets
the font and grid colours, so that a figure suits a light and a dark page.
"""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "INK",
    "NEUTRAL",
    "OWN_COLOURS",
    "SUBSET_COLOURS",
    "base_figure",
    "error_bars",
    "height_with_legend",
    "learning_curves",
    "parity_plot",
    "plain",
    "recipe_style",
    "recipe_symbol",
    "shade",
    "subset_colour",
]

_BLUE, _VERMILLION, _GREEN = "#0072B2", "#D55E00", "#009E73"
_ORANGE, _PURPLE, _SKY = "#E69F00", "#CC79A7", "#56B4E9"
_CYCLE = (_BLUE, _ORANGE, _GREEN, _VERMILLION, _PURPLE, _SKY)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_RECIPE_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "star", "hexagon")
NEUTRAL = "#808488"
SUBSET_COLOURS = {"test/id": _BLUE, "test/ood": _VERMILLION, "val": _GREEN}
_SYMBOLS = {"test/id": "circle", "test/ood": "diamond", "val": "square"}
# The page draws lines with this `meta` in its text colour, light or dark.
INK = "ink"
# And all error bars, but those of traces with this one.
OWN_COLOURS = "own colours"
# Pixels: plot of the narrowest panel on a wide screen; row of a legend, its line and a letter.
_PANEL, _LEGEND_ROW, _LEGEND_LINE, _LETTER = 290, 21, 45, 6
_LINE_DASHES = ("dash", "dot", "dashdot", "longdash")


def subset_colour(subset: str) -> str:
    """Colour of an index set."""
    return SUBSET_COLOURS.get(subset, _PURPLE)


def recipe_style(position: int) -> tuple[str, str]:
    """Colour and dash of the recipe at a position."""
    return _CYCLE[position % len(_CYCLE)], _DASHES[position // len(_CYCLE) % len(_DASHES)]


def recipe_symbol(position: int) -> str:
    """Symbol of the recipe at a position, which changes where the colours repeat."""
    return _RECIPE_SYMBOLS[position // len(_CYCLE) % len(_RECIPE_SYMBOLS)]


def shade(figure: go.Figure, x_range: tuple[float, float]) -> None:
    """Shade a range of x, below everything else."""
    figure.add_vrect(
        x0=x_range[0], x1=x_range[1], fillcolor=NEUTRAL, opacity=0.14, line_width=0, layer="below"
    )


def plain(text: str) -> str:
    """Text that plotly must not take for its own markup (it draws <b>, <a href> …)."""
    return html.escape(text, quote=False)


def base_figure(*, height: int, x_title: str, y_title: str, legend: bool = True) -> go.Figure:
    """Make an empty figure in the page's look.

    Parameters
    ----------
    height : int
        Pixels.
    x_title, y_title : str
        With the unit.
    legend : bool
        Whether there is one.

    Returns
    -------
    plotly.graph_objects.Figure
        Without traces.
    """
    axis = {"showgrid": True, "zeroline": False, "automargin": True, "ticks": ""}
    return go.Figure(
        layout={
            "template": "none",
            "height": height,
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
            "font": {"family": "system-ui, sans-serif", "size": 12, "color": NEUTRAL},
            "showlegend": legend,
            "legend": {
                "orientation": "h",
                "x": 0,
                "y": 1.0,
                "xanchor": "left",
                "yanchor": "bottom",
                "bgcolor": "rgba(0,0,0,0)",
            },
            "xaxis": {**axis, "title": {"text": plain(x_title), "standoff": 8}},
            "yaxis": {**axis, "title": {"text": plain(y_title), "standoff": 8}},
        }
    )


def height_with_legend(height: int, names: Sequence[str]) -> int:
    """Height of a figure that keeps its plot as high, however many names stand above it.

    Parameters
    ----------
    height : int
        Pixels, with one row of names.
    names : sequence of str
        Of the legend; plotly gives each the width of the longest.

    Returns
    -------
    int
        Pixels.

    Examples
    --------
    >>> height_with_legend(320, ["full", "mft"]), height_with_legend(320, ["full"] * 17)
    (320, 404)
    """
    longest = _LEGEND_LINE + _LETTER * max(map(len, names), default=0)
    n_rows = math.ceil(len(names) / max(1, _PANEL // longest))
    return height + _LEGEND_ROW * max(0, n_rows - 1)


def error_bars(
    recipes: Sequence[str],
    value: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    *,
    seed_values: Sequence[Sequence[float]],
    reference_lines: Mapping[str, float],
    axis_title: str,
    colour: str,
) -> tuple[go.Figure, list[str]]:
    """Horizontal bars, one a recipe, with intervals, seeds as dots and dashed reference lines.

    Parameters
    ----------
    recipes : sequence of str
        Names, top to bottom.
    value, low, high : ndarray of shape (n_recipes,)
        Pooled error and its interval; NaN where unknown.
    seed_values : sequence of sequence of float
        Error of each seed, a recipe at a time.
    reference_lines : mapping of str to float
        Error of predictors that need no model.
    axis_title : str
        With the unit.
    colour : str
        Of the bars.

    Returns
    -------
    figure : plotly.graph_objects.Figure
        The figure.
    off_scale : list of str
        Reference lines beyond 1.6 × the largest error, which are not drawn: they would
        squeeze the bars together.
    """
    names = [plain(name) for name in recipes]
    figure = base_figure(height=110 + 34 * len(names), x_title=axis_title, y_title="")
    has_interval = np.isfinite(low) & np.isfinite(high)
    figure.add_bar(
        x=value,
        y=names,
        orientation="h",
        marker={"color": colour, "opacity": 0.85},
        width=0.62,
        error_x={
            "type": "data",
            "symmetric": False,
            "array": np.where(has_interval, high - value, 0.0),
            "arrayminus": np.where(has_interval, value - low, 0.0),
            "color": NEUTRAL,
            "thickness": 1.6,
            "width": 5,
            "visible": bool(has_interval.any()),
        },
        hovertemplate="%{y}: %{x:.4g}<extra></extra>",
        showlegend=False,
    )
    _add_seeds(figure, names, seed_values)
    # A seed may lie beyond the interval of the mean over seeds.
    errors = np.concatenate([value, high[has_interval], *map(np.asarray, seed_values)])
    largest = float(np.nanmax(errors, initial=0.0))
    shown = {name: at for name, at in reference_lines.items() if at <= 1.6 * largest}
    _add_reference_lines(figure, shown)
    right = 1.08 * max([largest, *shown.values()])
    figure.update_layout(
        xaxis={"range": [0, right or 1.0]},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": False},
        yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
    )
    return figure, [name for name in reference_lines if name not in shown]


def _add_seeds(
    figure: go.Figure, names: Sequence[str], seed_values: Sequence[Sequence[float]]
) -> None:
    dots = [(seed, name) for name, row in zip(names, seed_values, strict=True) for seed in row]
    if dots:
        figure.add_scatter(
            x=[dot[0] for dot in dots],
            y=[dot[1] for dot in dots],
            mode="markers",
            name="one seed",
            marker={
                "color": "rgba(255,255,255,0.9)",
                "size": 6,
                "line": {"color": "#202428", "width": 1.2},
            },
            hovertemplate="%{y}: %{x:.4g}<extra>one seed</extra>",
        )


def _add_reference_lines(figure: go.Figure, shown: Mapping[str, float]) -> None:
    for position, (name, at) in enumerate(shown.items()):
        figure.add_scatter(
            x=[at, at],
            y=[0, 1],
            yaxis="y2",
            mode="lines",
            name=f"{plain(name)} {at:.3g}",
            line={
                "color": NEUTRAL,
                "width": 2,
                "dash": _LINE_DASHES[position % len(_LINE_DASHES)],
            },
            hoverinfo="name",
            meta=INK,
        )


def parity_plot(
    points: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    *,
    labels: Mapping[str, str],
    axis_range: tuple[float, float],
    training_range: tuple[float, float] | None,
    unit: str,
) -> go.Figure:
    """Predicted against true, coloured by subset, with the diagonal.

    Parameters
    ----------
    points : mapping of str to (ndarray, ndarray)
        True and predicted values of each subset, each of shape (n,).
    labels : mapping of str to str
        Legend text of each subset.
    axis_range : (float, float)
        Of both axes, so that recipes can be compared.
    training_range : (float, float) or None
        Smallest and largest training label; shaded.
    unit : str
        Of both axes.

    Returns
    -------
    plotly.graph_objects.Figure
        The figure.
    """
    suffix = f" ({unit})" if unit else ""
    figure = base_figure(height=360, x_title=f"true{suffix}", y_title=f"predicted{suffix}")
    if training_range is not None:
        shade(figure, training_range)
    figure.add_scatter(
        x=list(axis_range),
        y=list(axis_range),
        mode="lines",
        line={"color": NEUTRAL, "width": 1.2, "dash": "dash"},
        hoverinfo="skip",
        showlegend=False,
    )
    for subset, (true, pred) in points.items():
        figure.add_scatter(
            x=true.astype(np.float32),
            y=pred.astype(np.float32),
            mode="markers",
            name=plain(labels[subset]),
            marker={
                "color": subset_colour(subset),
                "symbol": _SYMBOLS.get(subset, "cross"),
                "size": 4.5,
                "opacity": 0.55,
            },
            hovertemplate="true %{x:.4g}<br>predicted %{y:.4g}<extra></extra>",
        )
    figure.update_layout(
        legend={"itemsizing": "constant"},
        xaxis={"range": list(axis_range)},
        yaxis={"range": list(axis_range), "scaleanchor": "x", "constrain": "domain"},
    )
    figure.update_xaxes(constrain="domain")
    return figure


def _value_axis(
    curves: Mapping[str, Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]],
) -> tuple[dict[str, object], float]:
    """Make a logarithmic axis with full numbers at 1, 2 and 5, where it is long enough for them.

    With it comes the height at which zero, which such an axis has not, is drawn.
    """
    every = np.concatenate([values for runs in curves.values() for _, values in runs])
    positive = every[np.isfinite(every) & (every > 0)]
    if not positive.size:
        return {}, 0.0
    low, high = float(positive.min()), float(positive.max())
    floor = low / 2 if (every == 0).any() else low
    axis: dict[str, object] = {"type": "log", "tickformat": "~g"}
    if high > 4 * floor:
        axis["dtick"] = "D2" if high < 200 * floor else 1
    return axis, floor


def learning_curves(
    curves: Mapping[str, Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]],
    *,
    positions: Mapping[str, int],
    axis_title: str,
    log_scale: bool,
    x_title: str = "step",
    x_format: str = ",.0f",
) -> go.Figure:
    """One line a run over optimisation steps; the runs of a recipe share colour and legend.

    Parameters
    ----------
    curves : mapping of str to sequence of (ndarray, ndarray)
        Steps and values of each run of a recipe, each of shape (n,).
    positions : mapping of str to int
        Position of each recipe, which gives its colour in every figure.
    axis_title : str
        With the unit.
    log_scale : bool
        Whether the vertical axis is logarithmic.
    x_title, x_format : str
        What the steps are, and d3's format of one.

    Returns
    -------
    plotly.graph_objects.Figure
        The figure.
    """
    height = height_with_legend(320, list(curves))
    figure = base_figure(height=height, x_title=x_title, y_title=axis_title)
    axis, floor = _value_axis(curves) if log_scale else ({}, 0.0)
    for recipe, runs in curves.items():
        colour, dash = recipe_style(positions[recipe])
        for idx, (steps, values) in enumerate(runs):
            figure.add_scatter(
                x=steps.astype(np.float32),
                y=np.where(values == 0, floor, values).astype(np.float32),
                customdata=values.astype(np.float32),
                mode="lines+markers" if steps.size < 2 else "lines",
                name=plain(recipe),
                legendgroup=plain(recipe),
                showlegend=idx == 0,
                line={"color": colour, "dash": dash, "width": 1.6},
                opacity=0.85,
                hovertemplate=f"{x_title} %{{x:{x_format}}}: %{{customdata:.4g}}"
                "<extra>%{fullData.name}</extra>",
            )
    figure.update_layout(
        yaxis=axis,
        xaxis={"separatethousands": True, "rangemode": "tozero"},
    )
    return figure

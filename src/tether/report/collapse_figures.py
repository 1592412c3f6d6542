"""Figures about collapse: arrays in, one plotly figure out, in the look of `report.figures`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from tether.report.figures import (
    INK,
    NEUTRAL,
    base_figure,
    height_with_legend,
    plain,
    recipe_style,
    shade,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import plotly.graph_objects as go
    from numpy.typing import NDArray

__all__ = ["distance_lines", "forest_plot", "layer_lines"]

_FREE, _BOUND = "#0072B2", "#D55E00"


def forest_plot(
    names: Sequence[str],
    rho: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    needs_labels: NDArray[np.bool_],
) -> go.Figure:
    """Correlations with their intervals, one a row, and the line of no correlation.

    Parameters
    ----------
    names : sequence of str
        Rows, top to bottom.
    rho, low, high : ndarray of shape (n,)
        Correlation and interval, NaN where unknown.
    needs_labels : ndarray of bool, shape (n,)
        Whether the measure needs OOD labels; drawn hollow.

    Returns
    -------
    plotly.graph_objects.Figure
        The figure.
    """
    # Short lines leave room for the points on a narrow screen; the longest name sets the rows.
    lines = [textwrap.wrap(name, 30) for name in names]
    height = 18 + 14 * max(map(len, lines), default=1)
    figure = base_figure(height=120 + height * len(names), x_title="rank correlation ρ", y_title="")
    wrapped = ["<br>".join(map(plain, parts)) for parts in lines]
    rows = np.array(wrapped, dtype=object)
    known = np.isfinite(low) & np.isfinite(high)
    for needed, label, colour, symbol in (
        (False, "computable without OOD labels", _FREE, "circle"),
        (True, "needs OOD labels", _BOUND, "diamond-open"),
    ):
        here = (needs_labels == needed) & np.isfinite(rho)
        if not here.any():
            continue
        figure.add_scatter(
            x=rho[here],
            y=rows[here],
            mode="markers",
            name=label,
            marker={"color": colour, "symbol": symbol, "size": 9},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": np.where(known, high - rho, 0.0)[here],
                "arrayminus": np.where(known, rho - low, 0.0)[here],
                "color": NEUTRAL,
                "thickness": 1.6,
                "width": 4,
            },
            hovertemplate="%{y}: ρ = %{x:.2f}<extra></extra>",
        )
    _zero_line(figure)
    figure.update_layout(
        xaxis={"range": [-1.08, 1.08], "dtick": 0.5, "tickangle": 0},
        yaxis={
            "autorange": "reversed",
            "type": "category",
            "categoryorder": "array",
            "categoryarray": rows.tolist(),
            "showgrid": True,
        },
        yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
    )
    return figure


def _zero_line(figure: go.Figure) -> None:
    figure.add_scatter(
        x=[0, 0],
        y=[0, 1],
        yaxis="y2",
        mode="lines",
        line={"color": NEUTRAL, "width": 1.4, "dash": "dash"},
        hoverinfo="skip",
        showlegend=False,
        meta=INK,
    )


def layer_lines(
    layers: Sequence[int],
    curves: Mapping[str, NDArray[np.float64]],
    *,
    positions: Mapping[str, int],
    before: NDArray[np.float64],
    null: tuple[NDArray[np.float64], NDArray[np.float64]],
    axis_title: str,
) -> go.Figure:
    """One measure over the layers, a line a recipe, with the pretrained model and the null.

    Parameters
    ----------
    layers : sequence of int
        Input to output.
    curves : mapping of str to ndarray of shape (n_layers,)
        Value of each recipe, NaN where unknown.
    positions : mapping of str to int
        Position of each recipe, which gives its colour in every figure.
    before : ndarray of shape (n_layers,)
        Value of the pretrained model; all NaN for a distance to it.
    null : (ndarray, ndarray), each of shape (n_layers,)
        Where the value would lie if nothing had changed; NaN where unknown.
    axis_title : str
        With the unit.

    Returns
    -------
    plotly.graph_objects.Figure
        The figure.
    """
    figure = base_figure(
        height=height_with_legend(320, list(curves)), x_title="layer", y_title=axis_title
    )
    low, high = null
    known = np.isfinite(low) & np.isfinite(high)
    at = np.asarray(layers, dtype=np.float64)
    if known.any():
        figure.add_scatter(
            x=np.concatenate([at[known], at[known][::-1]]),
            y=np.concatenate([high[known], low[known][::-1]]),
            fill="toself",
            fillcolor="rgba(128,132,136,0.22)",
            line={"width": 0},
            mode="lines",
            name="null",
            hoverinfo="skip",
        )
    if np.isfinite(before).any():
        figure.add_scatter(
            x=at,
            y=before,
            mode="lines",
            name="pretrained",
            line={"color": NEUTRAL, "width": 2, "dash": "dash"},
            meta=INK,
            hovertemplate="layer %{x}: %{y:.4g}<extra>pretrained</extra>",
        )
    for recipe, values in curves.items():
        _recipe_line(figure, recipe, positions[recipe], at, values, hover="layer %{x}: %{y:.4g}")
    figure.update_layout(xaxis={"tickvals": list(layers), "showgrid": False})
    return figure


def distance_lines(
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    *,
    positions: Mapping[str, int],
    id_range: tuple[float, float] | None,
    axis_title: str,
) -> go.Figure:
    """Error of each recipe by distance to the training set.

    Parameters
    ----------
    curves : mapping of str to (ndarray, ndarray)
        Median distance and mean absolute error of each bin, each of shape (n_bins,).
    positions : mapping of str to int
        Position of each recipe, which gives its colour in every figure.
    id_range : (float, float) or None
        Distances of nine in ten ID test structures; shaded.
    axis_title : str
        Of the error, with the unit.

    Returns
    -------
    plotly.graph_objects.Figure
        The figure.
    """
    figure = base_figure(
        height=height_with_legend(340, list(curves)),
        x_title="distance to the training set (pretrained features)",
        y_title=axis_title,
    )
    if id_range is not None:
        shade(figure, id_range)
    for recipe, curve in curves.items():
        x, y = (values.astype(np.float32) for values in curve)
        hover = "distance %{x:.3g}: %{y:.3g}"
        _recipe_line(figure, recipe, positions[recipe], x, y, hover=hover)
    figure.update_layout(yaxis={"rangemode": "tozero"})
    return figure


def _recipe_line(
    figure: go.Figure,
    recipe: str,
    position: int,
    x: NDArray[np.floating],
    y: NDArray[np.floating],
    *,
    hover: str,
) -> None:
    colour, dash = recipe_style(position)
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines+markers",
        name=plain(recipe),
        line={"color": colour, "dash": dash, "width": 1.8},
        marker={"size": 6},
        hovertemplate=f"{hover}<extra>%{{fullData.name}}</extra>",
    )

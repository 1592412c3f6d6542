"""Figures of a suite's page: arrays in, one plotly figure out, in the look of `report.figures`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tether.report.figures import (
    INK,
    NEUTRAL,
    OWN_COLOURS,
    base_figure,
    plain,
    recipe_style,
    recipe_symbol,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import plotly.graph_objects as go
    from numpy.typing import NDArray

__all__ = ["FARTHEST", "Ratios", "rank_diagram", "ratio_rows", "scaling_curves", "trade_off"]

_TICKS = np.array([0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.5, 2, 3, 5, 10, 20, 50])


#: Times the reference's error: what is further off would squeeze everything else.
FARTHEST = 5.0


@dataclass(frozen=True)
class Ratios:
    """Errors of a recipe, each divided by the reference's.

    Attributes
    ----------
    names : list of str
        What each is about.
    value, low, high : ndarray of shape (n,)
        Ratio and its interval; NaN where unknown.
    """

    names: list[str]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def _ratio_axis(values: Sequence[float], title: str) -> dict[str, object]:
    """Logarithmic axis around 1, so that half and twice the error are equally far from it."""
    finite = np.array([v for v in [*values, 0.9, 1.1] if np.isfinite(v) and v > 0])
    low, high = float(finite.min()) / 1.04, min(float(finite.max()), FARTHEST) * 1.04
    ticks = _TICKS[(low <= _TICKS) & (high >= _TICKS)]
    if high / low > 4:  # labels of close ticks would overlap
        ticks = ticks[~np.isin(ticks, [0.6, 0.7, 0.8, 0.9, 1.2])]
    return {
        "type": "log",
        "range": [float(np.log10(low)), float(np.log10(high))],
        "tickvals": ticks.tolist(),
        "ticktext": [f"{tick:g}" for tick in ticks],
        "tickangle": 0,
        "title": {"text": plain(title), "standoff": 8},
    }


def _whiskers(
    value: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> dict[str, object]:
    known = np.isfinite(low) & np.isfinite(high)
    return {
        "type": "data",
        "symmetric": False,
        "array": np.where(known, high - value, 0.0),
        "arrayminus": np.where(known, value - low, 0.0),
        "thickness": 1.4,
        "width": 3,
    }


def trade_off(
    tasks: Mapping[str, tuple[Ratios, Ratios]],
    means: Mapping[str, tuple[Ratios, Ratios]],
    *,
    positions: Mapping[str, int],
    titles: tuple[str, str],
) -> go.Figure:
    """ID against OOD error, both divided by the reference's: below and left of 1 is better.

    What is worse than `FARTHEST` lies beyond the axes.

    Parameters
    ----------
    tasks : mapping of str to (Ratios, Ratios)
        ID and OOD ratios of each recipe, a task each; small symbols.
    means : mapping of str to (Ratios, Ratios)
        One ratio each: means over tasks, large symbols with intervals.
    positions : mapping of str to int
        Position of each recipe, which gives its colour in every figure.
    titles : (str, str)
        Of the axes.

    Returns
    -------
    plotly.graph_objects.Figure
        The figure.
    """
    figure = base_figure(height=470 + 7 * len(tasks), x_title="", y_title="")
    for recipe, (inside, outside) in tasks.items():
        colour, _ = recipe_style(positions[recipe])
        figure.add_scatter(
            x=inside.value,
            y=outside.value,
            mode="markers",
            name=plain(recipe),
            legendgroup=plain(recipe),
            showlegend=recipe not in means,
            text=[plain(name) for name in inside.names],
            marker={
                "color": colour, "symbol": recipe_symbol(positions[recipe]), "size": 7,
                "opacity": 0.5,
            },
            hovertemplate="%{text}: ID × %{x:.3f}, OOD × %{y:.3f}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    for recipe, (inside, outside) in means.items():
        colour, _ = recipe_style(positions[recipe])
        figure.add_scatter(
            x=inside.value,
            y=outside.value,
            mode="markers",
            name=plain(recipe),
            legendgroup=plain(recipe),
            marker={
                "color": colour, "symbol": recipe_symbol(positions[recipe]), "size": 14,
                "line": {"width": 1.5, "color": "#ffffff"},
            },
            meta=OWN_COLOURS,
            error_x=_whiskers(inside.value, inside.low, inside.high) | {"color": colour},
            error_y=_whiskers(outside.value, outside.low, outside.high) | {"color": colour},
            hovertemplate="mean: ID × %{x:.3f}, OOD × %{y:.3f}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    both = [*tasks.values(), *means.values()]
    figure.add_hline(y=1, line={"color": NEUTRAL, "width": 1.2, "dash": "dash"}, layer="below")
    figure.add_vline(x=1, line={"color": NEUTRAL, "width": 1.2, "dash": "dash"}, layer="below")
    figure.add_annotation(
        x=0.01, y=0.01, xref="paper", yref="paper", text="better in both", showarrow=False,
        xanchor="left", yanchor="bottom",
    )  # fmt: skip
    figure.update_layout(
        xaxis=_ratio_axis([v for one, _ in both for v in one.value.tolist()], titles[0]),
        yaxis=_ratio_axis([v for _, one in both for v in one.value.tolist()], titles[1]),
    )
    return figure


def ratio_rows(
    ratios: Mapping[str, Ratios],
    *,
    names: Sequence[str],
    positions: Mapping[str, int],
    axis_title: str,
) -> go.Figure:
    """Errors divided by the reference's, with intervals: a block of lines a task.

    What is worse than `FARTHEST` is an arrow there, so that the others can be told apart.

    Parameters
    ----------
    ratios : mapping of str to Ratios
        Of each recipe.
    names : sequence of str
        Tasks, top to bottom.
    positions : mapping of str to int
        Position of each recipe, which gives its colour in every figure.
    axis_title : str
        What the ratio is.

    Returns
    -------
    plotly.graph_objects.Figure
        The figure.
    """
    places: dict[tuple[str, str], float] = {}
    centres, at = [], 0.0
    for name in names:
        own = [recipe for recipe, found in ratios.items() if name in found.names]
        places |= {(name, recipe): at + idx for idx, recipe in enumerate(own)}
        centres.append(at + (max(len(own), 1) - 1) / 2)
        at += max(len(own), 1) + 1.4
    height = 110 + 12.0 * at + 7 * len(ratios)
    figure = base_figure(height=int(height), x_title=axis_title, y_title="")
    for recipe, found in ratios.items():
        colour, _ = recipe_style(positions[recipe])
        value, low, high = (np.minimum(v, FARTHEST) for v in (found.value, found.low, found.high))
        symbol = recipe_symbol(positions[recipe])
        figure.add_scatter(
            x=value,
            customdata=found.value,
            y=[places[name, recipe] for name in found.names],
            mode="markers",
            name=plain(recipe),
            text=[plain(name) for name in found.names],
            marker={
                "color": colour,
                "symbol": [symbol if v <= FARTHEST else "triangle-right" for v in found.value],
                "size": 8,
            },
            error_x=_whiskers(value, low, high),
            hovertemplate="%{text}: × %{customdata:.3f}<extra>%{fullData.name}</extra>",
        )
    every = [v for one in ratios.values() for v in (*one.value, *one.low, *one.high)]
    figure.add_vline(x=1, line={"color": NEUTRAL, "width": 1.2, "dash": "dash"}, layer="below")
    figure.update_layout(
        xaxis=_ratio_axis(every, axis_title),
        yaxis={
            "range": [at - 0.9, -1.2],
            "tickvals": centres,
            "ticktext": [plain(name) for name in names],
            "showgrid": False,
        },
    )
    return figure


def rank_diagram(
    names: Sequence[str],
    ranks: NDArray[np.float64],
    *,
    alike: Sequence[Sequence[int]],
    critical_difference: float,
    positions: Mapping[str, int],
) -> go.Figure:
    """Demšar's diagram: mean ranks, and bars over recipes that cannot be told apart.

    Parameters
    ----------
    names : sequence of str
        Recipes.
    ranks : ndarray of shape (n_recipes,)
        Mean ranks, 1 = smallest error.
    alike : sequence of sequence of int
        Positions in `names` of each group that cannot be told apart.
    critical_difference : float
        Drawn as a ruler.
    positions : mapping of str to int
        Position of each recipe, which gives its colour in every figure.

    Returns
    -------
    plotly.graph_objects.Figure
        The figure.
    """
    order = np.argsort(ranks, kind="stable")
    top = 0.55 * len(alike) + 0.9  # rows of names begin below the bars
    height = int(80 + 24 * (len(names) + 1 + top))
    figure = base_figure(height=height, x_title="mean rank", y_title="", legend=False)
    for row, at in enumerate(order):
        colour, _ = recipe_style(positions[names[at]])
        y, x = -(top + row), float(ranks[at])
        figure.add_scatter(
            x=[0, x, x],
            y=[y, y, 0],
            mode="lines",
            line={"color": colour, "width": 1.6},
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            name=plain(names[at]),
            marker={"color": colour, "size": 8, "symbol": recipe_symbol(positions[names[at]])},
            hovertemplate=f"mean rank {x:.2f}<extra>%{{fullData.name}}</extra>",
        )
    for idx, group in enumerate(alike):
        ends = [float(ranks[group[0]]) - 0.05, float(ranks[group[-1]]) + 0.05]
        bar = {"color": NEUTRAL, "width": 5}
        figure.add_scatter(
            x=ends, y=[-0.55 * (idx + 1)] * 2, mode="lines", line=bar, hoverinfo="skip", meta=INK
        )
    _add_ruler(figure, critical_difference, y=-(top + len(names)))
    figure.update_layout(
        xaxis={
            "range": [0.6, max(len(names), 1 + critical_difference) + 0.7],
            "dtick": 1, "side": "top",
            "showgrid": False,
        },
        yaxis={
            "range": [-(top + len(names) + 0.7), 0],
            "tickvals": [-(top + row) for row in range(len(names))],
            "ticktext": [f"{plain(names[at])}  {ranks[at]:.2f}" for at in order],
            "showgrid": False,
        },
    )  # fmt: skip
    return figure


def _add_ruler(figure: go.Figure, critical_difference: float, *, y: float) -> None:
    """Draw the critical difference to scale, below the names."""
    figure.add_scatter(
        x=[1.0, 1.0 + critical_difference],
        y=[y, y],
        mode="lines+markers+text",
        text=["", f"  critical difference {critical_difference:.2f}"],
        textposition="middle right",
        line={"color": NEUTRAL, "width": 2},
        marker={"symbol": "line-ns-open", "size": 9, "color": NEUTRAL},
        hoverinfo="skip",
        meta=INK,
    )


def scaling_curves(
    curves: Mapping[str, Ratios],
    sizes: Mapping[str, NDArray[np.float64]],
    *,
    positions: Mapping[str, int],
    reference: tuple[str, float] | None,
    titles: tuple[str, str],
) -> go.Figure:
    """Error against the size of the training set, both axes logarithmic, with bands of intervals.

    Parameters
    ----------
    curves : mapping of str to Ratios
        Error and interval of each recipe at each size.
    sizes : mapping of str to ndarray of shape (n_sizes,)
        Where, of each recipe.
    positions : mapping of str to int
        Position of each recipe, which gives its colour in every figure.
    reference : (str, float) or None
        Name and error of a line across.
    titles : (str, str)
        Of the axes, with the unit.

    Returns
    -------
    plotly.graph_objects.Figure
        The figure.
    """
    figure = base_figure(height=400, x_title=titles[0], y_title=titles[1])
    for recipe, curve in curves.items():
        colour, dash = recipe_style(positions[recipe])
        x, known = sizes[recipe], np.isfinite(curve.low) & np.isfinite(curve.high)
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        figure.add_scatter(
            x=np.concatenate([x[known], x[known][::-1]]),
            y=np.concatenate([curve.high[known], curve.low[known][::-1]]),
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},0.15)",
            line={"width": 0},
            mode="lines",
            legendgroup=plain(recipe),
            showlegend=False,
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=x,
            y=curve.value,
            mode="lines+markers",
            name=plain(recipe),
            legendgroup=plain(recipe),
            line={"color": colour, "dash": dash, "width": 2},
            marker={"size": 7, "symbol": recipe_symbol(positions[recipe])},
            hovertemplate="%{x:,}: %{y:.4g}<extra>%{fullData.name}</extra>",
        )
    ticks = np.unique(np.concatenate(list(sizes.values())))
    if reference is not None:
        figure.add_scatter(
            x=[ticks[0], ticks[-1]],
            y=[reference[1]] * 2,
            mode="lines",
            name=f"{plain(reference[0])} {reference[1]:.3g}",
            line={"color": NEUTRAL, "width": 2, "dash": "dash"},
            hoverinfo="name",
            meta=INK,
        )
    figure.update_layout(
        xaxis={
            "type": "log", "tickvals": ticks.tolist(), "ticktext": [f"{t:,.12g}" for t in ticks],
            "tickangle": 0,
        },
        yaxis={"type": "log", "dtick": _log_step(curves), "tickformat": "~g"},
    )  # fmt: skip
    return figure


def _log_step(curves: Mapping[str, Ratios]) -> str:
    """Every digit where the axis is short, else 1, 2 and 5."""
    every = np.concatenate([curve.value for curve in curves.values()])
    return "D1" if every.max() < 6 * every.min() else "D2"

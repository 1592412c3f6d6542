"""Panels about collapse: over layers, over training, by distance, and what foretells failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tether.report.collapse_figures import distance_lines, forest_plot, layer_lines
from tether.report.collapse_predicts import last_layer_predicts, oriented, predict_label
from tether.report.collapse_read import (
    Collapse,
    layers_of,
    measure_names,
    pool_runs,
    recipes_with,
)
from tether.report.collapse_tables import first_entry, label_of
from tether.report.format import as_number
from tether.report.panels import Panel, curve_panel, or_nan, recipe_positions
from tether.report.results import unit_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from tether.report.collapse_points import RunPoints
    from tether.report.read import Comparison

__all__ = ["distance_panel", "forest_panel", "layer_panels", "live_panels"]

_N_BINS = 8
#: Fewer structures than this in a bin say nothing.
_MIN_IN_BIN = 5
_LIVE_LABELS = {
    "effective_rank": ("Effective rank", "dimensions"),
    "cka": ("Similarity to the pretrained features", "debiased CKA"),
    "knn_purity": ("Neighbour purity", "share of neighbours of the same class"),
    "sliced_w1": ("Distance to the pretrained features", "sliced 1-Wasserstein"),
}


def layer_panels(comparison: Comparison, collapse: Collapse) -> list[Panel]:
    """Draw each measure of atoms that was taken of more than one layer.

    Parameters
    ----------
    comparison : Comparison
        The folder.
    collapse : Collapse
        Its measures.

    Returns
    -------
    list of Panel
        One a measure; none where only the last layer was measured.
    """
    runs = collapse.known
    return [
        _layer_panel(comparison, collapse, name)
        for name in measure_names(runs, "atoms")
        if len(layers_of(runs, "atoms", name)) > 1
    ]


def _layer_panel(comparison: Comparison, collapse: Collapse, name: str) -> Panel:
    runs = collapse.known
    positions, layers = zip(*layers_of(runs, "atoms", name), strict=True)
    first = first_entry(runs, "atoms", name) or {}
    title = label_of(first)
    curves = {
        recipe: _values(
            pool_runs(runs, "atoms", name, layer, recipe=recipe).value for layer in layers
        )
        for recipe in recipes_with(runs)
    }
    curves = {recipe: values for recipe, values in curves.items() if np.isfinite(values).any()}
    if not curves:
        return Panel(title, missing="not computable for any run")
    start = [pool_runs(runs, "atoms", name, layer) for layer in layers]
    low, high = _values(s.null_low for s in start), _values(s.null_high for s in start)
    unit = str(first.get("unit") or "")
    figure = layer_lines(
        positions,
        curves,
        positions=recipe_positions(comparison),
        before=_values(s.before for s in start),
        null=(low, high),
        axis_title=unit if unit != "1" else "",  # the panel's heading names the measure
    )
    ends = ", ".join(f"{recipe} {values[-1]:.3g}" for recipe, values in curves.items())
    n_seeds = max(sum(run.run.recipe == recipe for run in runs) for recipe in curves)
    caption = "Mean over seeds." if n_seeds > 1 else ""
    if np.isfinite(low).any():
        caption += " Grey: where it would lie if nothing had changed."
    alt = f"{title} over layers {positions[0]} to {positions[-1]}; last layer: {ends}."
    return Panel(title, caption.strip(), alt, figure)


def _values(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([or_nan(value) for value in values])


def live_panels(comparison: Comparison) -> list[Panel]:
    """Draw the measures that were watched during training, beside the losses.

    Parameters
    ----------
    comparison : Comparison
        The folder.

    Returns
    -------
    list of Panel
        One a measure; none where no run was watched.
    """
    watched = [_watched(event) for run in comparison.runs for event in run.log]
    names = dict.fromkeys(name for values in watched for name in values if name != "n")
    panels = []
    for name in names:
        title, axis = _LIVE_LABELS.get(name, (name.replace("_", " ").capitalize(), name))

        def value_of(event: Mapping[str, Any], name: str = name) -> object:
            return _watched(event).get(name)

        panel = curve_panel(comparison, title, axis, value_of, log_scale=False)
        if panel.figure is not None:
            panels.append(panel)
    return panels


def _watched(event: Mapping[str, Any]) -> dict[str, Any]:
    found = event.get("collapse")
    return found if isinstance(found, dict) else {}


def forest_panel(collapse: Collapse) -> Panel:
    """Draw the correlation of each measure of the last layer with the OOD error.

    Parameters
    ----------
    collapse : Collapse
        With `predicts`.

    Returns
    -------
    Panel
        With a reason in the place of the figure where nothing could be correlated.
    """
    title = "Rank correlation of collapse with the OOD error"
    entries = last_layer_predicts(collapse)
    values = [[or_nan(number) for number in oriented(collapse, entry)] for entry in entries]
    rho, low, high = np.array(values, dtype=np.float64).reshape(-1, 3).T
    if not np.isfinite(rho).any():
        return Panel(title, missing="no measure could be correlated with the OOD error")
    keep = np.isfinite(rho)
    names = [
        predict_label(collapse, entry) for entry, kept in zip(entries, keep, strict=True) if kept
    ]
    needed = np.array([bool(entry.get("needs_ood_labels")) for entry in entries])
    figure = forest_plot(names, rho[keep], low[keep], high[keep], needed[keep])
    words = ", ".join(
        f"{name} {number:.2f}" for name, number in zip(names, rho[keep].tolist(), strict=True)
    )
    caption = "Right of zero: runs with more collapse have larger OOD errors. Last layer only."
    return Panel(title, caption, f"{title}: {words}.", figure)


def distance_panel(comparison: Comparison, points: Mapping[int, RunPoints], target: str) -> Panel:
    """Draw the error of each recipe by distance to the training set.

    Parameters
    ----------
    comparison : Comparison
        The folder.
    points : mapping of int to RunPoints
        By the run's position in `comparison.runs`.
    target : str
        Whose error.

    Returns
    -------
    Panel
        Bins with equally many structures; the runs of a recipe are thrown together.
    """
    title = "Error by distance to the training set"
    found: dict[str, list[NDArray[np.float64]]] = {}
    id_distances = []
    for position, run_points in points.items():
        structures = run_points.structures
        if structures is None or target not in structures.true:
            continue
        error = np.abs(structures.pred[target] - structures.true[target])
        keep = np.isfinite(error) & np.isfinite(structures.distance)
        pairs = np.stack([structures.distance[keep], error[keep]])
        found.setdefault(comparison.runs[position].recipe, []).append(pairs)
        is_id = np.array([name == "test/id" for name in structures.subset], dtype=np.bool_)
        id_distances.append(structures.distance[keep & is_id])
    curves = {recipe: _binned(np.concatenate(pairs, axis=1)) for recipe, pairs in found.items()}
    curves = {recipe: curve for recipe, curve in curves.items() if curve[0].size > 1}
    if not curves:
        return Panel(title, missing="no run has distances and predictions")
    inside = np.concatenate(id_distances)
    id_range = None
    n_bins = " to ".join(map(str, sorted({distance.size for distance, _ in curves.values()})))
    caption = f"Mean absolute error in {n_bins} bins of equally many structures."
    if inside.size:
        id_range = (float(np.quantile(inside, 0.05)), float(np.quantile(inside, 0.95)))
        caption += " Grey: nine in ten ID test structures."
    unit = unit_of(comparison.summary, target)
    figure = distance_lines(
        curves,
        positions=recipe_positions(comparison),
        id_range=id_range,
        axis_title=f"mean |error| of {target}" + (f" ({unit})" if unit else ""),
    )
    ends = ", ".join(
        f"{recipe} {as_number(float(error[0])):.3g} near to {float(error[-1]):.3g} far"
        for recipe, (_, error) in curves.items()
    )
    return Panel(title, caption, f"{title}, {target}: {ends}.", figure)


def _binned(pairs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Median distance and mean error of bins with equally many structures."""
    pairs = pairs[:, np.argsort(pairs[0], kind="stable")]
    n_bins = min(_N_BINS, pairs.shape[1] // _MIN_IN_BIN)
    parts = np.array_split(pairs, n_bins, axis=1) if n_bins else []
    distance = np.array([np.median(part[0]) for part in parts])
    return distance, np.array([part[1].mean() for part in parts])

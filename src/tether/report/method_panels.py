"""Panels of what a method found by itself: the weight of the force field, the share of WiSE-FT."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.report.figures import learning_curves
from tether.report.format import as_number
from tether.report.panels import Panel, curve_panel, recipe_positions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tether.report.read import Comparison

__all__ = ["method_panels"]


def method_panels(comparison: Comparison) -> list[Panel]:
    """Draw what balances and averages have learnt, where a run has such.

    Parameters
    ----------
    comparison : Comparison
        The folder.

    Returns
    -------
    list of Panel
        None, one or two, each with a line a run.
    """
    weight = curve_panel(
        comparison,
        "Weight of the force field",
        "weight beside a property loss of weight 1",
        _weight,
        log_scale=True,
    )
    return [panel for panel in (weight, _wise_panel(comparison)) if panel.figure is not None]


def _weight(event: Mapping[str, Any]) -> float | None:
    """Multiplier of the constraint, or ratio of the weights of uncertainty, from the log."""
    learnt = event.get("balance") or {}
    multiplier = as_number(learnt.get("log_multiplier"))
    scales = [as_number(learnt.get(name)) for name in ("property", "forcefield")]
    if multiplier is not None:
        return math.exp(multiplier)
    if scales[0] is None or scales[1] is None:
        return None
    return math.exp(scales[0] - scales[1])


def _wise_panel(comparison: Comparison) -> Panel:
    title = "Back towards the pretrained weights"
    curves: dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
    chosen: list[str] = []
    for run in comparison.runs:
        wise = (run.metrics or {}).get("wise")
        points = [(p["a"], as_number(p["val_loss"])) for p in wise["curve"]] if wise else []
        kept = np.array([point for point in points if point[1] is not None], dtype=np.float64)
        if wise and kept.size:
            # Against the fine-tuned weights, so that targets of any unit share the axis.
            curves.setdefault(run.recipe, []).append((kept[:, 0], kept[:, 1] / kept[-1, 1]))
            chosen.append(f"{run.folder.name} {wise['chosen']:g}")
    if not curves:
        return Panel(title, missing="no run mixed its weights")
    figure = learning_curves(
        curves,
        positions=recipe_positions(comparison),
        axis_title="validation loss (a = 1: 1)",
        log_scale=True,
        x_title="share a of the fine-tuned weights",
        x_format=".1f",
    )
    caption = f"WiSE-FT: (1 − a) pretrained + a fine-tuned. Chosen: {', '.join(chosen)}."
    return Panel(title, caption, f"{title}: {caption}", figure)

"""What the collapse sections of the report show, gathered from the files of `tether collapse`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tether.report.collapse_panels import (
    distance_panel,
    forest_panel,
    layer_panels,
    live_panels,
)
from tether.report.collapse_points import RunPoints, read_points
from tether.report.collapse_predicts import foretelling, predicts_table
from tether.report.collapse_read import Collapse, read_collapse
from tether.report.collapse_tables import (
    class_table,
    layer_table,
    measure_tables,
    sources_table,
)
from tether.report.explorer import explorer
from tether.report.results import subset_label, targets_of

if TYPE_CHECKING:
    from tether.report.read import Comparison

__all__ = ["collapse_context"]


def collapse_context(comparison: Comparison) -> dict[str, Any]:
    """Gather tables, panels and the explorer's data.

    Parameters
    ----------
    comparison : Comparison
        The folder.

    Returns
    -------
    dict
        For the template; where nothing was measured, `missing` says what to run.
    """
    collapse = read_collapse(comparison)
    points = _points(comparison, collapse)
    runs = collapse.known
    return {
        "missing": collapse.missing,
        "predicts_missing": collapse.predicts_missing,
        "intro": _intro(collapse),
        "atoms": measure_tables(runs, "atoms"),
        "edges": measure_tables(runs, "edges"),
        "function": measure_tables(runs, "function"),
        "sources": sources_table(runs),
        "layer_panels": layer_panels(comparison, collapse),
        "layer_table": layer_table(runs),
        "classes": class_table(runs),
        "groups": class_table(runs, "groups"),
        "distance": [
            distance_panel(comparison, points, target) for target in targets_of(comparison.summary)
        ],
        "live": live_panels(comparison),
        "foretelling": foretelling(collapse),
        "predicts": predicts_table(collapse),
        "forest": [forest_panel(collapse)],
        "explorer": explorer(comparison, collapse, points),
    }


def _points(comparison: Comparison, collapse: Collapse) -> dict[int, RunPoints]:
    return {
        position: read_points(run.folder / "collapse")
        for position, run in enumerate(comparison.runs)
        if not collapse.runs[position].problem
    }


def _of_subset(subset: str) -> str:
    return f" of the {subset_label(subset)} test structures" if subset.startswith("test/") else ""


def _intro(collapse: Collapse) -> list[str]:
    """Say what was sampled, and how to read the numbers."""
    if not collapse.known:
        return []
    measures = collapse.known[0].measures
    sentences = []
    counts = [
        f"{measures[key]:,} {words}"
        for key, words in (("n_atoms", "atoms"), ("n_edges", "edges"))
        if isinstance(measures.get(key), int)
    ]
    if counts:
        sentences.append(
            f"The same {' and '.join(counts)}{_of_subset(collapse.subset)}, sampled evenly over "
            "their classes, go through the pretrained and through each fine-tuned model."
        )
    left_out = measures.get("left_out", {})
    if left_out.get("n_classes"):
        sentences.append(
            f"{left_out['n_classes']} rarer classes, with "
            f"{100 * left_out['share_of_atoms']:.0f} % of the atoms, were not sampled."
        )
    sentences.append(
        "Square brackets: 95 % interval. Null: where the value would lie if nothing had changed, "
        "from split halves of the pretrained features. A value beyond its null on the side of "
        "collapse is shaded, and the words below it say so."
    )
    lacking = [run.run.folder.name for run in collapse.runs if run.problem]
    if lacking:
        sentences.append(f"Not measured: {', '.join(lacking)}.")
    return sentences

"""Write `report.html`: one file that needs no network, made from the files of a folder alone."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from tether.report.collapse import collapse_context
from tether.report.format import counted
from tether.report.method_panels import method_panels
from tether.report.page import in_script, own_source, render_page, write_page
from tether.report.panels import bar_panels, curve_panels, parity_panels
from tether.report.provenance import (
    elements_table,
    key_value_table,
    leakage_table,
    split_table,
    training_range,
)
from tether.report.read import Comparison, read_comparison
from tether.report.results import level_words, recipes_of, targets_of, unit_of
from tether.report.tables import forgetting_table, overview_table, runs_table, seeds_table
from tether.report.verdict import remarks, verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["build_report", "render_report"]

_EXPLORER_SCRIPTS = ("scatter.js", "molecule.js", "explorer_data.js", "explorer.js")
_MOLECULE_LIBRARY = ("vendor/3Dmol-LICENSE.txt", "vendor/3Dmol-min.js")
_FORGETTING_KEYS = ("force_mae_before", "force_mae_after")


def build_report(folder: Path) -> Path:
    """Write `report.html` into a comparison folder or a run folder.

    Parameters
    ----------
    folder : Path
        Holds `summary.json` and `runs/` (a comparison), or is a run folder.

    Returns
    -------
    Path
        `folder / "report.html"`, replaced in one step.

    Raises
    ------
    TetherError
        If the folder holds neither, `summary.json` is not readable, or the folder cannot be
        written to.
    """
    folder = Path(folder)
    return write_page(folder / "report.html", render_report(read_comparison(folder)))


def render_report(comparison: Comparison) -> str:
    """Return the page as text.

    Parameters
    ----------
    comparison : Comparison
        What `read_comparison` returns.

    Returns
    -------
    str
        HTML with style, scripts and figures inside.
    """
    collapse = collapse_context(comparison)
    payload = collapse["explorer"].payload
    explorer = "".join(own_source(name) for name in _EXPLORER_SCRIPTS)
    return render_page(
        "report.html.j2",
        {
            **_context(comparison),
            "collapse": collapse,
            "explorer_json": ""
            if payload is None
            else in_script(json.dumps(payload, allow_nan=False)),
            # These are ours or 3Dmol's, hold no data and must not be escaped.
            "molecule_library": Markup(_library(*map(own_source, _MOLECULE_LIBRARY))),  # noqa: S704
            "explorer_script": Markup(explorer),  # noqa: S704
        },
    )


def _library(licence: str, code: str) -> str:
    """Put the licence, which asks to be kept with every copy, before the code as a comment."""
    comment = licence.replace("*/", "* /")
    return f"/*! {comment} */\n" + code.replace("</script", "<\\/script")


def _context(comparison: Comparison) -> dict[str, Any]:
    summary = comparison.summary
    split = summary.get("split") or {}
    targets = [_target_context(comparison, target) for target in targets_of(summary)]
    name = comparison.folder.resolve().name
    return {
        "title": f"{'Run' if comparison.is_single_run else 'Comparison'}: {name}",
        "subtitle": _subtitle(summary),
        "targets": targets,
        "overview_note": _overview_note(summary),
        "nothing_yet": _nothing_yet(comparison),
        "curves": {
            target: [*curve_panels(comparison, target), *method_panels(comparison)]
            for target in _validated_targets(comparison)
        },
        "forgetting": forgetting_table(summary),
        "forgetting_missing": _forgetting_missing(summary),
        "split_missing": "" if split.get("sizes") else "no split was stored",
        "split_words": _split_words(split),
        "bare_split": split_table(split, "", n_targets=0, unit=""),
        "elements": elements_table(split),
        "leakage": leakage_table(split),
        "split_report": key_value_table("Report of the split", split.get("report") or {}),
        "methods": _methods(comparison),
        "runs": runs_table(comparison.runs),
        "backbone": key_value_table("Backbone", summary.get("backbone") or {}),
        "provenance": key_value_table(
            "Versions, checksums and devices",
            summary.get("provenance") or {},
            without=("backbone",) if comparison.is_single_run else (),
        ),
        "config_text": comparison.config_text,
    }


def _target_context(comparison: Comparison, target: str) -> dict[str, Any]:
    summary = comparison.summary
    split = summary.get("split") or {}
    n_targets, unit = len(targets_of(summary)), unit_of(summary, target)
    shaded = training_range(split, target, n_targets=n_targets) is not None
    return {
        "name": target,
        "verdict": verdict(summary, target),
        "remarks": remarks(summary, target),
        "overview": overview_table(summary, target),
        "seeds": seeds_table(summary, target),
        "bars": bar_panels(summary, target),
        "parity": parity_panels(comparison, target),
        "parity_note": (
            "The dashed diagonal is a perfect prediction. "
            + (
                "The shaded band is the range of the training labels."
                if shaded
                else "Range of the training labels: not available: the split's report has none."
            )
        ),
        "split": split_table(split, target, n_targets=n_targets, unit=unit),
    }


def _subtitle(summary: Mapping[str, Any]) -> str:
    split = summary.get("split") or {}
    backbone = summary.get("backbone") or {}
    units = [(target, unit_of(summary, target)) for target in targets_of(summary)]
    names = ", ".join(f"{target} ({unit})" if unit else target for target, unit in units)
    parts = {"target": names, "backbone": backbone.get("name"), "split": split.get("name")}
    return " · ".join(f"{label} {value}" for label, value in parts.items() if value)


def _overview_note(summary: Mapping[str, Any]) -> str:
    if not summary["gains"]:
        return "Smaller is better."
    intervals = f"{level_words(summary)}intervals".capitalize()
    return (
        "Smaller errors are better; the best of each column is in bold. "
        f"{intervals} are in square brackets. A positive gain is a smaller RMSE than the "
        "reference's. The gap to ID is OOD less ID RMSE, in units of the reference's."
    )


def _validated_targets(comparison: Comparison) -> list[str]:
    """Targets of finished runs; before there is one, those that the logs validate."""
    logged = (event.get("val_rmse") or {} for run in comparison.runs for event in run.log)
    return targets_of(comparison.summary) or list(dict.fromkeys(chain.from_iterable(logged)))


def _nothing_yet(comparison: Comparison) -> str:
    problems = [
        f"{run.recipe}{'' if run.seed is None else f' seed {run.seed}'}: {problem}"
        for run in comparison.runs
        for name, problem in run.problems.items()
        if name == "metrics.json"
    ]
    return "; ".join(problems) or "no run has finished"


def _forgetting_missing(summary: Mapping[str, Any]) -> str:
    entries = summary["forgetting"]
    if any(entry.get(key) is not None for entry in entries for key in _FORGETTING_KEYS):
        return ""
    return "no run measured a force field (the backbone has none, or no held-out data was given)"


def _split_words(split: Mapping[str, Any]) -> str:
    name, method = split.get("name") or "not named", split.get("method") or "not stated"
    return f"Split: {name}. Method: {method}."


def _methods(comparison: Comparison) -> list[str]:
    summary, recipes = comparison.summary, recipes_of(comparison.summary)
    seeds = sorted({row["seed"] for row in summary["rows"]} - {"pooled"}, key=str)
    sentences = []
    if comparison.is_single_run:
        sentences.append("This report shows one run; `tether compare` adds intervals and gains.")
    elif recipes:
        noun = "seed" if len(seeds) == 1 else "seeds"
        seed_words = f"{noun} {', '.join(map(str, seeds))}" if seeds else "seeds not stated"
        sentences.append(
            f"Trained on the same split: {counted(len(recipes), 'recipe')} "
            f"({', '.join(recipes)}) with {seed_words}. Errors are computed from the stored "
            "predictions; a pooled error is the mean over seeds."
        )
        sentences.append(
            "Intervals are a bootstrap over test structures with Student's t over seeds: two seeds "
            "say little, three more, and of one seed the interval is of structures alone. The p "
            "value is a paired permutation test of these trained models on these structures; it is "
            "not corrected for the number of recipes."
        )
    unfinished = [run.folder.name for run in comparison.runs if run.metrics is None]
    unfinished += [str(name) for name in summary.get("missing_runs") or []]
    if unfinished:
        names = ", ".join(dict.fromkeys(unfinished))
        sentences.append(f"Not finished, and not in the tables: {names}.")
    if comparison.left_out:
        sentences.append(
            "Left out, as summary.json does not know them (of a recipe or a seed that the "
            f"configuration did not name): {', '.join(comparison.left_out)}."
        )
    return sentences

"""Read what `tether collapse` wrote beside the runs, into plain values for the report."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tether.collapse.pooled import Pooled, pool
from tether.report.format import as_number
from tether.report.read import read_object

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tether.report.read import Comparison, Run

__all__ = [
    "KINDS",
    "Collapse",
    "CollapseRun",
    "layers_of",
    "measure_names",
    "pool_runs",
    "read_collapse",
    "recipes_with",
]

#: Lists of measurements in `measures.json`.
KINDS = ("atoms", "edges", "function")
FORMAT = 2
_NEEDED = ("name", "family")
_NUMBERS = ("value", "low", "high", "before", "null_low", "null_high")


@dataclass(frozen=True)
class CollapseRun:
    """The `collapse` folder of one run.

    Attributes
    ----------
    run : Run
        The run it belongs to.
    measures : dict
        `measures.json`; empty where it is missing.
    problem : str
        Why it is not available, "" where it is.
    """

    run: Run
    measures: dict[str, Any]
    problem: str = ""

    def entries(self, kind: str) -> list[dict[str, Any]]:
        """Return the measurements of a kind: "atoms", "edges" or "function"."""
        found: list[dict[str, Any]] = self.measures.get(kind, [])
        return found

    def entry(self, kind: str, name: str, layer: int | None = None) -> dict[str, Any] | None:
        """Find a measurement of an inner layer, or of the last one (None)."""
        named = (entry for entry in self.entries(kind) if entry["name"] == name)
        return next((entry for entry in named if entry.get("layer") == layer), None)


@dataclass(frozen=True)
class Collapse:
    """Everything of the collapse measures but the points of the explorer.

    Attributes
    ----------
    runs : list of CollapseRun
        In the order of the comparison's runs, those without measures included.
    predicts : list of dict
        "Does it predict?" of `collapse.json`.
    subset : str
        Index set that the points were sampled from, "" if unknown.
    target : str
        Whose error the measures are to predict, "" if unknown.
    missing : str
        Why there is nothing to show, "" where at least one run has measures.
    predicts_missing : str
        Why there is no prediction, "" where there is one.
    """

    runs: list[CollapseRun]
    predicts: list[dict[str, Any]] = field(default_factory=list)
    subset: str = ""
    target: str = ""
    missing: str = ""
    predicts_missing: str = ""

    @property
    def known(self) -> list[CollapseRun]:
        """Runs that have measures."""
        return [run for run in self.runs if not run.problem]


def read_collapse(comparison: Comparison) -> Collapse:
    """Read the measures of every run, and what they predict.

    Parameters
    ----------
    comparison : Comparison
        What `read_comparison` returns.

    Returns
    -------
    Collapse
        A file that is missing or damaged becomes a reason, never an error.
    """
    runs = [_read_run(run) for run in comparison.runs]
    known = [run for run in runs if not run.problem]
    command = f"run `tether collapse {shlex.quote(str(comparison.folder))}`"
    missing = ""
    if not known:
        damaged = [f"{run.run.folder.name}: {run.problem}" for run in runs if run.measures]
        missing = "; ".join(damaged) or command
    pooled = {} if comparison.is_single_run else read_object(comparison.folder / "collapse.json")
    predicts = [
        dict(entry)
        for entry in _dicts(pooled.get("predicts"))
        if isinstance(entry.get("measure"), str)
    ]
    why = "one run cannot show it" if comparison.is_single_run else command
    return Collapse(
        runs=runs,
        predicts=predicts,
        subset=_text(known[0].measures.get("subset")) if known else "",
        target=_text(pooled.get("target")),
        missing=missing,
        predicts_missing="" if predicts else why,
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _dicts(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _read_run(run: Run) -> CollapseRun:
    path = run.folder / "collapse" / "measures.json"
    if not path.is_file():
        return CollapseRun(run, {}, "no collapse/measures.json")
    measures = read_object(path)
    if not measures:
        return CollapseRun(run, {"damaged": True}, "collapse/measures.json cannot be read")
    if measures.get("format") != FORMAT:
        found = measures.get("format")
        problem = f"`format` of collapse/measures.json is {found!r}, not {FORMAT}"
        return CollapseRun(run, measures, f"{problem}: run `tether collapse` again")
    for kind in KINDS:
        measures[kind] = [
            {**entry, **{key: as_number(entry.get(key)) for key in _NUMBERS}}
            for entry in _dicts(measures.get(kind))
            if all(isinstance(entry.get(key), str) for key in _NEEDED)
            and isinstance(entry.get("layer"), int | None)
        ]
    for key in ("classes", "groups"):
        entries = _dicts(measures.get(key))
        measures[key] = [entry for entry in entries if isinstance(entry.get("class"), str)]
    return CollapseRun(run, measures)


def recipes_with(runs: Sequence[CollapseRun]) -> list[str]:
    """Recipes of the runs, in their order."""
    return list(dict.fromkeys(run.run.recipe for run in runs))


def measure_names(runs: Sequence[CollapseRun], kind: str) -> list[str]:
    """Names of the measures of a kind, in the order of the files; the last layer's first."""
    every = [entry for run in runs for entry in run.entries(kind)]
    every.sort(key=lambda entry: entry.get("layer") is not None)
    return list(dict.fromkeys(entry["name"] for entry in every))


def layers_of(runs: Sequence[CollapseRun], kind: str, name: str) -> list[tuple[int, int | None]]:
    """Find the layers that a measure was taken of.

    Parameters
    ----------
    runs : sequence of CollapseRun
        Those that have measures.
    kind, name : str
        Which measure.

    Returns
    -------
    list of (int, int or None)
        Position of each layer, counted from 0, and its key in the entries: None for the last.
    """
    every = [entry for run in runs for entry in run.entries(kind)]
    inner = {entry["layer"] for entry in every if entry.get("layer") is not None}
    own = {entry.get("layer") for entry in every if entry["name"] == name}
    numbered = [(layer, layer) for layer in sorted(inner) if layer in own]
    return [*numbered, (max(inner, default=-1) + 1, None)] if None in own else numbered


def pool_runs(
    runs: Sequence[CollapseRun],
    kind: str,
    name: str,
    layer: int | None = None,
    *,
    recipe: str | None = None,
) -> Pooled:
    """Pool one measure over the runs of a recipe, or of all.

    Parameters
    ----------
    runs : sequence of CollapseRun
        Those that have measures; all compare with the same pretrained model.
    kind, name : str
        Which measure.
    layer : int, optional
        Which layer; the last one by default.
    recipe : str, optional
        Whose runs; default all, for the pretrained value and the null.

    Returns
    -------
    Pooled
        In the measure's unit.
    """
    chosen = (run for run in runs if recipe in {None, run.run.recipe})
    return pool(run.entry(kind, name, layer) for run in chosen)

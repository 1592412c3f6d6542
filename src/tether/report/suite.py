"""Write `results.html` of a suite: one file that needs no network, made from `results.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tether.report.page import render_page, write_page
from tether.report.results import level_words
from tether.report.suite_curves import curve_targets, efficiency_answers, reach_table
from tether.report.suite_made import (
    outside_table,
    recipes_table,
    settings_tables,
    stages_table,
    suite_runs_table,
)
from tether.report.suite_panels import curve_panels, gain_panels, rank_panels, trade_off_panels
from tether.report.suite_read import questions_of, read_results, reference_of, test_subsets
from tether.report.suite_tables import (
    error_table,
    group_tables,
    limit_table,
    over_tasks_table,
    suite_forgetting_table,
)
from tether.report.suite_verdict import progress_words, suite_remarks, suite_verdicts

if TYPE_CHECKING:
    from tether.report.tables import Table

__all__ = ["build_suite_report", "suite_context"]

Results = dict[str, Any]
_NOTHING = "no run has finished"


@dataclass(frozen=True)
class Part:
    """A piece of a section.

    Attributes
    ----------
    kind : {"note", "answer", "missing", "table", "panels"}
        How the template draws it.
    content : str, Table or list of Panel
        What is drawn.
    layout : str
        Of panels: "", "two" or "one".
    """

    kind: Literal["note", "answer", "missing", "table", "panels"]
    content: Any
    layout: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the page; without parts it is left out.

    Attributes
    ----------
    id, title : str
        Anchor and heading.
    parts : list of Part
        What it shows.
    folded : str
        Where not "", the words behind which `more` is folded.
    more : list of Part
        Shown on request.
    """

    id: str
    title: str
    parts: list[Part]
    folded: str = ""
    more: list[Part] = field(default_factory=list)


def build_suite_report(folder: Path) -> Path:
    """Write `results.html` into the folder of a suite.

    Parameters
    ----------
    folder : Path
        Holds `results.json`.

    Returns
    -------
    Path
        `folder / "results.html"`, replaced in one step.

    Raises
    ------
    TetherError
        If `results.json` is missing or not what `tether bench` writes, or the folder cannot be
        written to.
    """
    folder = Path(folder)
    page = render_page("suite.html.j2", suite_context(read_results(folder)))
    return write_page(folder / "results.html", page)


def suite_context(results: Results) -> dict[str, Any]:
    """What the page shows, section by section, in the order in which a reader asks.

    Parameters
    ----------
    results : dict
        Of `read_results`.

    Returns
    -------
    dict
        For the template.
    """
    sections = [_each_task(results), _over_tasks(results), _ranks(results)]
    # Folds and sizes are what such a suite is about.
    first = [_folds(results), _sizes(results)]
    sections = [*first, *sections, _limit(results), _forgetting(results), _made(results)]
    n_tasks = len(results["tasks"])
    return {
        "title": f"Suite: {results['name']}",
        "subtitle": f"{results['summary']} · {n_tasks} tasks · {results['metric'].upper()}",
        "verdicts": suite_verdicts(results),
        "remarks": [*suite_remarks(results), progress_words(results)],
        "sections": [section for section in sections if section.parts],
    }


def _each_task(results: Results) -> Section:
    if not questions_of(results):
        return Section("overview", "Each task", [Part("missing", _NOTHING)])
    reference = reference_of(results)
    parts = [Part("table", error_table(results, subset)) for subset in test_subsets(results)]
    over = (
        f" Below it, in percent: its gain over {reference}, with its interval;" if reference else ""
    )
    parts.append(
        Part(
            "note",
            f"Errors are means over seeds, with their {level_words(results)}interval in square "
            f"brackets (of one seed that of structures alone, so that it is narrow); the best of "
            f"each column is in bold.{over} positive is a smaller error. "
            "Below the line: predictors that learn nothing, then published figures with their "
            "source; the gains among these are over the same model's own full fine-tuning.",
        )
    )
    for source, note in _published_notes(results):
        parts.append(Part("note", f"{source}: {note}"))
    if (outside := outside_table(results)).rows:
        parts.append(Part("table", outside))
    if reference and (panels := gain_panels(results, reference)):
        parts.append(Part("panels", panels, "two"))
    return Section("overview", "Each task", parts)


def _published_notes(results: Results) -> list[tuple[str, str]]:
    found = {str(row["source"]): str(row.get("note") or "") for row in results["published_rows"]}
    return [(source, note) for source, note in found.items() if note]


def _over_tasks(results: Results) -> Section:
    reference = reference_of(results)
    parts: list[Part] = []
    if reference and results["over_tasks"]:
        parts.append(Part("panels", trade_off_panels(results, reference), "one"))
        parts += [
            Part("table", table)
            for name in dict.fromkeys([reference, *(r["reference"] for r in results["over_tasks"])])
            if (table := over_tasks_table(results, name)).rows
        ]
        parts.append(
            Part(
                "note",
                "Mean gain: from the geometric mean of the ratios of errors, interval by "
                "Student's t. p: Wilcoxon's signed-rank test over tasks, corrected by Holm among "
                "the recipes of the column that are to run on equally many tasks. Effect size: "
                f"rank-biserial correlation, +1 = better on every task.{_dependence(results)}",
            )
        )
    return Section("over-tasks", "Over all tasks", parts)


def _dependence(results: Results) -> str:
    if not (results["groups"] or results["curves"]):
        return ""
    return (
        " The tasks of this suite share their data (folds of one set, or sizes of one training "
        "set) and are no independent witnesses: these p values are too small."
    )


def _ranks(results: Results) -> Section:
    panels = rank_panels(results)
    note = (
        "1 is the smallest error on every task. A bar joins recipes whose mean ranks differ by "
        "less than Nemenyi's critical difference: they cannot be told apart at 5 %."
        + _dependence(results)
    )
    parts = [Part("panels", panels, "two"), Part("note", note)] if panels else []
    return Section("ranks", "Ranks", parts)


def _folds(results: Results) -> Section:
    tables = [Part("table", table) for table in group_tables(results)]
    note = (
        "Each fold counts once. Intervals: Student's t over folds, whose spread holds that of "
        "seeds and structures; p values are paired and not corrected. Errors are of the folds and "
        "seeds that every recipe has finished, gains of those that both have."
    )
    return Section(
        "folds", "Over the folds of each data set", [*tables, Part("note", note)] if tables else []
    )


def _sizes(results: Results) -> Section:
    if not results["curves"]:
        return Section("sizes", "Data efficiency", [])
    stated = suite_verdicts(results)  # at the head of the page, as many as have place there
    more = (answer for answer in efficiency_answers(results) if answer not in stated)
    parts = [Part("answer", answer) for answer in more]
    parts.append(Part("panels", curve_panels(results), "two"))
    tables = [
        reach_table(results, target, subset)
        for target in curve_targets(results)
        for subset in test_subsets(results)
    ]
    parts += [Part("table", table) for table in tables if table.rows]
    parts.append(
        Part(
            "note",
            "Between sizes the logarithm of the error is interpolated over the logarithm of the "
            "size; nothing is extrapolated. The last crossing counts, from which on the curve "
            "stays below. ≤: the smallest size that was run is enough.",
        )
    )
    return Section("sizes", "Data efficiency", parts)


def _limit(results: Results) -> Section:
    table = limit_table(results)
    note = (
        "(OOD error − ID error of the recipe) / (OOD error − ID error of full). 0: as good outside "
        "as inside; 1: the gap of full. A recipe with a large ID error comes near its limit "
        "easily: read it beside the errors."
    )
    return Section("limit", "Distance to the limit", _table_and(table, note))


def _forgetting(results: Results) -> Section:
    table = suite_forgetting_table(results)
    note = (
        "Error of the pretrained force-field head on held-out structures before and after "
        "fine-tuning, mean over seeds; × their ratio. A dash: not measured, or no pretrained head."
    )
    return Section("forgetting", "What the force field forgot", _table_and(table, note))


def _table_and(table: Table, note: str) -> list[Part]:
    return [Part("table", table), Part("note", note)] if table.rows else []


def _made(results: Results) -> Section:
    tables = [recipes_table(results), stages_table(results), *settings_tables(results)]
    more = [Part("table", table) for table in tables if table.rows]
    return Section(
        "runs",
        "Runs, and how they were made",
        [Part("note", progress_words(results)), Part("table", suite_runs_table(results))],
        "Recipes, commands and settings",
        more,
    )

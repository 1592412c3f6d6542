"""The sentences at the top of a suite's page, computed from its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tether.report.format import as_number, counted, format_p
from tether.report.results import (
    gain_of,
    level_words,
    pooled_row,
    recipes_of,
    reference_lines_of,
    subset_label,
)
from tether.report.suite_curves import efficiency_answers
from tether.report.suite_read import (
    multitask_recipes,
    over_tasks_row,
    questions_of,
    reference_of,
    run_counts,
    suite_recipes,
    test_subsets,
)
from tether.report.verdict import difference_words, verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["progress_words", "suite_remarks", "suite_verdicts"]

Results = dict[str, Any]
_MOST_SENTENCES = 4
#: Below this many tasks no p of Wilcoxon's test can reach 0.05.
_MIN_TASKS = 6


def suite_verdicts(results: Results) -> list[str]:
    """Say how the multi-task recipes do against full fine-tuning, and where they lose.

    Over independent tasks: the mean gain with its interval and corrected p. Where tasks are folds
    of data sets, or sizes of one, they are no independent witnesses: then a sentence speaks of each
    data set, or of the size at which a recipe does as well as another.

    Parameters
    ----------
    results : dict
        `results.json`.

    Returns
    -------
    list of str
        At least one sentence.
    """
    if not questions_of(results):
        return ["No run has finished, so there is nothing to compare yet."]
    reference = reference_of(results)
    if reference is None:
        return ["Nothing that recipes are compared with, as full or scratch, has been run yet."]
    if results["curves"] and (answers := efficiency_answers(results)):
        return answers[:_MOST_SENTENCES]
    if results["groups"] and (sentences := _group_sentences(results, reference)):
        return sentences
    named = [name for name in _judged(results, reference) if _rows(results, name, reference)]
    if named:
        most = max(_n_tasks(results, name, reference) for name in named)
        chosen = [name for name in named if _n_tasks(results, name, reference) == most]
        return [_sentence(results, name, reference) for name in chosen[:_MOST_SENTENCES]]
    return _single(results, reference)


def _judged(results: Results, reference: str) -> list[str]:
    """Multi-task recipes; all but the reference where none has finished."""
    return multitask_recipes(results) or [
        name for name in suite_recipes(results) if name != reference
    ]


def _rows(results: Results, name: str, reference: str) -> list[dict[str, Any]]:
    found = (over_tasks_row(results, name, reference, subset) for subset in test_subsets(results))
    return [row for row in found if row]


def _n_tasks(results: Results, name: str, reference: str) -> int:
    return max(int(row["n_tasks"]) for row in _rows(results, name, reference))


def _sentence(results: Results, name: str, reference: str) -> str:
    parts = []
    for row in _rows(results, name, reference):
        label = f"{subset_label(row['subset'])} {results['metric'].upper()}"
        words = _words(results, row, reference, "gain_percent", "p_holm")
        lost = _lost(results, name, reference, row["subset"])
        worse = f", worse on {', '.join(lost)}" if lost else ""
        parts.append(f"{label} {words}, better on {row['n_better']} of {row['n_tasks']}{worse}")
    n_tasks = _n_tasks(results, name, reference)
    return f"{name}, mean over {n_tasks} tasks: {'; '.join(parts)}."


def _words(results: Results, row: Mapping[str, Any], reference: str, key: str, p_key: str) -> str:
    p = as_number(row.get(p_key))
    p_text = format_p(p)
    if p_text and p_key == "p_holm":
        p_text += " after Holm's correction"
    low, high = as_number(row.get("low")), as_number(row.get("high"))
    words = difference_words(
        float(row[key]), (low, high), reference, [p_text], level=level_words(results)
    )
    apart = low is not None and high is not None and not low <= 0 <= high
    return words + (", not significant" if apart and p is not None and p > 0.05 else "")


def _lost(results: Results, name: str, reference: str, subset: str) -> list[str]:
    """Questions on which a recipe has the larger error."""
    lost = []
    for question in questions_of(results):
        query = {"target": question.target, "subset": subset, "metric": results["metric"]}
        gain = gain_of(question.entry, name, reference, **query)
        if gain and float(gain["gain_percent"]) < 0:
            lost.append(question.name)
    return lost


def _group_sentences(results: Results, reference: str) -> list[str]:
    """One sentence a multi-task recipe and test set, over the data sets."""
    sentences = []
    for name in _judged(results, reference):
        for subset in test_subsets(results):
            rows = [
                row
                for row in results["groups"]
                if (row["recipe"], row["subset"]) == (name, subset) and reference in row["gains"]
            ]
            if not rows:
                continue
            parts = []
            for row in rows:
                words = _words(results, row["gains"][reference], reference, "percent", "p_value")
                n_folds = row["gains"][reference].get("n_folds", row["n_folds"])
                parts.append(f"{row['group']} {words} over {counted(n_folds, 'fold')}")
            label = f"{subset_label(subset)} {results['metric'].upper()}"
            sentences.append(f"{name}, {label}: {'; '.join(parts)}.")
    return sentences[:_MOST_SENTENCES]


def _single(results: Results, reference: str) -> list[str]:
    """Before two tasks are there: what each of them says."""
    found = [
        f"{question.name}: {verdict(question.entry, question.target, metric=results['metric'])}"
        for question in questions_of(results)
        if any(gain["recipe"] not in {"full", "scratch"} for gain in question.entry["gains"])
    ]
    nothing = f"No alternative to {reference} has finished a task yet."
    return found[:_MOST_SENTENCES] or [nothing]


def suite_remarks(results: Results) -> list[str]:
    """Facts that temper the verdict: the clip oracle, few tasks, tasks that depend on each other.

    Parameters
    ----------
    results : dict
        `results.json`.

    Returns
    -------
    list of str
        Sentences.
    """
    remarks = [*_oracle_remark(results)]
    rows = results["over_tasks"]
    if rows and not (results["curves"] or results["groups"]):
        most = max(int(row["n_tasks"]) for row in rows)
        if most < _MIN_TASKS:
            remarks.append(
                f"Only {most} tasks are finished: with fewer than six, Wilcoxon's test cannot "
                "reach p = 0.05, whatever the gain."
            )
    return remarks


def _oracle_remark(results: Results) -> list[str]:
    beaten: list[str] = []
    lost: list[str] = []
    for question in questions_of(results):
        query = {"target": question.target, "subset": "test/ood", "metric": results["metric"]}
        lines = reference_lines_of(question.entry, **query)
        oracle = next((value for name, value in lines.items() if "clip" in name), None)
        errors = [
            float(row["value"])
            for name in recipes_of(question.entry)
            if (row := pooled_row(question.entry, name, **query))
        ]
        if oracle and errors:
            (beaten if min(errors) < oracle else lost).append(question.name)
    if not beaten and not lost:
        return []
    words = (
        f"The best recipe beats the clip oracle OOD on {len(beaten)} of "
        f"{len(beaten) + len(lost)} tasks"
    )
    if lost:
        return [f"{words}; no recipe extrapolates on {', '.join(lost)}."]
    return [f"{words}."]


def progress_words(results: Results) -> str:
    """Say how many runs are done, and name some that are not.

    Parameters
    ----------
    results : dict
        `results.json`.

    Returns
    -------
    str
        A sentence.
    """
    done, total = run_counts(results)
    if done == total:
        return f"All {total} runs are done."
    waiting = [
        f"{task['name']}/{run}"
        for task in results["tasks"]
        for run, is_done in task["runs"].items()
        if not is_done
    ]
    more = f" and {len(waiting) - 6} more" if len(waiting) > 6 else ""
    return f"{done} of {total} runs are done; to do: {', '.join(waiting[:6])}{more}."

"""Write the results tables of a document from summaries: no number there is typed by hand.

``python tools/results_table.py README.md FILE …``, with ``summary.json`` of a comparison or
``results.json`` of a suite.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

#: Tasks below which a mean over them is given without an interval.
FEWEST_TASKS = 5
START, END = "<!-- results:", "<!-- end of results -->"


def table(summary: dict[str, Any]) -> str:
    """Markdown: a row a recipe, pooled over seeds; RMSE in eV where the unit is Ha."""
    target = summary["config"]["targets"][0]
    pooled = [r for r in summary["rows"] if r["seed"] == "pooled" and r["target"] == target]
    unit = pooled[0]["unit"]
    factor, shown = (27.211386245988, "eV") if unit == "Ha" else (1.0, unit)

    def cell(recipe: str, subset: str) -> str:
        row = next(
            r for r in pooled if (r["recipe"], r["subset"], r["metric"]) == (recipe, subset, "rmse")
        )
        low, value, high = (factor * row[k] for k in ("low", "value", "high"))
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    def gain(recipe: str, subset: str) -> str:
        key = (recipe, "full", target, subset, "rmse")
        names = ("recipe", "reference", "target", "subset", "metric")
        found = [g for g in summary["gains"] if tuple(g[k] for k in names) == key]
        if not found:
            return "–"
        return _percent(found[0])

    def forces(recipe: str) -> str:
        rows = [f for f in summary["forgetting"] if f["recipe"] == recipe]
        after = sum(f["force_mae_after"] for f in rows) / len(rows) if rows else float("nan")
        return f"{after:.3f}"

    recipes = list(dict.fromkeys(row["recipe"] for row in pooled))
    seeds_of = {
        name: len({r["seed"] for r in summary["rows"] if r["recipe"] == name} - {"pooled"})
        for name in recipes
    }
    sizes = summary["split"]["sizes"]
    lines = [
        (
            f"{target} of QM9, split of {summary['split']['name']}, {sizes['train']:,} training "
            f"molecules, {pooled[0]['property_steps']:,.0f} property steps for "
            f"every recipe. RMSE in {shown} with bootstrap intervals over seeds and molecules; "
            "gain over `full` on the seeds of both (positive: better); force MAE on held-out "
            "geometries after adaptation, in eV/Å."
        ),
        "",
        "| recipe | seeds | ID RMSE | OOD RMSE | ID gain | OOD gain | force MAE |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{r}` | {seeds_of[r]} | {cell(r, 'test/id')} | {cell(r, 'test/ood')} "
        f"| {gain(r, 'test/id')} | {gain(r, 'test/ood')} | {forces(r)} |"
        for r in recipes
    ]
    references = [
        f"{line['name']} {factor * line['value']:.3f}"
        for line in summary["reference_lines"]
        if line["target"] == target and line["subset"] == "test/ood" and line["metric"] == "rmse"
    ]
    return "\n".join([*lines, "", f"OOD reference lines (RMSE): {'; '.join(references)}."])


def _percent(gain: dict[str, Any]) -> str:
    return f"{gain['gain_percent']:+.1f} % [{gain['low']:+.1f}, {gain['high']:+.1f}]"


def suite_tables(results: dict[str, Any]) -> str:
    """Markdown: a row a task with the recipes that all tasks ask for, then the others' gains."""
    tasks = [task for task in results["tasks"] if task["rows"]]
    run = {row["recipe"] for task in tasks for row in task["rows"]}
    common = [
        name
        for name in tasks[0]["steps"]
        if name in run and all(name in task["steps"] for task in results["tasks"])
    ]
    n_done = sum(done for task in results["tasks"] for done in task["runs"].values())
    n_runs = sum(len(task["runs"]) for task in results["tasks"])
    caption = (
        f"{results['name']}: {results['summary']}. {n_done} of {n_runs} runs are done. "
        f"{results['metric'].upper()} ID / OOD, mean over seeds (their number in brackets); gain "
        "of `mft` over `full` on the seeds of both, with bootstrap intervals over seeds and "
        "structures (over structures alone where there is one seed)."
    )
    heads = ["task", "clip oracle", *(f"`{name}`" for name in common), "ID gain", "OOD gain"]
    lines = [caption, "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for task in tasks:
        cells = [f"{task['name']} ({task['unit']})", _oracle(task)]
        cells += [_pair(task, name) for name in common]
        cells += [_gain(task, "mft", subset) for subset in ("test/id", "test/ood")]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(_over_tasks(row) for row in results["over_tasks"])]
    return "\n".join([*lines, *_other_recipes(tasks, common)]).rstrip()


def _pair(task: dict[str, Any], recipe: str) -> str:
    found = {row["subset"]: row["value"] for row in task["rows"] if row["recipe"] == recipe}
    if not found:
        return "–"
    seeds = {row["seed"] for row in task["seed_rows"] if row["recipe"] == recipe}
    return f"{found['test/id']:.3g} / {found['test/ood']:.3g} ({len(seeds)})"


def _gain(task: dict[str, Any], recipe: str, subset: str) -> str:
    key = (recipe, "full", subset)
    found = [g for g in task["gains"] if (g["recipe"], g["reference"], g["subset"]) == key]
    if not found:
        return "–"
    return _percent(found[0])


def _oracle(task: dict[str, Any]) -> str:
    key = ("clip oracle", "test/ood")
    found = [r["value"] for r in task["reference_lines"] if (r["name"], r["subset"]) == key]
    return f"{found[0]:.3g}" if found else "–"


def _over_tasks(row: dict[str, Any]) -> str:
    where = "ID" if row["subset"] == "test/id" else "OOD"
    if row["n_tasks"] < FEWEST_TASKS:  # no interval, and no test, worth reading
        return (
            f"- {where}: `{row['method']}` better than `{row['reference']}` on {row['n_better']} "
            f"of {row['n_tasks']} tasks."
        )
    return (
        f"- {where}, over {row['n_tasks']} tasks: `{row['method']}` against `{row['reference']}` "
        f"{_percent(row)}, better on {row['n_better']}, p = {row['p_holm']:.2g} (Wilcoxon, Holm)."
    )


def _other_recipes(tasks: list[dict[str, Any]], common: list[str]) -> list[str]:
    some = [task for task in tasks if set(task["steps"]) - set(common)]
    done = {row["recipe"] for task in some for row in task["rows"]}
    names = [name for name in (some[0]["steps"] if some else ()) if name in done - set(common)]
    if not names:
        return []
    heads = [f"{task['name']}, {where} gain" for task in some for where in ("ID", "OOD")]
    lines = [
        "",
        "The other recipes, gain over `full`:",
        "",
        f"| recipe | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    for name in names:
        cells = [_gain(task, name, subset) for task in some for subset in ("test/id", "test/ood")]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def tables(content: dict[str, Any]) -> str:
    """Tables of a comparison's summary or a suite's results."""
    return suite_tables(content) if "tasks" in content else table(content)


def main() -> None:
    """Replace the text between the markers."""
    document, *sources = map(Path, sys.argv[1:])
    text = document.read_text()
    start = text.index("\n", text.index(START)) + 1
    end = text.index(END)
    content = "\n\n".join(tables(json.loads(source.read_text())) for source in sources)
    document.write_text(f"{text[:start]}\n{content}\n\n{text[end:]}")


if __name__ == "__main__":
    main()

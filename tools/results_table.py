"""Write the results tables of the documents from result files: no number there is typed by hand.

``python tools/results_table.py [DOCUMENT …]``, by default every one that has results. Where the
tables go, a document says which files of ``benchmarks/results/`` they are of:
``<!-- results: FILE … -->`` up to ``<!-- end of results -->``. A file is the ``summary.json`` of a
comparison, the ``results.json`` of a suite, the ``collapse.json`` of a measurement, or one that
`measured_tables` knows; ``FOLDER/*`` is one table of all comparisons in it, ``FOLDER/`` one
of a suite's runs, with their validation errors.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measured_tables import MEASURED, markdown, runs_table, trials_table

from tether.report.suite_read import FEWEST_TASKS, run_counts

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "benchmarks/README.md")
BLOCK = re.compile(r"(<!-- results: (.*?) -->\n).*?(<!-- end of results -->)", re.DOTALL)
#: What may hold numbers that nobody measured here: tables, code, addresses, versions, papers.
NO_PROSE = re.compile(
    r"<!-- results: .*?<!-- end of results -->|```.*?```|`[^`]*`|\]\([^)]*\)"
    r"|(?:arXiv|Python|torch) \d+\.\d+",
    re.DOTALL,
)
#: A decimal, or a percentage.
NUMBER = re.compile(r"(?<![\w.])(?:\d*\.\d+|\d+ ?%)")
#: Rows of the table of collapse: name of a measure, and how it is written.
MEASURES = {
    "wasserstein1": ("1-Wasserstein to the pretrained features, in their spreads", ".2f"),
    "cka": ("debiased CKA to the pretrained features", ".2f"),
    "davies_bouldin": ("Davies–Bouldin index of the classes", ".2f"),
    "knn_purity": ("purity of 10 neighbours", ".3f"),
    "effective_rank": ("effective rank", ".1f"),
    "ood_auroc": ("AUROC of OOD detection", ".3f"),
}


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
    caption = (
        f"{target} of QM9, split of {summary['split']['name']}, {sizes['train']:,} training "
        f"molecules, {pooled[0]['property_steps']:,.0f} property steps for "
        f"every recipe. RMSE in {shown} with bootstrap intervals over seeds and molecules; "
        "gain over `full` on the seeds of both (positive: better); force MAE on held-out "
        "geometries after adaptation, in eV/Å."
    )
    heads = ["recipe", "seeds", "ID RMSE", "OOD RMSE", "ID gain", "OOD gain", "force MAE"]
    rows = [
        [
            f"`{name}`",
            str(seeds_of[name]),
            *(cell(name, subset) for subset in ("test/id", "test/ood")),
            *(gain(name, subset) for subset in ("test/id", "test/ood")),
            forces(name),
        ]
        for name in recipes
    ]
    references = [
        f"{line['name']} {factor * line['value']:.3f}"
        for line in summary["reference_lines"]
        if line["target"] == target and line["subset"] == "test/ood" and line["metric"] == "rmse"
    ]
    last = f"OOD reference lines (RMSE): {'; '.join(references)}."
    return "\n\n".join([caption, markdown(heads, rows), last])


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
    caption = (
        f"{_state(results)} {results['metric'].upper()} ID / OOD, mean over seeds (their number in "
        "brackets); gains over `full` on the seeds of both, with bootstrap intervals over "
        "seeds and structures (over structures alone where there is one seed)."
    )
    gains = [(name, s) for name in common if "mft" in name for s in ("test/id", "test/ood")]
    heads = ["task", "clip oracle", *(f"`{name}`" for name in common)]
    heads += [f"{subset[5:].upper()} gain of `{name}`" for name, subset in gains]
    rows = [
        [
            f"{task['name']} ({task['unit']})",
            _oracle(task),
            *(_pair(task, name) for name in common),
            *(_gain(task, name, "full", subset) for name, subset in gains),
        ]
        for task in tasks
    ]
    parts = [caption, markdown(heads, rows), *_over_tasks(results), *_other_recipes(tasks, common)]
    return "\n\n".join(parts)


def group_tables(results: dict[str, Any]) -> str:
    """Markdown: a row a data set and recipe, over the folds that all recipes have finished."""
    caption = (
        f"{_state(results)} Mean {results['metric'].upper()} over folds and seeds, and OOD gains, "
        "with hierarchical bootstrap intervals; of the folds that every recipe has finished."
    )
    found = {(r["group"], r["recipe"], r["subset"]): r for r in results["groups"]}
    over = list(dict.fromkeys(one for row in results["groups"] for one in row["gains"]))
    heads = ["data set", "recipe", "folds", "ID", "OOD", *(f"OOD gain over `{n}`" for n in over)]
    rows = []
    for group, name in dict.fromkeys((group, name) for group, name, _ in found):
        inside, outside = (found[group, name, subset] for subset in ("test/id", "test/ood"))
        gains = [outside["gains"].get(one) for one in over]
        shown = [_percent({**g, "gain_percent": g["percent"]}) if g else "–" for g in gains]
        rows.append(
            [
                *(group, f"`{name}`", str(outside["n_folds"])),
                *(f"{r['value']:.3g} [{r['low']:.3g}, {r['high']:.3g}]" for r in (inside, outside)),
                *shown,
            ]
        )
    return f"{caption}\n\n{markdown(heads, rows)}"


def recipe_tables(results: dict[str, Any]) -> str:
    """Markdown: a row a recipe, for a suite of few tasks; gains over each of its references."""
    tasks = [task for task in results["tasks"] if task["rows"]]
    names = list(dict.fromkeys(row["recipe"] for task in tasks for row in task["rows"]))
    over = list(dict.fromkeys(gain["reference"] for task in tasks for gain in task["gains"]))
    caption = (
        f"{_state(results)} {results['metric'].upper()} ID / OOD, mean over seeds (their number in "
        "brackets); OOD gains on the seeds of both, with bootstrap intervals over seeds and "
        "structures; force MAE on held-out geometries after adaptation, in eV/Å, mean over all."
    )
    heads = ["recipe"]
    for task in tasks:
        heads += [f"{task['name']} ({task['unit']})", *(f"OOD gain over `{one}`" for one in over)]
    rows = []
    for name in names:
        cells = [f"`{name}`"]
        for task in tasks:
            gains = (_gain(task, name, one, "test/ood") for one in over)
            cells += [_pair(task, name), *gains]
        forces = [
            found["force_mae_after"]
            for task in tasks
            for found in task["forgetting"]
            if found["recipe"] == name
        ]
        rows.append([*cells, f"{sum(forces) / len(forces):.3f}" if forces else "–"])
    return f"{caption}\n\n{markdown([*heads, 'force MAE'], rows)}"


def collapse_table(content: dict[str, Any]) -> str:
    """Markdown: a row a measure of the last layer's atoms, a column a recipe."""
    shown = [
        one
        for one in content["pooled"]
        if one["name"] in MEASURES and one["points"] != "edges" and one["layer"] is None
    ]
    recipes = list(dict.fromkeys(one["recipe"] for one in shown))
    starts = {(one["name"], one["before"]) for one in shown if one["before"] is not None}
    # Recipes of one backbone start from the same features; those of several do not.
    together = len(starts) == len({name for name, _ in starts})
    rows = []
    for measure, (label, form) in MEASURES.items():
        found = {one["recipe"]: one for one in shown if one["name"] == measure}
        cells = [_collapse_cell(found.get(name), form, moved=not together) for name in recipes]
        if together:
            before = [f"{start:{form}}" for name, start in starts if name == measure]
            cells = [_null(found.values(), form), *(before or ["–"]), *cells]
        rows.append([label, *cells])
    heads = ["measure", *(["null", "before"] if together else ())]
    return markdown([*heads, *(f"`{name}`" for name in recipes)], rows)


def _collapse_cell(one: dict[str, Any] | None, form: str, *, moved: bool) -> str:
    if one is None or one["value"] is None:
        return "–"
    start = f"{one['before']:{form}} → " if moved and one["before"] is not None else ""
    return f"{start}{one['value']:{form}}"


def _null(found: Iterable[dict[str, Any]], form: str) -> str:
    bounds = [one[end] for one in found for end in ("null_low", "null_high")]
    known = [bound for bound in bounds if bound is not None]
    return f"{min(known):{form}} to {max(known):{form}}" if known else "–"


def _state(results: dict[str, Any]) -> str:
    n_done, n_runs = run_counts(results)
    return f"{results['name']}: {results['summary']}. {n_done} of {n_runs} runs are done."


def _pair(task: dict[str, Any], recipe: str) -> str:
    found = {row["subset"]: row["value"] for row in task["rows"] if row["recipe"] == recipe}
    if not found:
        return "–"
    seeds = {row["seed"] for row in task["seed_rows"] if row["recipe"] == recipe}
    return f"{found['test/id']:.3g} / {found['test/ood']:.3g} ({len(seeds)})"


def _gain(task: dict[str, Any], recipe: str, reference: str, subset: str) -> str:
    key = (recipe, reference, subset)
    found = [g for g in task["gains"] if (g["recipe"], g["reference"], g["subset"]) == key]
    if not found:
        return "–"
    return _percent(found[0])


def _oracle(task: dict[str, Any]) -> str:
    key = ("clip oracle", "test/ood")
    found = [r["value"] for r in task["reference_lines"] if (r["name"], r["subset"]) == key]
    return f"{found[0]:.3g}" if found else "–"


def _over_tasks(results: dict[str, Any]) -> list[str]:
    """Mean gains over the tasks that both have run: a row a recipe, nothing where nothing has."""
    found = {(r["method"], r["reference"], r["subset"]): r for r in results["over_tasks"]}
    methods = list(dict.fromkeys(method for method, _, _ in found))
    asked = [
        (reference, subset)
        for reference in dict.fromkeys(reference for _, reference, _ in found)
        for subset in ("test/id", "test/ood")
    ]
    if not methods:
        return []
    heads = [f"{subset[5:].upper()} gain over `{reference}`" for reference, subset in asked]
    rows = [
        [f"`{method}`", *(_over_cell(found.get((method, *query))) for query in asked)]
        for method in methods
    ]
    caption = (
        "Over the tasks that both have run: mean gain (from the geometric mean of the ratios, "
        "interval by Student's t), on how many it is better, p by Wilcoxon's test and Holm."
    )
    return [caption, markdown(["recipe", *heads], rows)]


def _over_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    better = f"better on {row['n_better']} of {row['n_tasks']}"
    if row["n_tasks"] < FEWEST_TASKS:  # no interval, and no test, worth reading
        return better
    return f"{_percent(row)}, {better}, p {row['p_holm']:.2g}"


def _other_recipes(tasks: list[dict[str, Any]], common: list[str]) -> list[str]:
    some = [task for task in tasks if set(task["steps"]) - set(common)]
    done = {row["recipe"] for task in some for row in task["rows"]}
    names = [name for name in (some[0]["steps"] if some else ()) if name in done - set(common)]
    if not names:
        return []
    subsets = ("test/id", "test/ood")
    heads = [f"{task['name']}, {subset[5:].upper()} gain" for task in some for subset in subsets]
    rows = [
        [f"`{name}`", *(_gain(task, name, "full", subset) for task in some for subset in subsets)]
        for name in names
    ]
    return ["The other recipes, gain over `full`:", markdown(["recipe", *heads], rows)]


def tables(content: dict[str, Any]) -> str:
    """Tables of a comparison's summary, a suite's results or a measurement of collapse."""
    if "pooled" in content:
        return collapse_table(content)
    if "tasks" not in content:
        return table(content)
    if content["groups"]:
        return group_tables(content)
    has_mft = any("mft" in task["steps"] for task in content["tasks"])
    return suite_tables(content) if has_mft else recipe_tables(content)


def _of(names: list[str]) -> Iterable[str]:
    """The tables of a block's files."""
    results = ROOT / "benchmarks" / "results"
    if trials := [folder for name in names if "*" in name for folder in results.glob(name)]:
        others = [(results / name).parent for name in names if "*" not in name]
        yield trials_table(sorted(trials) + others)
        return
    if all(name.endswith("/") for name in names):
        yield runs_table([results / name for name in names])
        return
    for name in names:
        content = json.loads((results / name).read_text())
        yield MEASURED[name](content) if name in MEASURED else tables(content)


def written(text: str) -> str:
    """A document with its tables as the results now are."""

    def filled(block: re.Match[str]) -> str:
        found = "\n\n".join(_of(block[2].split()))
        return f"{block[1]}\n{found}\n\n{block[3]}"

    return BLOCK.sub(filled, text)


def typed_numbers(text: str) -> list[str]:
    """Decimals and percentages in the prose, with what stands before each."""
    prose = NO_PROSE.sub(" ", text)
    return [prose[max(0, found.start() - 40) : found.end()] for found in NUMBER.finditer(prose)]


def main() -> None:
    """Write the tables of some documents."""
    for name in sys.argv[1:] or DOCUMENTS:
        document = ROOT / name
        document.write_text(written(document.read_text()))


if __name__ == "__main__":
    main()

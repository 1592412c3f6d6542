"""Write the results tables of the documents from result files: no number there is typed by hand.

``python tools/results_table.py [DOCUMENT …]``, by default every one that has results. Where the
tables go, a document says which files of ``benchmarks/results/`` they are of:
``<!-- results: FILE … -->`` up to ``<!-- end of results -->``. A file is the ``summary.json`` of a
comparison, the ``results.json`` of a suite (with ``:`` and one of `FORMS`, a part of it), the
``collapse.json`` of a measurement, or one that `measured_tables` knows; ``FOLDER/*`` is one table
of all comparisons in it, ``FOLDER/`` one of a suite's runs, with their validation errors.
"""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measured_tables import MEASURED, markdown, runs_table, trials_table
from suite_tables import (
    efficiency_list,
    folds_table,
    gains_table,
    group_tables,
    percent,
    recipe_tables,
    reference_table,
    suite_tables,
    weights_table,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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
#: Parts of a suite's results.
FORMS: dict[str, Callable[[dict[str, Any]], str]] = {
    "gains": gains_table,
    "sizes": efficiency_list,
    "probe": partial(reference_table, reference="probe"),
    "weights": weights_table,
    "folds": folds_table,
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
        return percent(found[0])

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
        f"every recipe. RMSE in {shown} with 95 % intervals over seeds and molecules; "
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
        file, _, form = name.partition(":")
        content = json.loads((results / file).read_text())
        if form:
            yield FORMS[form](content)
        else:
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

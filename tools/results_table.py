"""Write the results tables of the README from summaries: no number there is typed by hand.

``python tools/results_table.py README.md benchmarks/results/qm9_gap{,_8000}/summary.json``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

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
        one = found[0]
        return f"{one['gain_percent']:+.1f} % [{one['low']:+.1f}, {one['high']:+.1f}]"

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


def main() -> None:
    """Replace the text between the markers."""
    document, *sources = map(Path, sys.argv[1:])
    text = document.read_text()
    start = text.index("\n", text.index(START)) + 1
    end = text.index(END)
    content = "\n\n".join(table(json.loads(source.read_text())) for source in sources)
    document.write_text(f"{text[:start]}\n{content}\n\n{text[end:]}")


if __name__ == "__main__":
    main()

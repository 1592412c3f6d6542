"""A `results.json` with the errors that one gives it; intervals and tests are made to fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tether.errors import TetherError
from tether.metrics.tasks import compare_over_tasks, holm, mean_ranks

SUBSETS = ("test/ood", "test/id")
#: task → recipe → (OOD, ID) error.
Errors = Mapping[str, Mapping[str, tuple[float, float]]]


def _task(name: str, errors: Mapping[str, tuple[float, float]], **changes: Any) -> dict[str, Any]:
    where = {"target": name, "unit": "Ha", "metric": "rmse"}
    rows, gains, limits = [], [], []
    for recipe, pair in errors.items():
        for subset, value in zip(SUBSETS, pair, strict=True):
            own = {"recipe": recipe, **where, "subset": subset}
            numbers = {"value": value, "low": 0.96 * value, "high": 1.05 * value}
            rows.append({**own, "seed": "pooled", **numbers, "n": 100, "seconds": 321.0})
            for reference in {"full", "scratch"} & errors.keys() - {recipe}:
                percent = 100 * (1 - value / errors[reference][SUBSETS.index(subset)])
                gain = {"gain_percent": percent, "low": percent - 3, "high": percent + 2.5}
                gains.append({**own, "reference": reference, **gain, "p_value": 0.03})
        if "full" in errors:
            gap = errors["full"][0] - errors["full"][1]
            value = (pair[0] - pair[1]) / gap
            limit = {"value": value, "low": value - 0.1, "high": value + 0.1}
            limits.append(
                {"recipe": recipe, **where, "subset": SUBSETS[0], "reference": "full", **limit}
            )
    far = max(pair[0] for pair in errors.values())
    lines = {"mean predictor": 4.1 * far, "clip oracle": 1.2 * far}
    return {
        "name": name,
        "values": {"target": name},
        "targets": [name],
        "runs": {f"{recipe}-s{seed}": True for recipe in errors for seed in (0, 1, 2)},
        "steps": dict.fromkeys(errors, 3000),
        "rows": rows,
        "seed_rows": [],
        "gains": gains,
        "limit_distances": limits,
        "reference_lines": [
            {"name": line, **where, "subset": SUBSETS[0], "value": value}
            for line, value in lines.items()
        ],
        "forgetting": [
            {
                "recipe": recipe,
                "seed": 0,
                "force_mae_before": None if recipe == "scratch" else 0.048,
                "force_mae_after": 0.051 if recipe.startswith("mft") else 1.6,
                "energy_mae_before": 0.01,
                "energy_mae_after": 0.02,
            }
            for recipe in errors
        ],
        "sizes": {"train": 2000},
        "settings": {"backbone": {"name": "so3lr"}, "seeds": [0, 1, 2]},
        **changes,
    }


def _over_tasks(errors: Errors, recipes: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for reference in ("full", "scratch"):
        for at, subset in enumerate(SUBSETS):
            family = []
            for method in (name for name in recipes if name != reference):
                both = [row for row in errors.values() if {method, reference} <= row.keys()]
                if len(both) > 1:
                    pair = {n: [row[n][at] for row in both] for n in (reference, method)}
                    (one,) = compare_over_tasks(pair, reference)
                    family.append({"subset": subset, **vars(one)})
            corrected = holm([row["p_value"] for row in family]).tolist() if family else []
            found += [{**row, "p_holm": p} for row, p in zip(family, corrected, strict=True)]
    return found


def _ranks(errors: Errors, recipes: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    everywhere = [name for name in recipes if all(name in row for row in errors.values())]
    for at, subset in enumerate(SUBSETS):
        table = {name: [row[name][at] for row in errors.values()] for name in everywhere}
        try:
            ranks = mean_ranks(table)
        except TetherError:
            return []
        numbers = dict(zip(everywhere, ranks.ranks.tolist(), strict=True))
        difference = ranks.critical_difference
        found.append(
            {
                "subset": subset,
                "ranks": numbers,
                "p_value": ranks.p_value,
                "critical_difference": difference,
                "n_tasks": ranks.n_tasks,
            }
        )
    return found


def results_of(errors: Errors, **changes: Any) -> dict[str, Any]:
    """A suite whose tasks have these errors.

    Names that start with "mft" are multi-task.
    """
    recipes = list(dict.fromkeys(name for row in errors.values() for name in row))
    return {
        "format": 1,
        "name": "small",
        "summary": "synthetic",
        "metric": "rmse",
        "published": None,
        "axis": None,
        "level": 0.95,
        "recipes": [
            {"name": name, "multitask": name.startswith("mft"), "settings": {"base": name}}
            for name in recipes
        ],
        "stages": [{"command": "tether prepare qm9 --out qm9.arrow", "done": True}],
        "tasks": [_task(name, row) for name, row in errors.items()],
        "over_tasks": _over_tasks(errors, recipes),
        "ranks": _ranks(errors, recipes),
        "groups": [],
        "curves": [],
        **changes,
    }


def curves_over(axis: str, errors: Mapping[int, Mapping[str, tuple[float, float]]]) -> Any:
    """A suite along an axis: size → recipe → (OOD, ID) error."""
    results = results_of({f"n{size}": row for size, row in errors.items()}, axis=axis)
    for task, size in zip(results["tasks"], errors, strict=True):
        task["values"] = {axis: size}
        for key in ("rows", "gains", "limit_distances", "reference_lines"):
            for row in task[key]:
                row["target"] = "gap"
        task["targets"] = ["gap"]
        keys = ("recipe", "target", "unit", "subset", "metric", "value", "low", "high")
        results["curves"] += [{"x": size, **{k: row[k] for k in keys}} for row in task["rows"]]
    return results


def folds_of(groups: Mapping[str, Mapping[str, tuple[float, float]]], n_folds: int = 3) -> Any:
    """A suite of folds: data set → recipe → (OOD, ID) error, the same on every fold."""
    spread = np.linspace(0.9, 1.1, n_folds)
    results = results_of(
        {
            f"{group}-{fold}": {n: (f * a, f * b) for n, (a, b) in row.items()}
            for group, row in groups.items()
            for fold, f in enumerate(spread)
        }
    )
    for task in results["tasks"]:
        task["values"] = {"set": task["name"].rpartition("-")[0]}
    for group, row in groups.items():
        for recipe, pair in row.items():
            for at, subset in enumerate(SUBSETS):
                value = pair[at]
                gains = {}
                for reference in {"full", "scratch"} & row.keys() - {recipe}:
                    percent = 100 * (1 - value / row[reference][at])
                    bounds = {"low": percent - 4, "high": percent + 4, "p_value": 0.04}
                    gains[reference] = {"percent": percent, **bounds}
                where = {"group": group, "target": f"{group}-0", "subset": subset}
                numbers = {"value": value, "low": 0.8 * value, "high": 1.2 * value}
                own = {"recipe": recipe, **where, "metric": "rmse", "n_folds": n_folds}
                results["groups"].append({**own, **numbers, "gains": gains})
    return results

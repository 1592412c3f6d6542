"""`suite_results`: the finished runs of a suite → the numbers of its tables and plots."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.compare import summarise_comparison, write_config
from tether.errors import TetherError
from tether.jobs import plan
from tether.metrics.folds import fold_gain, fold_interval
from tether.metrics.resampling import flat_errors
from tether.metrics.tasks import compare_over_tasks, holm, mean_ranks
from tether.run import Run
from tether.serialization import read_json
from tether.summary import INTERVALS, LEVEL, Errors, errors_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tether.metrics.resampling import Statistic, StructureErrors
    from tether.suites.suite import Suite, Task

__all__ = ["suite_results"]

#: (recipe, seed) → error of one subset.
_BySeed = dict[tuple[str, int], Any]


def suite_results(suite: Suite) -> dict[str, Any]:
    """Collect what is finished; each task's ``summary.json`` and report are brought up to date.

    Parameters
    ----------
    suite : Suite
        Whose folder is read.

    Returns
    -------
    dict
        ``tasks``: of each task its values, runs done and to do, and the pooled rows, gains
        and limits of its summary. ``recipes``: what each is, and whether it is multi-task;
        ``stages``: the commands that made the data, and whether they are done. ``over_tasks``:
        every recipe against each reference over the tasks that both have finished; ``ranks``.
        ``groups``: the same over the folds of a data set, where the suite has such; ``curves``:
        pooled errors along the suite's axis.
    """
    entries = [_entry(suite, task) for task in suite.tasks]
    done = [entry for entry in entries if entry["rows"]]
    references = list(dict.fromkeys(r for task in suite.tasks for r in task.config.references))
    return {
        "format": 1,
        "name": suite.name,
        "summary": suite.summary,
        "metric": suite.metric,
        "published": suite.published,
        "axis": suite.axis,
        "level": LEVEL,
        "recipes": _recipe_entries(suite),
        "stages": [
            {"command": shlex.join(["tether", *stage.arguments]), "done": stage.is_done}
            for stage in suite.stages
        ],
        "tasks": entries,
        "over_tasks": _over_tasks(entries, references),
        "ranks": _ranks(done),
        "groups": _groups(suite, references) if suite.groups else [],
        "curves": _curves(suite.axis, done) if suite.axis else [],
    }


def _entry(suite: Suite, task: Task) -> dict[str, Any]:
    jobs = plan(task.config, task.out)
    states = {f"{job.method}-s{job.seed}": job.is_complete for job in jobs}
    digests = {f"{job.method}-s{job.seed}": Run(job.out).digest for job in jobs if job.is_complete}
    # Kept runs may be there before their data are made again: they are done, and have no rows.
    summary = _summary(task, digests) if digests and task.has_data else {}
    metric, split = suite.metric, summary.get("split", {})

    def pick(key: str) -> list[dict[str, Any]]:
        return [row for row in summary.get(key, []) if row["metric"] == metric]

    rows = [
        {**row, "unit": row["unit"] or _unit(suite, task, row["target"])} for row in pick("rows")
    ]
    pooled = [row for row in rows if row["seed"] == "pooled"]
    seeds = [row for row in rows if row["seed"] != "pooled"]
    return {
        "name": task.name,
        "values": task.values,
        "targets": list(task.config.targets),
        "runs": states,
        "steps": {job.method: job.settings.property_steps for job in jobs},
        "rows": pooled,
        "seed_rows": seeds,
        "gains": pick("gains"),
        "limit_distances": pick("limit_distances"),
        "reference_lines": pick("reference_lines"),
        "forgetting": summary.get("forgetting", []),
        "sizes": split.get("sizes", {}),
        "elements": split.get("report", {}).get("elements", {}),
        "settings": task.config.model_dump(
            mode="json", include={"backbone", "head", "seeds", "training"}
        ),
    }


def _unit(suite: Suite, task: Task, target: str) -> str:
    """What the suite says of a label that its store has without a unit."""
    names = (target, *map(str, task.values.values()))
    return next((suite.units[name] for name in names if name in suite.units), "")


def _recipe_entries(suite: Suite) -> list[dict[str, Any]]:
    """What each recipe is, as the configuration that names it first has it."""
    found: dict[str, dict[str, Any]] = {}
    for task in suite.tasks:
        for point, entry in zip(task.config.points(), task.config.recipes, strict=True):
            settings = {"base": entry} if isinstance(entry, str) else dict(entry)
            about = {"name": point.name, "multitask": point.forcefield, "settings": settings}
            found.setdefault(point.name, about)
        for name in task.config.outside:
            about = {"name": name, "multitask": False, "settings": {"outside": name}}
            found.setdefault(name, about)
    return list(found.values())


def _summary(task: Task, digests: Mapping[str, str]) -> dict[str, Any]:
    """The task's summary, made again only where runs have come, or were made again, since."""
    path = task.out / "summary.json"
    if path.exists():
        found: dict[str, Any] = read_json(path)
        same = found.get("config") == task.config.model_dump(mode="json")
        if same and (found.get("digests"), found.get("intervals")) == (digests, INTERVALS):
            return found
    # A part of the suite may have run; the folder says what all of it is.
    write_config(task.config, task.out)
    return summarise_comparison(task.config, task.out)


def _by_seed(entry: Mapping[str, Any], target: str, subset: str) -> _BySeed:
    return {
        (row["recipe"], row["seed"]): row["value"]
        for row in entry["seed_rows"]
        if (row["target"], row["subset"]) == (target, subset)
    }


def _columns(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(target, subset) of the test sets of a task."""
    rows = (row for row in entry["seed_rows"] if row["subset"] != "val")
    return list(dict.fromkeys((row["target"], row["subset"]) for row in rows))


def _matched(entries: Sequence[Mapping[str, Any]], recipes: Sequence[str]) -> dict[str, Any]:
    """Subset → one error a task for each recipe: mean over the seeds that all of them have."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        for target, subset in _columns(entry):
            values = _by_seed(entry, target, subset)
            shared = set.intersection(*({s for r, s in values if r == one} for one in recipes))
            if shared:
                for recipe in recipes:
                    mean = float(np.mean([values[recipe, seed] for seed in sorted(shared)]))
                    found[subset][recipe].append(mean)
    return found


def _recipes(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Recipes with a finished run, in the order of the configurations."""
    named = dict.fromkeys(recipe for entry in entries for recipe in entry["steps"])
    run = {row["recipe"] for entry in entries for row in entry["rows"]}
    return [name for name in named if name in run]


def _over_tasks(
    entries: Sequence[Mapping[str, Any]], references: Sequence[str]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    recipes = _recipes(entries)
    n_asked = Counter(name for entry in entries for name in entry["steps"])
    for reference in (r for r in references if r in recipes):
        families: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
        for recipe in (r for r in recipes if r != reference):
            for subset, errors in _matched(entries, [reference, recipe]).items():
                if len(errors[recipe]) > 1 and min(map(min, errors.values())) > 0:
                    (found,) = compare_over_tasks(errors, reference, level=LEVEL)
                    asked = (subset, n_asked[recipe])
                    families[asked].append({"subset": subset, **vars(found)})
        # What is to run on two tasks of eight is another question than what is to run on all: with
        # both in one family, the many of the one kind would take all power from the few of the
        # other, and could not reach significance themselves.
        for family in families.values():
            corrected = holm([row["p_value"] for row in family])
            for row, p in zip(family, corrected.tolist(), strict=True):
                row["p_holm"] = p
            rows += family
    return rows


def _ranks(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the recipes that every task with results has finished with a common seed."""
    rows = []
    everywhere = [
        recipe
        for recipe in _recipes(entries)
        if all(any(row["recipe"] == recipe for row in entry["seed_rows"]) for entry in entries)
    ]
    if len(everywhere) < 3 or len(entries) < 2:
        return []
    for subset, errors in _matched(entries, everywhere).items():
        try:
            found = mean_ranks(errors)
        except TetherError:  # a single task, or an error of exactly zero: there is no rank to give
            continue
        rows.append(
            {
                "subset": subset,
                "ranks": dict(zip(errors, found.ranks.tolist(), strict=True)),
                "p_value": found.p_value,
                "critical_difference": found.critical_difference,
                "n_tasks": found.n_tasks,
            }
        )
    return rows


def _curves(axis: str, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = [
        {"x": entry["values"][axis], **{k: row[k] for k in keys}}
        for entry in entries
        for row in entry["rows"]
        if row["subset"] != "val"
        for keys in [("recipe", "target", "unit", "subset", "metric", "value", "low", "high")]
    ]
    return sorted(rows, key=lambda row: float(row["x"]))


def _groups(suite: Suite, references: Sequence[str]) -> list[dict[str, Any]]:
    """Folds of one data set together: errors and gains with intervals over folds.

    Of the recipes that every fold asks for: one of a single fold would leave the others that fold.
    """
    assert suite.groups is not None
    by_group: dict[str, list[Task]] = defaultdict(list)
    for task in suite.tasks:
        by_group[str(task.values[suite.groups])].append(task)
    rows = []
    for group, tasks in by_group.items():
        folds = [_fold_errors(task) for task in tasks]
        asked = set.intersection(*(set(task.config.methods()) for task in tasks))
        started = dict.fromkeys(name for fold in folds for name, _ in fold)
        names = [name for name in started if name in asked]
        if not names:
            continue
        keys = dict.fromkeys(key for fold in folds for run in fold.values() for key in run)
        for target, subset in (key for key in keys if key[1].startswith("test/")):
            errors = [_common_seeds(fold, names, (target, subset)) for fold in folds]
            # Only folds that every recipe has finished: all are judged on the same.
            kept = [fold for fold in errors if fold]
            where = {"group": group, "target": target, "subset": subset, "metric": suite.metric}
            for name in names if kept else ():
                value = fold_interval([fold[name] for fold in kept], suite.metric, level=LEVEL)
                gains = _fold_gains(folds, name, references, (target, subset), suite.metric)
                row = {"recipe": name, **where, "n_folds": len(kept), **vars(value)}
                rows.append({**row, "gains": gains})
    return rows


def _fold_errors(task: Task) -> Errors:
    jobs = [job for job in plan(task.config, task.out) if job.is_complete]
    return {(job.method, job.seed): errors_of(Run(job.out)) for job in jobs}


def _common_seeds(
    fold: Errors,
    names: Sequence[str],
    key: tuple[str, str],
) -> dict[str, list[StructureErrors]]:
    """Recipe → errors of the seeds that all recipes have finished; empty where there is none."""
    seeds = [{seed for name, seed in fold if name == one} for one in names]
    shared = sorted(set.intersection(*seeds))
    if not shared or any(key not in fold[name, seed] for name in names for seed in shared):
        return {}
    return {name: [fold[name, seed][key] for seed in shared] for name in names}


def _fold_gains(
    folds: Sequence[Errors],
    name: str,
    references: Sequence[str],
    key: tuple[str, str],
    metric: Statistic,
) -> dict[str, dict[str, Any]]:
    """Gains over each reference, on the folds and seeds that both have finished."""
    gains = {}
    for reference in (one for one in references if one != name):
        pairs = [_common_seeds(fold, [name, reference], key) for fold in folds]
        pairs = [pair for pair in pairs if pair]
        # Of a faultless reference there are no shares.
        if any(flat_errors(one).any() for pair in pairs for one in pair[reference]):
            ours, theirs = ([pair[one] for pair in pairs] for one in (name, reference))
            found = fold_gain(ours, theirs, metric, level=LEVEL)
            gains[reference] = {**vars(found), "n_folds": len(pairs)}
    return gains

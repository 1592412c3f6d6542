"""Markdown tables of a suite's ``results.json``."""

from __future__ import annotations

from statistics import fmean, geometric_mean
from typing import Any

from measured_tables import markdown

from tether.report.results import unit_of
from tether.report.suite_curves import efficiency_answers
from tether.report.suite_made import ELEMENTS_ARE, element_words
from tether.report.suite_read import FEWEST_TASKS, run_counts

#: What a short table has: its recipes (folds also the outside model), and which gains of `mft`.
SHORT = ("scratch", "probe", "full", "mft", "fingerprint")
ASKED = (("full", "test/id"), ("full", "test/ood"), ("scratch", "test/ood"))
CONSTRAINED = "mft-constraint"
GAINS_CAPTION = (
    "gains of `mft` with 95 % intervals; last, the force MAE in eV/Å on held-out geometries after "
    "`full` / after `mft`."
)


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
        "brackets); gains over `full` on the seeds of both, with 95 % intervals over seeds "
        "(Student's t) and structures (bootstrap; these alone where there is one seed)."
    )
    gains = [(name, s) for name in common if "mft" in name for s in ("test/id", "test/ood")]
    heads = ["task", "clip oracle", *(f"`{name}`" for name in common)]
    heads += [f"{subset[5:].upper()} gain of `{name}`" for name, subset in gains]
    rows = [
        [
            _label(task),
            _oracle(task),
            *(_pair(task, name) for name in common),
            *(_gain(task, name, "full", subset) for name, subset in gains),
        ]
        for task in tasks
    ]
    parts = [caption, markdown(heads, rows), *_over_tasks(results), *_other_recipes(tasks, common)]
    if results["curves"]:
        parts.append(efficiency_list(results))
    return "\n\n".join(parts)


def efficiency_list(results: dict[str, Any]) -> str:
    """Markdown: at which size a multi-task recipe does as well as another with all data."""
    return "\n".join(f"- {answer}" for answer in efficiency_answers(results))


def gains_table(results: dict[str, Any]) -> str:
    """Markdown: a row a task (then their mean), or a set of folds, with the gains of `mft`."""
    if results["groups"]:
        return _group_gains(results)
    recipes = SHORT[:4]
    caption = (
        f"{_state(results)} {results['metric'].upper()} ID / OOD, means over seeds (their number "
        f"in brackets); {GAINS_CAPTION}"
    )
    rows = [
        [
            _label(task),
            *(_pair(task, name) for name in recipes),
            *(_gain(task, "mft", one, subset) for one, subset in ASKED),
            _forces_after([task]),
        ]
        for task in results["tasks"]
        if task["rows"]
    ]
    over = {(r["method"], r["reference"], r["subset"]): r for r in results["over_tasks"]}
    means = (over["mft", one, subset] for one, subset in ASKED)
    rows.append(["**mean**", *("" for _ in recipes), *(f"**{percent(r)}**" for r in means), ""])
    return f"{caption}\n\n{markdown(_gains_heads('task', recipes), rows)}"


def reference_table(results: dict[str, Any], reference: str) -> str:
    """Markdown: a row a task with the OOD gains of the multi-task recipes over another recipe."""
    found = {
        (task["name"], gain["recipe"]): gain
        for task in results["tasks"]
        for gain in task["gains"]
        if (gain["reference"], gain["subset"]) == (reference, "test/ood")
        and "mft" in gain["recipe"]
    }
    recipes = list(dict.fromkeys(recipe for _, recipe in found))
    rows = [
        [task, *(percent(found[task, r]) if (task, r) in found else "–" for r in recipes)]
        for task in dict.fromkeys(task for task, _ in found)
    ]
    heads = [f"OOD gain of `{recipe}` over `{reference}`" for recipe in recipes]
    return markdown(["task", *heads], rows)


def weights_table(results: dict[str, Any]) -> str:
    """Markdown: a row a task that has the constraint and some weight of `mft`, on the same seeds.

    Last, how much worse the constraint is outside than the weight that validation would choose, and
    than the best one, which nobody can know of; below, from the geometric means of the ratios.
    """
    settings = {recipe["name"]: dict(recipe["settings"]) for recipe in results["recipes"]}
    for entry in settings.values():
        entry.pop("name", None)
    weights = {name: entry.pop("forcefield_weight", None) for name, entry in settings.items()}
    family = [name for name in settings if settings[name] == settings["mft"]]
    family.sort(key=lambda name: weights[name])
    rows, ratios = [], []
    for task in results["tasks"]:
        done = {row["recipe"] for row in task["seed_rows"]}
        names = [name for name in family if name in done]
        if CONSTRAINED not in done or len(names) < 2:
            continue
        errors = _matched_errors(task, [*names, CONSTRAINED])
        own = errors[CONSTRAINED]["test/ood"]
        # By validation, and by what nobody can know.
        best = [min(names, key=lambda n: errors[n][subset]) for subset in ("val", "test/ood")]
        ratios.append([own / errors[name]["test/ood"] for name in best])
        rows.append(
            [
                _label(task),
                *(_triple(errors, name) for name in (*family, CONSTRAINED)),
                *(
                    f"{100 * (ratio - 1):+.1f} % (weight {weights[name]:g})"
                    for ratio, name in zip(ratios[-1], best, strict=True)
                ),
            ]
        )
    means = [
        f"**{100 * (geometric_mean(column) - 1):+.1f} %**" for column in zip(*ratios, strict=True)
    ]
    rows.append(["**mean**", *("" for _ in (*family, CONSTRAINED)), *means])
    heads = ["task", *(f"weight {weights[name]:g}" for name in family), f"`{CONSTRAINED}`"]
    heads += ["OOD, against validation's weight", "OOD, against the best weight"]
    return markdown(heads, rows)


def _label(task: dict[str, Any]) -> str:
    unit = unit_of(task, task["targets"][0])
    return f"{task['name']} ({unit})" if unit else str(task["name"])


def _matched_errors(task: dict[str, Any], recipes: list[str]) -> dict[str, dict[str, float]]:
    """Recipe → subset → error, mean over the seeds that all recipes have."""
    seeds = set.intersection(
        *({row["seed"] for row in task["seed_rows"] if row["recipe"] == name} for name in recipes)
    )
    return {
        name: {
            subset: fmean(
                row["value"]
                for row in task["seed_rows"]
                if (row["recipe"], row["subset"]) == (name, subset) and row["seed"] in seeds
            )
            for subset in ("val", "test/id", "test/ood")
        }
        for name in recipes
    }


def _triple(errors: dict[str, dict[str, float]], recipe: str) -> str:
    return (
        " / ".join(f"{value:.3g}" for value in errors[recipe].values()) if recipe in errors else "–"
    )


def _group_gains(results: dict[str, Any]) -> str:
    """Markdown: a row a set of folds that `mft` has finished."""
    found = {(r["group"], r["recipe"], r["subset"]): r for r in results["groups"]}
    groups = dict.fromkeys(group for group, name, _ in found if name == "mft")
    caption = (
        f"{_state(results)} {results['metric'].upper()} ID / OOD, means over the folds and seeds "
        f"that every recipe has finished; on those of both, {GAINS_CAPTION}"
    )
    rows = []
    for group in groups:
        pairs = (
            (found.get((group, n, "test/id")), found.get((group, n, "test/ood"))) for n in SHORT
        )
        tasks = [task for task in results["tasks"] if group in task["values"].values()]
        rows.append(
            [
                f"{group} ({found[group, 'mft', 'test/ood']['n_folds']} folds)",
                *(f"{i['value']:.3g} / {o['value']:.3g}" if i and o else "–" for i, o in pairs),
                *(_fold_gain(found[group, "mft", subset], one) for one, subset in ASKED),
                _forces_after(tasks),
            ]
        )
    return f"{caption}\n\n{markdown(_gains_heads('data set', SHORT), rows)}"


def _gains_heads(first: str, recipes: tuple[str, ...]) -> list[str]:
    gains = (f"{subset[5:].upper()} gain over `{one}`" for one, subset in ASKED)
    return [first, *(f"`{name}`" for name in recipes), *gains, "forces"]


def _forces_after(tasks: list[dict[str, Any]]) -> str:
    return " / ".join(_forces(tasks, name, ".2g") for name in ("full", "mft"))


def _forces(tasks: list[dict[str, Any]], recipe: str, form: str) -> str:
    """Force error after a recipe, mean over tasks and seeds."""
    found = [
        forgetting["force_mae_after"]
        for task in tasks
        for forgetting in task["forgetting"]
        if forgetting["recipe"] == recipe
    ]
    return f"{sum(found) / len(found):{form}}" if found else "–"


def _fold_gain(row: dict[str, Any], reference: str) -> str:
    gain = row["gains"].get(reference)
    return percent({**gain, "gain_percent": gain["percent"]}) if gain else "–"


def group_tables(results: dict[str, Any]) -> str:
    """Markdown: a row a data set and recipe, over the folds that all recipes have finished."""
    caption = (
        f"{_state(results)} Mean {results['metric'].upper()} over the folds and seeds that every "
        "recipe has finished, and OOD gains on those of both, with 95 % t-intervals over folds."
    )
    found = {(r["group"], r["recipe"], r["subset"]): r for r in results["groups"]}
    over = list(dict.fromkeys(one for row in results["groups"] for one in row["gains"]))
    heads = ["data set", "recipe", "folds", "ID", "OOD", *(f"OOD gain over `{n}`" for n in over)]
    rows = []
    for group, name in dict.fromkeys((group, name) for group, name, _ in found):
        inside, outside = (found[group, name, subset] for subset in ("test/id", "test/ood"))
        rows.append(
            [
                *(group, f"`{name}`", str(outside["n_folds"])),
                *(f"{r['value']:.3g} [{r['low']:.3g}, {r['high']:.3g}]" for r in (inside, outside)),
                *(_fold_gain(outside, one) for one in over),
            ]
        )
    return f"{caption}\n\n{markdown(heads, rows)}"


def folds_table(results: dict[str, Any]) -> str:
    """Markdown: a row a fold, with what it holds out and the gains of `mft` over `full`."""
    rows = []
    for task in results["tasks"]:
        gains = (_gain(task, "mft", "full", subset) for subset in ("test/id", "test/ood"))
        pairs = (_pair(task, name) for name in ("full", "mft"))
        rows.append(
            [_label(task), f"{task['sizes']['test/ood']:,}", element_words(task), *pairs, *gains]
        )
    heads = ["fold", "structures outside", f"elements: {ELEMENTS_ARE}"]
    heads += ["`full`", "`mft`", "ID gain over `full`", "OOD gain over `full`"]
    return markdown(heads, rows)


def recipe_tables(results: dict[str, Any]) -> str:
    """Markdown: a row a recipe, for a suite of few tasks; gains over each of its references."""
    tasks = [task for task in results["tasks"] if task["rows"]]
    names = list(dict.fromkeys(row["recipe"] for task in tasks for row in task["rows"]))
    over = list(dict.fromkeys(gain["reference"] for task in tasks for gain in task["gains"]))
    caption = (
        f"{_state(results)} {results['metric'].upper()} ID / OOD, mean over seeds (their number in "
        "brackets); OOD gains on the seeds of both, with 95 % intervals over seeds and "
        "structures; force MAE on held-out geometries after adaptation, in eV/Å, mean over all."
    )
    heads = ["recipe"]
    for task in tasks:
        heads += [_label(task), *(f"OOD gain over `{one}`" for one in over)]
    rows = []
    for name in names:
        cells = [f"`{name}`"]
        for task in tasks:
            gains = (_gain(task, name, one, "test/ood") for one in over)
            cells += [_pair(task, name), *gains]
        rows.append([*cells, _forces(tasks, name, ".3f")])
    return f"{caption}\n\n{markdown([*heads, 'force MAE'], rows)}"


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
    return percent(found[0])


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
    return f"{percent(row)}, {better}, p {row['p_holm']:.2g}"


def _other_recipes(tasks: list[dict[str, Any]], common: list[str]) -> list[str]:
    some = [task for task in tasks if set(task["steps"]) - set(common)]
    done = {row["recipe"] for task in some for row in task["rows"]}
    names = [name for name in (some[0]["steps"] if some else ()) if name in done - set(common)]
    if not names:
        return []
    some = [task for task in some if any(row["recipe"] in names for row in task["rows"])]
    subsets = ("test/id", "test/ood")
    heads = [f"{task['name']}, {subset[5:].upper()} gain" for task in some for subset in subsets]
    rows = [
        [f"`{name}`", *(_gain(task, name, "full", subset) for task in some for subset in subsets)]
        for name in names
    ]
    return ["The other recipes, gain over `full`:", markdown(["recipe", *heads], rows)]


def percent(gain: dict[str, Any]) -> str:
    """A gain and its interval."""
    return f"{gain['gain_percent']:+.1f} % [{gain['low']:+.1f}, {gain['high']:+.1f}]"

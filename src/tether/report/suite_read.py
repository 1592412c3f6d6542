"""Questions to `results.json` of a suite: which tasks, which recipes, which test sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tether.errors import TetherError
from tether.report.read import read_versioned
from tether.report.results import REFERENCES, subsets_of, targets_of, unit_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "Question",
    "multitask_recipes",
    "named_recipes",
    "over_tasks_row",
    "published_rows",
    "questions_of",
    "read_results",
    "reference_of",
    "run_counts",
    "run_states",
    "suite_recipes",
    "test_subsets",
]

Results = dict[str, Any]
_NEEDED = ("name", "summary", "metric", "tasks", "over_tasks", "ranks", "groups", "curves")
_OPTIONAL: dict[str, Any] = {
    "axis": None, "level": None, "recipes": [], "stages": [], "published_rows": [],
}  # fmt: skip
#: Of fewer tasks, no interval and no test over them is worth reading.
FEWEST_TASKS = 5
_UNCERTAIN = ("low", "high", "p_value", "p_holm", "effect_size")


@dataclass(frozen=True)
class Question:
    """A task and one of its targets: what a column of the page's tables is about.

    Attributes
    ----------
    entry : mapping
        The task's, of `results.json`; it has the shape of a `summary.json`.
    target : str
        Which of its targets.
    """

    entry: Mapping[str, Any]
    target: str

    @property
    def name(self) -> str:
        """The task's name, with the target where it has several or none of that name."""
        task = str(self.entry["name"])
        several = len(self.entry["targets"]) > 1
        return f"{task}: {self.target}" if several and task != self.target else task

    @property
    def label(self) -> str:
        """The name with the unit."""
        unit = unit_of(self.entry, self.target)
        return f"{self.name} ({unit})" if unit else self.name


def read_results(folder: Path) -> Results:
    """Read and check `results.json`.

    Parameters
    ----------
    folder : Path
        Of a suite.

    Returns
    -------
    dict
        With every key that the page asks for.

    Raises
    ------
    TetherError
        If it is missing, not JSON, of another format, or lacks a key.
    """
    path = folder / "results.json"
    fix = "run `tether bench NAME --status` to write it again"
    found = read_versioned(path, fix=fix)
    missing = [key for key in _NEEDED if key not in found]
    if missing:
        raise TetherError(
            f"{str(path)!r} has no {', '.join(missing)}",
            expected=f"the keys {', '.join(_NEEDED)}",
            fix=fix,
        )
    return {**_OPTIONAL, **found}


def questions_of(results: Results) -> list[Question]:
    """Tasks with results and their targets, in the suite's order."""
    return [Question(task, target) for task in results["tasks"] for target in targets_of(task)]


def named_recipes(results: Mapping[str, Any]) -> list[str]:
    """Recipes of the configurations in their order, run or not."""
    return list(dict.fromkeys(str(name) for task in results["tasks"] for name in task["steps"]))


def run_states(task: Mapping[str, Any], recipe: str) -> list[bool]:
    """Whether each run of a recipe is done; empty where the task does not ask for it."""
    return [done for run, done in task["runs"].items() if run.rpartition("-s")[0] == recipe]


def suite_recipes(results: Mapping[str, Any]) -> list[str]:
    """Recipes with a finished run, in the order of the configurations."""
    named = named_recipes(results)
    run = dict.fromkeys(str(row["recipe"]) for task in results["tasks"] for row in task["rows"])
    return [name for name in named if name in run] + [name for name in run if name not in named]


def multitask_recipes(results: Results) -> list[str]:
    """Recipes with a finished run that train the force field beside the property."""
    known = {entry["name"] for entry in results["recipes"] if entry["multitask"]}
    return [name for name in suite_recipes(results) if name in known]


def reference_of(results: Mapping[str, Any]) -> str | None:
    """`full` where it was run, else `scratch`, else the first that gains are over, else None."""
    others = [str(gain["reference"]) for task in results["tasks"] for gain in task["gains"]]
    recipes = suite_recipes(results)
    return next((name for name in (*REFERENCES, *others) if name in recipes), None)


def test_subsets(results: Results) -> list[str]:
    """Test sets: OOD first, which is what a suite asks about, and ID last."""
    found = dict.fromkeys(
        subset
        for question in questions_of(results)
        for subset in subsets_of(question.entry, question.target)
        if subset.startswith("test/")
    )
    place = {"test/ood": 0, "test/id": 2}
    return sorted(found, key=lambda name: place.get(name, 1))


def run_counts(results: Mapping[str, Any]) -> tuple[int, int]:
    """Runs done, and all runs."""
    states = [is_done for task in results["tasks"] for is_done in task["runs"].values()]
    return sum(states), len(states)


def over_tasks_row(
    results: Results, method: str, reference: str, subset: str
) -> dict[str, Any] | None:
    """How a method compares with a reference over the tasks that both have finished.

    Of fewer than `FEWEST_TASKS` without interval, p-value and effect size (None).
    """
    for row in results["over_tasks"]:
        if (row["method"], row["reference"], row["subset"]) == (method, reference, subset):
            few = row["n_tasks"] < FEWEST_TASKS
            return {**row, **dict.fromkeys(_UNCERTAIN, None)} if few else dict(row)
    return None


def published_rows(
    results: Results, names: set[str], unit: str, subset: str
) -> list[dict[str, Any]]:
    """Published errors of a target, in the unit and metric that the page shows.

    Parameters
    ----------
    results : dict
        `results.json`.
    names : set of str
        What the target may be called: itself, or the data set that folds belong to.
    unit, subset : str
        Of the column that they stand in.

    Returns
    -------
    list of dict
        Rows of ``published_rows``.
    """
    wanted = (unit, subset, results["metric"])
    return [
        row
        for row in results["published_rows"]
        if row["target"] in names and (row["unit"], row["subset"], row["metric"]) == wanted
    ]

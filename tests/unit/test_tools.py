"""The project's own tools: the figures, the pins, and what make and CI rely on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from itertools import chain
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from tether.data.store import Store

ROOT = Path(__file__).parents[2]

CLEAN = '''"""A module."""


class Shape:
    """A shape."""

    def __init__(self, n: int) -> None:
        self.n = n

    @staticmethod
    def of(n: int) -> Shape:
        """One with n corners."""

        def nested(k: int) -> int:
            return k

        return Shape(nested(n))


def _private(*values: int, **names: int) -> None: ...
'''


def load(name: str, folder: str = "tools") -> ModuleType:
    spec = spec_from_file_location(name, ROOT / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


figures, lock = load("figures"), load("lock")
for imported in ("measured_tables", "suite_tables"):  # by results_table
    load(imported)


def problems_of(folder: Path, source: str) -> list[str]:
    (folder / "src").mkdir()
    (folder / "tests").mkdir()
    (folder / "src" / "module.py").write_text(source)
    found: list[str] = figures.problems(figures.measure(folder / "src", folder / "tests"))
    return found


def long_function(n_lines: int) -> str:
    body = "    x = 0\n" * (n_lines - 2)
    return f'"""M."""\n\n\ndef f() -> None:\n    """F."""\n{body}'


def test_a_clean_module_has_no_problem(tmp_path: Path) -> None:
    assert problems_of(tmp_path, CLEAN) == []


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ('"""A module."""', "", "module.py:1 module lacks a docstring"),
        ('    """A shape."""\n', "", "Shape lacks a docstring"),
        ('"""One with n corners."""', "", "of lacks a docstring"),
        ("(self, n: int) -> None", "(self, n) -> None", "__init__ lacks a type annotation"),
        ("(self, n: int) -> None", "(self, n: int)", "__init__ lacks a type annotation"),
        ("of(n: int)", "of(n)", "of lacks a type annotation"),
        ("nested(k: int)", "nested(k)", "nested lacks a type annotation"),
        ("*values: int", "*values", "_private lacks a type annotation"),
        ("**names: int", "**names", "_private lacks a type annotation"),
    ],
)
def test_each_lack_is_found_alone(tmp_path: Path, right: str, wrong: str, problem: str) -> None:
    assert right in CLEAN
    (found,) = problems_of(tmp_path, CLEAN.replace(right, wrong))
    assert found.endswith(problem)


@pytest.mark.parametrize(("n_lines", "n_problems"), [(80, 0), (81, 1)])
def test_functions_have_80_lines_at_most(tmp_path: Path, n_lines: int, n_problems: int) -> None:
    found = problems_of(tmp_path, long_function(n_lines))
    assert len(found) == n_problems
    assert all(f"f has {n_lines} lines, at most 80" in each for each in found)


@pytest.mark.parametrize(("n_lines", "n_problems"), [(400, 0), (401, 1)])
def test_files_have_400_lines_at_most(tmp_path: Path, n_lines: int, n_problems: int) -> None:
    found = problems_of(tmp_path, '"""M."""\n' + "\n" * (n_lines - 1))
    assert len(found) == n_problems
    assert all(f"module.py has {n_lines} lines, at most 400" in each for each in found)


def test_lines_of_code_are_without_comments_and_docstrings(tmp_path: Path) -> None:
    source = '"""M.\n\nMore.\n"""\n\n# Why.\nx = """a\nb"""  # what\n\ny = (\n    1,\n)\n'
    problems_of(tmp_path, source)
    (tmp_path / "tests" / "test_it.py").write_text("def test_x() -> None:\n    assert True\n")
    found = figures.measure(tmp_path / "src", tmp_path / "tests")
    assert (found.n_code, found.n_test_code) == (5, 2)
    assert "0.40" in figures.report(found)


def test_exit_code_and_text_of_the_command(tmp_path: Path) -> None:
    problems_of(tmp_path, CLEAN.replace("of(n: int)", "of(n)"))
    command = [sys.executable, ROOT / "tools" / "figures.py", tmp_path / "src", tmp_path / "tests"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(r"annotated +75\.0 % \(3 of 4\)", done.stdout)
    assert re.search(r"public docstrings +100\.0 % \(3 of 3\)", done.stdout)
    assert "of lacks a type annotation" in done.stderr
    (tmp_path / "src" / "module.py").write_text(CLEAN)
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_an_empty_tree_is_no_pass(tmp_path: Path) -> None:
    found = figures.measure(tmp_path, tmp_path)
    assert figures.problems(found) == ["no Python file was found"]
    assert "files" in figures.report(found)


def test_constraints_are_normalised_and_without_the_package_itself() -> None:
    text = lock.constraints(
        {"So3krates_torch": "0.2.1", "torch": "2.13.0+cpu", "tether": "1", "pip": "2"}
    )
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == ["so3krates-torch==0.2.1", "torch==2.13.0"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_every_pin_is_exact_and_from_the_index() -> None:
    for name, version in pins().items():
        assert re.fullmatch(r"[a-z0-9-]+", name)
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version)


def test_every_dependency_has_a_pin_that_it_admits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = chain(project["dependencies"], *project["optional-dependencies"].values())
    for requirement in map(Requirement, listed):
        pin = pins()[requirement.name.lower()]
        assert requirement.specifier.contains(pin, prereleases=True), requirement


def test_make_installs_the_torch_that_is_pinned() -> None:
    assert f"\nTORCH := torch=={pins()['torch']}\n" in (ROOT / "Makefile").read_text()


def test_every_extra_is_installed_for_the_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(extras.split(",")) == set(project["optional-dependencies"])


def test_make_says_what_is_missing_without_python(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "constraints.txt").touch()
    done = subprocess.run(
        ["make", "test", "PYTHON="], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "no Python >= 3.11 found" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_script_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("name", ["qm9_gap", "qm9_gap_8000"])
def test_every_number_of_a_benchmark_has_its_run(name: str) -> None:
    # In a clean checkout, where what git ignores is not: a run that is missing is run again.
    summary = json.loads((RESULTS / name / "summary.json").read_text())
    runs = {(row["recipe"], row["seed"]) for row in summary["rows"]} - {
        (row["recipe"], "pooled") for row in summary["rows"]
    }
    assert len(runs) > 5
    for recipe, seed in runs:
        folder = RESULTS / name / "runs" / f"{recipe}-s{seed}"
        kept = load("kept", "benchmarks").KEPT
        assert [file for file in kept if not (folder / file).is_file()] == []


@pytest.mark.parametrize("document", load("results_table").DOCUMENTS)
def test_the_tables_of_the_documents_are_those_of_the_results(document: str) -> None:
    tool, text = load("results_table"), (ROOT / document).read_text()
    assert tool.BLOCK.search(text)
    assert tool.written(text) == text
    changed = tool.BLOCK.sub(lambda block: block[0].replace(" 0.", " 1.", 1), text)
    assert changed != text == tool.written(changed)


@pytest.mark.parametrize("document", [*load("results_table").DOCUMENTS, "ARCHITECTURE.md"])
def test_no_measured_number_is_typed_by_hand(document: str) -> None:
    tool, text = load("results_table"), (ROOT / document).read_text()
    assert tool.typed_numbers(text) == []
    claim = "of arXiv 2601.08486 with `lr: 0.1`: better by 12.2 or .3, in 9 %"
    found = tool.typed_numbers(f"{text}\n{claim}")
    assert [one.rpartition(" ")[2] for one in found[:2]] == ["12.2", ".3"]
    assert len(found) == 3


def test_the_constraint_is_held_against_weights_of_the_same_seeds() -> None:
    made = {
        # recipe: settings, seed → (validation, inside, outside); seed 1 is no seed of the others
        "mft": (
            {"base": "mft", "forcefield_weight": 0.5},
            {0: (2.0, 3.0, 10.0), 1: (0.1, 0.1, 0.1)},
        ),
        "mft-w2": (
            {"base": "mft", "name": "mft-w2", "forcefield_weight": 2.0},
            {0: (4.0, 5.0, 8.0)},
        ),
        "mft-constraint": ({"base": "mft-constraint"}, {0: (2.5, 3.5, 9.0)}),
        "mft-plain": ({"base": "mft", "lr": 0.1, "forcefield_weight": 1.0}, {0: (1.0, 1.0, 1.0)}),
    }
    subsets = ("val", "test/id", "test/ood")
    task = {
        "name": "a",
        "targets": ["gap"],
        "rows": [{"target": "gap", "unit": "eV"}],
        "seed_rows": [
            {"recipe": name, "seed": seed, "subset": subset, "value": value}
            for name, (_, errors) in made.items()
            for seed, values in errors.items()
            for subset, value in zip(subsets, values, strict=True)
        ],
    }
    without = {**task, "name": "b", "seed_rows": task["seed_rows"][:6]}
    recipes = [{"name": name, "settings": settings} for name, (settings, _) in made.items()]
    table = load("suite_tables").weights_table({"recipes": recipes, "tasks": [without, task]})
    head, _, row, last = (line.strip("| ").split(" | ") for line in table.splitlines())
    assert head[:4] == ["task", "weight 0.5", "weight 2", "`mft-constraint`"]
    assert row == [
        *("a (eV)", "2 / 3 / 10", "4 / 5 / 8", "2.5 / 3.5 / 9"),
        *("-10.0 % (weight 0.5)", "+12.5 % (weight 2)"),
    ]
    assert [cell.strip(" *") for cell in (last[0], *last[-2:])] == ["mean", "-10.0 %", "+12.5 %"]


def test_every_number_of_a_suite_has_its_run() -> None:
    folder = RESULTS / "qm9-boom"
    results = json.loads((folder / "results.json").read_text())
    runs = [
        (task["name"], run)
        for task in results["tasks"]
        for run, done in task["runs"].items()
        if done
    ]
    assert len(runs) > 10
    for task, run in runs:
        files = {
            file
            for file in load("kept", "benchmarks").KEPT
            if (folder / task / "runs" / run / file).is_file()
        }
        assert "metrics.json" in files, (task, run)
        assert "predictions.parquet" in files, (task, run)


def test_finished_runs_are_copied_and_others_are_not(tmp_path: Path) -> None:
    kept = load("kept", "benchmarks")
    work, results = tmp_path / "work", tmp_path / "results"
    for run, files in {
        "homo/runs/full-s0": kept.KEPT,
        "homo/runs/mft-s0": [file for file in kept.KEPT if file != "metrics.json"],
        "homo/runs/probe-s0": [file for file in kept.KEPT if file != "config.yaml"],
        "homo/runs/fingerprint-s0": [file for file in kept.KEPT if file != "config.yaml"],
    }.items():
        for file in files:
            (work / run / file).parent.mkdir(parents=True, exist_ok=True)
            recipe = {"name": "x"} | ({} if "fingerprint" in run else {"movement": "full"})
            identity = json.dumps({"recipe": recipe, "seed": 0})
            (work / run / file).write_text(identity if "identity" in file else "x")
    (work / "homo/runs/full-s0/weights.safetensors").write_text("heavy")
    assert kept.copy_runs(work, results) == 2
    copied = {str(path.relative_to(results)) for path in results.rglob("*") if path.is_file()}
    assert "homo/runs/full-s0/metrics.json" in copied
    assert "homo/runs/fingerprint-s0/metrics.json" in copied  # it has no configuration of its own
    assert not any("weights" in name or "mft" in name or "probe" in name for name in copied)
    assert kept.copy_runs(work, results) == 0


def test_runs_of_labels_with_other_last_bits_are_recognised(workspace: Any, tmp_path: Path) -> None:
    kept = load("kept", "benchmarks")
    here = Store.open(workspace.auxiliary).fingerprint
    for run, labels, error in (
        ("mft-s0", "other bits", 1e-8),
        ("mft-s1", "another model", 0.1),
        ("mft-s2", here, 0.1),
        ("scratch-s0", None, 1e-8),
        ("scratch-s1", "other bits", None),  # no pretrained model, so no error of it
    ):
        for file, content in {
            "metrics.json": {"forgetting": {"before": {"force_mae": error}}},
            "provenance.json": {"level_check": {"force_mae": error} if labels else None},
            "state/identity.json": {"seed": 0, "data": {"store": "s", "auxiliary": labels}},
        }.items():
            path = tmp_path / "runs" / run / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
    config = SimpleNamespace(auxiliary=workspace.auxiliary, forcefield_test=None)
    later = SimpleNamespace(auxiliary=tmp_path / "not made yet.arrow", forcefield_test=None)
    tasks = [SimpleNamespace(out=tmp_path, config=given) for given in (later, config)]
    suite = SimpleNamespace(tasks=tasks)
    assert [kept.recognise(suite), kept.recognise(suite)] == [2, 0]
    found = {
        path.parents[1].name: json.loads(path.read_text())["data"]["auxiliary"]
        for path in tmp_path.rglob("identity.json")
    }
    assert found == {
        "mft-s0": here,
        "mft-s1": "another model",
        "mft-s2": here,
        "scratch-s0": None,
        "scratch-s1": here,
    }

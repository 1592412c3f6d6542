"""Suites: what a file means, what runs, what the results say."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from tether.bench import prepare_suite, run_suite, suite_jobs, write_results
from tether.cli.bench_tables import print_results
from tether.cli.main import main
from tether.errors import OccupiedError, TetherError
from tether.metrics.intervals import seed_pooled_interval
from tether.outside.published import published_figures
from tether.report.suite_read import reference_of
from tether.run import Run
from tether.serialization import read_json
from tether.suites.results import _fold_gains, _over_tasks, suite_results
from tether.suites.suite import load_suite, suite_names
from tether.summary import errors_of

RECIPES = ["scratch", "full", {"base": "mft", "name": "strong", "forcefield_weight": 1.0}]


def _content(workspace: Any, **changes: Any) -> dict[str, Any]:
    config = workspace.config(split="{out}/{task}/split.json", recipes=RECIPES, seeds=[0, 1])
    config["training"] |= {"property_steps": 2, "validate_every": 1}
    config.pop("workers")
    split = f"split {workspace.store} --method size --target gap --ood 6 --val-size 6 --near 0"
    return {
        "summary": "small",
        "groups": "kind",
        "axis": "size",
        "tasks": {
            "a": {"size": 8, "kind": "x"},
            "b": {"size": 12, "kind": "x", "config": {"recipes": RECIPES[:2]}},
        },
        "stages": [
            f"{split} --train-size {{size}} --out {{out}}/{{task}}/split.json",
        ],
        "config": config,
        **changes,
    }


def _write(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_placeholders_make_tasks_and_each_command_once(workspace: Any, tmp_path: Path) -> None:
    content = _content(workspace)
    content["stages"].insert(0, "prepare {data}/x.npz --out {out}/x.arrow")
    suite = load_suite(_write(tmp_path, content), out=Path("o"), data=Path("d"))
    assert [" ".join(stage.arguments[:3]) for stage in suite.stages] == [
        "prepare d/x.npz --out",
        f"split {workspace.store} --method",
        f"split {workspace.store} --method",
    ]
    assert [str(stage.out) for stage in suite.stages[1:]] == ["o/a/split.json", "o/b/split.json"]
    assert [str(task.config.split) for task in suite.tasks] == ["o/a/split.json", "o/b/split.json"]
    assert suite.tasks[0].values == {"size": 8, "kind": "x"}
    assert [len(task.config.recipes) for task in suite.tasks] == [3, 2]
    labels = [job.label for job in suite_jobs(suite)]
    assert labels[:4] == ["a/scratch-s0", "a/full-s0", "a/strong-s0", "a/scratch-s1"]


def test_a_backbone_is_made_when_its_run_is_complete(workspace: Any, tmp_path: Path) -> None:
    made = f"pretrain 'datasets=[{{{{store: {workspace.auxiliary}}}}}]' --out {{out}}/made"
    (stage,) = load_suite(
        _write(tmp_path, _content(workspace, stages=[made])), out=tmp_path / "suite"
    ).stages
    assert stage.arguments[1] == f"datasets=[{{store: {workspace.auxiliary}}}]"
    stage.out.mkdir(parents=True)  # a run that was begun
    assert not stage.is_done
    (stage.out / "metrics.json").write_text("{}")
    assert stage.is_done


def test_a_part_of_a_suite(workspace: Any, tmp_path: Path) -> None:
    path = _write(tmp_path, _content(workspace))
    some = load_suite(path, out=tmp_path, recipes=["strong"], overrides=["seeds=[3]"])
    assert [job.label for job in suite_jobs(some)] == ["a/strong-s3"]  # b has no such recipe
    assert len(load_suite(path, out=tmp_path, tasks=["b"]).tasks) == 1


@pytest.mark.parametrize(("shared", "read"), [("", "b"), (" --avoid {out}/a/split.json", "ab")])
def test_a_part_makes_the_data_that_it_reads(
    workspace: Any, tmp_path: Path, shared: str, read: str
) -> None:
    content = _content(workspace)
    common = f"split {workspace.store} --method random --out {{out}}/common.json{shared}"
    content["stages"] += [common, f"label {workspace.store} --size {{size}} --out {{task}}.arrow"]
    suite = load_suite(_write(tmp_path, content), out=Path("o"), tasks=["b"])
    splits = [f"o/{task}/split.json" for task in read]
    assert [str(stage.out) for stage in suite.stages] == [*splits, "o/common.json", "b.arrow"]


def test_a_folder_may_have_a_blank_in_its_name(workspace: Any, tmp_path: Path) -> None:
    suite = load_suite(_write(tmp_path, _content(workspace)), out=Path("my 'suite"))
    assert suite.stages[0].out == Path("my 'suite/a/split.json") == suite.tasks[0].config.split
    assert suite.stages[0].arguments[-1] == str(suite.stages[0].out)


def test_a_task_changes_single_settings(workspace: Any, tmp_path: Path) -> None:
    content = _content(workspace)
    content["tasks"]["a"]["config"] = {"training": {"lr": 3.0e-3}}
    content["tasks"]["b"]["config"] = None
    a, b = (task.config for task in load_suite(_write(tmp_path, content), out=tmp_path).tasks)
    assert a.training == {**b.training, "lr": 3.0e-3}
    assert b.training["property_steps"] == 2


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {"tasks": ["c"]}, r"unknown task of suite .*: 'c'; expected one of a, b"),
        ({}, {"recipes": ["lora"]}, r"unknown recipe of suite .*: 'lora'; expected one of scratch"),
        ({"stages": ["label {size}"]}, {}, r"stage 'label 8'; expected one of prepare, split, lab"),
        ({"stages": ["adapt x --out y"]}, {}, r"stage 'adapt x --out y'; expected"),
        ({"stages": ["prepare {data} --out y"]}, {}, r"names \{data\}.*--data FOLDER"),
        ({"stages": ["prepare {nothing} --out y"]}, {}, r"names \{nothing\}.*add it to each task"),
        ({"taskz": {}}, {}, r"unknown key 'taskz' in suite .*did you mean 'tasks'"),
        ({"config": {"stor": "x"}}, {}, r"unknown key 'stor' in config of task a"),
        ({"axis": "length"}, {}, r"unknown value of a task: 'length'; expected one of kind, size"),
        ({"metric": "r2"}, {}, r"`metric` is 'r2'"),
        ({"published": "qm9"}, {}, r"no published figures of 'qm9'; expected one of qm9-boom, mat"),
        (
            {"units": {"y": "eV"}},
            {},
            r"unknown target or value of a task in `units`: 'y'; expected one of gap, x;",
        ),
        ({"axis": "kind"}, {}, r"`kind` of task a is 'x'; expected a number above 0"),
        (
            {"tasks": {"a": {"size": 8, "kind": "x"}, "b": {"size": 8, "kind": "x"}}},
            {},
            r"tasks a and b both have size 8 and target gap",
        ),
        ({"tasks": {"../a": {"size": 8, "kind": "x"}}}, {}, r"task name '../a'; expected letters"),
        (
            {"tasks": {"a": {"size": 8, "kind": "x", "config": ["x"]}}},
            {},
            r"`config` of task a is \['x'\]; expected a mapping",
        ),
        ({"stages": ["split {} --out y"]}, {}, r"'{}' cannot be filled"),
        ({"stages": ["split {task.x} --out y"]}, {}, r"'{task.x}' cannot be filled"),
        ({"stages": ["split 'x --out y"]}, {}, r"No closing quotation.*close its quotes"),
        ({}, {"overrides": ["seeds=[0,0]"]}, r"`seeds` is \[0, 0\]; expected each once"),
    ],
)
def test_bad_suites_are_refused_in_one_line(
    workspace: Any,
    tmp_path: Path,
    change: dict[str, Any],
    arguments: dict[str, Any],
    message: str,
) -> None:
    path = _write(tmp_path, {**_content(workspace), **change})
    with pytest.raises(TetherError, match=message):
        load_suite(path, out=tmp_path, **arguments)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(
        TetherError, match="unknown suite 'qm9'; expected one of matbench-loco, qm9"
    ):
        load_suite("qm9", out=Path("o"))


@pytest.mark.parametrize("name", suite_names())
def test_the_suites_that_tether_brings_are_well_formed(name: str) -> None:
    suite = load_suite(name, out=Path("o"), data=Path("d"))
    assert len(suite_jobs(suite)) > 10
    made = [str(stage.out) for stage in suite.stages]
    for task in suite.tasks:  # every file that a comparison reads is made by a stage
        for path in (task.config.store, task.config.split, task.config.auxiliary):
            assert str(path) in made
    for stage in suite.stages:  # and every file of the suite that a stage reads, by one before it
        read = {text for text in stage.arguments if text.startswith("o/")} - {str(stage.out)}
        assert read <= set(made[: made.index(str(stage.out))])


@pytest.fixture(scope="module")
def done(workspace: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("suite")
    path = _write(folder, _content(workspace))
    suite = load_suite(path, out=folder / "out")
    prepare_suite(suite)
    assert all(stage.is_done for stage in suite.stages)
    run_suite(suite, workers=1)
    write_results(suite)
    return path, folder / "out"


def test_results_are_those_of_the_runs(done: tuple[str, Path]) -> None:
    _, out = done
    results = read_json(out / "results.json")
    assert [sum(task["runs"].values()) for task in results["tasks"]] == [6, 4]
    assert [entry["multitask"] for entry in results["recipes"]] == [False, False, True]
    assert [stage["done"] for stage in results["stages"]] == [True, True]
    assert "Suite: small" in (out / "results.html").read_text(encoding="utf-8")
    errors = [
        errors_of(Run(out / "a" / "runs" / f"strong-s{seed}"))["gap", "test/ood"] for seed in (0, 1)
    ]
    (row,) = (
        row
        for row in results["tasks"][0]["rows"]
        if (row["recipe"], row["subset"]) == ("strong", "test/ood")
    )
    assert row["value"] == pytest.approx(seed_pooled_interval(errors, "rmse").value)
    # `strong` was run on one task, which is no comparison over tasks.
    pairs = {(row["method"], row["reference"]) for row in results["over_tasks"]}
    assert pairs == {("full", "scratch"), ("scratch", "full")}
    means = {
        name: [np.mean([r["value"] for r in _seed_rows(task, name)]) for task in results["tasks"]]
        for name in ("full", "scratch")
    }
    over = next(
        row
        for row in results["over_tasks"]
        if (row["method"], row["subset"]) == ("full", "test/ood")
    )
    ratio = np.array(means["full"]) / np.array(means["scratch"])
    assert over["gain_percent"] == pytest.approx(100 * (1 - np.sqrt(ratio.prod())))
    assert over["n_tasks"] == 2


def _seed_rows(task: dict[str, Any], recipe: str) -> list[dict[str, Any]]:
    rows = task["seed_rows"]
    return [row for row in rows if (row["recipe"], row["subset"]) == (recipe, "test/ood")]


def test_labels_without_a_unit_have_that_of_the_suite(
    done: tuple[str, Path], workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_units(task: Any, digests: Any) -> dict[str, Any]:
        found = read_json(done[1] / task.name / "summary.json")
        rows = [{**row, "unit": ""} if task.name == "a" else row for row in found["rows"]]
        return {**found, "rows": rows}

    monkeypatch.setattr("tether.suites.results._summary", without_units)
    for units in ({"x": "Ha"}, {"gap": "Ha"}):
        path = _write(tmp_path, _content(workspace, units=units))
        results = suite_results(load_suite(path, out=done[1]))
        for task, unit in zip(results["tasks"], ("Ha", "eV"), strict=True):
            assert {row["unit"] for row in task["rows"] + task["seed_rows"]} == {unit}
    console = Console(width=200, record=True, file=io.StringIO())
    print_results(results, console)
    assert "(Ha)" in console.export_text()


def test_published_figures_have_the_units_of_the_suite() -> None:
    suite = load_suite("matbench-loco", out=Path("o"), data=Path("d"))
    for task in suite.tasks:
        figures = published_figures(suite=suite.published, target=task.values["set"])
        # Their files name no units.
        assert {figure.unit for figure in figures} == {suite.units.get(task.values["set"], "")}


def test_folds_are_judged_where_all_recipes_have_finished(done: tuple[str, Path]) -> None:
    results = read_json(done[1] / "results.json")
    rows = {
        row["recipe"]: row
        for row in results["groups"]
        if (row["group"], row["subset"]) == ("x", "test/ood")
    }
    # `strong` is asked for on one fold alone, and takes nothing from the others.
    assert {name: row["n_folds"] for name, row in rows.items()} == {"scratch": 2, "full": 2}
    values = {
        name: np.mean([row["value"] for task in results["tasks"] for row in _seed_rows(task, name)])
        for name in rows
    }
    assert rows["full"]["value"] == pytest.approx(values["full"])
    gain = rows["full"]["gains"]["scratch"]["percent"]
    assert gain == pytest.approx(100 * (1 - values["full"] / values["scratch"]))


def test_a_fold_that_a_recipe_has_not_finished_is_left_out(
    done: tuple[str, Path], tmp_path: Path
) -> None:
    path, out = done
    copy = tmp_path / "half"
    shutil.copytree(out, copy)
    for seed in (0, 1):
        shutil.rmtree(copy / "b" / "runs" / f"full-s{seed}")
    rows = suite_results(load_suite(path, out=copy))["groups"]
    assert {(row["recipe"], row["n_folds"]) for row in rows} == {("scratch", 1), ("full", 1)}


def test_a_recipe_that_lags_takes_no_seed_from_the_gains_of_others() -> None:
    key = ("gap", "test/ood")
    errors = {"scratch": (2.0, 4.0), "full": (1.0, 3.0), "late": (1.0,)}
    fold = {
        (name, seed): {key: np.full(5, error)}
        for name, found in errors.items()
        for seed, error in enumerate(found)
    }
    gains = {
        name: _fold_gains([fold, fold], name, ["scratch"], key, "mae")
        for name in ("full", "late", "scratch")
    }
    assert gains["full"]["scratch"]["percent"] == pytest.approx(100 * (1 - 4 / 6))
    assert gains["late"]["scratch"]["percent"] == pytest.approx(50.0)
    assert gains["full"]["scratch"]["n_folds"] == 2
    assert gains["scratch"] == {}


def test_curves_follow_the_axis(done: tuple[str, Path]) -> None:
    curves = read_json(done[1] / "results.json")["curves"]
    inside = [
        (row["x"], row["value"])
        for row in curves
        if (row["recipe"], row["subset"]) == ("full", "test/ood")
    ]
    assert [x for x, _ in inside] == [8, 12]
    assert len({value for _, value in inside}) == 2


def test_what_is_finished_is_not_run_again(done: tuple[str, Path]) -> None:
    path, out = done
    suite = load_suite(path, out=out)
    files = sorted(out.rglob("metrics.json"))
    before = [file.stat().st_mtime_ns for file in files]
    summaries = [(out / name / "summary.json").stat().st_mtime_ns for name in "ab"]
    prepare_suite(suite, lambda _stage, state: pytest.fail(state) if state != "done" else None)
    run_suite(suite, workers=1)
    again = write_results(suite)
    assert [file.stat().st_mtime_ns for file in files] == before
    assert [(out / name / "summary.json").stat().st_mtime_ns for name in "ab"] == summaries
    assert json.loads(json.dumps(again)) == read_json(out / "results.json")


def test_a_run_that_is_made_again_is_judged_again(done: tuple[str, Path], tmp_path: Path) -> None:
    path, out = done
    copy = tmp_path / "again"
    shutil.copytree(out, copy)
    before = read_json(copy / "results.json")["tasks"]
    run = Run(copy / "a" / "runs" / "full-s0")
    table = pq.read_table(run.predictions)
    worse = pa.array(table["pred"].to_numpy() + 10.0)
    place = table.column_names.index("pred")
    pq.write_table(table.set_column(place, "pred", worse), run.predictions)
    after = suite_results(load_suite(path, out=copy))["tasks"]
    assert after[0]["rows"] != before[0]["rows"]
    assert after[1]["rows"] == before[1]["rows"]


def test_intervals_of_another_method_are_made_again(done: tuple[str, Path], tmp_path: Path) -> None:
    path, out = done
    copy = tmp_path / "older"
    shutil.copytree(out, copy)
    fresh = suite_results(load_suite(path, out=copy))["tasks"]
    for task, change in (("a", {"intervals": "of bygone days"}), ("b", {})):
        summary = copy / task / "summary.json"
        found = read_json(summary)
        rows = [{**row, "low": -1.0} for row in found["rows"]]
        summary.write_text(json.dumps({**found, "rows": rows, **change}))
    older, kept = suite_results(load_suite(path, out=copy))["tasks"]
    assert older["rows"] == fresh[0]["rows"]
    assert {row["low"] for row in kept["rows"]} == {-1.0}


def test_runs_of_other_settings_are_refused(done: tuple[str, Path]) -> None:
    path, out = done
    results = (out / "results.json").read_bytes()
    other = load_suite(path, out=out, overrides=["training.property_steps=3"])
    with pytest.raises(TetherError, match=r"a/runs/\S+ holds a run with other settings"):
        write_results(other)
    assert (out / "results.json").read_bytes() == results


def test_kept_runs_without_their_data_have_no_rows(done: tuple[str, Path], tmp_path: Path) -> None:
    path, out = done
    copy = tmp_path / "kept"
    shutil.copytree(out / "a" / "runs", copy / "a" / "runs")
    (task, _) = write_results(load_suite(path, out=copy))["tasks"]
    assert (sum(task["runs"].values()), task["rows"]) == (6, [])


def test_a_run_that_another_process_is_at_stops_no_other(workspace: Any, tmp_path: Path) -> None:
    content = _content(workspace, config={**_content(workspace)["config"], "seeds": [0]})
    suite = load_suite(_write(tmp_path, content), out=tmp_path / "out")
    prepare_suite(suite)
    held, *others = suite_jobs(suite)
    with (
        Run(held.out).held(),
        pytest.raises(OccupiedError, match="another process is training in .*a/runs/scratch-s0"),
    ):
        run_suite(suite, workers=1)
    assert not held.is_complete
    assert all(job.is_complete for job in others)
    # Of a group, one recipe of a single fold may be all that there is.
    for job in others:
        if job.method != "strong":
            shutil.rmtree(job.out)
    assert write_results(suite)["groups"] == []


def test_results_of_a_suite_half_done(done: tuple[str, Path], tmp_path: Path) -> None:
    path, out = done
    more = load_suite(path, out=out, overrides=["seeds=[0,1,2]"])
    results = suite_results(more)
    assert [sum(task["runs"].values()) for task in results["tasks"]] == [6, 4]
    assert [len(task["runs"]) for task in results["tasks"]] == [9, 6]
    assert results["tasks"][0]["rows"]
    nothing = write_results(load_suite(path, out=tmp_path))
    assert [task["rows"] for task in nothing["tasks"]] == [[], []]
    assert (nothing["over_tasks"], nothing["ranks"]) == ([], [])


def test_a_stage_that_fails_stops_the_suite(workspace: Any, tmp_path: Path) -> None:
    content = _content(workspace, stages=["split nowhere.arrow --out {out}/split.json"])
    suite = load_suite(_write(tmp_path, content), out=tmp_path / "out")
    with pytest.raises(TetherError, match=r"stage `tether split nowhere.arrow .*` failed"):
        prepare_suite(suite)
    assert not suite.stages[0].is_done


def test_data_of_another_command_are_refused(done: tuple[str, Path], tmp_path: Path) -> None:
    path, out = done
    content = yaml.safe_load(Path(path).read_text())
    first = content["stages"][0]
    changed = Path(_write(tmp_path, {**content, "stages": [f"{first} --seed 7"]}))
    split = load_suite(str(changed), out=out)
    with pytest.raises(TetherError, match=r"was made by `tether .*--seed 7`, as the suite says"):
        prepare_suite(split)
    # Moved as a whole, or where nothing says what made it, it is taken.
    moved = tmp_path / "moved"
    shutil.copytree(out, moved)
    prepare_suite(load_suite(path, out=moved))
    for record in moved.rglob("*.stage.json"):
        record.unlink()
    prepare_suite(load_suite(str(changed), out=moved))


def test_tests_over_other_tasks_are_another_family() -> None:
    # On three tasks: full and mft against scratch; on two of them only: lora.
    errors = {"scratch": [4.0, 5.0, 6.0], "full": [3.0, 4.0, 5.5], "mft": [2.0, 3.0, 4.0]}
    entries = [
        {
            "steps": dict.fromkeys([*errors, *(["lora"] if i < 2 else [])], 1),
            "rows": [{"recipe": name} for name in [*errors, "lora"]],
            "seed_rows": [
                {"recipe": name, "seed": 0, "target": "t", "subset": "test/ood", "value": values[i]}
                for name, values in {**errors, **({"lora": [3.5, 4.5]} if i < 2 else {})}.items()
            ],
        }
        for i in range(3)
    ]
    rows = {(row["method"], row["reference"]): row for row in _over_tasks(entries, ["scratch"])}
    assert rows["lora", "scratch"]["n_tasks"] == 2
    assert rows["mft", "scratch"]["n_tasks"] == 3
    assert rows["lora", "scratch"]["p_holm"] == rows["lora", "scratch"]["p_value"]  # alone
    pair = rows["full", "scratch"], rows["mft", "scratch"]
    assert [row["p_holm"] for row in pair] == [2 * row["p_value"] for row in pair]
    assert {reference for _, reference in rows} == {"scratch"}
    against_mft = {row["method"]: row for row in _over_tasks(entries, ["lora", "mft", "unknown"])}
    assert against_mft["full"]["gain_percent"] < 0 < rows["mft", "scratch"]["gain_percent"]
    # What has not finished yet leaves no family: its tests are as many as there will be.
    del entries[2]["seed_rows"][-1]
    rows = {row["method"]: row for row in _over_tasks(entries, ["scratch"])}
    assert rows["mft"]["n_tasks"] == 2
    assert rows["full"]["p_holm"] == 2 * rows["full"]["p_value"]
    # A recipe without any error has no ratio to the others.
    entries[0]["seed_rows"][1]["value"] = 0.0
    assert {row["method"] for row in _over_tasks(entries, ["scratch"])} == {"mft", "lora"}


def test_the_reference_of_a_suite_without_full_or_scratch(done: tuple[str, Path]) -> None:
    _, out = done
    assert reference_of(read_json(out / "results.json")) == "full"
    task = {
        "steps": {"probe": 1, "mft": 1},
        "rows": [{"recipe": "probe"}, {"recipe": "mft"}],
        "gains": [{"recipe": "mft", "reference": "probe"}],
    }
    assert reference_of({"tasks": [task]}) == "probe"
    assert reference_of({"tasks": [{**task, "gains": []}]}) is None


def test_every_target_is_shown_with_its_unit(done: tuple[str, Path]) -> None:
    results = read_json(done[1] / "results.json")
    task = results["tasks"][0]
    task["rows"] += [{**row, "target": "mu", "unit": "D"} for row in task["rows"]]
    task["targets"].append("mu")
    console = Console(width=200, record=True, file=io.StringIO())
    print_results(results, console)
    lines = console.export_text().splitlines()
    heads = next(at for at, line in enumerate(lines) if "a gap" in line and "a mu" in line)
    assert lines[heads + 1].split()[:2] == ["(eV)", "(D)"]


@pytest.mark.parametrize("width", [40, 200])
def test_the_terminal_shows_every_task_whatever_the_width(
    done: tuple[str, Path], width: int
) -> None:
    results = read_json(done[1] / "results.json")
    console = Console(width=width, record=True, file=io.StringIO())
    print_results(results, console)
    text = console.export_text()
    assert "10 of 10 runs done" in text
    assert "…" not in text
    (value,) = (
        row["value"]
        for row in results["tasks"][1]["rows"]
        if (row["recipe"], row["subset"]) == ("full", "test/ood")
    )
    assert f"{value:.2f}" in text
    for task in results["tasks"]:
        assert any(line.split()[:1] == [task["name"]] or f" {task['name']}" in line
                   for line in text.splitlines())  # fmt: skip


def test_the_command_shows_the_state_and_refuses_in_one_line(
    done: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = done
    main(["bench", path, "--out", str(out), "--status"])
    assert "10 of 10 runs done" in capsys.readouterr().out
    (out / "results.html").unlink()
    main(["report", str(out)])
    shown = capsys.readouterr().out
    assert "10 of 10 runs done" in shown
    assert "results.html" in shown
    assert (out / "results.html").stat().st_size > 100_000
    main(["bench", path, "--out", str(out), "--dry-run", "--json"])
    assert json.loads(capsys.readouterr().out)["runs"]["a/full-s0"] is True
    with pytest.raises(SystemExit) as stop:
        main(["bench", path, "--out", str(out), "--recipe", "nothing"])
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1

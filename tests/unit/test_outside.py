"""Boosted trees, and a run of them that is like any other run."""

from __future__ import annotations

import contextlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tether.adapt import BackboneChoice, HeadChoice, adapt, check_run
from tether.compare import compare
from tether.config import load_config
from tether.data.store import Store
from tether.errors import TetherError
from tether.outside.boosting import BoostingSettings, fit_boosting
from tether.outside.fit import check_fingerprint, fit_fingerprint
from tether.recipe import named_recipe
from tether.report.build import build_report
from tether.serialization import read_json
from tether.splits.split import Split, StoreReference
from tether.summary import summarise
from tether.training.log import read_log
from tether.training.settings import TrainingSettings

SMALL = BoostingSettings(max_iterations=60, patience=20, min_samples_leaf=2, max_leaf_nodes=4)


def table(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A step and a product of three of twelve columns, one of them with holes, and noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 12)).astype(np.float32)
    y = np.sign(x[:, 0]) + x[:, 1] * x[:, 2] + 0.1 * rng.normal(size=n)
    x[rng.random(n) < 0.2, 1] = np.nan
    return x, y


def test_trees_learn_and_are_cut_at_the_least_validation_error() -> None:
    val = table(300, 1)
    fits = fit_boosting(table(600, 0), val, BoostingSettings(max_iterations=300), seed=0)
    assert [f.trial.val_rmse for f in fits] == sorted(f.trial.val_rmse for f in fits)
    assert {f.trial.learning_rate for f in fits} == {0.03, 0.1}
    for fit in fits:
        error = np.sqrt(np.mean((fit.predict(val[0]) - val[1]) ** 2))
        assert error == pytest.approx(fit.trial.val_rmse, rel=1e-6)
        assert error < 0.7 * val[1].std()
        later = [np.mean((p - val[1]) ** 2) for p in fit.model.staged_predict(val[0])]
        assert int(np.argmin(later)) + 1 == fit.trial.n_trees <= fit.trial.n_fitted == len(later)


def test_the_seed_draws_columns_and_nothing_else_is_random() -> None:
    settings = BoostingSettings(max_iterations=20)
    train, val = table(300, 0), table(100, 1)
    first, again, other = (
        fit_boosting(train, val, settings, seed=seed)[0].predict(val[0]) for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def test_columns_without_a_split_change_nothing_and_are_not_drawn() -> None:
    settings = BoostingSettings(max_iterations=20, max_features=1.0, min_samples_leaf=20)
    (x, y), (x_val, y_val) = table(300, 0), table(100, 1)
    few = np.where(np.arange(300) < 19, 1.0, 0.0)[:, None]
    more = np.hstack([few, np.full((300, 1), np.nan), x, np.ones((300, 1))])
    more_val = np.hstack([np.ones((100, 1)), np.zeros((100, 1)), x_val, np.ones((100, 1))])
    (plain, *_), (wide, *_) = (
        fit_boosting((m, y), (v, y_val), settings, seed=0)
        for m, v in ((x, x_val), (more, more_val))
    )
    assert wide.columns.tolist() == [False, False, *[True] * 12, False]
    assert np.array_equal(plain.predict(x_val), wide.predict(more_val))
    few[19] = 1.0  # one row more, and the column can be split
    wider = np.hstack([few, x])
    assert fit_boosting((wider, y), (more_val[:, 1:14], y_val), settings, seed=0)[0].columns[0]


def test_unlabelled_rows_do_not_count() -> None:
    (x, y), val = table(300, 0), table(100, 1)
    holes = np.where(np.arange(300) % 3 == 0, np.nan, y)
    known = ~np.isnan(holes)
    settings = BoostingSettings(max_iterations=20)
    first = fit_boosting((x, holes), val, settings, seed=0)[0].predict(x)
    assert np.array_equal(
        first, fit_boosting((x[known], y[known]), val, settings, seed=0)[0].predict(x)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rates", ()), ("learning_rates", (0.1, 2.0)), ("max_iterations", 0),
     ("max_features", 0.0), ("patience", 0), ("max_leaf_nodes", 1), ("min_samples_leaf", 0)],
)  # fmt: skip
def test_settings_are_checked(name: str, value: Any) -> None:
    with pytest.raises(TetherError, match=rf"`{name}` of the boosting is .*fix: leave it at"):
        BoostingSettings(**{name: value})


@pytest.fixture(scope="module")
def finished(workspace: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("outside") / "runs" / "fingerprint-s0"
    return fit_fingerprint(workspace.inputs("gap", "sparse"), out=out, settings=SMALL)


def test_the_folder_is_that_of_any_run(finished: Any, workspace: Any, tmp_path: Path) -> None:
    settings = TrainingSettings(property_steps=2, batch_size=8, validate_every=2)
    other = adapt(
        workspace.inputs("gap", "sparse"),
        named_recipe("probe"),
        settings,
        out=tmp_path,
        backbone=BackboneChoice("tiny", {"n_features": 16}),
        head=HeadChoice(n_hidden=8),
    )
    ours, theirs = (pq.read_table(run.predictions) for run in (finished, other))
    assert ours.schema == theirs.schema
    for column in ("id", "target", "true", "subset"):  # NaN and NaN are equal here
        np.testing.assert_array_equal(ours[column].to_numpy(), theirs[column].to_numpy())
    assert np.isfinite(ours["pred"].to_numpy()).all()
    mine, usual = (read_json(run.metrics) for run in (finished, other))
    assert mine.keys() == usual.keys() | {"trees"}
    assert mine["forgetting"] is None
    assert (mine["property_steps"], mine["forcefield_steps"]) == (0, 0)
    keys = ("target", "unit", "subset", "metric", "n")
    assert [[r[k] for k in keys] for r in mine["rows"]] == [
        [r[k] for k in keys] for r in usual["rows"]
    ]
    assert finished.split.read_bytes() == other.split.read_bytes()
    assert (
        read_json(finished.provenance)["data"]["store"] == Store.open(workspace.store).fingerprint
    )


def test_the_log_has_every_trial_and_the_best_was_kept(finished: Any) -> None:
    events = read_log(finished.log)
    trees = read_json(finished.metrics)["trees"]
    assert len(events) == 4  # two targets, two learning rates
    for name in ("gap", "sparse"):
        mine = [event for event in events if name in event["val_rmse"]]
        best = min(mine, key=lambda event: event["val_loss"])
        assert best["trees"] == trees[name]
        (row,) = (
            r
            for r in read_json(finished.metrics)["rows"]
            if (r["target"], r["subset"], r["metric"]) == (name, "val", "rmse")
        )
        assert best["val_rmse"][name] == pytest.approx(row["value"], rel=1e-9)
    assert all(a["step"] < b["step"] for a, b in itertools.pairwise(events))


def test_a_finished_run_is_left_and_a_killed_one_ends_with_the_same_bytes(
    finished: Any, workspace: Any, tmp_path: Path
) -> None:
    inputs = workspace.inputs("gap", "sparse")
    stamps = {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*")}
    fit_fingerprint(inputs, out=finished.folder, settings=SMALL)
    assert {p: p.stat().st_mtime_ns for p in finished.folder.rglob("*")} == stamps
    run = fit_fingerprint(inputs, out=tmp_path, settings=SMALL)
    predictions, log = run.predictions.read_bytes(), run.log.read_bytes()
    run.metrics.unlink()
    run.predictions.unlink()
    run.log.write_bytes(log[:-30])
    fit_fingerprint(inputs, out=tmp_path, settings=SMALL)
    assert run.predictions.read_bytes() == predictions == finished.predictions.read_bytes()
    assert run.log.read_bytes() == log


@pytest.mark.parametrize(
    ("seed", "settings", "named"),
    [(1, SMALL, "seed"), (0, BoostingSettings(), r"settings \(.* → .*\)")],
)
def test_another_run_is_refused(
    finished: Any, workspace: Any, seed: int, settings: BoostingSettings, named: str
) -> None:
    for action in (fit_fingerprint, check_fingerprint):
        with pytest.raises(TetherError, match=f"holds a run with other {named}; expected an empty"):
            action(
                workspace.inputs("gap", "sparse"), out=finished.folder, seed=seed, settings=settings
            )


def test_an_extensive_label_is_fitted_element_by_element(workspace: Any, tmp_path: Path) -> None:
    """`u0` is a sum over atoms; trees alone cannot leave the range of the training labels."""
    few = BoostingSettings(learning_rates=(0.1,), max_iterations=1)
    run = fit_fingerprint(workspace.inputs("u0", "gap"), out=tmp_path, settings=few)
    rows = {
        (r["target"], r["subset"], r["metric"]): r["value"] for r in read_json(run.metrics)["rows"]
    }
    assert rows["u0", "test/ood", "rmse"] < 1e-6
    assert rows["gap", "test/ood", "rmse"] > 0.1


def test_a_comparison_takes_it_as_one_more_row(
    finished: Any, workspace: Any, tmp_path: Path, strict_json: Any
) -> None:
    recipes = ["scratch", {"base": "probe", "name": "fingerprint"}]
    path = workspace.write_config(tmp_path, recipes=recipes, seeds=[0], targets=["gap", "sparse"])
    summary = summarise(finished.folder.parents[1], config=load_config(path))
    strict_json(json.dumps(summary))
    assert summary["missing_runs"] == ["scratch-s0"]
    assert {r["recipe"] for r in summary["rows"]} == {"fingerprint"}
    assert {r["property_steps"] for r in summary["rows"]} == {0}
    assert summary["forgetting"] == []
    strict_json(finished.metrics.read_text())
    build_report(finished.folder)
    assert (finished.folder / "report.html").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nothing", "has no label 'nothing'; expected one of gap, u0"),
        ("empty", "target 'empty' has 0 labels"),
    ],
)
def test_bad_targets_are_refused_before_anything_is_written(
    workspace: Any, tmp_path: Path, target: str, message: str
) -> None:
    with pytest.raises(TetherError, match=message):
        fit_fingerprint(workspace.inputs(target), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_targets_of_atoms_are_refused(workspace: Any, tmp_path: Path) -> None:
    inputs = workspace.inputs("forces")
    inputs = type(inputs)(workspace.auxiliary, inputs.split, inputs.targets)
    content = read_json(inputs.split)
    content["store"]["fingerprint"] = Store.open(workspace.auxiliary).fingerprint
    split = tmp_path / "split.json"
    split.write_text(json.dumps(content))
    inputs = type(inputs)(workspace.auxiliary, split, ("forces",))
    with pytest.raises(
        TetherError, match="target 'forces' is of level 'atom' and has 3 components"
    ):
        check_fingerprint(inputs, out=tmp_path / "run")


def test_it_is_a_row_of_a_comparison(workspace: Any, tmp_path: Path) -> None:
    changes = {"recipes": ["probe"], "outside": ["fingerprint"], "seeds": [0]}
    config = load_config(workspace.write_config(tmp_path, **changes))
    summary = compare(config, out=tmp_path / "out")
    rows = {
        (row["recipe"], row["subset"]): row["value"]
        for row in summary["rows"]
        if row["metric"] == "rmse" and row["seed"] == "pooled"
    }
    assert {name for name, _ in rows} == {"probe", "fingerprint"}
    assert summary["missing_runs"] == []
    assert (
        summary["backbone"]["name"] == "tiny"
    )  # the row without a backbone does not speak for all
    errors = read_json(tmp_path / "out" / "runs" / "fingerprint-s0" / "metrics.json")["rows"]
    (found,) = (r["value"] for r in errors if (r["subset"], r["metric"]) == ("test/ood", "rmse"))
    assert rows["fingerprint", "test/ood"] == pytest.approx(found)
    with pytest.raises(TetherError, match="holds a run with other"):
        compare(load_config(tmp_path / "config.yaml", ["targets=[u0]"]), out=tmp_path / "out")


def test_an_extensive_target_needs_every_element_in_training(
    workspace: Any, tmp_path: Path
) -> None:
    store = Store.open(workspace.store)
    has_oxygen = np.array([8 in store.batch([row]).numbers for row in range(store.n_systems)])
    without = np.flatnonzero(~has_oxygen)
    indices = {
        "train": without[:-4],
        "val": without[-4:-2],
        "test/id": without[-2:],
        "test/ood": np.flatnonzero(has_oxygen),
    }
    reference = StoreReference(str(store.path), store.fingerprint, store.n_systems)
    Split("oxygen", "file", {}, indices, store=reference).to_json(tmp_path / "split.json")
    refused = "'u0' is extensive.*'test/ood'.* hold O,"
    for target, expected in (
        ("u0", pytest.raises(TetherError, match=refused)),
        ("gap", contextlib.nullcontext()),
    ):
        inputs = replace(workspace.inputs(target), split=tmp_path / "split.json")
        with expected:
            check_fingerprint(inputs, out=tmp_path / "run")
        with expected:
            check_run(
                inputs,
                named_recipe("probe"),
                TrainingSettings(),
                out=tmp_path / "run",
                backbone=BackboneChoice("tiny", {"n_features": 16}),
            )


def test_a_finished_fit_is_recognised_without_its_packages(
    finished: Any, workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise TetherError("a package is missing", expected="it", fix="install it")

    monkeypatch.setattr("tether.outside.fit.check_packages", refuse)
    inputs = workspace.inputs("gap", "sparse")
    check_fingerprint(inputs, out=finished.folder, settings=SMALL, structures=False)
    with pytest.raises(TetherError, match="other seed"):
        check_fingerprint(inputs, out=finished.folder, seed=1, settings=SMALL, structures=False)
    with pytest.raises(TetherError, match="a package is missing"):
        check_fingerprint(inputs, out=tmp_path / "new", settings=SMALL, structures=False)

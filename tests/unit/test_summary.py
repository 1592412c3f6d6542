"""`compare`: budgets, resuming, and a summary with every number of tables and plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tether.compare import compare
from tether.config import Config, load_config
from tether.data.store import Store
from tether.errors import TetherError
from tether.jobs import plan, start_order
from tether.metrics.intervals import seed_pooled_interval
from tether.predict import load_run
from tether.report.tables import overview_table
from tether.report.verdict import verdict
from tether.run import Run
from tether.serialization import read_json
from tether.splits.split import Split
from tether.summary import LEVEL, _limit_distances, _reference_lines, errors_of, summarise

ROW = {
    "recipe", "seed", "target", "unit", "subset", "metric", "value", "low", "high", "n",
    "property_steps", "seconds",
}  # fmt: skip
GAIN = {
    "recipe", "reference", "target", "subset", "metric", "gain_percent", "low", "high", "p_value",
    "n_seeds",
}  # fmt: skip


@pytest.fixture(scope="module")
def comparison(
    workspace: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("comparison")
    recipes = ["scratch", {"base": "mft", "name": "mft-strong", "forcefield_weight": 1.0}]
    path = workspace.write_config(folder, recipes=recipes, seeds=[0, 1])
    config = load_config(path)
    return config, folder / "out", compare(config, out=folder / "out")


def test_summary_has_the_agreed_keys(comparison: Any, strict_json: Any) -> None:
    _, out, summary = comparison
    assert strict_json((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["format"] == 1
    assert all(row.keys() == ROW for row in summary["rows"])
    assert all(row.keys() == GAIN for row in summary["gains"])
    assert {"name", "target", "unit", "subset", "metric", "value"} == summary["reference_lines"][
        0
    ].keys()
    assert summary["level"] == LEVEL
    assert set(summary["split"]) == {"name", "method", "target", "sizes", "report"}
    assert summary["split"]["target"] is None
    assert summary["split"]["sizes"]["train"] == 20
    assert summary["backbone"]["name"] == "tiny"
    assert summary["config"]["seeds"] == [0, 1]
    assert summary["missing_runs"] == []


def test_gains_are_over_the_references_that_the_config_names(comparison: Any) -> None:
    config, out, _ = comparison
    turned = config.model_copy(update={"references": ("mft-strong", "not-run")})
    summary = summarise(out, config=turned)
    assert {(g["recipe"], g["reference"]) for g in summary["gains"]} == {("scratch", "mft-strong")}
    assert "mft-strong" in verdict(summary, config.targets[0])
    columns = overview_table(summary, config.targets[0]).columns
    assert {c.group for c in columns if "gain" in c.group} == {"RMSE gain over mft-strong (%)"}


def test_the_level_is_that_of_the_intervals(
    comparison: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out, summary = comparison
    monkeypatch.setattr("tether.summary.LEVEL", 0.5)
    narrow = summarise(out, config=config)
    assert (summary["level"], narrow["level"]) == (0.95, 0.5)
    for key in ("rows", "gains"):
        widths = [[row["high"] - row["low"] for row in one[key]] for one in (narrow, summary)]
        assert np.all(np.array(widths[0]) < np.array(widths[1]))
    assert "(95 % interval [" in verdict(summary, config.targets[0])


def test_the_split_brings_the_target_that_it_was_made_on(
    comparison: Any, workspace: Any, tmp_path: Path
) -> None:
    config, out, _ = comparison
    made = Split.from_json(workspace.split)
    made = made.with_indices(made.indices, parameters={"target": "u0"})
    made.to_json(tmp_path / "split.json")
    other = config.model_copy(update={"split": tmp_path / "split.json"})
    assert summarise(out, config=other)["split"]["target"] == "u0"


def test_limit_distances_are_shares_of_the_gap_of_full() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=80), rng.normal(size=60)
    scales = {"full": (1.0, 3.0), "mft": (1.1, 2.1), "probe": (2.0, 2.0)}
    errors = {
        (recipe, seed): {("gap", "test/id"): low * inside, ("gap", "test/ood"): high * outside}
        for recipe, (low, high) in scales.items()
        for seed in (0, 1)
    }
    rows = _limit_distances(errors, list(scales))
    assert [(row["recipe"], row["metric"]) for row in rows] == [
        (recipe, metric) for recipe in scales for metric in ("mae", "rmse")
    ]
    mae_in, mae_out = np.abs(inside).mean(), np.abs(outside).mean()
    expected = (2.1 * mae_out - 1.1 * mae_in) / (3 * mae_out - mae_in)
    assert rows[2]["value"] == pytest.approx(expected)
    assert rows[2]["low"] < expected < rows[2]["high"] < 1
    assert rows[2]["n_seeds"] == 2
    # Without the reference, or where it is no worse outside, there is nothing to compare with.
    assert _limit_distances({k: v for k, v in errors.items() if k[0] != "full"}, ["mft"]) == []
    flat = {("full", 0): {("gap", "test/id"): outside, ("gap", "test/ood"): outside}}
    assert _limit_distances(flat, ["full"]) == []


def test_there_is_a_row_for_every_recipe_seed_subset_and_metric(comparison: Any) -> None:
    rows = comparison[2]["rows"]
    found = {(r["recipe"], r["seed"], r["subset"], r["metric"]) for r in rows}
    assert found == {
        (recipe, seed, subset, metric)
        for recipe in ("scratch", "mft-strong")
        for seed in (0, 1, "pooled")
        for subset in ("val", "test/id", "test/ood")
        for metric in ("mae", "rmse")
    }
    assert len(rows) == len(found)
    assert all(r["low"] <= r["value"] <= r["high"] for r in rows)
    assert {r["unit"] for r in rows} == {"eV"}


def test_numbers_are_those_of_the_predictions(comparison: Any) -> None:
    _, out, summary = comparison
    for seed in (0, 1):
        table = pq.read_table(out / "runs" / f"scratch-s{seed}" / "predictions.parquet")
        mine = [row for row in table.to_pylist() if row["subset"] == "test/ood"]
        error = np.mean([abs(row["pred"] - row["true"]) for row in mine])
        (row,) = (
            r
            for r in summary["rows"]
            if (r["recipe"], r["seed"], r["subset"], r["metric"])
            == ("scratch", seed, "test/ood", "mae")
        )
        assert row["value"] == pytest.approx(error, rel=1e-12)
        assert row["n"] == len(mine)


def test_gains_are_over_the_reference_on_the_common_seeds(comparison: Any) -> None:
    summary = comparison[2]
    assert {(g["recipe"], g["reference"]) for g in summary["gains"]} == {("mft-strong", "scratch")}
    pooled = {
        (r["recipe"], r["subset"], r["metric"]): r["value"]
        for r in summary["rows"]
        if r["seed"] == "pooled"
    }
    for gain in summary["gains"]:
        key = gain["subset"], gain["metric"]
        expected = 100 * (1 - pooled["mft-strong", *key] / pooled["scratch", *key])
        assert gain["gain_percent"] == pytest.approx(expected, rel=1e-9)
        assert gain["n_seeds"] == 2
        assert 0 < gain["p_value"] <= 1


def test_reference_lines_are_what_knows_nothing(comparison: Any, workspace: Any) -> None:
    summary = comparison[2]
    split = read_json(workspace.split)["indices"]
    gap = Store.open(workspace.store).label("gap")
    train, ood = gap[split["train"]], gap[split["test/ood"]]
    lines = {(r["name"], r["subset"], r["metric"]): r["value"] for r in summary["reference_lines"]}
    assert lines["mean predictor", "test/ood", "mae"] == pytest.approx(
        np.abs(ood - train.mean()).mean()
    )
    # Nearly all of these labels are inside the range of training, where clipping is right.
    assert ((ood >= train.min()) & (ood <= train.max())).mean() > 0.9
    assert {name for name, _, _ in lines} == {"mean predictor"}


@pytest.mark.parametrize(("n_outside", "asked"), [(2, True), (1, False), (0, False)])
def test_the_clip_oracle_is_a_line_where_a_tenth_is_outside(
    workspace: Any, n_outside: int, asked: bool
) -> None:
    store = Store.open(workspace.store)
    order = np.argsort(store.label("gap"))
    rows = np.r_[order[-n_outside:] if n_outside else [], order[3 : 15 - n_outside]].astype(int)
    train = np.setdiff1d(order[:-2], rows)
    split = Split("tail", "file", {}, {"train": train, "test/ood": rows})
    lines = _reference_lines(store, split, {"gap": "eV"})
    found = {r["name"]: r["value"] for r in lines if r["metric"] == "mae"}
    assert ("clip oracle" in found) == asked
    true, known = (store.label("gap")[part] for part in (rows, train))
    if asked:
        clipped = np.clip(true, known.min(), known.max())
        assert found["clip oracle"] == pytest.approx(np.abs(true - clipped).mean())
    assert found["mean predictor"] == pytest.approx(np.abs(true - known.mean()).mean())


def test_forgetting_has_a_row_for_each_run(comparison: Any) -> None:
    rows = comparison[2]["forgetting"]
    assert {(r["recipe"], r["seed"]) for r in rows} == {
        (recipe, seed) for recipe in ("scratch", "mft-strong") for seed in (0, 1)
    }
    for row in rows:
        assert (row["force_mae_before"] is None) == (row["recipe"] == "scratch")
        assert row["force_mae_after"] > 0


def test_report_and_run_configs_are_written(comparison: Any) -> None:
    _, out, _ = comparison
    assert (out / "report.html").stat().st_size > 10_000
    config = yaml.safe_load((out / "runs" / "mft-strong-s1" / "config.yaml").read_text())
    assert (config["seeds"], config["recipes"][0]["forcefield_weight"]) == ([1], 1.0)
    assert set(load_run(out / "runs" / "mft-strong-s1").heads) == {"gap"}


def test_a_comparison_with_a_run_missing_is_completed_with_the_same_numbers(
    comparison: Any,
) -> None:
    config, out, summary = comparison
    lost = Run(out / "runs" / "scratch-s1")
    lost.metrics.unlink()
    partial = summarise(out, config=config)
    assert partial["missing_runs"] == ["scratch-s1"]
    assert {g["n_seeds"] for g in partial["gains"]} == {1}
    untouched = (out / "runs" / "mft-strong-s0" / "metrics.json").stat().st_mtime_ns
    again = compare(config, out=out)
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in again["rows"]]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in summary["rows"]]
    assert again["gains"] == summary["gains"]
    assert (out / "runs" / "mft-strong-s0" / "metrics.json").stat().st_mtime_ns == untouched


def test_finished_runs_of_another_configuration_are_not_mixed_in(comparison: Any) -> None:
    config, out, _ = comparison
    other = config.model_copy(update={"training": {**config.training, "lr": 0.001}})
    before = (out / "config.yaml").read_bytes()
    with pytest.raises(TetherError, match="scratch-s0 holds a run with other settings"):
        compare(other, out=out)
    assert (out / "config.yaml").read_bytes() == before


def test_bad_input_is_refused_before_anything_is_written(workspace: Any, tmp_path: Path) -> None:
    config = load_config(workspace.write_config(tmp_path, targets=["empty"]))
    with pytest.raises(TetherError, match="target 'empty' has 0 labels"):
        compare(config, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_set_without_labels_of_a_target_has_no_row(tmp_path: Path) -> None:
    nan = float("nan")
    columns = {
        "id": ["x", "y", "x", "y"],
        "target": ["a", "a", "b", "b"],
        "true": [1.0, nan, nan, nan],
        "pred": [1.5, 2.0, 3.0, 4.0],
        "subset": ["val"] * 4,
    }
    pq.write_table(pa.table(columns), tmp_path / "predictions.parquet")
    levels = {"targets": [{"name": name, "level": "system"} for name in "ab"]}
    (tmp_path / "provenance.json").write_text(json.dumps(levels))
    found = errors_of(Run(tmp_path))
    assert {key: value.tolist() for key, value in found.items()} == {("a", "val"): [0.5]}


def test_atoms_of_one_structure_are_one_unit(tmp_path: Path) -> None:
    columns = {
        "id": ["x", "x", "y", "y", "y", "z"],
        "target": ["q"] * 6,
        "true": [0.0, 0.0, 0.0, float("nan"), 0.0, 0.0],
        "pred": [1.0, -1.0, 2.0, 9.0, 2.0, 3.0],
        "subset": ["val"] * 6,
    }
    pq.write_table(pa.table(columns), tmp_path / "predictions.parquet")
    levels = {"targets": [{"name": "q", "level": "atom"}]}
    (tmp_path / "provenance.json").write_text(json.dumps(levels))
    ((key, errors),) = errors_of(Run(tmp_path)).items()
    assert key == ("q", "val")
    assert [one.tolist() for one in errors] == [[1.0, -1.0], [2.0, 2.0], [3.0]]
    assert seed_pooled_interval([errors], "mae").value == pytest.approx(9 / 5)
    assert seed_pooled_interval([errors], "rmse").value == pytest.approx(np.sqrt(19 / 5))


def test_steps_of_each_budget(workspace: Any, tmp_path: Path) -> None:
    training = {"property_steps": 1000, "batch_size": 32, "forcefield_batch_size": 16}
    recipes = ["full", "mft", "mft-sampled", {"base": "mft-sampled", "name": "rare",
               "property_probability": 0.8}, "distillation", "noisy-nodes"]  # fmt: skip
    path = workspace.write_config(
        tmp_path, recipes=recipes, seeds=[3, 5], training=training, forcefield_cost=2.0
    )
    jobs = plan(load_config(path), tmp_path / "out")
    assert {job.settings.property_steps for job in jobs} == {1000}
    assert [job.out.name for job in jobs[:7]] == [
        "full-s3",
        "mft-s3",
        "mft-sampled-s3",
        "rare-s3",
        "distillation-s3",
        "noisy-nodes-s3",
        "full-s5",
    ]
    order = [job.out.name for job in start_order(jobs)]
    assert order[:4] == ["distillation-s3", "mft-s3", "mft-sampled-s3", "noisy-nodes-s3"]
    assert order[4:7] == ["rare-s3", "full-s3", "distillation-s5"]
    jobs = plan(load_config(path, ["budget=compute"]), tmp_path / "out")
    steps = {job.method: job.settings.property_steps for job in jobs}
    # A force-field batch costs 2.0 * 16 / 32 property batches; rare draws one in four steps.
    expected = {"full": 1000, "mft": 500, "mft-sampled": 500, "rare": 800}
    # With a head that is fitted first, the force field starts at 30 % of the steps.
    late = load_config(path, ["budget=compute", "recipes=[mft-residual, lp-ft]"])
    assert [job.settings.property_steps for job in plan(late, tmp_path / "out")[:2]] == [588, 1000]
    # Noise is a derivative like forces; distillation runs the backbone twice, and back once.
    assert steps == {**expected, "noisy-nodes": 500, "distillation": 417}

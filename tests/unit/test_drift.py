"""Collapse of finished runs: the files, zero drift of a probe, resume, and the comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from ase import Atoms

from tether.adapt import adapt
from tether.collapse.classes import PAPER_CLASSES
from tether.collapse.groups import FUNCTIONAL_GROUPS
from tether.config import load_config
from tether.data.chunks import Chunk
from tether.data.store import Store, write_store
from tether.drift.comparison import collapse_file, measure_collapse, plan_measures
from tether.drift.files import CollapseFolder
from tether.drift.opened import DriftSettings, OpenedRun
from tether.drift.run import STAGES, measure_run
from tether.errors import TetherError
from tether.report.collapse_points import read_points
from tether.run import Run
from tether.splits.split import Split, StoreReference
from tether.structures import from_ase
from tether.targets import Target

#: Small, so that a measurement takes seconds.
FAST: dict[str, Any] = {"per_class": 12, "embed_seeds": (0,)}
RUNS = [("probe", 0), ("full", 0), ("full", 1), ("scratch", 0)]


@pytest.fixture(scope="module")
def comparison(
    workspace: Any, molecules: list[Atoms], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Four runs of a tiny backbone, with enough test molecules for every measure."""
    folder = tmp_path_factory.mktemp("drift")
    rng = np.random.default_rng(0)
    frames = [atoms.copy() for _ in range(3) for atoms in molecules]
    for atoms in frames:
        atoms.positions += 0.03 * rng.normal(size=atoms.positions.shape)
    n = len(frames)
    gap = np.array([len(a) * 0.3 for a in frames]) + 0.1 * rng.normal(size=n)
    gap[::9] = np.nan
    batch = from_ase(frames, labels={"gap": gap}, ids=[f"m-{row}" for row in range(n)])
    store = folder / "store.arrow"
    fingerprint = write_store(store, [Chunk(batch, ("here",) * n)], [Target("gap", unit="eV")])
    order = rng.permutation(n)
    sets = {"train": order[:24], "val": order[24:34], "test/id": order[34:74]}
    reference = StoreReference(str(store), fingerprint, n)
    split = Split("s", "file", {}, {**sets, "test/ood": order[74:]}, store=reference)
    split.to_json(folder / "split.json")
    path = workspace.write_config(folder, store=str(store), split=str(folder / "split.json"))
    for recipe, seed in RUNS:
        config = load_config(path).single(recipe, seed)
        adapt(
            config.inputs(),
            config.points()[0],
            config.settings(),
            out=folder / "runs" / f"{recipe}-s{seed}",
            seed=seed,
            backbone=config.backbone_choice(),
            head=config.head_choice(),
        )
    return folder


@pytest.fixture(scope="module")
def content(comparison: Path) -> dict[str, Any]:
    return measure_collapse(comparison, **FAST)


def measures_of(comparison: Path, run: str, strict_json: Callable[[str], Any]) -> dict[str, Any]:
    path = CollapseFolder(comparison / "runs" / run).measures
    found: dict[str, Any] = strict_json(path.read_text())
    return found


def by_name(measures: list[dict[str, Any]], layer: int | None = None) -> dict[str, dict[str, Any]]:
    return {m["name"]: m for m in measures if m["layer"] == layer}


def test_a_probe_shows_zero_drift_exactly_and_full_does_not(
    comparison: Path, content: dict[str, Any], strict_json: Any
) -> None:
    still, moved = (measures_of(comparison, run, strict_json) for run in ("probe-s0", "full-s0"))
    for points in ("atoms", "edges"):
        for layer in {m["layer"] for m in still[points]}:
            zero, other = by_name(still[points], layer), by_name(moved[points], layer)
            for name, measure in zero.items():
                # Two t-SNE copies of one point lie apart: those measures have a null instead.
                if measure["family"] == "structure" and "tsne" not in name:
                    assert measure["value"] == measure["before"], (points, layer, name)
            for name in ("wasserstein1", "sliced_wasserstein1"):
                assert zero[name]["value"] == 0.0
                assert other[name]["value"] > 1e-3  # the control: this one has moved
            assert zero["cka"]["value"] == 1.0
            assert other["cka"]["value"] < 1.0 - 1e-6
    function = by_name(still["function"])
    assert function["ood_auroc"]["value"] == function["ood_auroc"]["before"]
    assert function["force_mae"]["value"] == pytest.approx(function["force_mae"]["before"])


def test_every_measure_says_what_it_is(
    comparison: Path, content: dict[str, Any], strict_json: Any
) -> None:
    found = measures_of(comparison, "full-s0", strict_json)
    assert found["format"] == 2
    assert found["subset"] == "test/id"
    assert found["left_out"]["n_classes"] > 0  # the rare ones
    assert 0.0 < found["left_out"]["share_of_atoms"] < 0.2
    assert {m["layer"] for m in found["atoms"]} == {0, None}  # two layers; None is the last
    assert {m["layer"] for m in found["edges"]} == {None}
    for measure in [*found["atoms"], *found["edges"], *found["function"]]:
        assert measure["label"]
        assert measure["source"]
        assert measure["collapse_means"] in {"lower", "higher"}
        assert (measure["value"] is None) == bool(measure["missing"]), measure
    assert {row["class"] for row in found["groups"]} <= set(FUNCTIONAL_GROUPS)
    settings = found["provenance"]["settings"]
    assert (settings["per_class"], settings["embed_seeds"]) == (12, [0])
    assert found["provenance"]["backbone"]["name"] == "tiny"


def test_the_report_reads_what_is_written(comparison: Path, content: dict[str, Any]) -> None:
    found = read_points(comparison / "runs" / "full-s0" / "collapse")
    assert found.problems == {}
    assert found.atoms is not None
    assert set(found.atoms.layers) == {0, 1}
    assert found.edges is not None
    assert set(found.edges.layers) == {0}
    assert found.atoms.groups
    assert "alkane" in found.atoms.groups
    assert found.edges.length is not None
    assert (found.edges.length > 0).all()
    assert set(found.structures.subset if found.structures else ()) == {"test/id", "test/ood"}


def test_atoms_are_the_same_sample_in_every_layer_and_run(
    comparison: Path, content: dict[str, Any]
) -> None:
    one, two = (
        pq.read_table(CollapseFolder(comparison / "runs" / run).atoms).to_pandas()
        for run in ("probe-s0", "full-s1")
    )
    points = ["atom", "structure", "atom_idx", "number", "class", "subset"]
    assert one[[*points, "layer"]].equals(two[[*points, "layer"]])
    first, last = (one[one["layer"] == layer].reset_index() for layer in (0, 1))
    assert first[points].equals(last[points])
    assert set(one["subset"]) == {"test/id", "test/ood"}
    assert set(one["class"]) <= set(PAPER_CLASSES)
    inside = first[first["subset"] == "test/id"]["class"].value_counts()
    assert inside.max() == 12  # balanced
    assert first[first["subset"] == "test/ood"]["class"].value_counts().max() == 6
    places = one[["x_before", "y_before", "x_after", "y_after"]]
    assert np.isfinite(places.to_numpy()).all()
    assert set(places.dtypes.astype(str)) == {"float32"}


def test_points_lie_in_the_structures_beside_them(
    comparison: Path, content: dict[str, Any]
) -> None:
    files = CollapseFolder(comparison / "runs" / "full-s0")
    structures = {row["structure"]: row for row in pq.read_table(files.structures).to_pylist()}
    store = Store.open(comparison / "store.arrow")
    rows = {name: row for row, name in enumerate(store.ids)}
    for atom in pq.read_table(files.atoms).to_pylist():
        inside = structures[atom["structure"]]
        assert inside["numbers"][atom["atom_idx"]] == atom["number"]
        assert inside["subset"] == atom["subset"]
        assert atom["class"].startswith({1: "H", 6: "C", 7: "N", 8: "O"}[atom["number"]])
    edges = pq.read_table(files.edges).to_pylist()
    assert edges
    for edge in edges:
        inside = structures[edge["structure"]]
        places = np.reshape(inside["positions"], (-1, 3))
        pair = [edge["atom_idx_i"], edge["atom_idx_j"]]
        apart = float(np.linalg.norm(places[pair[0]] - places[pair[1]]))
        assert apart == pytest.approx(edge["distance"], abs=1e-4)
        elements = sorted(inside["numbers"][k] for k in pair)
        assert elements in ([1, 6], [6, 8])
        assert edge["class"].startswith("C–H" if elements == [1, 6] else "C–O")
    for name, row in structures.items():
        expected = store.batch([rows[name]])
        np.testing.assert_allclose(row["positions"], expected.positions.flatten(), atol=1e-5)


def test_predictions_are_those_of_the_run(comparison: Path, content: dict[str, Any]) -> None:
    run = Run(comparison / "runs" / "full-s0")
    expected = {row["id"]: row for row in pq.read_table(run.predictions).to_pylist()}
    rows = pq.read_table(CollapseFolder(run.folder).structures).to_pylist()
    assert len(rows) == 40 + 34
    for row in rows:
        one = expected[row["structure"]]
        assert one["subset"] == row["subset"]
        np.testing.assert_equal((row["true_gap"], row["pred_gap"]), (one["true"], one["pred"]))
        assert row["distance_to_train"] > 0.0


def test_the_comparison_has_every_run_a_pool_and_a_verdict(
    comparison: Path, content: dict[str, Any], strict_json: Any
) -> None:
    assert strict_json(collapse_file(comparison).read_text()) == content
    assert {(run["recipe"], run["seed"]) for run in content["runs"]} == set(RUNS)
    for run in content["runs"]:
        path = comparison / "runs" / run["folder"] / "metrics.json"
        rows = json.loads(path.read_text())["rows"]
        told = {r["subset"]: r["value"] for r in rows if r["metric"] == "rmse"}
        assert run["ood_rmse"] == pytest.approx(told["test/ood"])
        assert run["id_rmse"] == pytest.approx(told["test/id"])
    pooled = {(r["recipe"], r["points"], r["name"], r["layer"]): r for r in content["pooled"]}
    row = pooled["full", "atoms", "effective_rank", None]
    values = [
        by_name([m for m in run["measures"] if m["points"] == "atoms"])["effective_rank"]["value"]
        for run in content["runs"]
        if run["recipe"] == "full"
    ]
    assert row["seed_values"] == values
    assert row["value"] == pytest.approx(np.mean(values))
    assert (row["n_seeds"], len(set(values))) == (2, 2)
    assert row["low"] <= min(values) <= max(values) <= row["high"]
    predicts = {(r["points"], r["measure"], r["layer"]): r for r in content["predicts"]}
    assert ("function", "id_rmse", None) in predicts
    found = predicts["atoms", "effective_rank", None]
    assert found["n"] == 4
    assert -1.0 <= found["rho"] <= 1.0
    assert content["target"] == "gap"


def test_what_is_there_is_not_made_again(comparison: Path, content: dict[str, Any]) -> None:
    seen: list[str] = []
    again = measure_collapse(comparison, **FAST, report=lambda folder, _: seen.append(folder.name))
    assert (again, seen) == (content, [])
    settings = DriftSettings(per_class=12, embed_seeds=(0,))
    assert all(job.is_done for job in plan_measures(comparison, settings))
    other = DriftSettings(per_class=13, embed_seeds=(0,))
    assert not any(job.is_done for job in plan_measures(comparison, other))


def test_a_missing_package_is_said_at_once(
    comparison: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tether.drift.run.find_spec", lambda name: None if name == "ot" else name)
    with pytest.raises(TetherError, match=r"POT is not installed; .*pip install 'tether\[collapse"):
        measure_run(comparison / "runs" / "probe-s0", per_class=11)


def test_runs_come_in_the_order_of_the_config(comparison: Path) -> None:
    settings = DriftSettings(per_class=12, embed_seeds=(0,))
    config = comparison / "config.yaml"
    before = config.read_text()
    try:
        for order in (["scratch", "full", "probe"], ["probe", "scratch", "full"]):
            changed = {**yaml.safe_load(before), "recipes": order}
            config.write_text(yaml.safe_dump(changed))
            found = [job.folder.name for job in plan_measures(comparison, settings)]
            assert list(dict.fromkeys(name.split("-")[0] for name in found)) == order
            assert found.index("full-s0") < found.index("full-s1")
    finally:
        config.write_text(before)


def copy_of(comparison: Path, run: str, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(comparison / "runs" / run, tmp_path / run))


def test_a_killed_measurement_is_made_again_and_gives_the_same(
    comparison: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    run = copy_of(comparison, "full-s0", tmp_path)
    files = CollapseFolder(run)
    before = json.loads(files.measures.read_text())
    atoms = pq.read_table(files.atoms)
    files.measures.unlink()
    stages: list[str] = []
    assert measure_run(run, **FAST, report=stages.append) == files.measures
    assert stages == list(STAGES)
    assert json.loads(files.measures.read_text()) == before
    assert pq.read_table(files.atoms).equals(atoms)
    names = {"measures.json", "atoms.parquet", "edges.parquet", "structures.parquet"}
    assert {path.name for path in (run / "collapse").iterdir()} == names


def test_a_killed_measurement_of_other_settings_leaves_no_complete_folder(
    comparison: Path, content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(comparison, "probe-s0", tmp_path)
    settings = DriftSettings(per_class=12, embed_seeds=(0,))
    assert plan_measures(run, settings)[0].is_done

    def kill(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tether.drift.run.write_json", kill)
    with pytest.raises(KeyboardInterrupt):
        measure_run(run, per_class=10, embed_seeds=(0,))
    assert not plan_measures(run, settings)[0].is_done  # the tables are of the other settings


def test_measures_of_another_method_are_made_again(
    comparison: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DriftSettings(per_class=12, embed_seeds=(0,))
    monkeypatch.setattr("tether.drift.run.METHOD", 1)
    assert not any(job.is_done for job in plan_measures(comparison, settings))


def test_other_weights_are_measured_anew(
    comparison: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    import shutil

    run = copy_of(comparison, "full-s0", tmp_path)
    settings = DriftSettings(per_class=12, embed_seeds=(0,))
    assert plan_measures(run, settings)[0].is_done
    shutil.copy(comparison / "runs" / "full-s1" / "weights.safetensors", run)
    assert not plan_measures(run, settings)[0].is_done


def test_a_single_run_needs_no_comparison(
    comparison: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    run = copy_of(comparison, "probe-s0", tmp_path)
    found = measure_collapse(run, **FAST)
    assert [one["recipe"] for one in found["runs"]] == ["probe"]
    assert not (run / "collapse.json").exists()
    assert collapse_file(run) == CollapseFolder(run).measures
    for row in found["predicts"]:  # one run has no rank
        assert row["rho"] is None
        assert row["missing"]


def test_a_run_without_force_field_data_says_so(
    comparison: Path, content: dict[str, Any], tmp_path: Path
) -> None:
    from tether.drift.function import forgetting_measures

    run = copy_of(comparison, "full-s0", tmp_path)
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "forgetting": None}))
    for measure in forgetting_measures(OpenedRun.open(run)):
        assert measure.value is None
        assert "forcefield_test" in measure.missing


def test_bad_input(comparison: Path, tmp_path: Path) -> None:
    with pytest.raises(TetherError, match="there is no folder .*nowhere; expected the folder of"):
        measure_collapse(tmp_path / "nowhere")
    with pytest.raises(TetherError, match="is no finished run; expected a folder with config.yaml"):
        measure_collapse(tmp_path)
    (tmp_path / "runs" / "full-s0").mkdir(parents=True)
    with pytest.raises(TetherError, match="no run of .* is complete; expected at least one"):
        measure_collapse(tmp_path)
    run = comparison / "runs" / "probe-s0"
    with pytest.raises(TetherError, match="has no set 'test/x'; expected one of .*test/ood"):
        measure_run(run, subset="test/x")
    with pytest.raises(TetherError, match="'train' is the training set.*; expected one of val, "):
        measure_run(run, subset="train")
    with pytest.raises(TetherError, match="`per_class` is 0; expected a positive integer"):
        measure_run(run, per_class=0)
    with pytest.raises(TetherError, match=r"`embed_seeds` is \[\]; expected one seed or more"):
        measure_run(run, embed_seeds=())
    with pytest.raises(TetherError, match=r"seeds \[0, -1\]; expected 0 or more"):
        measure_run(run, embed_seeds=(-1,))


def test_a_store_that_has_changed_is_refused(comparison: Path, tmp_path: Path) -> None:
    run = copy_of(comparison, "probe-s0", tmp_path)
    config = (run / "config.yaml").read_text()
    store = next(line for line in config.splitlines() if line.startswith("store:"))
    (run / "config.yaml").write_text(config.replace(store, "store: /nowhere/at/all.arrow"))
    with pytest.raises(TetherError, match="/nowhere/at/all.arrow"):
        measure_run(run)

"""The whole way through the command line, and what every verb prints."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pyarrow.parquet as pq
import pytest
from ase import Atoms
from rich.console import Console

import tether.cli.doctor
from tether.cli.main import VERBS, main
from tether.cli.progress import step_progress
from tether.data.store import Store

Call = Callable[..., str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> str:
        capsys.readouterr()
        code: object = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run


@pytest.fixture(scope="module")
def files(molecules: list[Atoms], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled extended XYZ file, as a user has one."""
    folder = tmp_path_factory.mktemp("pipeline")
    rng = np.random.default_rng(0)
    frames = []
    for i in range(3):
        for atoms in molecules:
            moved = atoms.copy()
            moved.positions += 0.02 * i * rng.normal(size=moved.positions.shape)
            moved.info["gap"] = float(len(atoms) + rng.normal())
            frames.append(moved)
    ase.io.write(folder / "in.xyz", frames, format="extxyz")
    return folder


COMMON = [
    "backbone.name=tiny", "backbone.options.n_features=16", "head.n_hidden=16",
    "training.property_steps=12", "training.batch_size=8", "training.validate_every=4",
    "training.forcefield_batch_size=4", "targets=[gap]",
]  # fmt: skip


def test_from_a_file_to_a_report(
    files: Path, call: Call, strict_json: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    store, split, aux = (files / n for n in ("s.arrow", "split.json", "aux.arrow"))
    prepared = strict_json(
        call("prepare", files / "in.xyz", "--out", store, "--target", "gap:eV", "--json")
    )
    assert Store.open(store).targets["gap"].unit == "eV"
    assert prepared
    made = strict_json(
        call("split", store, "--out", split, "--ood", 10, "--val-size", 10, "--json")
    )
    assert set(made["sizes"]) == {"train", "val", "test/id", "test/ood"}
    labelled = strict_json(
        call(
            "label", store, "--out", aux, "--backbone", "tiny", "--split", split, "--set", "train",
            "--n-per-structure", 1, "--limit", 20, "--workers", 0, "--json",
        )
    )  # fmt: skip
    assert labelled["n"] == 20
    held_out = files / "held_out.arrow"
    call("label", store, "--out", held_out, "--backbone", "tiny", "--split", split, "--set", "val")
    data = [f"store={store}", f"split={split}", f"auxiliary={aux}", f"forcefield_test={held_out}"]

    run = files / "run"
    metrics = strict_json(call("adapt", *COMMON, *data, "--recipe", "mft", "--out", run, "--json"))
    assert metrics == json.loads((run / "metrics.json").read_text())
    assert metrics["property_steps"] == metrics["forcefield_steps"] == 12
    again = call("adapt", *COMMON, *data, "--recipe", "mft", "--out", run)
    assert str(run / "weights.safetensors") in again
    names = {p.name for p in run.iterdir()}
    assert names == {
        "config.yaml", "provenance.json", "split.json", "weights.safetensors", "state", "log.jsonl",
        "predictions.parquet", "metrics.json",
    }  # fmt: skip

    out = files / "out.parquet"
    predicted = strict_json(call("predict", run, files / "in.xyz", "--out", out, "--json"))
    assert len(predicted["ids"]) == 108
    assert pq.read_table(out)["gap"].to_pylist() == predicted["values"]["gap"]

    folder = files / "comparison"
    more = ["recipes=[probe, mft]", "seeds=[0, 1]", "workers=1"]
    summary = strict_json(call("compare", *COMMON, *data, *more, "--out", folder, "--json"))
    assert summary == json.loads((folder / "summary.json").read_text())
    assert (folder / "report.html").exists()
    shown = call("compare", *COMMON, *data, *more, "--out", folder)  # all done: only prints
    assert "probe" in shown
    assert "mft" in shown
    assert strict_json(call("report", folder, "--json"))["bytes"] > 0
    assert strict_json(call("report", run, "--json"))["report"].endswith("report.html")


def test_dry_runs_write_nothing_and_say_json(
    files: Path, workspace: Any, call: Call, strict_json: Any, tmp_path: Path
) -> None:
    config = workspace.write_config(tmp_path)
    out = tmp_path / "out"
    source = files / "in.xyz"
    verbs: list[list[object]] = [
        ["prepare", source, "--out", out.with_suffix(".arrow")],
        ["split", workspace.store, "--target", "gap", "--ood", 8, "--val-size", 5,
         "--out", out.with_suffix(".json")],
        ["label", workspace.store, "--backbone", "tiny", "--out", out.with_suffix(".arrow")],
        ["adapt", "--config", config, "--out", out],
        ["compare", "--config", config, "--out", out],
    ]  # fmt: skip
    for arguments in verbs:
        assert call(*arguments, "--dry-run")
        assert strict_json(call(*arguments, "--dry-run", "--json"))
        assert list(tmp_path.iterdir()) == [config], arguments


def test_predict_dry_run(workspace: Any, call: Call, strict_json: Any, tmp_path: Path) -> None:
    config, run = workspace.write_config(tmp_path), tmp_path / "run"
    call("adapt", "--config", config, "--recipe", "probe", "--out", run, "--json")
    arguments = ("predict", run, workspace.store, "--out", tmp_path / "out.csv", "--dry-run")
    assert "predicts gap (eV)" in call(*arguments)
    assert strict_json(call(*arguments, "--json")) == {"units": {"gap": "eV"}}
    assert not (tmp_path / "out.csv").exists()


def test_names_of_folders_are_printed_as_they_are(
    workspace: Any, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = workspace.write_config(tmp_path), tmp_path / "a[red]b :x: c"
    monkeypatch.setenv("COLUMNS", "60")
    shown = call("adapt", "--config", config, "--recipe", "probe", "--out", run).splitlines()
    assert shown[0].startswith("a[red]b :x: c: ")
    assert "a[red]b :x: c: 12/12 property steps, done" in shown  # no terminal: plain lines
    assert any(line.startswith(f"  {run}/metrics.json  ") for line in shown)
    out = tmp_path / "a[red]b.arrow"
    options = ("--backbone", "tiny", "--n-per-structure", 1, "--max-force", 2, "--workers", 0)
    shown = call("label", workspace.store, "--out", out, *options).splitlines()
    assert shown[-1].endswith(f"more in {out}.failures.json")


def test_bars_are_named_as_the_folders_are(workspace: Any) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with step_progress("a[red]b", 10, console=console) as advance:
        advance(10)
    assert "a[red]b" in console.file.getvalue()  # type: ignore[attr-defined]


def test_adapt_takes_a_recipe_of_the_config_by_its_own_name(
    workspace: Any, call: Call, strict_json: Any, tmp_path: Path
) -> None:
    recipe = {"base": "mft", "name": "strong", "forcefield_weight": 2.0}
    config = workspace.write_config(tmp_path, recipes=["full", recipe])
    run = tmp_path / "run"
    call("adapt", "--config", config, "--recipe", "strong", "--seed", 3, "--out", run, "--json")
    identity = json.loads((run / "state" / "identity.json").read_text())
    assert (identity["recipe"]["forcefield_weight"], identity["seed"]) == (2.0, 3)
    found = strict_json(call("predict", run, workspace.store, "--out", run / "p.csv", "--json"))
    assert len(found["ids"]) == 36


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help(verb: str, call: Call) -> None:
    text = call(verb, "--help")
    assert f"tether {verb}" in text
    assert ("--json" in text) == (verb != "none")


def test_help_names_every_verb_and_comes_without_torch() -> None:
    code = (
        "import sys; from tether.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f" {verb} " in done.stdout for verb in VERBS)
    assert done.stdout.splitlines()[-1] == "False"


def test_version(call: Call) -> None:
    assert call("--version").startswith("tether ")


def test_list_says_what_there_is(
    call: Call, strict_json: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = strict_json(call("list", "--json"))
    assert {row["name"] for row in found["backbones"]} == {
        "tether-s",
        "so3lr",
        "so3krates",
        "chgnet",
        "tensornet",
        "sevennet",
        "tiny",
    }
    assert "mft" in {row["name"] for row in found["recipes"]}
    monkeypatch.setenv("COLUMNS", "200")
    assert "pip install 'tether[so3lr]'" in call("list")  # brackets are text, not markup


def test_list_of_a_store(
    workspace: Any, call: Call, strict_json: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = strict_json(call("list", workspace.store, "--json"))
    labels = {row["label"]: row for row in found["labels"]}
    assert labels["gap"]["unit"] == "eV"
    assert (labels["sparse"]["labelled"], labels["empty"]["labelled"]) == ("18", "0")
    assert found[str(workspace.store)][0]["structures"] == "36"
    monkeypatch.setenv("COLUMNS", "200")
    assert "gap" in call("list", workspace.store)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def unwritable(_: str) -> None:
    raise FileNotFoundError("no such place")


def test_doctor(call: Call, strict_json: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = strict_json(call("doctor", "--json"))
    assert {row["state"] for row in found} <= {"ok", "missing"}
    assert "tether" in call("doctor")
    monkeypatch.setattr("tether.backbones.load.load_backbone", unwritable)
    state, _, detail = tether.cli.doctor._weights("so3lr", "SO3LR", "json")
    assert (state, detail) == ("broken", "no such place")
    broken = ("broken", "SO3LR weights", "[so3lr] gone")
    monkeypatch.setattr(tether.cli.doctor, "_weights", lambda *_: broken)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 1

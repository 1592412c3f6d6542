"""`tether collapse` and `--watch-collapse` through the command line."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tether.cli.collapse_tables import print_collapse
from tether.cli.main import main
from tether.training.log import read_log

Call = Callable[..., str]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        found: object = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            found = stop.code or 0
        out, err = capsys.readouterr()
        assert found == code, err
        return err if code else out

    return run


@pytest.fixture(scope="module")
def trained(workspace: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipes on so few molecules that some measures cannot be computed."""
    folder = tmp_path_factory.mktemp("collapse")
    config = workspace.write_config(folder)
    for recipe in ("probe", "full"):
        out = folder / "comparison" / "runs" / f"{recipe}-s0"
        main(["adapt", "--config", str(config), "--recipe", recipe, "--out", str(out), "--json"])
    return folder / "comparison"


@pytest.fixture
def comparison(trained: Path, tmp_path: Path) -> Path:
    """A copy, not yet measured."""
    return Path(shutil.copytree(trained, tmp_path / "comparison"))


def test_a_comparison_is_measured_shown_and_not_measured_twice(
    comparison: Path, call: Call, strict_json: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    options = ("--per-class", 12, "--seeds", 1)
    waiting = call("collapse", comparison, *options, "--dry-run")
    assert waiting.count("to be measured") == 2
    assert not (comparison / "collapse.json").exists()
    assert not list(comparison.glob("runs/*/collapse"))

    shown = call("collapse", comparison, *options)
    assert "full-s0: files done" in shown  # no terminal: a line a stage
    for words in (
        "atoms of test/id, last layer",
        "Null",
        "Before",
        "probe",
        "full",
        "Effective rank",
    ):
        assert words in shown, words
    assert str(comparison / "collapse.json") in "".join(shown.split("\n"))

    done = strict_json(call("collapse", comparison, *options, "--dry-run", "--json"))
    assert list(done["runs"].values()) == [True, True]
    content = strict_json(call("collapse", comparison, *options, "--json"))
    assert content == strict_json((comparison / "collapse.json").read_text())
    assert content["runs"][0]["left_out"] == {"n_classes": 0, "share_of_atoms": 0.0}
    assert "not sampled" not in shown
    content["runs"][0]["left_out"] = {"n_classes": 7, "share_of_atoms": 0.254}
    console = Console(file=io.StringIO(), width=160)
    print_collapse(content, console)
    assert "not sampled: 7 rarer classes, 25 % of the atoms" in console.file.getvalue()
    values = {
        (row["recipe"], row["name"]): row["value"]
        for row in content["pooled"]
        if row["points"] == "atoms" and row["layer"] is None
    }
    assert values["probe", "sliced_wasserstein1"] == 0.0
    assert values["full", "sliced_wasserstein1"] > 0.0
    for row in content["predicts"]:  # two runs have no rank
        assert row["rho"] is None
        assert "not computable" in row["missing"]


def test_a_run_by_itself(comparison: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")  # narrow
    run = comparison / "runs" / "full-s0"
    shown = call("collapse", run, "--per-class", 5, "--seeds", 1)
    assert "measures.json" in shown
    assert (run / "collapse" / "measures.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}/nowhere"], "error: there is no folder"),
        (["{folder}"], "is no finished run; expected a folder with config.yaml"),
        (["{folder}/empty"], "no run of"),
        (["{run}", "--subset", "test/x"], "has no set 'test/x'"),
        (["{run}", "--per-class", "0"], "`per_class` is 0"),
        (["{run}", "--seeds", "0"], "'--seeds'"),
        (["{run}", "--seed", "-1"], "'--seed'"),
        (["{run}", "--per-class", "many"], "many"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, comparison: Path, call: Call, tmp_path: Path
) -> None:
    (tmp_path / "empty" / "runs").mkdir(parents=True)
    run = comparison / "runs" / "full-s0"
    places = {"folder": tmp_path, "run": run}
    error = call("collapse", *(a.format(**places) for a in arguments), code=2)
    assert message in error
    assert error.count("\n") == 1
    assert not (run / "collapse").exists()


def test_watch_collapse_by_flag_and_by_config(workspace: Any, call: Call, tmp_path: Path) -> None:
    config = workspace.write_config(tmp_path)
    for name, more in (
        ("flag", ["--watch-collapse"]),
        ("key", ["watch_collapse=true"]),
        ("no", []),
    ):
        out = tmp_path / name
        call("adapt", *more, "--config", config, "--recipe", "full", "--out", out, "--json")
        events = [e for e in read_log(out / "log.jsonl") if e["event"] == "validate"]
        assert ["collapse" in e for e in events] == [name != "no"] * 3
        assert ("watch_collapse: true" in (out / "config.yaml").read_text()) == (name != "no")

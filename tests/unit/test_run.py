"""A run folder belongs to one run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tether.errors import TetherError
from tether.run import Run, environment

IDENTITY = {"recipe": {"name": "mft", "betas": (0.9, 0.99)}, "seed": 0, "data": {"store": "ab"}}


def test_the_same_identity_resumes_although_json_has_no_tuples(tmp_path: Path) -> None:
    Run(tmp_path / "run").claim(IDENTITY)
    Run(tmp_path / "run").claim(IDENTITY)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        (
            {"recipe": {"name": "full"}, "seed": 2},
            r"recipe \(name 'mft' → 'full', betas .*\), seed",
        ),
        ({"extra": 1}, "extra"),
        ({"data": {"store": "ab", "split": 2}}, r"data \(split None → 2\)"),
    ],
)
def test_another_identity_is_refused_and_named(
    change: dict[str, object], named: str, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    run.claim(IDENTITY)
    before = (run.folder / "state" / "identity.json").read_bytes()
    with pytest.raises(TetherError, match=f"holds a run with other {named}; expected an empty"):
        run.claim({**IDENTITY, **change})
    assert (run.folder / "state" / "identity.json").read_bytes() == before


def test_check_writes_nothing(tmp_path: Path) -> None:
    Run(tmp_path / "run").check(IDENTITY)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["metrics.json", "weights.safetensors", "state/checkpoint.safetensors"]
)
def test_results_of_an_unknown_run_are_not_taken_over(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    with pytest.raises(TetherError, match=r"holds a run without state/identity.json"):
        Run(tmp_path).claim(IDENTITY)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(TetherError, match="run is a file; expected a folder"):
        Run(tmp_path / "run").claim(IDENTITY)


def test_complete_means_metrics(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not run.is_complete
    run.metrics.write_text("{}")
    assert run.is_complete


def test_environment_names_what_may_matter() -> None:
    found = environment()
    assert {"python", "platform", "torch", "tether", "vesin"} <= found.keys()
    assert found["torch"]
    assert found["cpu"] == torch.backends.cpu.get_cpu_capability()

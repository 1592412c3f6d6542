"""Two gloo ranks give the curve of one process; a killed rank ends the job, and it resumes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tether.cli.main import main
from tether.errors import TetherError
from tether.run import Run
from tether.serialization import load_tensors
from tether.training.log import read_log
from tether.training.ranks import Ranks, join_ranks
from tether.training.settings import TrainingSettings
from tether.workers import n_ranks, rank

SCRIPT = Path(__file__).parent / "two_ranks.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("two_ranks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ONE = _load()


@pytest.fixture(scope="module")
def curves(workspace: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("ranks") / "curves.json"
    done = subprocess.run(
        [*TORCHRUN, str(SCRIPT), str(workspace.folder), str(out)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    curves: dict[str, Any] = json.loads(out.read_text())
    return curves


def largest_distance(first: Any, second: Any) -> float:
    """Between the losses of all steps, relative."""
    pairs = [
        (step[name], other[name])
        for step, other in zip(first, second, strict=True)
        for name in step
    ]
    return max(abs(a - b) / max(abs(a), 1e-6) for a, b in pairs)


@pytest.mark.parametrize("case", ONE.CASES)
def test_two_ranks_give_the_curve_of_one_process(
    curves: dict[str, Any], workspace: Any, case: str
) -> None:
    if "surgery" in case:
        pytest.importorskip("torchjd")
    losses, learnt = ONE.curve(case, workspace.folder, Ranks())
    ours, our_learnt = curves[case]
    assert largest_distance(losses, ours) < 1e-8
    assert our_learnt == pytest.approx(learnt, rel=1e-8)
    assert losses[0] != losses[-1]


def test_two_ranks_give_the_curve_of_one_process_in_single_precision(
    curves: dict[str, Any], workspace: Any
) -> None:
    losses, _ = ONE.curve("mft", workspace.folder, Ranks(), double=False)
    assert largest_distance(losses, curves["mft, single precision"][0]) < 1e-4


def test_a_mean_of_means_would_be_seen(workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    losses, _ = ONE.curve("two passes", workspace.folder, Ranks())
    monkeypatch.setattr("tether.tasks.forcefield.mean", lambda values, _: values.mean() / 2)
    naive, _ = ONE.curve("two passes", workspace.folder, Ranks())
    assert largest_distance(losses, naive) > 1e-3


def wait_for(condition: Any, seconds: float = 120.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_job_ends_with_a_killed_rank_and_one_process_goes_on(
    workspace: Any, tmp_path: Path
) -> None:
    config, cut, whole = workspace.write_config(tmp_path), Run(tmp_path / "c"), Run(tmp_path / "w")
    arguments = ["adapt", "--config", str(config), "--recipe", "mft", "training.property_steps=300"]
    with subprocess.Popen(
        [*TORCHRUN, "-m", "tether.cli", *arguments, "--out", str(cut.folder)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as job:  # fmt: skip
        assert wait_for(cut.checkpoint.exists)
        listed = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text()
        ranks = [int(pid) for pid in listed.split()]
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        assert job.wait(60) != 0
        assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in ranks))
    assert not cut.is_complete
    # The number of ranks may change between sittings.
    main([*arguments, "--out", str(cut.folder)])
    main([*arguments, "--out", str(whole.folder)])
    ours, theirs = load_tensors(cut.weights), load_tensors(whole.weights)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-2, atol=1e-3)
    events = [(e["event"], e["step"]) for e in read_log(cut.log)]
    assert events == [(e["event"], e["step"]) for e in read_log(whole.log)]


def test_ranks_of_slurm_are_those_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}

    class Fabric:
        world_size, global_rank, device = 6, 4, torch.device("cpu")

        def __init__(self, **given: Any) -> None:
            made.update(given)

        def launch(self) -> None:
            made["launched"] = True

    monkeypatch.setattr("lightning_fabric.Fabric", Fabric)
    monkeypatch.setattr("tether.training.ranks.end_with_parent", lambda: None)
    for name, value in (("NTASKS", 6), ("STEP_NUM_TASKS", 6), ("PROCID", 4)):
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    with pytest.raises(TetherError, match="fix: give sbatch --ntasks-per-node instead of --ntasks"):
        join_ranks()
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    ranks = join_ranks()
    assert (ranks.n, ranks.rank, ranks.is_first) == (6, 4, False)
    assert (made["devices"], made["num_nodes"], made["launched"]) == (2, 3, True)
    (environment,) = made["plugins"]
    assert (type(environment).__name__, environment.world_size()) == ("SLURMEnvironment", 6)


def test_a_batch_script_of_slurm_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert (n_ranks(), rank(), join_ranks().n) == (1, 0, 1)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert (n_ranks(), rank()) == (8, 3)


@pytest.mark.parametrize("verb", ["compare", "bench", "prepare"])
def test_a_command_that_does_not_share_its_work_is_refused(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit) as stop:
        main([verb])
    assert stop.value.code == 2
    assert f"`tether {verb}` as 2 processes of torchrun or srun" in capsys.readouterr().err


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("tether.packages.find_spec", lambda _: None)
    with pytest.raises(TetherError, match=r"lightning-fabric.*pip install 'tether\[distributed\]'"):
        join_ranks()


def test_ranks_with_other_checkpoints_are_refused() -> None:
    fabric = SimpleNamespace(
        world_size=2, global_rank=1, device=torch.device("cpu"), broadcast=lambda _: 40
    )
    Ranks(fabric).check_step(40)
    with pytest.raises(TetherError, match="rank 1 starts at step 0, the first at step 40"):
        Ranks(fabric).check_step(0)


def test_passes_and_precision_are_of_the_identity_where_they_are_set() -> None:
    plain = TrainingSettings().identity()
    assert "accumulate" not in plain
    assert "precision" not in plain
    changed = replace(TrainingSettings(), accumulate=2, precision="bf16-mixed").identity()
    assert changed == {**plain, "accumulate": 2, "precision": "bf16-mixed"}
    with pytest.raises(TetherError, match="`training.accumulate` is 0"):
        TrainingSettings(accumulate=0)
    with pytest.raises(TetherError, match="`training.compile` with training.precision=bf16-mixed"):
        TrainingSettings(compile=True, precision="bf16-mixed")

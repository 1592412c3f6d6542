"""The training loop: best checkpoint, early stop, averaging, refusal, and resume after kill -9."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tether.balance.weighted_sum import WeightedSum
from tether.data.loader import GraphStream
from tether.data.store import Store
from tether.errors import TetherError
from tether.graph import Graph
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.movement.full import Full
from tether.run import Run
from tether.serialization import load_tensors, read_json
from tether.tasks.property import PropertyTask
from tether.testing.tiny import TinyBackbone
from tether.training.checkpoint import Progress
from tether.training.engine import Trainer, Validation, train
from tether.training.log import append_log, cut_log, read_log
from tether.training.settings import TrainingSettings


@dataclass
class Bench:
    """A model with its task, and a validation that returns what it is told."""

    model: AdaptedModel
    task: PropertyTask
    folder: Path

    def train(
        self, values: list[float], settings: TrainingSettings, *, averaging: bool = False, **kw: Any
    ) -> tuple[Progress, list[dict[str, torch.Tensor]]]:
        seen: list[dict[str, torch.Tensor]] = []

        def validate(model: AdaptedModel) -> Validation:
            seen.append({k: v.detach().clone() for k, v in model.tensors().items()})
            return Validation(values[len(seen) - 1], {"val_mae": {}})

        progress = train(
            self.model,
            [self.task],
            groups=Full().apply(self.model),
            balance=WeightedSum({}),
            settings=settings,
            averaging=averaging,
            validate=validate,
            run=Run(self.folder),
            **kw,
        )
        return progress, seen


@pytest.fixture
def bench(workspace: Any, tmp_path: Path) -> Bench:
    store = Store.open(workspace.store)
    backbone = TinyBackbone(n_features=16)
    head = PropertyHead(store.targets["gap"], 16, n_hidden=8)
    graph = backbone.prepare(store.batch(np.arange(20)))
    head.fit_scale(graph.batch)
    task = PropertyTask(GraphStream(graph, batch_size=8))
    return Bench(AdaptedModel(backbone, [head]), task, tmp_path / "run")


SETTINGS = TrainingSettings(property_steps=10, batch_size=8, validate_every=2, lr=1e-3)


def test_the_best_validation_is_kept_not_the_last(bench: Bench) -> None:
    progress, seen = bench.train([5.0, 2.0, 3.0, 2.0, 4.0], SETTINGS)
    assert (progress.best_value, progress.best_step, progress.stale) == (2.0, 4, 3)
    kept = load_tensors(Run(bench.folder).weights)
    assert all(torch.equal(kept[name], value) for name, value in seen[1].items())
    assert any(not torch.equal(kept[name], value) for name, value in seen[4].items())


def test_training_stops_after_patience_validations_without_a_new_best(bench: Bench) -> None:
    progress, seen = bench.train([5.0, 2.0, 3.0, 2.5, 1.0], replace(SETTINGS, patience=2))
    assert (progress.task_steps["property"], len(seen)) == (8, 4)
    again, none = bench.train([], replace(SETTINGS, patience=2))  # a stopped run stays stopped
    assert (again.task_steps["property"], none) == (8, [])


def test_the_last_step_is_validated_even_off_the_beat(bench: Bench) -> None:
    _, seen = bench.train([1.0] * 4, replace(SETTINGS, property_steps=10, validate_every=3))
    assert [e["step"] for e in read_log(Run(bench.folder).log)] == [3, 6, 9, 10]
    assert len(seen) == 4


def test_averaged_weights_follow_the_formula_and_are_what_is_judged(bench: Bench) -> None:
    settings = replace(SETTINGS, property_steps=4, validate_every=1, ema_decay=0.3)
    name = "heads.gap.readout.0.weight"
    weight = dict(bench.model.named_parameters())[name]
    expected, trail = weight.detach().clone(), []

    def report(progress: Progress) -> None:
        nonlocal expected
        decay = min(0.3, (1 + progress.step) / (10 + progress.step))
        expected = decay * expected + (1 - decay) * weight.detach()
        trail.append((expected.clone(), weight.detach().clone()))

    _, seen = bench.train([1.0] * 4, settings, averaging=True, report=report)
    for judged, (average, last) in zip(seen, trail, strict=True):
        torch.testing.assert_close(judged[name], average)
        assert not torch.equal(judged[name], last)
    assert torch.equal(weight.detach(), trail[-1][1])  # training goes on from the plain weights


def test_without_averaging_the_weights_themselves_are_judged(bench: Bench) -> None:
    _, seen = bench.train([1.0] * 5, SETTINGS)
    last = bench.model.tensors()
    assert all(torch.equal(seen[-1][name], value) for name, value in last.items())


@dataclass(frozen=True)
class Poisoned:
    """A task whose loss is NaN from some step on."""

    task: PropertyTask
    after: int
    name: str = "property"

    @property
    def stream(self) -> GraphStream:
        return self.task.stream

    def loss(self, model: AdaptedModel, graph: Graph) -> torch.Tensor:
        counter.append(1)
        return self.task.loss(model, graph) * (float("nan") if len(counter) > self.after else 1.0)


counter: list[int] = []


def test_a_loss_that_is_not_finite_stops_the_run_with_whole_weights(bench: Bench) -> None:
    counter.clear()
    bench.task = Poisoned(bench.task, after=5)  # type: ignore[assignment]
    with pytest.raises(TetherError, match="the loss of task 'property' is nan at step 5"):
        bench.train([1.0] * 5, SETTINGS)
    assert all(torch.isfinite(p).all() for p in bench.model.parameters())
    assert not Run(bench.folder).is_complete


def test_a_validation_error_that_is_not_finite_is_refused(bench: Bench) -> None:
    with pytest.raises(TetherError, match="the validation error is nan at step 4"):
        bench.train([1.0, float("nan")], SETTINGS)


def test_the_gradient_is_clipped(bench: Bench) -> None:
    def norm(clip: float) -> float:
        settings = replace(SETTINGS, clip_norm=clip)
        model = bench.model
        trainer = Trainer(
            model,
            [bench.task],
            groups=Full().apply(model),
            balance=WeightedSum({"property": 1000.0}),
            settings=settings,
        )
        trainer.step()
        gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        return float(torch.stack(gradients).norm())

    assert norm(0.5) == pytest.approx(0.5, rel=1e-3)
    assert norm(0.0) > 10.0


def test_training_lowers_the_loss(bench: Bench) -> None:
    before = float(bench.task.loss(bench.model, bench.task.stream.graph).detach())
    bench.train([1.0], replace(SETTINGS, property_steps=60, validate_every=60, lr=5e-3))
    after = float(bench.task.loss(bench.model, bench.task.stream.graph).detach())
    assert after < 0.7 * before


def test_steps_logged_before_the_first_checkpoint_are_not_logged_twice(bench: Bench) -> None:
    settings = replace(SETTINGS, property_steps=60, validate_every=60)

    def stop(progress: Progress) -> None:
        if progress.step == 30:
            raise KeyboardInterrupt

    log = Run(bench.folder).log
    with pytest.raises(KeyboardInterrupt):
        bench.train([], settings, report=stop)
    assert [e["step"] for e in read_log(log)] == [25]
    bench.train([1.0], settings)
    assert [(e["event"], e["step"]) for e in read_log(log)] == [
        ("train", 25),
        ("train", 50),
        ("validate", 60),
    ]


def test_log_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for step in range(5):
        append_log(path, {"event": "train", "step": step})
    path.write_text(path.read_text() + '{"event": "tra')  # what a kill leaves
    assert [e["step"] for e in read_log(path)] == [0, 1, 2, 3, 4]
    cut_log(path, 2)
    append_log(path, {"event": "train", "step": 3})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def adapt_command(config: Path, out: Path, recipe: str = "mft-sampled") -> list[str]:
    return [
        sys.executable, "-m", "tether.cli", "adapt", "--config", str(config), "--recipe", recipe,
        "--out", str(out), "training.property_steps=400", "training.validate_every=20",
    ]  # fmt: skip


def quiet(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def test_kill_9_at_random_moments_and_run_again_gives_the_same_bits(
    workspace: Any, tmp_path: Path
) -> None:
    config = workspace.write_config(tmp_path)
    whole, cut = Run(tmp_path / "whole"), Run(tmp_path / "cut")
    assert quiet(adapt_command(config, whole.folder)).wait(timeout=120) == 0
    rng, kills, in_training = random.Random(1), 0, 0
    for attempt in range(3):
        process = quiet(adapt_command(config, cut.folder))
        # Start-up takes seconds: the first clock starts with the folder's claim, the others with
        # the next checkpoint.
        watched = cut.folder / "state" / "identity.json" if attempt == 0 else cut.checkpoint
        seen, deadline = stamp(watched), time.monotonic() + 60
        while process.poll() is None and stamp(watched) == seen and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        if process.wait(timeout=60) == -signal.SIGKILL:
            kills += 1
            in_training += cut.checkpoint.exists() and not cut.is_complete
        if cut.is_complete:
            break
    assert kills >= 2
    assert in_training >= 1
    assert quiet(adapt_command(config, cut.folder)).wait(timeout=120) == 0
    assert cut.weights.read_bytes() == whole.weights.read_bytes()
    assert cut.predictions.read_bytes() == whole.predictions.read_bytes()
    ours, theirs = read_json(cut.metrics), read_json(whole.metrics)
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    events = [(e["event"], e["step"]) for e in read_log(cut.log)]
    assert events == [(e["event"], e["step"]) for e in read_log(whole.log)]
    assert len(set(events)) == len(events)
    assert len(cut.log.read_text().splitlines()) == len(events)
    leftovers = [p.name for p in cut.folder.rglob("*.tmp")]
    assert all(name.startswith(".") for name in leftovers)

"""The one training loop: pretraining, fine-tuning and multi-task fine-tuning are its tasks."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from tether.errors import TetherError
from tether.serialization import save_tensors
from tether.training.allocator import keep_memory
from tether.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from tether.training.log import append_log, cut_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from tether.model import AdaptedModel
    from tether.movement.groups import ParameterGroup
    from tether.run import Run
    from tether.tasks.task import Task
    from tether.training.settings import TrainingSettings

__all__ = ["Balance", "Validation", "train"]

#: Steps between train events in the log.
LOG_EVERY = 25
PROPERTY = "property"


class Balance(Protocol):
    """How tasks combine: which ones run at a step, and how their gradients add up."""

    def choose(self, step: int, names: Sequence[str]) -> list[str]:
        """Tasks of this step."""
        ...

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Accumulate gradients."""
        ...


@dataclass(frozen=True)
class Validation:
    """What a validation found.

    Attributes
    ----------
    value : float
        The error that picks the best step; smaller is better.
    details : dict
        Goes to the log.
    """

    value: float
    details: dict[str, Any]


def train(
    model: AdaptedModel,
    tasks: Sequence[Task],
    *,
    groups: Sequence[ParameterGroup],
    balance: Balance,
    settings: TrainingSettings,
    averaging: bool,
    validate: Callable[[AdaptedModel], Validation],
    run: Run,
    report: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Train until the property has had its steps; resume where a killed run left off.

    Best weights (on `validate`) end up in ``run.weights``, and in the model.

    Parameters
    ----------
    model : AdaptedModel
        Changed in place.
    tasks : sequence of Task
        One of them named ``property``.
    groups : sequence of ParameterGroup
        What moves, from a `Movement`.
    balance : Balance
        How the tasks combine.
    settings : TrainingSettings
        Optimiser, schedule, length.
    averaging : bool
        Evaluate and keep an exponential moving average of the weights.
    validate : callable
        Called with the model holding the weights to judge.
    run : Run
        Where checkpoint, weights and log go.
    report : callable
        Called after each step, for progress bars.

    Returns
    -------
    Progress
        Final counters.

    Raises
    ------
    TetherError
        When a loss is not finite.
    """
    keep_memory()
    by_name = {task.name: task for task in tasks}
    optimiser = _optimiser(groups, settings)
    moving = {n: p for n, p in model.named_parameters() if p.requires_grad}
    average = {n: p.detach().clone() for n, p in moving.items()} if averaging else {}
    progress = Progress(task_steps=dict.fromkeys(by_name, 0))
    if run.checkpoint.exists():
        progress = load_checkpoint(
            run.checkpoint, model=model, optimiser=optimiser, average=average
        )
        cut_log(run.log, progress.step)
    started = time.perf_counter() - progress.seconds
    run.folder.mkdir(parents=True, exist_ok=True)
    while not _finished(progress, settings):
        chosen = balance.choose(progress.step, list(by_name))
        _schedule(optimiser, groups, progress, settings)
        optimiser.zero_grad(set_to_none=True)
        losses = {
            name: by_name[name].loss(model, by_name[name].stream.batch(progress.task_steps[name]))
            for name in chosen
        }
        values = _finite(losses, progress.step)
        balance.backward(losses)
        if settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(moving.values(), settings.clip_norm)
        optimiser.step()
        progress.step += 1
        for name in chosen:
            progress.task_steps[name] += 1
        _update_average(average, moving, settings.ema_decay, progress.step)
        progress.seconds = time.perf_counter() - started
        if progress.step % LOG_EVERY == 0:
            _log_train(run, progress, values, optimiser)
        steps = progress.task_steps[PROPERTY]
        due = steps % settings.validate_every == 0 or steps == settings.property_steps
        if PROPERTY in chosen and due:
            _validate(model, average, validate, run, progress)
            progress.seconds = time.perf_counter() - started
            save_checkpoint(
                run.checkpoint, model=model, optimiser=optimiser, average=average, progress=progress
            )
        report(progress)
    return progress


def _finished(progress: Progress, settings: TrainingSettings) -> bool:
    stopped = bool(settings.patience) and progress.stale >= settings.patience
    return stopped or progress.task_steps[PROPERTY] >= settings.property_steps


def _optimiser(groups: Sequence[ParameterGroup], settings: TrainingSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [{"params": g.parameters, "lr": settings.lr * g.multiplier} for g in groups],
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        foreach=True,
    )


def _schedule(
    optimiser: torch.optim.Optimizer,
    groups: Sequence[ParameterGroup],
    progress: Progress,
    settings: TrainingSettings,
) -> None:
    """Linear warm-up and cosine over the property steps; every group ends at the same rate."""
    done = progress.task_steps[PROPERTY]
    warm = max(1, round(settings.warmup_fraction * settings.property_steps))
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(done / settings.property_steps, 1.0)))
    for group, state in zip(groups, optimiser.param_groups, strict=True):
        floor = min(settings.final_lr_fraction / group.multiplier, 1.0)
        factor = min(1.0, (done + 1) / warm) * (floor + (1.0 - floor) * cosine)
        state["lr"] = settings.lr * group.multiplier * factor


def _finite(losses: Mapping[str, Tensor], step: int) -> dict[str, float]:
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise TetherError(
                f"the loss of task {name!r} is {value} at step {step}",
                expected="a finite loss",
                fix="lower training.lr, or look for outliers with `tether prepare`",
            )
    return values


@torch.no_grad()
def _update_average(
    average: dict[str, Tensor], moving: Mapping[str, Tensor], decay: float, step: int
) -> None:
    if not average:
        return
    # The start is forgotten fast: a long memory of the first steps would only slow the average.
    weight = 1.0 - min(decay, (1.0 + step) / (10.0 + step))
    torch._foreach_lerp_(list(average.values()), list(moving.values()), weight)  # noqa: SLF001


@contextmanager
def _averaged(model: AdaptedModel, average: Mapping[str, Tensor]) -> Iterator[None]:
    """The model with averaged weights, inside the block."""
    parameters = dict(model.named_parameters())
    kept = {name: parameters[name].detach().clone() for name in average}
    with torch.no_grad():
        for name, value in average.items():
            parameters[name].copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                parameters[name].copy_(value)


def _validate(
    model: AdaptedModel,
    average: Mapping[str, Tensor],
    validate: Callable[[AdaptedModel], Validation],
    run: Run,
    progress: Progress,
) -> None:
    with _averaged(model, average):
        found = validate(model)
        if found.value < progress.best_value:
            progress.best_value, progress.stale = found.value, 0
            progress.best_step = progress.task_steps[PROPERTY]
            save_tensors(run.weights, model.tensors())
        else:
            progress.stale += 1
    event = {"event": "validate", "step": progress.step, "val_loss": found.value, **found.details}
    append_log(run.log, {**event, "property_steps": progress.task_steps[PROPERTY]})


def _log_train(
    run: Run, progress: Progress, values: dict[str, float], optimiser: torch.optim.Optimizer
) -> None:
    event = {
        "event": "train",
        "step": progress.step,
        "property_steps": progress.task_steps[PROPERTY],
        "losses": values,
        "lr": max(group["lr"] for group in optimiser.param_groups),
        "seconds": round(progress.seconds, 3),
    }
    append_log(run.log, event)

"""The one training loop: pretraining, fine-tuning and multi-task fine-tuning are its tasks."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch

from tether.errors import TetherError
from tether.movement.lora import merged_tensors
from tether.serialization import save_tensors
from tether.training.allocator import keep_memory
from tether.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from tether.training.compiled import CompiledLoss, can_compile
from tether.training.log import append_log, cut_log
from tether.training.precision import precision
from tether.training.ranks import Ranks, SharedLoss
from tether.training.schedule import first_step, optimiser_of, set_rates, thaw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from tether.model import AdaptedModel
    from tether.movement.groups import ParameterGroup
    from tether.run import Run
    from tether.tasks.task import Task
    from tether.training.settings import TrainingSettings

__all__ = ["Balance", "Trainer", "Validation", "train"]

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

    def tensors(self) -> Mapping[str, Tensor]:
        """What it learns, as scalars by name: kept in the checkpoint, restored in place, logged."""
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
    ranks: Ranks | None = None,
) -> Progress:
    """Train until the leading task has had its steps; resume where a killed run left off.

    Best weights (on `validate`) end up in ``run.weights``, LoRA's merged; the model holds the last
    ones.

    Parameters
    ----------
    model : AdaptedModel
        Changed in place.
    tasks : sequence of Task
        The length of the run is counted in steps of the one named ``property``; without one, as in
        pretraining, of the first.
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
    ranks : Ranks, optional
        Processes that share the work, all of them here; the first one validates and writes.

    Returns
    -------
    Progress
        Final counters.

    Raises
    ------
    TetherError
        When a loss or a validation error is not finite, or another process trains in the folder.
    """
    keep_memory()
    ranks = ranks or Ranks()
    ranks.start_alike([*model.tensors().values(), *balance.tensors().values()])
    trainer = Trainer(model, tasks, groups=groups, balance=balance, settings=settings, ranks=ranks)
    if averaging:
        trainer.start_average()
    with run.held() if ranks.is_first else nullcontext():
        if run.checkpoint.exists():
            trainer.resume(run.checkpoint)
        ranks.check_step(trainer.progress.step)
        _steps(trainer, validate, run, report)
    return trainer.progress


def _steps(
    trainer: Trainer,
    validate: Callable[[AdaptedModel], Validation],
    run: Run,
    report: Callable[[Progress], None],
) -> None:
    """From where the trainer is to the end; the first rank logs and saves."""
    progress, settings, ranks = trainer.progress, trainer.settings, trainer.ranks
    if ranks.is_first:
        # Also before the first checkpoint: a killed run has logged steps that come again.
        cut_log(run.log, progress.step)
    started = time.perf_counter() - progress.seconds
    while not _finished(trainer.lead_steps, progress, trainer.groups, settings):
        values = trainer.step()
        progress.seconds = time.perf_counter() - started
        if progress.step % LOG_EVERY == 0 and ranks.is_first:
            _log_train(run, trainer, values)
        steps = trainer.lead_steps
        due = steps % settings.validate_every == 0 or steps == settings.property_steps
        if trainer.lead in values and due:
            _validate(trainer, validate, run)
            progress.seconds = time.perf_counter() - started
            if ranks.is_first:
                trainer.save(run.checkpoint)
        report(progress)


class Trainer:
    """Model, optimiser and counters of a run; `step` is one gradient step and writes nothing.

    Parameters
    ----------
    model : AdaptedModel
        Changed in place.
    tasks : sequence of Task
        See `train`.
    groups : sequence of ParameterGroup
        What moves.
    balance : Balance
        How the tasks combine.
    settings : TrainingSettings
        Optimiser and schedule.
    ranks : Ranks, optional
        Processes that share each batch.
    """

    def __init__(
        self,
        model: AdaptedModel,
        tasks: Sequence[Task],
        *,
        groups: Sequence[ParameterGroup],
        balance: Balance,
        settings: TrainingSettings,
        ranks: Ranks | None = None,
    ) -> None:
        self.model, self.groups, self.balance, self.settings = model, groups, balance, settings
        self.ranks = ranks or Ranks()
        self.tasks = {task.name: task for task in tasks}
        self.lead = PROPERTY if PROPERTY in self.tasks else tasks[0].name
        self.losses = {
            name: _loss_of(task, model, settings, self.ranks) for name, task in self.tasks.items()
        }
        self.optimiser = optimiser_of(groups, settings)
        self.moving = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.starts = [[p.detach().clone() for p in g.parameters if g.anchor] for g in groups]
        self.average: dict[str, Tensor] = {}
        self.progress = Progress(task_steps=dict.fromkeys(self.tasks, 0))
        #: Tasks whose every weight is frozen as yet: not computed, not counted.
        self.idle: set[str] = set()

    @property
    def lead_steps(self) -> int:
        """Steps of the task that the length of the run is counted in."""
        return self.progress.task_steps[self.lead]

    def start_average(self) -> None:
        """Keep an exponential moving average of the weights from here on."""
        self.average = {name: p.detach().clone() for name, p in self.moving.items()}

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on."""
        save_checkpoint(
            path,
            model=self.model,
            optimiser=self.optimiser,
            average=self.average,
            balance=self.balance.tensors(),
            progress=self.progress,
        )

    def resume(self, path: Path) -> None:
        """Take up what `save` wrote."""
        self.progress = load_checkpoint(
            path,
            model=self.model,
            optimiser=self.optimiser,
            average=self.average,
            balance=self.balance.tensors(),
        )

    def step(self) -> dict[str, float]:
        """One gradient step.

        Returns
        -------
        dict of str to float
            Loss of each task that moved something.

        Raises
        ------
        TetherError
            When a loss is not finite; the weights are then as before.
        """
        progress = self.progress
        if thaw(self.groups, self.lead_steps, self.settings):
            self.idle = {n for n, task in self.tasks.items() if not _moves(task, self.model)}
        chosen = self.balance.choose(progress.step, list(self.tasks))
        set_rates(self.optimiser, self.groups, self.lead_steps, self.settings)
        self.optimiser.zero_grad(set_to_none=True)
        with precision(self.settings.precision):
            chosen = [name for name in chosen if name not in self.idle]
            losses = {name: self.losses[name](self._place(name)) for name in chosen}
            values = _finite(losses, progress.step)
            self.balance.backward(losses)
        if self.settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.moving.values(), self.settings.clip_norm)
        self.optimiser.step()
        self._pull_back()
        progress.step += 1
        for name in chosen:
            progress.task_steps[name] += 1
        _update_average(self.average, self.moving, self.settings.ema_decay, progress.step)
        return values

    def _place(self, name: str) -> int:
        """Batch of a task: that of the lead where the two share a stream, however often it ran."""
        shared = self.tasks[name].stream is self.tasks[self.lead].stream
        return self.progress.task_steps[self.lead if shared else name]

    @torch.no_grad()
    def _pull_back(self) -> None:
        """Decoupled decay towards the starting weights, as AdamW's own is one towards zero."""
        states = self.optimiser.param_groups[::2]  # of a group's two the rates are the same
        for group, start, state in zip(self.groups, self.starts, states, strict=True):
            if start:
                weight = min(1.0, state["lr"] * group.anchor)
                torch._foreach_lerp_(tuple(group.parameters), start, weight)


def _finished(
    done: int, progress: Progress, groups: Sequence[ParameterGroup], settings: TrainingSettings
) -> bool:
    if done >= settings.property_steps:
        return True
    # Patience on a backbone that is still frozen would end a run before its method has begun.
    moving = done - max(first_step(group, settings) for group in groups)
    impatient = bool(settings.patience) and progress.stale >= settings.patience
    return impatient and moving >= settings.patience * settings.validate_every


def _moves(task: Task, model: AdaptedModel) -> bool:
    return any(parameter.requires_grad for parameter in task.weights(model))


def _loss_of(
    task: Task, model: AdaptedModel, settings: TrainingSettings, ranks: Ranks
) -> Callable[[int], Tensor]:
    """The loss of a task at a step of its stream."""
    compiled = settings.compile and can_compile(task)
    loss = CompiledLoss(model, task) if compiled else partial(task.loss, model)
    if ranks.n * settings.accumulate > 1:
        return SharedLoss(model, task, loss, ranks=ranks, n_passes=settings.accumulate)
    return lambda step: loss(task.stream.batch(step).to(model.device))


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
    torch._foreach_lerp_(list(average.values()), list(moving.values()), weight)


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


def _validate(trainer: Trainer, validate: Callable[[AdaptedModel], Validation], run: Run) -> None:
    model, progress = trainer.model, trainer.progress
    with _averaged(model, trainer.average):
        found = trainer.ranks.once(lambda: validate(model))
        if not math.isfinite(found.value):
            raise TetherError(
                f"the validation error is {found.value} at step {progress.step}",
                expected="a finite error",
                fix="lower training.lr, or look for outliers with `tether prepare`",
            )
        if found.value < progress.best_value:
            progress.best_value, progress.stale = found.value, 0
            progress.best_step = trainer.lead_steps
            if trainer.ranks.is_first:
                save_tensors(run.weights, merged_tensors(model))
        else:
            progress.stale += 1
    if not trainer.ranks.is_first:
        return
    event = {"event": "validate", "step": progress.step, "val_loss": found.value, **found.details}
    append_log(run.log, {**event, "property_steps": trainer.lead_steps})


def _log_train(run: Run, trainer: Trainer, values: dict[str, float]) -> None:
    progress = trainer.progress
    event = {
        "event": "train",
        "step": progress.step,
        "property_steps": trainer.lead_steps,
        "losses": values,
        "lr": max(group["lr"] for group in trainer.optimiser.param_groups),
        "seconds": round(progress.seconds, 3),
    }
    learnt = {name: value.item() for name, value in trainer.balance.tensors().items()}
    if learnt:
        event["balance"] = learnt
    append_log(run.log, event)

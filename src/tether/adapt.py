"""`adapt`: one recipe, one seed, one run folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tether.assemble import (
    build_balance,
    build_model,
    build_tasks,
    forcefield_graph,
    property_task,
)
from tether.atomic import write_text
from tether.balance.surgery import load_pcgrad
from tether.config import Config
from tether.evaluation import (
    check_elements,
    check_validation_labels,
    forcefield_errors,
    judge,
    property_errors,
    true_labels,
    write_results,
)
from tether.inputs import AdaptInputs, BackboneChoice, HeadChoice, OpenedInputs, check_held_out
from tether.level import bring_to_level
from tether.movement.anchor import anchored
from tether.movement.lora import merge
from tether.recipe import Recipe, named_recipe
from tether.run import Run, environment
from tether.serialization import load_tensors, read_json, write_json
from tether.training.compiled import find_compiler
from tether.training.device import device_name
from tether.training.engine import Validation, train
from tether.training.ranks import join_ranks
from tether.training.wise import backbone_weights, interpolate

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tether.graph import Graph
    from tether.model import AdaptedModel
    from tether.tasks.task import Task
    from tether.training.checkpoint import Progress
    from tether.training.settings import TrainingSettings
    from tether.watch import CollapseWatch

__all__ = ["AdaptInputs", "BackboneChoice", "HeadChoice", "adapt", "build_model", "check_run"]

#: Structures of the held-out force-field set looked at during validation; all of them at the end.
N_WATCHED = 64
#: Bytes of node features up to which a run with a frozen backbone computes them once, in advance.
MAX_FEATURES = 2**31


def adapt(
    inputs: AdaptInputs,
    recipe: Recipe | str,
    settings: TrainingSettings,
    *,
    out: Path | str,
    seed: int = 0,
    backbone: BackboneChoice | None = None,
    head: HeadChoice | None = None,
    watch_collapse: bool = False,
    report: Callable[[Progress], None] = lambda _: None,
) -> Run:
    """Adapt a backbone to properties; run again after a kill, it continues to the same bits.

    Under torchrun or srun the processes share the work, and the first one writes.

    Parameters
    ----------
    inputs : AdaptInputs
        Data, split and targets.
    recipe : Recipe or str
        How weights may move, and which tasks are trained; a `Recipe` or the name of one.
    settings : TrainingSettings
        Optimiser, schedule, length.
    out : Path or str
        Run folder.
    seed : int
        Of the head, the order of the data, and random weights.
    backbone, head : BackboneChoice, HeadChoice, optional
        Default SO3LR, and a head by the target.
    watch_collapse : bool
        Log measures of representation collapse at each validation; changes no result.
    report : callable
        Called after each step.

    Returns
    -------
    Run
        Complete.

    Raises
    ------
    TetherError
        For bad input, before anything is written.
    """
    backbone, head = backbone or BackboneChoice(), head or HeadChoice()
    recipe = named_recipe(recipe) if isinstance(recipe, str) else recipe
    request = _Request(inputs, recipe, settings, seed, backbone, head)
    ready, ranks = _prepare(request), join_ranks(settings.device)
    model, run = ready.model, Run(Path(out))
    watching = watch_collapse and ranks.is_first and not run.is_complete
    watch = _watch(ready, request) if watching else None
    if ranks.once(lambda: _claim(run, ready, request, ranks.device, watched=watch_collapse)):
        return run
    before = ranks.once(lambda: _errors_before(model, ready.held_out, recipe, run))
    model.to(ranks.device)
    ready, effective = _settled(ready, request)
    start = backbone_weights(model) if recipe.averaging == "wise" else {}
    progress = train(
        model,
        ready.tasks,
        groups=anchored(recipe.build_movement(seed).apply(model), recipe.anchor),
        balance=build_balance(recipe, ready.tasks, model, seed=seed),
        settings=effective,
        averaging=recipe.averaging != "none",
        validate=lambda m: _validate(m, ready, settings, watch),
        run=run,
        report=report,
        ranks=ranks,
    )

    def finish() -> None:
        merge(model)
        model.load(load_tensors(run.weights))
        wise = _mixed(ready, settings, start, run) if start else None
        _finish(ready, run, before=before, progress=progress, wise=wise)

    ranks.once(finish)
    return run


def check_run(
    inputs: AdaptInputs,
    recipe: Recipe,
    settings: TrainingSettings,
    *,
    out: Path,
    seed: int = 0,
    backbone: BackboneChoice | None = None,
    head: HeadChoice | None = None,
    structures: bool = True,
) -> None:
    """Refuse what `adapt` would refuse, without training or writing.

    Parameters
    ----------
    inputs, recipe, settings, out, seed, backbone, head
        As for `adapt`.
    structures : bool
        Also read the structures and build the model; else only files and run folder are checked.

    Raises
    ------
    TetherError
        For bad input.
    """
    request = _Request(
        inputs, recipe, settings, seed, backbone or BackboneChoice(), head or HeadChoice()
    )
    data = _prepare(request).data if structures else _open(request)
    Run(out).check(request.identity(data))


@dataclass(frozen=True)
class _Request:
    """The arguments of `adapt` that determine the result."""

    inputs: AdaptInputs
    recipe: Recipe
    settings: TrainingSettings
    seed: int
    backbone: BackboneChoice
    head: HeadChoice

    @property
    def effective_settings(self) -> TrainingSettings:
        """The settings, with the learning rate of the recipe where it has one."""
        lr = self.recipe.lr
        return self.settings if lr is None else replace(self.settings, lr=lr)

    def identity(self, data: OpenedInputs) -> dict[str, Any]:
        """What tells this run from another."""
        return {
            "recipe": self.recipe.identity(),
            "seed": self.seed,
            "settings": self.effective_settings.identity(),
            "backbone": self.backbone.identity(),
            "head": asdict(self.head),
            "targets": list(self.inputs.targets),
            "data": data.fingerprints(),
        }


@dataclass(frozen=True)
class _Ready:
    """Everything built and checked; nothing written yet."""

    data: OpenedInputs
    model: AdaptedModel
    train: Graph
    judged: dict[str, Graph]
    held_out: Graph | None
    tasks: list[Task]
    level_check: dict[str, float] | None


def _claim(
    run: Run, ready: _Ready, request: _Request, device: torch.device, *, watched: bool
) -> bool:
    """Take the folder and note what the run is of; whether it is complete already."""
    run.claim(request.identity(ready.data))
    if not run.config.exists():
        config = Config.of_run(
            request.inputs,
            request.recipe,
            request.settings,
            seed=request.seed,
            backbone=request.backbone,
            head=request.head,
            watch_collapse=watched,
        )
        write_text(run.config, config.to_yaml())
    if not run.is_complete and not run.split.exists():
        ready.data.split.to_json(run.split)
        write_json(run.provenance, {**_provenance(ready), "device": device_name(device)})
    return run.is_complete


def _watch(ready: _Ready, request: _Request) -> CollapseWatch:
    from tether.watch import start_watch

    rows = ready.data.split.indices["val"]
    return start_watch(ready.data.store, rows, backbone=request.backbone, seed=request.seed)


def _provenance(ready: _Ready) -> dict[str, Any]:
    return {
        "backbone": ready.model.backbone.spec.to_dict(),
        "targets": [one.target.to_dict() for one in ready.model.heads.values()],
        "data": ready.data.fingerprints(),
        "level_check": ready.level_check,
        **environment(),
    }


def _open(request: _Request) -> OpenedInputs:
    if request.recipe.balance == "surgery":
        load_pcgrad()  # a missing package is refused with the rest, before anything is written
    if request.settings.compile:
        find_compiler()
    return OpenedInputs.open(request.inputs, request.recipe)


def _prepare(request: _Request) -> _Ready:
    inputs, recipe = request.inputs, request.recipe
    data = _open(request)
    if data.auxiliary and data.forcefield_test:
        check_held_out(data.auxiliary, data.forcefield_test)
    model = build_model(
        data.store,
        inputs.targets,
        recipe,
        seed=request.seed,
        backbone=request.backbone,
        head=request.head,
    )
    train_graph = model.backbone.prepare(data.store.batch(data.split.indices["train"]))
    for one in model.heads.values():
        one.fit_scale(train_graph.batch)
    judged = {
        name: model.backbone.prepare(data.store.batch(rows))
        for name, rows in data.split.indices.items()
        if name != "train"
    }
    check_elements(model.heads.values(), {name: graph.batch for name, graph in judged.items()})
    check_validation_labels(true_labels(model, judged["val"]))
    tasks, level = build_tasks(
        model,
        train_graph,
        auxiliary=data.auxiliary,
        recipe=recipe,
        settings=request.effective_settings,
        seed=request.seed,
    )
    held_out = forcefield_graph(model, data.forcefield_test)
    if held_out is not None:
        held_out = bring_to_level(model, held_out, level)
    check = level.errors if level else None
    return _Ready(data, model, train_graph, judged, held_out, tasks, check)


def _settled(ready: _Ready, request: _Request) -> tuple[_Ready, TrainingSettings]:
    """Features that do not change are computed once, in advance.

    With a frozen backbone they are there instead of graphs: a step is then one of the heads alone,
    and there is no task but the property. With a frozen copy of it, graphs bring the copy's. A run
    too short to see each structure gains nothing.
    """
    model, settings = ready.model, request.effective_settings
    n_atoms = sum(graph.batch.n_atoms for graph in (ready.train, *ready.judged.values()))
    size = 4 * n_atoms * model.backbone.spec.n_features
    short = settings.property_steps * settings.batch_size < ready.train.n_systems
    is_frozen = request.recipe.movement == "frozen"
    if not (is_frozen or request.recipe.residual) or short or size > MAX_FEATURES:
        return ready, settings
    train = model.with_features(ready.train)
    judged = {name: model.with_features(graph) for name, graph in ready.judged.items()}
    tasks = [property_task(train, settings, seed=request.seed), *ready.tasks[1:]]
    settled = replace(ready, train=train, judged=judged, tasks=tasks)
    # Of a head alone there is nothing that a compiler could gain on.
    return settled, replace(settings, compile=settings.compile and not is_frozen)


def _errors_before(
    model: AdaptedModel, held_out: Graph | None, recipe: Recipe, run: Run
) -> dict[str, float | None] | None:
    """Force-field errors before the first step, kept for a resumed run."""
    if held_out is None:
        return None
    path = run.folder / "state" / "forgetting_before.json"
    if not path.exists():
        if recipe.initialisation == "random":
            # Random weights have no physics to forget.
            nothing = dict.fromkeys(("force_mae", "force_rmse", "energy_mae_per_atom"))
            write_json(path, nothing)
        else:
            write_json(path, forcefield_errors(model, held_out))
    before: dict[str, float | None] = read_json(path)
    return before


def _validate(
    model: AdaptedModel, ready: _Ready, settings: TrainingSettings, watch: CollapseWatch | None
) -> Validation:
    graph, held_out = ready.judged["val"], ready.held_out
    found = property_errors(model.predict(graph), true_labels(model, graph))
    spread = {name: float(head.std.mean()) for name, head in model.heads.items()}
    standardised = [found[name][settings.select_by] / spread[name] for name in found]
    details: dict[str, Any] = {
        "val_mae": {name: e["mae"] for name, e in found.items()},
        "val_rmse": {name: e["rmse"] for name, e in found.items()},
        "forcefield": None,
    }
    if held_out is not None:
        watched = held_out.select(torch.arange(min(N_WATCHED, held_out.n_systems)))
        details["forcefield"] = forcefield_errors(model, watched)
    if watch is not None:
        details["collapse"] = watch.measure(model.backbone)
    return Validation(sum(standardised) / len(standardised), details)


def _mixed(
    ready: _Ready, settings: TrainingSettings, start: dict[str, Tensor], run: Run
) -> dict[str, Any]:
    validate = partial(_validate, ready=ready, settings=settings, watch=None)
    return interpolate(ready.model, start, validate=validate, run=run)


def _finish(
    ready: _Ready,
    run: Run,
    *,
    before: dict[str, float | None] | None,
    progress: Progress,
    wise: dict[str, Any] | None,
) -> None:
    model = ready.model
    forgetting = None
    if ready.held_out is not None:
        forgetting = {"before": before, "after": forcefield_errors(model, ready.held_out)}
    write_results(
        run,
        [judge(model, graph, subset) for subset, graph in ready.judged.items()],
        {name: head.target.unit for name, head in model.heads.items()},
        forgetting=forgetting,
        property_steps=progress.task_steps["property"],
        forcefield_steps=progress.task_steps.get("forcefield", 0),
        best_step=progress.best_step,
        seconds=progress.seconds,
        wise=wise,
    )

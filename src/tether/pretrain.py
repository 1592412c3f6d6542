"""`pretrain`: a backbone from random (or given) weights, by denoising, force field, or both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from tether.atomic import atomic_path
from tether.backbones.checkpoint import save_backbone
from tether.backbones.load import load_backbone
from tether.balance.faded import Faded
from tether.card import model_card
from tether.data.loader import GraphStream
from tether.data.store import Store
from tether.errors import TetherError
from tether.evaluation import forcefield_errors
from tether.heads.energy import EnergyHead
from tether.heads.pair import PairHead
from tether.inputs import BackboneChoice
from tether.level import element_offsets, shift_energies
from tether.model import AdaptedModel
from tether.movement.full import Full
from tether.objective import batch_shares
from tether.run import Run, environment
from tether.serialization import load_tensors, write_json
from tether.tasks.denoising import DenoisingTask, NoisyStream
from tether.tasks.forcefield import ForceFieldTask, force_scale
from tether.training.compiled import find_compiler
from tether.training.engine import Validation, train
from tether.training.ranks import join_ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from tether.graph import Graph
    from tether.objective import DataSet, Objective
    from tether.tasks.task import Task
    from tether.training.checkpoint import Progress
    from tether.training.settings import TrainingSettings

__all__ = ["PretrainInputs", "check_pretraining", "pretrain"]

#: Share of the first data set that is held out where no validation set is given; its bounds, in
#: structures that geometries were made of.
HELD_OUT, FEWEST, MOST = 0.01, 8, 1000
#: Noise that the validation loss of denoising is a mean over, and its seed.
N_DRAWS, VALIDATION_SEED = 4, 1_000_003


@dataclass(frozen=True)
class PretrainInputs:
    """What a pretraining reads.

    Attributes
    ----------
    datasets : tuple of DataSet
        The backbone's own energy head learns the first one's level of theory; each other has a
        head of its own.
    validation : Path or None
        Store at the first one's level; picks the best step. Default: a hundredth of the first
        data set, held out.
    test : Path or None
        Store at the same level that picks nothing; its errors are reported.
    """

    datasets: tuple[DataSet, ...]
    validation: Path | None = None
    test: Path | None = None


def pretrain(
    inputs: PretrainInputs,
    objective: Objective,
    settings: TrainingSettings,
    *,
    out: Path,
    seed: int = 0,
    backbone: BackboneChoice | None = None,
    weights: Literal["pretrained", "random"] = "random",
    licence: str = "unspecified",
    report: Callable[[Progress], None] = lambda _: None,
) -> Run:
    """Pretrain a backbone; run again after a kill, it continues to the same bits.

    Parameters
    ----------
    inputs : PretrainInputs
        Data sets, and what to judge by.
    objective : Objective
        Denoising, force field, or both.
    settings : TrainingSettings
        Optimiser and schedule; ``property_steps`` counts all steps, and ``batch_size`` the
        structures that each objective sees in one.
    out : Path
        Run folder.
    seed : int
        Of weights, data order and noise.
    backbone : BackboneChoice, optional
        Architecture and size; default SO3krates of SO3LR's size.
    weights : {"pretrained", "random"}
        What it starts from.
    licence : str
        Of the resulting weights, kept in the file.
    report : callable
        Called after each step.

    Returns
    -------
    Run
        Complete: ``backbone.safetensors``, which `load_backbone` takes, ``card.md``, metrics.

    Raises
    ------
    TetherError
        For bad input, before anything is written.
    """
    choice = backbone or BackboneChoice("so3krates")
    request = _Request(inputs, objective, settings, seed, choice, weights, licence)
    ready, run, ranks = _prepare(request), Run(out), join_ranks()
    if ranks.once(lambda: _claim(run, ready, request)):
        return run
    progress = train(
        ready.model,
        ready.tasks,
        groups=Full().apply(ready.model),
        balance=_balance(ready, objective, settings.property_steps),
        settings=settings,
        averaging=True,
        validate=lambda model: _validate(model, ready),
        run=run,
        report=report,
        ranks=ranks,
    )
    ranks.once(lambda: _finish(ready, request, run, progress))
    return run


def check_pretraining(
    inputs: PretrainInputs,
    objective: Objective,
    settings: TrainingSettings,
    *,
    out: Path,
    seed: int = 0,
    backbone: BackboneChoice | None = None,
    weights: Literal["pretrained", "random"] = "random",
    licence: str = "unspecified",
) -> None:
    """Refuse what `pretrain` would refuse, without training or writing.

    Parameters
    ----------
    inputs, objective, settings, out, seed, backbone, weights, licence
        As for `pretrain`.

    Raises
    ------
    TetherError
        For bad input.
    """
    choice = backbone or BackboneChoice("so3krates")
    request = _Request(inputs, objective, settings, seed, choice, weights, licence)
    Run(out).check(request.identity(_prepare(request).stores))


@dataclass(frozen=True)
class _Request:
    """The arguments that determine the result."""

    inputs: PretrainInputs
    objective: Objective
    settings: TrainingSettings
    seed: int
    backbone: BackboneChoice
    weights: Literal["pretrained", "random"]
    licence: str

    def identity(self, stores: Sequence[Store]) -> dict[str, Any]:
        """What tells this run from another."""
        sets = [
            {"name": one.name, "weight": one.weight, "fingerprint": store.fingerprint}
            for one, store in zip(self.inputs.datasets, stores, strict=True)
        ]
        others = {"validation": self.inputs.validation, "test": self.inputs.test}
        return {
            "objective": self.objective.identity(),
            "seed": self.seed,
            "settings": self.settings.identity(),
            "backbone": self.backbone.identity(),
            "weights": self.weights,
            "datasets": sets,
            **{name: Store.open(path).fingerprint for name, path in others.items() if path},
        }


@dataclass(frozen=True)
class _Part:
    """One data set, prepared."""

    data: DataSet
    graph: Graph
    share: int
    head: str | None
    scale: float
    offsets: Tensor | None


@dataclass(frozen=True)
class _Ready:
    """Everything built and checked; nothing written yet."""

    model: AdaptedModel
    stores: list[Store]
    parts: list[_Part]
    tasks: list[Task]
    watched: dict[str, Graph]

    def provenance(self) -> dict[str, Any]:
        sets = [
            {"name": part.data.name, "n_systems": store.n_systems, **_origin(store)}
            for part, store in zip(self.parts, self.stores, strict=True)
        ]
        spec = self.model.backbone.spec.to_dict()
        return {"backbone": spec, "datasets": sets, **environment()}


def _claim(run: Run, ready: _Ready, request: _Request) -> bool:
    """Take the folder; whether the run in it is complete."""
    run.claim(request.identity(ready.stores))
    if not run.provenance.exists():
        write_json(run.provenance, ready.provenance())
    return run.is_complete


def _origin(store: Store) -> dict[str, Any]:
    return {
        "fingerprint": store.fingerprint,
        "level_of_theory": store.metadata.get("level_of_theory", "unknown"),
    }


def _prepare(request: _Request) -> _Ready:
    inputs, objective, settings = request.inputs, request.objective, request.settings
    if settings.compile:
        find_compiler()
    stores = [Store.open(one.store) for one in inputs.datasets]
    names = [one.name for one in inputs.datasets]
    if not names or len(set(names)) < len(names):
        raise TetherError(
            f"data sets {names}",
            expected="one or more, each with a name of its own",
            fix="set name",
        )
    model = _model(request, stores)
    graphs = [model.backbone.prepare(s.batch(np.arange(s.n_systems))) for s in stores]
    graphs[0], watched = _hold_out(model, graphs[0], inputs, request.seed)
    shares = batch_shares(
        [graph.n_systems for graph in graphs],
        batch_size=settings.batch_size,
        temperature=objective.temperature,
    )
    parts = [
        _part(request, model, data, graph, share)
        for data, graph, share in zip(inputs.datasets, graphs, shares, strict=True)
    ]
    first = parts[0]
    if first.offsets is not None:
        watched = {name: shift_energies(graph, first.offsets) for name, graph in watched.items()}
    if objective.has_denoising:
        head = PairHead(
            model.backbone.spec.n_features,
            cutoff=model.backbone.spec.cutoff,
            conditioned=objective.conditioned,
            seed=request.seed,
        )
        model.denoising = head
    tasks = [task for part in parts for task in _tasks(request, model, part, alone=len(parts) == 1)]
    # The lead, which counts the steps, must be there until the end: denoising may fade.
    tasks.sort(key=lambda task: isinstance(task, DenoisingTask))
    return _Ready(model, stores, parts, tasks, watched)


def _model(request: _Request, stores: Sequence[Store]) -> AdaptedModel:
    """The backbone, and an energy head for each level of theory that is not its own."""
    backbone = load_backbone(
        request.backbone.name,
        weights=request.weights,
        seed=request.seed,
        options=request.backbone.options,
    )
    model = AdaptedModel(backbone, [])
    objective = request.objective
    if not objective.has_forcefield:
        return model
    if objective.forces == "conservative" and not model.is_potential:
        raise TetherError(
            f"backbone {backbone.spec.name!r} has no energy head",
            expected="a potential, or direct forces",
            fix="set objective.forces=direct, or choose another backbone",
        )
    for store in stores:
        for name in ("energy", "forces"):
            store.targets_named([name])
    return model


def _hold_out(
    model: AdaptedModel, graph: Graph, inputs: PretrainInputs, seed: int
) -> tuple[Graph, dict[str, Graph]]:
    """The first data set without what is held out, and the sets to judge by."""
    watched = {}
    for name, path in (("validation", inputs.validation), ("test", inputs.test)):
        if path is not None:
            store = Store.open(path)
            watched[name] = model.backbone.prepare(store.batch(np.arange(store.n_systems)))
    if "validation" in watched:
        return graph, watched
    # Geometries of one molecule stay together: the others would tell about a held-out one.
    parents, of = np.unique(
        [one.rpartition("/")[0] or one for one in graph.batch.ids], return_inverse=True
    )
    n_held = min(MOST, max(FEWEST, round(HELD_OUT * len(parents))))
    if n_held >= len(parents):
        raise TetherError(
            f"the first data set has geometries of {len(parents)} structures",
            expected=f"more than the {n_held} to validate on",
            fix="add structures, or give a validation set",
        )
    order = np.random.default_rng([seed, VALIDATION_SEED]).permutation(len(parents))
    is_held = np.isin(of, order[:n_held])
    held, rest = np.flatnonzero(is_held), np.flatnonzero(~is_held)
    return graph.select(rest), {"validation": graph.select(held), **watched}


def _part(request: _Request, model: AdaptedModel, data: DataSet, graph: Graph, share: int) -> _Part:
    objective, first = request.objective, data is request.inputs.datasets[0]
    needs_forces = objective.has_forcefield or (objective.has_denoising and objective.conditioned)
    scale = force_scale(graph) if needs_forces else 1.0
    if not objective.has_forcefield:
        return _Part(data, graph, share, None, scale, None)
    name = None
    direct = objective.forces == "direct"
    if direct or not first:
        spec, name = model.backbone.spec, data.name
        position = request.inputs.datasets.index(data)
        pair = None
        if direct:
            pair = PairHead(spec.n_features, cutoff=spec.cutoff, seed=request.seed + position)
        model.potentials[name] = EnergyHead(
            spec.n_features, scale=scale, direct=pair, seed=request.seed + position
        )
    offsets = element_offsets(model, graph, head=name)
    return _Part(data, shift_energies(graph, offsets), share, name, scale, offsets)


def _tasks(request: _Request, model: AdaptedModel, part: _Part, *, alone: bool) -> list[Task]:
    objective, settings, seed = request.objective, request.settings, request.seed
    suffix = "" if alone else f"/{part.data.name}"
    tasks: list[Task] = []
    if objective.has_forcefield:
        tasks.append(
            ForceFieldTask(
                GraphStream(part.graph, batch_size=part.share, seed=seed),
                scale=part.scale,
                force_weight=settings.force_weight,
                energy_weight=settings.energy_weight,
                stress_weight=settings.stress_weight,
                name=f"forcefield{suffix}",
                head=part.head,
                per_structure=objective.per_structure,
            )
        )
    if isinstance(model.denoising, PairHead):
        stream = GraphStream(part.graph, batch_size=part.share, seed=seed + 1)
        tasks.append(
            DenoisingTask(
                NoisyStream(stream, objective.scales, seed, objective.strain),
                model.denoising,
                force_scale=part.scale,
                name=f"denoising{suffix}",
            )
        )
    return tasks


def _balance(ready: _Ready, objective: Objective, n_steps: int) -> Faded:
    """Each data set counts with its weight and its share of the batch."""
    total = sum(part.share for part in ready.parts)
    weights, ends, alone = {}, {}, len(ready.parts) == 1
    for part in ready.parts:
        suffix, weight = "" if alone else f"/{part.data.name}", part.data.weight
        weights[f"forcefield{suffix}"] = weight * part.share / total
        relative = objective.denoising_weight if objective.kind == "hybrid" else 1.0
        weights[f"denoising{suffix}"] = relative * weight * part.share / total
        if objective.kind == "hybrid" and objective.fade_by:
            ends[f"denoising{suffix}"] = max(1, round(objective.fade_by * n_steps))
    return Faded(weights, ends)


def _validate(model: AdaptedModel, ready: _Ready) -> Validation:
    errors = _errors(model, ready, "validation")
    key = "force_mae" if "force_mae" in errors else "denoising"
    return Validation(errors[key], errors)


def _errors(model: AdaptedModel, ready: _Ready, name: str) -> dict[str, float]:
    """Force-field errors of the first data set's head, and the loss on fixed noise."""
    graph = ready.watched[name]
    errors: dict[str, float] = {}
    for task in ready.tasks:
        if isinstance(task, ForceFieldTask) and task.head == ready.parts[0].head:
            errors |= forcefield_errors(model, graph, head=task.head)
        elif isinstance(task, DenoisingTask) and "denoising" not in errors:
            errors["denoising"] = _denoising_error(model, task, graph)
    return errors


@torch.no_grad()
def _denoising_error(model: AdaptedModel, task: DenoisingTask, graph: Graph) -> float:
    stream = GraphStream(graph, batch_size=min(64, graph.n_systems), seed=VALIDATION_SEED)
    noisy = replace(task.stream, stream=stream, seed=VALIDATION_SEED)
    n_batches = N_DRAWS * -(-graph.n_systems // 64)
    losses = [float(task.loss(model, noisy.batch(step))) for step in range(n_batches)]
    return sum(losses) / len(losses)


def _finish(ready: _Ready, request: _Request, run: Run, progress: Progress) -> None:
    ready.model.load(load_tensors(run.weights))
    spec, first = ready.model.backbone.spec, ready.stores[0]
    numbers = np.unique(np.concatenate([store.numbers_flat for store in ready.stores]))
    owns = request.objective.has_forcefield and ready.parts[0].head is None
    offsets = ready.parts[0].offsets
    about = {
        "elements": numbers.tolist(),
        "licence": request.licence,
        "level_of_theory": _origin(first)["level_of_theory"] if owns else "none",
        "objective": request.objective.identity(),
        "datasets": ready.provenance()["datasets"],
        # What a label had to be shifted by to be counted as this potential counts energies.
        "energy_offsets": {} if offsets is None else {int(z): float(offsets[z]) for z in numbers},
        "errors": {name: _errors(ready.model, ready, name) for name in ready.watched},
        "n_held_out": {name: graph.n_systems for name, graph in ready.watched.items()},
        "n_parameters": sum(
            p.numel()
            for p in [*ready.model.block_parameters(), *ready.model.potential_parameters()]
        ),
        "n_steps": progress.task_steps[ready.tasks[0].name],
        "best_step": progress.best_step,
        "seconds": progress.seconds,
    }
    save_backbone(
        run.folder / "backbone.safetensors",
        ready.model.backbone,
        architecture=request.backbone.name,
        options=dict(request.backbone.options or {}),
        about=about,
    )
    card = model_card(run.folder.name, spec, about, architecture=request.backbone.name)
    with atomic_path(run.folder / "card.md") as temporary:
        temporary.write_text(card)
    write_json(run.metrics, about)

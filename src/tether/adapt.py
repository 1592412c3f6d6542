"""`adapt`: one recipe, one seed, one run folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tether.backbones.load import load_backbone
from tether.balance.sampled import Sampled
from tether.balance.weighted_sum import WeightedSum
from tether.data.loader import GraphStream
from tether.data.store import Store
from tether.errors import TetherError
from tether.evaluation import forcefield_errors, prediction_rows, property_errors, true_labels
from tether.heads.readout import Pooling, PropertyHead
from tether.level import align_energies
from tether.model import AdaptedModel
from tether.run import Run, environment
from tether.serialization import atomic_path, load_tensors, read_json, write_json
from tether.splits.split import Split
from tether.tasks.forcefield import ForceFieldTask, force_scale
from tether.tasks.property import PropertyTask
from tether.training.engine import Balance, Validation, train

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tether.backbones.protocol import Backbone
    from tether.graph import Graph
    from tether.recipe import Recipe
    from tether.tasks.task import Task
    from tether.training.checkpoint import Progress
    from tether.training.settings import TrainingSettings

__all__ = ["AdaptInputs", "BackboneChoice", "HeadChoice", "adapt", "build_model"]

#: Structures of the held-out force-field set looked at during validation; all of them at the end.
N_WATCHED = 64


@dataclass(frozen=True)
class BackboneChoice:
    """Which backbone, by name.

    Attributes
    ----------
    name : str
        See `load_backbone`.
    options : dict
        Size, where the architecture has one.
    """

    name: str = "so3lr"
    options: dict[str, Any] | None = None


@dataclass(frozen=True)
class HeadChoice:
    """The property head.

    Attributes
    ----------
    pooling : {"mean", "sum", "max"} or None
        Default by the kind of the target.
    n_hidden : int
        Width of the hidden layer; 0: linear.
    """

    pooling: Pooling | None = None
    n_hidden: int = 128


@dataclass(frozen=True)
class AdaptInputs:
    """What a run reads.

    Attributes
    ----------
    store : Path
        Labelled structures, from `prepare`.
    split : Path
        Row sets of that store, from `split`.
    targets : tuple of str
        Labels to learn.
    auxiliary : Path or None
        Store with energies and forces for the force-field task, from `label`.
    forcefield_test : Path or None
        Held-out store with energies and forces: forgetting is measured on it.
    """

    store: Path
    split: Path
    targets: tuple[str, ...]
    auxiliary: Path | None = None
    forcefield_test: Path | None = None


def adapt(
    inputs: AdaptInputs,
    recipe: Recipe,
    settings: TrainingSettings,
    *,
    out: Path,
    seed: int = 0,
    backbone: BackboneChoice | None = None,
    head: HeadChoice | None = None,
    report: Callable[[Progress], None] = lambda _: None,
) -> Run:
    """Adapt a backbone to properties; run again after a kill, it continues to the same bits.

    Parameters
    ----------
    inputs : AdaptInputs
        Data, split and targets.
    recipe : Recipe
        How weights may move, and which tasks are trained.
    settings : TrainingSettings
        Optimiser, schedule, length.
    out : Path
        Run folder.
    seed : int
        Of the head, the order of the data, and random weights.
    backbone : BackboneChoice, optional
        Default SO3LR.
    head : HeadChoice, optional
        Default by the target.
    report : callable
        Called after each step.

    Returns
    -------
    Run
        Complete: weights, predictions, metrics.

    Raises
    ------
    TetherError
        For bad input, before anything is written.
    """
    backbone, head = backbone or BackboneChoice(), head or HeadChoice()
    if recipe.lr is not None:
        settings = replace(settings, lr=recipe.lr)
    data = _Data.open(inputs, recipe)
    model = build_model(data.store, inputs.targets, recipe, seed=seed, backbone=backbone, head=head)
    train_graph = model.backbone.prepare(data.store.batch(data.split.indices["train"]))
    for one in model.heads.values():
        one.fit_scale(train_graph.batch)
    judged = {
        name: model.backbone.prepare(data.store.batch(rows))
        for name, rows in data.split.indices.items()
        if name != "train"
    }
    held_out = _forcefield_graph(model, data.forcefield_test)
    tasks, check = _tasks(model, train_graph, data, recipe, settings, seed)
    run = Run(out)
    run.claim(
        {
            "recipe": asdict(recipe),
            "seed": seed,
            "settings": asdict(settings),
            "backbone": asdict(backbone),
            "head": asdict(head),
            "targets": list(inputs.targets),
            "data": data.fingerprints(),
        }
    )
    if run.is_complete:
        return run
    if not run.split.exists():
        data.split.to_json(run.split)
        provenance = {"data": data.fingerprints(), "level_check": check, **environment()}
        write_json(run.provenance, {"backbone": model.backbone.spec.to_dict(), **provenance})
    before = _errors_before(model, held_out, recipe, run)
    movement = recipe.build_movement()
    progress = train(
        model,
        tasks,
        groups=movement.apply(model),
        balance=_balance(recipe, seed),
        settings=settings,
        averaging=recipe.averaging == "ema",
        validate=lambda m: _validate(m, judged["val"], held_out, settings),
        run=run,
        report=report,
    )
    model.load(load_tensors(run.weights))
    _finish(model, judged, held_out, before, progress, run)
    return run


def build_model(
    store: Store,
    targets: Sequence[str],
    recipe: Recipe,
    *,
    seed: int,
    backbone: BackboneChoice,
    head: HeadChoice,
) -> AdaptedModel:
    """Backbone with pretrained or random weights, and fresh heads.

    Parameters
    ----------
    store : Store
        Knows the targets.
    targets : sequence of str
        Labels to learn.
    recipe : Recipe
        Says which weights.
    seed : int
        Of everything random.
    backbone : BackboneChoice
        Which one.
    head : HeadChoice
        What kind.

    Returns
    -------
    AdaptedModel
        Not yet scaled to the labels.

    Raises
    ------
    TetherError
        For an unknown target.
    """
    for name in targets:
        if name not in store.targets:
            raise TetherError(
                f"store {store.path} has no label {name!r}",
                expected=f"one of {', '.join(store.targets) or 'none'}",
                fix="set targets to one of them",
            )
    weights = "pretrained" if recipe.initialisation == "pretrained" else "random"
    loaded: Backbone = load_backbone(
        backbone.name, weights=weights, seed=seed, options=backbone.options
    )
    heads = [
        PropertyHead(
            store.targets[name],
            loaded.spec.n_features,
            pooling=head.pooling,
            n_hidden=head.n_hidden,
            seed=seed + position,
        )
        for position, name in enumerate(targets)
    ]
    return AdaptedModel(loaded, heads)


@dataclass(frozen=True)
class _Data:
    """Opened inputs, checked before anything is written."""

    store: Store
    split: Split
    auxiliary: Store | None
    forcefield_test: Store | None

    @classmethod
    def open(cls, inputs: AdaptInputs, recipe: Recipe) -> _Data:
        store = Store.open(inputs.store)
        split = Split.from_json(inputs.split, fingerprint=store.fingerprint)
        for needed in ("train", "val"):
            if needed not in split.indices:
                raise TetherError(
                    f"split {inputs.split} has no set {needed!r}",
                    expected="train, val and one or more test sets",
                    fix="make it with `tether split --val-fraction 0.05`",
                )
        if recipe.forcefield and inputs.auxiliary is None:
            raise TetherError(
                f"recipe {recipe.name!r} trains the force field, but there are no data for it",
                expected="auxiliary: a store with energies and forces",
                fix="tether label STORE --with pseudo --out aux.arrow, then auxiliary=aux.arrow",
            )
        return cls(
            store,
            split,
            Store.open(inputs.auxiliary) if inputs.auxiliary and recipe.forcefield else None,
            Store.open(inputs.forcefield_test) if inputs.forcefield_test else None,
        )

    def fingerprints(self) -> dict[str, str | None]:
        return {
            "store": self.store.fingerprint,
            "split": self.split.fingerprint,
            "auxiliary": self.auxiliary.fingerprint if self.auxiliary else None,
            "forcefield_test": self.forcefield_test.fingerprint if self.forcefield_test else None,
        }


def _forcefield_graph(model: AdaptedModel, store: Store | None) -> Graph | None:
    if store is None or not model.is_potential:
        return None
    graph = model.backbone.prepare(store.batch(torch.arange(store.n_systems)))
    force_scale(graph)  # refuses missing and all-zero forces
    return graph


def _tasks(
    model: AdaptedModel,
    train_graph: Graph,
    data: _Data,
    recipe: Recipe,
    settings: TrainingSettings,
    seed: int,
) -> tuple[list[Task], dict[str, float] | None]:
    stream = GraphStream(
        train_graph, batch_size=settings.batch_size, max_atoms=settings.max_atoms, seed=seed
    )
    tasks: list[Task] = [PropertyTask(stream, settings.loss)]
    if not recipe.forcefield:
        return tasks, None
    graph = _forcefield_graph(model, data.auxiliary)
    if graph is None:
        raise TetherError(
            f"backbone {model.backbone.spec.name!r} has no energy head",
            expected="a potential for the force-field task",
            fix="choose a recipe without one",
        )
    scale = force_scale(graph)
    graph, check = align_energies(model, graph)
    tasks.append(
        ForceFieldTask(
            GraphStream(graph, batch_size=settings.forcefield_batch_size, seed=seed + 1),
            scale=scale,
            force_weight=settings.force_weight,
            energy_weight=settings.energy_weight,
        )
    )
    return tasks, check


def _balance(recipe: Recipe, seed: int) -> Balance:
    if recipe.balance == "sampled":
        p = recipe.property_probability
        return Sampled({"property": p, "forcefield": 1.0 - p}, seed=seed)
    return WeightedSum({"property": 1.0, "forcefield": recipe.forcefield_weight})


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
    model: AdaptedModel, graph: Graph, held_out: Graph | None, settings: TrainingSettings
) -> Validation:
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
    return Validation(sum(standardised) / len(standardised), details)


def _finish(
    model: AdaptedModel,
    judged: dict[str, Graph],
    held_out: Graph | None,
    before: dict[str, float | None] | None,
    progress: Progress,
    run: Run,
) -> None:
    columns, rows = prediction_rows(model, judged)
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("target", pa.string()),
            *[(name, pa.float64()) for name in ("true", "pred", "std", "ood_score")],
            ("subset", pa.string()),
        ]
    )
    with atomic_path(run.predictions) as temporary:
        pq.write_table(pa.table(columns, schema=schema), temporary)
    forgetting = None
    if held_out is not None:
        forgetting = {"before": before, "after": forcefield_errors(model, held_out)}
    write_json(
        run.metrics,
        {
            "rows": rows,
            "forgetting": forgetting,
            "property_steps": progress.task_steps["property"],
            "forcefield_steps": progress.task_steps.get("forcefield", 0),
            "best_step": progress.best_step,
            "seconds": round(progress.seconds, 1),
        },
    )

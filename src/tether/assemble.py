"""Model, tasks and balance, put together as a recipe says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from tether.backbones.load import load_backbone
from tether.balance.constraint import FLOOR, Constraint
from tether.balance.sampled import Sampled
from tether.balance.surgery import GradientSurgery
from tether.balance.uncertainty import Uncertainty
from tether.balance.weighted_sum import WeightedSum
from tether.data.loader import GraphStream
from tether.errors import TetherError
from tether.heads.denoising import DenoisingHead
from tether.heads.readout import PropertyHead
from tether.level import align_energies, pretrained_level
from tether.model import AdaptedModel
from tether.tasks.denoising import DenoisingTask, NoisyStream
from tether.tasks.distillation import distillation_task
from tether.tasks.forcefield import ForceFieldTask, force_scale
from tether.tasks.property import PropertyTask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tether.backbones.protocol import Backbone
    from tether.data.store import Store
    from tether.graph import Graph
    from tether.inputs import BackboneChoice, HeadChoice
    from tether.level import Level
    from tether.recipe import Recipe
    from tether.targets import Target
    from tether.tasks.task import Task
    from tether.training.engine import Balance
    from tether.training.settings import TrainingSettings

__all__ = [
    "build_balance",
    "build_model",
    "build_tasks",
    "forcefield_graph",
    "model_of_targets",
    "property_task",
]


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
    return model_of_targets(
        store.targets_named(targets), recipe, seed=seed, backbone=backbone, head=head
    )


def model_of_targets(
    targets: Mapping[str, Target],
    recipe: Recipe,
    *,
    seed: int,
    backbone: BackboneChoice,
    head: HeadChoice,
) -> AdaptedModel:
    """`build_model` where the targets are known without a store.

    Parameters
    ----------
    targets : mapping of str to Target
        By name.
    recipe, seed, backbone, head
        See `build_model`.

    Returns
    -------
    AdaptedModel
        Not yet scaled to the labels.

    Raises
    ------
    TetherError
        For a target of several components.
    """
    for name, target in targets.items():
        if target.n_components != 1:
            raise TetherError(
                f"target {name!r} has {target.n_components} components",
                expected="a scalar",
                fix="predict what does not turn with the structure, as its length (of a dipole "
                "with head.pooling=dipole); there is no head for vectors yet",
            )
    weights: Literal["pretrained", "random"] = (
        "pretrained" if recipe.initialisation == "pretrained" else "random"
    )
    loaded: Backbone = load_backbone(
        backbone.name, weights=weights, seed=seed, options=backbone.options
    )
    heads = [
        PropertyHead(
            target,
            loaded.spec.n_features,
            pooling=head.pooling,
            n_hidden=head.n_hidden,
            residual=recipe.residual,
            seed=seed + position,
        )
        for position, target in enumerate(targets.values())
    ]
    denoising = None
    if recipe.denoising:
        width = loaded.spec.n_features
        denoising = DenoisingHead(width, n_hidden=head.n_hidden, seed=seed + len(heads))
    return AdaptedModel(loaded, heads, denoising, keep_pretrained=recipe.residual)


def forcefield_graph(model: AdaptedModel, store: Store | None) -> Graph | None:
    """Force-field data, prepared.

    Parameters
    ----------
    model : AdaptedModel
        Whose backbone prepares them.
    store : Store or None
        With ``energy`` (eV) and ``forces`` (eV/Å).

    Returns
    -------
    Graph or None
        None where there is no store, or no potential to compare it with.

    Raises
    ------
    TetherError
        When forces are missing, NaN, or all zero.
    """
    if store is None or not model.is_potential:
        return None
    graph = model.backbone.prepare(store.batch(torch.arange(store.n_systems)))
    force_scale(graph)  # refuses missing and all-zero forces
    return graph


def property_task(graph: Graph, settings: TrainingSettings, *, seed: int) -> PropertyTask:
    """The leading task.

    Parameters
    ----------
    graph : Graph
        Labelled structures.
    settings : TrainingSettings
        Batch size and loss.
    seed : int
        Of the order of the data.

    Returns
    -------
    PropertyTask
        With a stream of its own.
    """
    stream = GraphStream(
        graph, batch_size=settings.batch_size, max_atoms=settings.max_atoms, seed=seed
    )
    return PropertyTask(stream, settings.loss)


def build_tasks(
    model: AdaptedModel,
    train_graph: Graph,
    *,
    auxiliary: Store | None,
    recipe: Recipe,
    settings: TrainingSettings,
    seed: int,
) -> tuple[list[Task], Level | None]:
    """The tasks of a recipe, each with a stream of its own.

    Parameters
    ----------
    model : AdaptedModel
        Not yet trained, heads scaled.
    train_graph : Graph
        Labelled structures.
    auxiliary : Store or None
        Force-field data, where the recipe trains on them.
    recipe : Recipe
        Says which tasks.
    settings : TrainingSettings
        Batch sizes and loss.
    seed : int
        Of the order of the data.

    Returns
    -------
    tasks : list of Task
        The property first.
    level : Level or None
        Of the auxiliary labels, see `align_energies`.

    Raises
    ------
    TetherError
        For a force-field task on a backbone without a potential.
    """
    leading = property_task(train_graph, settings, seed=seed)
    tasks: list[Task] = [leading]
    level = None
    if recipe.forcefield:
        task, level = _forcefield_task(model, auxiliary, settings, seed=seed + 1)
        tasks.append(task)
    if recipe.distillation:
        # The same batches as the property's: its gradient is weighed structure by structure.
        tasks.append(distillation_task(model, leading.stream))
    if model.denoising is not None:
        at_rest = GraphStream(train_graph, batch_size=settings.forcefield_batch_size, seed=seed + 2)
        noisy = NoisyStream(at_rest, (recipe.noise,), seed=seed)
        tasks.append(DenoisingTask(noisy, model.denoising))
    return tasks, level


def _forcefield_task(
    model: AdaptedModel, auxiliary: Store | None, settings: TrainingSettings, *, seed: int
) -> tuple[ForceFieldTask, Level]:
    graph = forcefield_graph(model, auxiliary)
    if graph is None:
        raise TetherError(
            f"backbone {model.backbone.spec.name!r} has no energy head",
            expected="a potential for the force-field task",
            fix="choose a recipe without one",
        )
    scale = force_scale(graph)
    graph, level = align_energies(model, graph)
    task = ForceFieldTask(
        GraphStream(graph, batch_size=settings.forcefield_batch_size, seed=seed),
        scale=scale,
        force_weight=settings.force_weight,
        energy_weight=settings.energy_weight,
        stress_weight=settings.stress_weight,
    )
    return task, level


def build_balance(
    recipe: Recipe, tasks: Sequence[Task], model: AdaptedModel, *, seed: int
) -> Balance:
    """How the tasks of a recipe combine.

    Parameters
    ----------
    recipe : Recipe
        Says which way.
    tasks : sequence of Task
        From `build_tasks`.
    model : AdaptedModel
        Not yet trained: a constraint measures where it starts.
    seed : int
        Of the draws.

    Returns
    -------
    Balance
        For the engine.
    """
    weights = {
        "forcefield": recipe.forcefield_weight,
        "distillation": recipe.distillation,
        "denoising": recipe.denoising,
    }
    match recipe.balance:
        case "sum":
            return WeightedSum(weights)
        case "sampled":
            p = recipe.property_probability
            return Sampled({"property": p, "forcefield": 1.0 - p}, seed=seed)
        case "uncertainty":
            return Uncertainty([task.name for task in tasks])
        case "surgery":
            return GradientSurgery(model.block_parameters(), weights, seed=seed)
        case "constraint":
            (task,) = (task for task in tasks if isinstance(task, ForceFieldTask))
            reference = pretrained_level(model, task)
            # The bound is one of forces, whatever their weight in the loss is.
            floor = FLOOR * task.force_weight if task.force_weight else FLOOR
            return Constraint(reference, tolerance=recipe.tolerance, floor=floor, weights=weights)

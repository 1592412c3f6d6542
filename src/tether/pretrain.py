"""`pretrain`: a backbone from random (or given) weights, by denoising, force field, or both."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from tether.atomic import write_text
from tether.backbones.checkpoint import architecture_of, save_backbone
from tether.card import model_card
from tether.data.loader import GraphStream
from tether.evaluation import forcefield_errors
from tether.inputs import BackboneChoice
from tether.movement.full import Full
from tether.pretrain_config import PretrainConfig
from tether.pretrain_parts import PretrainRequest, build_balance, origin, prepare_pretraining
from tether.run import Run
from tether.serialization import load_tensors, write_json
from tether.tasks.denoising import DenoisingTask
from tether.tasks.forcefield import ForceFieldTask
from tether.training.device import device_name
from tether.training.engine import Validation, train
from tether.training.ranks import Ranks, join_ranks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tether.graph import Graph
    from tether.model import AdaptedModel
    from tether.objective import Objective, PretrainInputs
    from tether.pretrain_parts import Prepared
    from tether.training.checkpoint import Progress
    from tether.training.settings import TrainingSettings

__all__ = ["check_pretraining", "pretrain"]

#: Noise that the validation loss of denoising is a mean over, and its seed.
N_DRAWS, VALIDATION_SEED = 4, 1_000_003


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
    request = PretrainRequest(inputs, objective, settings, seed, choice, weights, licence)
    ranks, run = join_ranks(settings.device), Run(out)
    ready = prepare_pretraining(request, ranks)
    if ranks.once(lambda: _claim(run, ready, request, ranks.device)):
        return run
    ready.model.to(ranks.device)
    progress = train(
        ready.model,
        ready.tasks,
        groups=Full().apply(ready.model),
        balance=build_balance(ready, objective, settings.property_steps),
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
    request = PretrainRequest(inputs, objective, settings, seed, choice, weights, licence)
    prepare_pretraining(request, Ranks())
    Run(out).check(request.identity())


def _claim(run: Run, ready: Prepared, request: PretrainRequest, device: torch.device) -> bool:
    """Take the folder; whether the run in it is complete."""
    run.claim(request.identity())
    if not run.config.exists():
        config = PretrainConfig.of_run(
            request.inputs,
            request.objective,
            request.settings,
            seed=request.seed,
            backbone=request.backbone,
            weights=request.weights,
            licence=request.licence,
        )
        write_text(run.config, config.to_yaml())
    if not run.provenance.exists():
        write_json(run.provenance, {**ready.provenance(), "device": device_name(device)})
    return run.is_complete


def _validate(model: AdaptedModel, ready: Prepared) -> Validation:
    errors = _errors(model, ready, "validation")
    key = "force_mae" if "force_mae" in errors else "denoising"
    return Validation(errors[key], errors)


def _errors(model: AdaptedModel, ready: Prepared, name: str) -> dict[str, float]:
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
    total, n_coordinates = 0.0, 0
    for step in range(n_batches):
        batch = noisy.batch(step).to(model.device)
        n = int(task.counts(model, batch)[0])
        total, n_coordinates = total + n * float(task.loss(model, batch)), n_coordinates + n
    return total / n_coordinates


def _finish(ready: Prepared, request: PretrainRequest, run: Run, progress: Progress) -> None:
    ready.model.load(load_tensors(run.weights))
    spec, first = ready.model.backbone.spec, ready.parts[0]
    numbers = np.unique(np.concatenate([part.corpus.store.numbers_flat for part in ready.parts]))
    owns = request.objective.has_forcefield and first.head is None
    # What a label had to be shifted by to be counted as this potential counts energies.
    shift = first.offsets.per_element.tolist() if first.offsets else []
    about = {
        "elements": numbers.tolist(),
        "charge": any(bool(part.corpus.store.charge.any()) for part in ready.parts),
        "spin": any(bool(part.corpus.store.spin.any()) for part in ready.parts),
        "licence": request.licence,
        "level_of_theory": origin(first.corpus.store)["level_of_theory"] if owns else "none",
        "objective": request.objective.identity(),
        "datasets": ready.provenance()["datasets"],
        "energy_offsets": {z: shift[z] for z in numbers.tolist()} if shift else {},
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
    name, options = architecture_of(request.backbone.name, request.backbone.options or {})
    save_backbone(
        run.folder / "backbone.safetensors",
        ready.model.backbone,
        architecture=name,
        options=options,
        about=about,
    )
    card = model_card(run.folder.name, spec, about, architecture=name)
    write_text(run.folder / "card.md", card)
    write_json(run.metrics, about)

"""What every named recipe must do, through the pieces that `adapt` puts together.

`test_recipe.py` runs whole recipes; here stands what is seen in the pieces: nothing changes before
the first step, every weight that a recipe trains gets a gradient, and every number in a recipe has
an effect.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tether.adapt import BackboneChoice, HeadChoice, adapt
from tether.assemble import build_balance, build_model, build_tasks
from tether.config import load_config
from tether.data.store import Store
from tether.graph import Graph
from tether.movement.anchor import anchored
from tether.predict import predict
from tether.recipe import RECIPES, Recipe, named_recipe
from tether.serialization import load_tensors
from tether.training.engine import Trainer
from tether.training.settings import TrainingSettings

TINY, SMALL_HEAD = BackboneChoice("tiny", {"n_features": 16}), HeadChoice(n_hidden=16)
every_recipe = pytest.mark.parametrize("name", RECIPES)


def put_together(
    workspace: Any, recipe: Recipe, settings: TrainingSettings
) -> tuple[Trainer, Graph]:
    """A trainer before its first step, and the structures that it trains on."""
    store = Store.open(workspace.store)
    model = build_model(store, ["gap"], recipe, seed=0, backbone=TINY, head=SMALL_HEAD)
    graph = model.backbone.prepare(store.batch(np.arange(20)))
    for head in model.heads.values():
        head.fit_scale(graph.batch)
    auxiliary = Store.open(workspace.auxiliary)
    tasks, _ = build_tasks(
        model, graph, auxiliary=auxiliary, recipe=recipe, settings=settings, seed=0
    )
    trainer = Trainer(
        model,
        tasks,
        balance=build_balance(recipe, tasks, model, seed=0),
        groups=anchored(recipe.build_movement().apply(model), recipe.anchor),
        settings=settings,
    )
    trainer.start_average()
    return trainer, graph


@every_recipe
def test_zero_steps_are_the_identity(name: str, workspace: Any, settings: TrainingSettings) -> None:
    recipe = named_recipe(name)
    plain = build_model(
        Store.open(workspace.store), ["gap"], recipe, seed=0, backbone=TINY, head=SMALL_HEAD
    )
    trainer, graph = put_together(workspace, recipe, settings)
    with torch.no_grad():
        before, after = plain.features(graph), trainer.model.features(graph)
    assert torch.equal(before.node, after.node)
    ours, theirs = trainer.model.energy_forces(graph), plain.energy_forces(graph)
    assert all(torch.equal(a, b) for a, b in zip(ours[:2], theirs[:2], strict=True))
    trainer.step()
    moved = not torch.equal(trainer.model.features(graph).node, before.node)
    starts = max(group.starts_at for group in trainer.groups)
    assert moved == (recipe.movement != "frozen" and starts == 0.0)  # control


@every_recipe
def test_every_weight_that_a_recipe_trains_gets_a_gradient(
    name: str, workspace: Any, settings: TrainingSettings
) -> None:
    recipe = named_recipe(name)
    trainer, _ = put_together(workspace, recipe, settings)
    model = trainer.model
    reached = dict.fromkeys((n for n, p in model.named_parameters() if p.requires_grad), False)
    for _ in range(settings.property_steps):
        trainer.step()
        for parameter_name, parameter in model.named_parameters():
            if parameter.grad is not None and float(parameter.grad.abs().sum()) > 0:
                reached[parameter_name] = True
    missed = {n for n, found in reached.items() if not found}
    # Without a force-field task, nothing asks the potential's own head. Its last bias and element
    # energies shift energies only, whose labels are aligned to them: they may get no gradient.
    potential = {n for n in reached if "energy_" in n or "reference" in n}
    assert missed <= (potential if not recipe.forcefield else {"backbone.reference.weight"})
    assert any(n.startswith("heads.") for n in reached)
    assert any(n.startswith("denoising.") for n in reached) == bool(recipe.denoising)


#: A recipe, and one number of it that must not be without effect.
NUMBERS = [
    ("layerwise", "decay", 0.6, 0.3),
    ("mft", "forcefield_weight", 0.2, 2.0),
    ("mft-surgery", "forcefield_weight", 0.2, 2.0),
    ("mft-sampled", "property_probability", 0.5, 0.9),
    ("mft-constraint", "tolerance", 0.1, 5.0),
    ("lp-ft", "unfreeze_by", 0.3, 0.6),
    ("gradual", "unfreeze_by", 0.3, 0.6),
    ("lora", "rank", 8, 2),
    ("l2sp", "anchor", 10.0, 100.0),
    ("distillation", "distillation", 1.0, 10.0),
    ("noisy-nodes", "denoising", 0.2, 2.0),
    ("noisy-nodes", "noise", 0.05, 0.1),
    ("full", "lr", 3e-3, 1e-3),
]


@pytest.mark.parametrize(("name", "number", "one", "other"), NUMBERS)
def test_a_number_of_a_recipe_changes_the_weights(
    name: str,
    number: str,
    one: float,
    other: float,
    workspace: Any,
    settings: TrainingSettings,
) -> None:
    def trained(value: float) -> dict[str, torch.Tensor]:
        recipe = named_recipe(name, **{number: value})
        own = replace(settings, lr=recipe.lr or settings.lr, warmup_fraction=0.0)
        trainer, _ = put_together(workspace, recipe, own)
        for _ in range(settings.property_steps):
            trainer.step()
        return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}

    first, again, second = trained(one), trained(one), trained(other)
    assert all(torch.equal(first[n], again[n]) for n in first)
    block = [n for n in first if n.startswith("backbone.interactions")]
    assert any(not torch.equal(first[n], second[n]) for n in block)


def test_every_number_of_a_recipe_is_tried() -> None:
    numbers = {
        field
        for field, value in vars(named_recipe("mft")).items()
        if (isinstance(value, (float, int)) and not isinstance(value, bool)) or field == "lr"
    }
    assert {number for _, number, _, _ in NUMBERS} == numbers


@every_recipe
def test_a_config_reaches_it_and_its_run_predicts_what_it_wrote(
    name: str, workspace: Any, tmp_path: Path
) -> None:
    entry = {"base": name, "name": f"my-{name}"}
    path = workspace.write_config(tmp_path, recipes=[entry])
    config = load_config(path, ["training.property_steps=4"]).single(f"my-{name}", 0)
    (recipe,) = config.points()
    assert replace(recipe, name=name) == named_recipe(name)
    run = adapt(
        config.inputs(),
        recipe,
        config.settings(),
        out=tmp_path / "run",
        backbone=config.backbone_choice(),
        head=config.head_choice(),
    )
    found = predict(run.folder, workspace.store)
    assert np.isfinite(found.values["gap"]).all()
    names = {key.split(".")[0] for key in load_tensors(run.weights)}
    extra = {"denoising": recipe.denoising, "pretrained": recipe.residual}
    assert names == {"backbone", "heads", *(name for name, there in extra.items() if there)}

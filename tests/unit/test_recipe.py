"""Every named recipe, on a tiny backbone: what it promises is what happens to the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tether.adapt import BackboneChoice, HeadChoice, adapt, build_model
from tether.backbones.load import load_backbone
from tether.data.chunks import Chunk
from tether.data.loader import GraphStream
from tether.data.store import Store, write_store
from tether.errors import TetherError
from tether.model import AdaptedModel
from tether.recipe import RECIPES, Recipe, named_recipe
from tether.run import Run
from tether.serialization import load_tensors, read_json
from tether.tasks.property import PropertyTask
from tether.training.checkpoint import Progress
from tether.training.log import read_log
from tether.training.settings import TrainingSettings

TINY = BackboneChoice("tiny", {"n_features": 16})
SMALL_HEAD = HeadChoice(n_hidden=16)
every_recipe = pytest.mark.parametrize("name", RECIPES)


class Kill(Exception):  # noqa: N818 - stands for a signal, not for an error
    """Raised by a report callback, in place of a kill."""


def run_recipe(workspace: Any, recipe: Recipe, settings: TrainingSettings, **options: Any) -> Run:
    targets = options.pop("targets", ("gap",))
    return adapt(
        workspace.inputs(*targets), recipe, settings, backbone=TINY, head=SMALL_HEAD, **options
    )


def fresh(workspace: Any, recipe: Recipe, *targets: str, seed: int = 0) -> AdaptedModel:
    store = Store.open(workspace.store)
    names = targets or ("gap",)
    return build_model(store, names, recipe, seed=seed, backbone=TINY, head=SMALL_HEAD)


def killer(at: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == at:
            raise Kill

    return report


@every_recipe
def test_moves_what_it_should_and_freezes_the_rest_bit_for_bit(
    name: str, workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    recipe = named_recipe(name)
    before = fresh(workspace, recipe).tensors()
    run = run_recipe(workspace, recipe, settings, out=tmp_path / "run")
    after = load_tensors(run.weights)
    backbone = [key for key in after if key.startswith("backbone.")]
    heads = [key for key in after if key.startswith("heads.") and "readout" in key]
    moved = [key for key in backbone if not torch.equal(before[key], after[key])]
    assert all(not torch.equal(before[key], after[key]) for key in heads)
    if recipe.movement == "frozen":
        assert moved == []
    else:
        assert any("interactions.0" in key for key in moved)
        assert any("embedding" in key for key in moved)
    energy_head = [key for key in moved if "energy" in key]
    assert bool(energy_head) == recipe.forcefield


@every_recipe
def test_an_untrained_model_is_the_pretrained_one_but_for_random_weights(
    name: str, workspace: Any
) -> None:
    recipe = named_recipe(name)
    store = Store.open(workspace.store)
    batch = store.batch(np.arange(8))
    pretrained = load_backbone("tiny", options=TINY.options)
    graph = pretrained.prepare(batch)
    model = fresh(workspace, recipe)
    with torch.no_grad():
        mine, theirs = model.features(graph), pretrained(graph)
    assert torch.equal(mine.node, theirs.node)  # tiny: "pretrained" is seed 0
    other = fresh(workspace, recipe, seed=1)
    weights = {k: v.detach().clone() for k, v in other.tensors().items()}
    predictions = other.predict(graph)["gap"]
    other.load(weights)
    assert np.array_equal(predictions, other.predict(graph)["gap"])


def test_random_initialisation_differs_from_pretrained(
    workspace: Any, settings: TrainingSettings
) -> None:
    choice = BackboneChoice("so3lr")
    pytest.importorskip("so3krates_torch", reason="SO3LR is the only pretrained backbone")
    store = Store.open(workspace.store)
    models = {
        name: build_model(
            store, ["gap"], named_recipe(name), seed=0, backbone=choice, head=SMALL_HEAD
        )
        for name in ("scratch", "full")
    }
    scratch, full = (dict(models[name].named_parameters()) for name in ("scratch", "full"))
    assert {k: v.shape for k, v in scratch.items()} == {k: v.shape for k, v in full.items()}
    matrices = [k for k, v in scratch.items() if k.startswith("backbone") and v.ndim > 1]
    differing = [k for k in matrices if not torch.equal(scratch[k], full[k])]
    assert len(differing) > 0.8 * len(matrices)
    for key in (k for k in scratch if k.startswith("heads")):
        assert torch.equal(scratch[key], full[key])  # the same head, so that only weights differ


@every_recipe
def test_every_head_gets_a_gradient(name: str, workspace: Any) -> None:
    recipe = named_recipe(name)
    model = fresh(workspace, recipe, "gap", "u0", "sparse")
    graph = model.backbone.prepare(Store.open(workspace.store).batch(np.arange(20)))
    for head in model.heads.values():
        head.fit_scale(graph.batch)
    recipe.build_movement().apply(model)
    PropertyTask(GraphStream(graph, batch_size=20)).loss(model, graph).backward()
    for head in model.heads.values():
        assert all(float(p.grad.abs().sum()) > 0 for p in head.parameters())
    moving = [p for p in model.block_parameters() if p.requires_grad]
    assert all(p.grad is not None for p in moving)
    assert bool(moving) != (recipe.movement == "frozen")


#: Points with many axes at once: what each learns must survive a kill beside the others.
COMPOSED = {
    "later": Recipe(
        "later", movement="lp-ft", forcefield=True, balance="constraint", averaging="wise",
        anchor=1.0,
    ),
    "low-rank": Recipe(
        "low-rank", movement="lora", forcefield=True, balance="surgery", distillation=1.0,
        denoising=0.2,
    ),
    "everything": Recipe(
        "everything", movement="gradual", forcefield=True, balance="uncertainty",
        distillation=1.0, denoising=0.2, averaging="none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*RECIPES, *COMPOSED])
def test_killed_and_run_again_gives_the_same_bits(
    name: str, workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    recipe = COMPOSED.get(name) or named_recipe(name)
    whole = run_recipe(workspace, recipe, settings, out=tmp_path / "whole")
    for at in (1, 4):  # before the first checkpoint, and after it
        with pytest.raises(Kill):
            run_recipe(workspace, recipe, settings, out=tmp_path / "cut", report=killer(at))
        assert not Run(tmp_path / "cut").is_complete
    cut = run_recipe(workspace, recipe, settings, out=tmp_path / "cut")
    assert cut.weights.read_bytes() == whole.weights.read_bytes()
    assert cut.predictions.read_bytes() == whole.predictions.read_bytes()
    ours, theirs = read_json(cut.metrics), read_json(whole.metrics)
    assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


@pytest.mark.parametrize("name", ["lp-ft", "gradual"])
def test_a_kill_before_the_backbone_starts_changes_no_bit(
    name: str, workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    recipe = named_recipe(name, unfreeze_by=0.9)
    longer = replace(settings, property_steps=10)  # starts at 9; checkpoints at 3, 6, 9
    whole = run_recipe(workspace, recipe, longer, out=tmp_path / "whole")
    for at in (5, 8):
        with pytest.raises(Kill):
            run_recipe(workspace, recipe, longer, out=tmp_path / "cut", report=killer(at))
    cut = run_recipe(workspace, recipe, longer, out=tmp_path / "cut")
    assert cut.weights.read_bytes() == whole.weights.read_bytes()
    assert cut.predictions.read_bytes() == whole.predictions.read_bytes()
    checkpoints = [load_tensors(run.checkpoint) for run in (cut, whole)]
    assert checkpoints[0].keys() == checkpoints[1].keys()
    assert all(torch.equal(t, checkpoints[1][key]) for key, t in checkpoints[0].items())


@every_recipe
def test_seeds_differ_and_repeat(
    name: str, workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    recipe = named_recipe(name)
    first, again, other = (
        run_recipe(workspace, recipe, settings, out=tmp_path / str(i), seed=seed)
        for i, seed in enumerate((0, 0, 1))
    )
    assert first.predictions.read_bytes() == again.predictions.read_bytes()
    assert first.weights.read_bytes() == again.weights.read_bytes()
    assert first.predictions.read_bytes() != other.predictions.read_bytes()


def test_the_forcefield_weight_changes_the_result(
    workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    results = {}
    for weight in (0.0, 0.2, 2.0):
        recipe = named_recipe("mft", name=f"mft-{weight}", forcefield_weight=weight)
        run = run_recipe(workspace, recipe, settings, out=tmp_path / recipe.name)
        results[weight] = read_json(run.metrics)
    after = {weight: found["forgetting"]["after"]["force_mae"] for weight, found in results.items()}
    assert len(set(after.values())) == 3
    assert after[2.0] < after[0.0]


def test_the_tolerance_of_a_constraint_changes_the_result(
    workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    # Long enough for the multiplier to leave 1, with rates that damage the force field.
    long = replace(settings, property_steps=200, validate_every=200, lr=1e-2)
    learnt = {}
    for tolerance in (0.0, 100.0):
        recipe = named_recipe("mft-constraint", name=f"c-{tolerance}", tolerance=tolerance)
        run = run_recipe(workspace, recipe, long, out=tmp_path / recipe.name)
        events = [e for e in read_log(run.log) if e["event"] == "train"]
        learnt[tolerance] = events[-1]["balance"]
        assert set(learnt[tolerance]) == {"bound", "running", "log_multiplier"}
    assert learnt[100.0]["bound"] == pytest.approx(101.0 * learnt[0.0]["bound"])
    assert learnt[0.0]["log_multiplier"] > learnt[100.0]["log_multiplier"]
    assert learnt[0.0]["running"] < learnt[100.0]["running"]


def test_a_run_of_the_first_version_is_recognised(
    workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    # Written by the release before the first field was added: must never change.
    first = {
        "recipe": {
            "name": "mft", "initialisation": "pretrained", "movement": "full", "decay": 0.6,
            "forcefield": True, "balance": "sum", "forcefield_weight": 0.2,
            "property_probability": 0.5, "averaging": "ema", "lr": None,
        },
        "seed": 0,
        "settings": {
            "property_steps": 6, "batch_size": 8, "forcefield_batch_size": 4, "max_atoms": None,
            "lr": 0.003, "weight_decay": 0.01, "betas": [0.9, 0.99], "warmup_fraction": 0.05,
            "final_lr_fraction": 0.01, "clip_norm": 5.0, "ema_decay": 0.999, "validate_every": 3,
            "patience": 0, "select_by": "rmse", "loss": "l1", "force_weight": 1.0,
            "energy_weight": 1.0,
        },
        "backbone": {"name": "tiny", "options": {"n_features": 16}},
        "head": {"pooling": None, "n_hidden": 16},
        "targets": ["gap"],
    }  # fmt: skip
    settings = replace(settings, decayed="all")  # as it was then; what is new is another run
    run = run_recipe(workspace, named_recipe("mft"), settings, out=tmp_path / "run")
    written = read_json(run.folder / "state" / "identity.json")
    assert set(written.pop("data")) == {"store", "split", "auxiliary", "forcefield_test"}
    assert written == first
    assert list(written["recipe"]) == list(first["recipe"])


def test_a_field_that_came_later_tells_runs_apart_where_it_is_set() -> None:
    assert "tolerance" not in named_recipe("mft-constraint").identity()
    changed = named_recipe("mft-constraint", tolerance=0.2).identity()
    assert changed["tolerance"] == 0.2


def test_several_targets_with_holes_train_and_are_all_predicted(
    workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    targets = ("gap", "u0", "sparse")
    recipe = named_recipe("full")
    run = run_recipe(workspace, recipe, settings, out=tmp_path / "run", targets=targets)
    table = pq.read_table(run.predictions).to_pydict()
    assert set(table["target"]) == set(targets)
    assert np.isfinite(table["pred"]).all()
    missing = [t for t, true in zip(table["target"], table["true"], strict=True) if np.isnan(true)]
    assert set(missing) == {"sparse"}
    rows = {(r["target"], r["subset"], r["metric"]): r for r in read_json(run.metrics)["rows"]}
    assert rows["u0", "test/ood", "mae"]["value"] < 1e-2  # the element reference explains it
    assert rows["gap", "val", "mae"]["n"] == 6
    assert rows["sparse", "val", "mae"]["n"] < 6


def test_forgetting_is_measured_and_has_no_before_for_random_weights(
    workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    found = {}
    for name in ("scratch", "probe", "full"):
        run = run_recipe(workspace, named_recipe(name), settings, out=tmp_path / name)
        found[name] = read_json(run.metrics)["forgetting"]
    assert set(found["scratch"]["before"].values()) == {None}
    assert found["probe"]["before"] == found["probe"]["after"]
    assert found["full"]["before"] != found["full"]["after"]


def test_energies_are_forgotten_beyond_those_of_the_elements(
    workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    store = Store.open(workspace.held_out)
    batch = store.batch(range(store.n_systems))
    shift = torch.zeros(batch.n_systems, dtype=torch.float64)
    shift.index_add_(0, batch.system_idx, -37.0 * batch.numbers.double() ** 2)
    other = replace(batch, labels={**batch.labels, "energy": batch.labels["energy"] + shift})
    chunk = Chunk(other, ("other level",) * len(store))
    write_store(tmp_path / "other.arrow", [chunk], list(store.targets.values()))
    errors = []
    for name, path in (("own", workspace.held_out), ("other", tmp_path / "other.arrow")):
        changed = replace(workspace, held_out=path)
        run = run_recipe(changed, named_recipe("full"), settings, out=tmp_path / name)
        errors.append(read_json(run.metrics)["forgetting"])
    for when in ("before", "after"):
        assert errors[1][when] == pytest.approx(errors[0][when], rel=1e-4)
    assert errors[0]["before"]["energy_mae_per_atom"] < 1.0


def test_named_recipes_are_named_as_their_key() -> None:
    assert all(key == recipe.name for key, (_, recipe) in RECIPES.items())
    assert all(what for what, _ in RECIPES.values())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"property_probability": 0.0}, "`property_probability` of recipe 'mft' is 0.0"),
        ({"movement": "frozen"}, "trains a force field on a frozen backbone"),
        ({"movement": "layerwise", "decay": 1.5}, "`decay` is 1.5"),
        ({"forcefield_weight": -1.0}, "`forcefield_weight` of recipe 'mft' is -1.0"),
        ({"lr": float("nan")}, "`lr` of recipe 'mft' is nan"),
        ({"name": "../elsewhere"}, "recipe name '../elsewhere'"),
        ({"distillation": 1.0, "balance": "sampled"}, "draws property or force field, and has an"),
        ({"distillation": 1.0, "initialisation": "random"}, "holds on to random weights"),
        ({"denoising": 1.0, "forcefield": False, "movement": "frozen"}, "trains features on a fro"),
        ({"denoising": -0.1}, "`denoising` of recipe 'mft' is -0.1"),
        ({"noise": 0.0}, "`noise` of recipe 'mft' is 0.0"),
        ({"averaging": "wise", "initialisation": "random"}, "holds on to random weights"),
        ({"movement": "lp-ft", "unfreeze_by": 1.0}, "`unfreeze_by` is 1.0"),
        ({"balance": "constraint", "tolerance": -1.0}, "`tolerance` of recipe 'mft' is -1.0"),
        ({"balance": "constraint", "forcefield": False}, "bounds a force-field loss"),
        ({"balance": "constraint", "initialisation": "random"}, "bounds a force-field loss"),
        ({"rank": 4}, "`rank` of recipe 'mft' is 4, and nothing reads it; expected movement=lora"),
        (
            {"balance": "uncertainty", "forcefield_weight": 1.0},
            "and nothing reads it; expected forc",
        ),
        ({"decay": 0.3}, "nothing reads it; expected movement=layerwise"),
        ({"forcefield": False, "balance": "surgery"}, "balances one task by surgery"),
        ({"forcefield": False, "movement": "frozen", "anchor": 1.0}, "holds a frozen backbone"),
        ({"initialisation": "random", "movement": "lora"}, "holds on to random weights"),
        ({"forcefeild": True}, "unknown field 'forcefeild' of recipe 'mft'"),
    ],
)
def test_points_that_make_no_sense_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(TetherError, match=problem):
        named_recipe("mft", **changes)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(TetherError, match="unknown recipe 'mtf'; expected one of scratch, probe"):
        named_recipe("mtf")


def test_the_recipes_own_rate_is_used(
    workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    recipe = named_recipe("full", name="slow", lr=1e-7)
    before = fresh(workspace, recipe).tensors()
    run = run_recipe(workspace, recipe, settings, out=tmp_path / "run")
    after = load_tensors(run.weights)
    weight = "heads.gap.readout.0.weight"
    assert 0 < float((before[weight].detach() - after[weight]).abs().max()) < 1e-6

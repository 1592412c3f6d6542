"""Features of a frozen backbone, or of a frozen copy, are computed once; nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import tether.adapt as adapt_module
from tether.adapt import BackboneChoice, HeadChoice, adapt
from tether.data.store import Store
from tether.errors import TetherError
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.recipe import named_recipe
from tether.run import Run
from tether.serialization import load_tensors, read_json
from tether.targets import Target
from tether.testing.tiny import TinyBackbone
from tether.training import engine
from tether.training.settings import TrainingSettings

TINY = BackboneChoice("tiny", {"n_features": 16})
#: Batches of another size add the same numbers up in another order.
ROUNDING = 1e-4


def run(out: Path, workspace: Any, settings: TrainingSettings, **changes: Any) -> Run:
    arguments: dict[str, Any] = {"backbone": TINY, "head": HeadChoice(n_hidden=16), **changes}
    recipe = named_recipe(arguments.pop("recipe", "probe"))
    return adapt(workspace.inputs(), recipe, settings, out=out, **arguments)


def predictions(done: Run) -> torch.Tensor:
    return torch.from_numpy(pq.read_table(done.predictions)["pred"].to_numpy().copy())


@pytest.mark.parametrize(
    ("recipe", "pooling"),
    [("probe", None), ("probe", "dipole"), ("probe", "max"), ("mft-residual", None)],
)
def test_features_computed_once_give_the_same_run(
    recipe: str,
    pooling: Any,
    workspace: Any,
    settings: TrainingSettings,
    tmp_path: Path,
    n_forward: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head = HeadChoice(pooling=pooling, n_hidden=16)
    once = run(tmp_path / "once", workspace, settings, recipe=recipe, head=head)
    n_once = len(n_forward)
    other = run(tmp_path / "other", workspace, settings, recipe=recipe, head=head, seed=1)
    n_forward.clear()
    monkeypatch.setattr(adapt_module, "MAX_FEATURES", 0)
    plain = run(tmp_path / "plain", workspace, settings, recipe=recipe, head=head)
    assert torch.allclose(predictions(once), predictions(plain), atol=ROUNDING)
    assert not torch.allclose(predictions(once), predictions(other), atol=100 * ROUNDING)
    # Both measure forgetting; beyond that, one forward pass a set against one a step and more.
    assert len(n_forward) - n_once > settings.property_steps
    assert run(
        tmp_path / "once", workspace, settings, recipe=recipe, head=head
    ).is_complete  # the same identity


def test_the_backbone_stays_the_same_bits(
    workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    done = run(tmp_path / "probe", workspace, settings)
    after = load_tensors(done.weights)
    start = TinyBackbone(n_features=16).state_dict()
    assert all(torch.equal(after[f"backbone.{name}"], value) for name, value in start.items())
    forgetting = read_json(done.metrics)["forgetting"]
    assert forgetting["before"] == forgetting["after"]
    moved = load_tensors(run(tmp_path / "full", workspace, settings, recipe="full").weights)
    assert not all(torch.equal(moved[f"backbone.{name}"], value) for name, value in start.items())


@pytest.mark.parametrize("recipe", ["probe", "mft-residual"])
def test_resume_is_bitwise(
    recipe: str, workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    def stop(progress: Any) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    straight = run(tmp_path / "straight", workspace, settings, recipe=recipe)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", workspace, settings, recipe=recipe, report=stop)
    resumed = run(tmp_path / "broken", workspace, settings, recipe=recipe)
    assert resumed.weights.read_bytes() == straight.weights.read_bytes()
    assert torch.equal(predictions(resumed), predictions(straight))


def test_a_run_too_short_to_see_all_structures_computes_as_it_goes(
    workspace: Any, settings: TrainingSettings, tmp_path: Path, n_forward: list[int]
) -> None:
    run(tmp_path / "short", workspace, replace(settings, property_steps=2, batch_size=9))
    assert n_forward.count(9) == 2
    n_forward.clear()
    run(tmp_path / "long", workspace, replace(settings, property_steps=3, batch_size=9))
    assert n_forward.count(9) == 0


def test_a_step_without_a_backbone_is_not_compiled(
    workspace: Any, settings: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise TetherError("compiled", expected="a plain step", fix="look at _settled")

    monkeypatch.setattr(engine, "CompiledLoss", refuse)
    monkeypatch.setattr(adapt_module, "find_compiler", lambda: "g++")
    compiled = replace(settings, compile=True)
    asked = run(tmp_path / "asked", workspace, compiled)
    plain = run(tmp_path / "plain", workspace, settings)
    assert asked.weights.read_bytes() == plain.weights.read_bytes()
    with pytest.raises(TetherError, match="compiled"):
        run(tmp_path / "full", workspace, compiled, recipe="full")


def test_features_are_sliced_with_their_structures_and_no_force_reads_them(workspace: Any) -> None:
    model = AdaptedModel(
        TinyBackbone(), [PropertyHead(Target("gap"), TinyBackbone().spec.n_features)]
    )
    graph = model.backbone.prepare(Store.open(workspace.store).batch(range(9)))
    known = model.with_features(graph, batch_size=4)
    with torch.no_grad():
        for rows in ([3, 0, 3], [8], list(range(9))):
            piece = graph.select(rows)
            sliced = model.features(known.select(rows)).node
            assert torch.allclose(sliced, model.features(piece).node, atol=1e-5)
    assert not known.features.requires_grad  # type: ignore[union-attr]
    assert known.differentiable().features is None
    with pytest.raises(KeyError):
        model.energy_forces(known)
    assert torch.isfinite(model.energy_forces(graph)[1]).all()

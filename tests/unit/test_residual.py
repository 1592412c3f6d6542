"""Residual recipes: what moves adds to what a frozen copy of the backbone says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tether.adapt import BackboneChoice, HeadChoice, adapt
from tether.data.loader import GraphStream
from tether.data.store import Store
from tether.errors import TetherError
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.predict import load_run
from tether.recipe import Recipe, named_recipe
from tether.run import Run
from tether.serialization import load_tensors
from tether.targets import Target
from tether.tasks.property import PropertyTask
from tether.testing.tiny import TinyBackbone
from tether.training.compiled import CompiledLoss
from tether.training.settings import TrainingSettings

TINY = BackboneChoice("tiny", {"n_features": 16})


def run(out: Path, workspace: Any, settings: TrainingSettings, name: str) -> Run:
    return adapt(
        workspace.inputs(),
        named_recipe(name),
        settings,
        out=out,
        backbone=TINY,
        head=HeadChoice(n_hidden=16),
    )


@pytest.mark.parametrize("name", ["residual", "mft-residual"])
def test_the_copy_stays_and_the_backbone_moves(
    name: str, workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    kept = load_tensors(run(tmp_path / "run", workspace, settings, name).weights)
    before = TinyBackbone(n_features=16).state_dict()
    for key, value in before.items():
        assert torch.equal(kept[f"pretrained.{key}"], value), key
    assert any(not torch.equal(kept[f"backbone.{key}"], value) for key, value in before.items())


def test_an_atom_has_the_sum_of_both(
    workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    model = load_run(run(tmp_path / "run", workspace, settings, "residual").folder)
    graph = model.backbone.prepare(Store.open(workspace.store).batch(range(7)))
    head = model.heads["gap"]
    assert model.pretrained is not None
    assert head.base is not None
    with torch.no_grad():
        moved, kept = model.features(graph).node, model.pretrained(graph).node
        atomic = (head.readout(moved) + head.base(kept)).split(graph.batch.counts.tolist())
        wanted = torch.stack([part.mean(0) for part in atomic])
        torch.testing.assert_close(model(graph)["gap"], wanted, rtol=1e-4, atol=1e-5)
        # Each of the two is heard: without one of them the prediction is another.
        for perceptron in (head.readout, head.base):
            final = perceptron[-1]  # type: ignore[index]
            final.weight.zero_()
            assert not torch.allclose(model(graph)["gap"], wanted, atol=1e-3)


def test_a_compiled_step_reads_the_features_that_a_graph_brings(
    workspace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda traced, **_: traced)
    backbone = TinyBackbone(n_features=16)
    head = PropertyHead(Target("gap"), 16, n_hidden=8, residual=True)
    model = AdaptedModel(backbone, [head], keep_pretrained=True)
    with torch.no_grad():
        for parameter in model.block_parameters():
            parameter.mul_(1.1)  # so that it matters whose features are read
    graph = backbone.prepare(Store.open(workspace.store).batch(range(9)))
    known = model.with_features(graph, batch_size=4)
    task = PropertyTask(GraphStream(graph, batch_size=9))
    compiled = CompiledLoss(model, task)
    wanted = task.loss(model, graph)
    for given in (graph, known):
        assert compiled(given).item() == pytest.approx(wanted.item(), rel=1e-5)
        piece = given.select([4, 2, 4])
        assert compiled(piece).item() == pytest.approx(task.loss(model, piece).item(), rel=1e-5)
    assert len(compiled._compiled) == 2  # a kind each
    wrong = model.with_features(graph).features
    assert wrong is not None
    assert compiled(replace(known, features=1.1 * wrong)).item() != pytest.approx(wanted.item())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"initialisation": "random"}, "holds on to random"), ({"movement": "frozen"}, "the same")],
)
def test_a_residual_on_nothing_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(TetherError, match=problem):
        Recipe("mine", residual=True, **changes)

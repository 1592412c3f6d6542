"""LoRA: an update of low rank on a frozen backbone, and no trace of it in what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tether.adapt import BackboneChoice, HeadChoice, adapt
from tether.backbones.load import load_backbone
from tether.balance.weighted_sum import WeightedSum
from tether.data.loader import GraphStream
from tether.data.store import Store
from tether.errors import TetherError
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.movement.lora import Lora, merge, merged_tensors
from tether.recipe import named_recipe
from tether.serialization import load_tensors
from tether.tasks.property import PropertyTask
from tether.testing.tiny import TinyBackbone
from tether.training.engine import Trainer
from tether.training.settings import TrainingSettings


def trainer(workspace: Any, rank: int = 3, seed: int = 0) -> Trainer:
    store = Store.open(workspace.store)
    backbone = TinyBackbone(n_features=16)
    head = PropertyHead(store.targets["gap"], 16, n_hidden=8)
    graph = backbone.prepare(store.batch(np.arange(20)))
    head.fit_scale(graph.batch)
    model = AdaptedModel(backbone, [head])
    return Trainer(
        model,
        [PropertyTask(GraphStream(graph, batch_size=8))],
        groups=Lora(rank, seed).apply(model),
        balance=WeightedSum({}),
        settings=TrainingSettings(property_steps=20, lr=1e-2, weight_decay=0.1),
    )


def backbone_tensors(model: AdaptedModel) -> dict[str, torch.Tensor]:
    found = {n: v.detach().clone() for n, v in merged_tensors(model).items()}
    return {n: v for n, v in found.items() if n.startswith("backbone.")}


def test_the_update_of_each_matrix_has_the_rank_and_nothing_else_moves(workspace: Any) -> None:
    one = trainer(workspace, rank=3)
    before = backbone_tensors(one.model)
    assert before.keys() == AdaptedModel(TinyBackbone(), []).tensors().keys()
    for _ in range(20):
        one.step()
    for name, after in backbone_tensors(one.model).items():
        change = (after - before[name]).double()
        trained = change.ndim >= 2 and "energy" not in name and "reference" not in name
        if not trained:
            assert torch.equal(after, before[name]), name
            continue
        values = torch.linalg.svdvals(change)
        assert values[2] > 1e-6, name
        assert len(values) == 3 or values[3] < 1e-5 * values[0], name


@pytest.mark.parametrize("name", ["chgnet", "sevennet", "so3lr"])
def test_updates_of_real_backbones_are_of_matrices(name: str) -> None:
    model = AdaptedModel(load_backbone(name), [])
    before = {n: p.ndim for n, p in model.named_parameters()}
    potential = {id(parameter) for parameter in model.potential_parameters()}
    Lora(2).apply(model)
    # What moves by itself is the same as before, and every weight of a block is one that can move.
    assert {id(parameter) for parameter in model.potential_parameters()} == potential
    assert all(p.is_leaf for _, parameters in model.backbone.blocks() for p in parameters)
    originals = [n for n, _ in model.named_parameters() if n.endswith(".original")]
    assert len(originals) > 5
    for original in originals:
        plain = original.replace(".parametrizations.", ".").removesuffix(".original")
        assert before[plain] > 1
        assert not plain.endswith((".bias", ".hidden_bias", ".scale", ".shift"))


def test_the_frozen_weights_stay_bit_for_bit_under_the_updates(workspace: Any) -> None:
    one = trainer(workspace)
    frozen = {n: p.detach().clone() for n, p in one.model.named_parameters() if "original" in n}
    for _ in range(5):
        one.step()
    after = dict(one.model.named_parameters())
    assert len(frozen) == 13
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())
    assert not any("original" in name for name in one.moving)


def test_merging_changes_no_feature_and_leaves_no_trace(workspace: Any) -> None:
    one = trainer(workspace)
    graph = one.tasks["property"].stream.batch(0)
    for _ in range(5):
        one.step()
    model = one.model
    with torch.no_grad():
        before = model.features(graph).node
        kept = {name: value.clone() for name, value in merged_tensors(model).items()}
        merge(model)
        assert torch.equal(model.features(graph).node, before)
    assert model.tensors().keys() == kept.keys()
    assert all(torch.equal(kept[name], value) for name, value in model.tensors().items())
    merge(model)  # nothing is left to merge
    assert merged_tensors(model).keys() == kept.keys()


def test_the_start_depends_on_the_seed_alone(workspace: Any) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed + 5)
        one = trainer(workspace, seed=seed)
        one.step()
        return backbone_tensors(one.model)

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_stacked_matrices_get_an_update_each() -> None:
    class Stacked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 6, 5, dtype=torch.float64))

        def blocks(self) -> list[tuple[str, list[torch.nn.Parameter]]]:
            return [("attention", [self.weight])]

    backbone = Stacked()
    before = backbone.weight.detach().clone()
    (block, *_) = Lora(rank=2).apply(AdaptedModel(backbone, []))  # type: ignore[arg-type]
    up, down = block.parameters
    assert (up.shape, down.shape) == ((4, 6, 2), (4, 2, 5))
    assert up.dtype == torch.float64
    with torch.no_grad():
        up.normal_()
    assert torch.linalg.matrix_rank(backbone.weight.detach() - before).tolist() == [2] * 4


@pytest.mark.parametrize("changes", [{}, {"forcefield": True}, {"averaging": "wise"}], ids=repr)
def test_a_run_keeps_weights_of_the_plain_names(
    changes: dict[str, Any], workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    runs = [
        adapt(
            workspace.inputs(),
            named_recipe(name, **changes),
            settings,
            out=tmp_path / name,
            backbone=BackboneChoice("tiny", {"n_features": 16}),
            head=HeadChoice(n_hidden=16),
        )
        for name in ("lora", "full")
    ]
    lora, full = (load_tensors(run.weights) for run in runs)
    assert {k: v.shape for k, v in lora.items()} == {k: v.shape for k, v in full.items()}
    assert any("parametrizations" in name for name in load_tensors(runs[0].checkpoint))


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(TetherError, match="`rank` is 0"):
        named_recipe("lora", rank=0)

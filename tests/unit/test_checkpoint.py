"""Checkpoints: everything back to the bit, and nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tether.balance.constraint import Constraint
from tether.balance.weighted_sum import WeightedSum
from tether.data.loader import GraphStream
from tether.data.store import Store
from tether.errors import TetherError
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.movement.layerwise import Layerwise
from tether.serialization import load_metadata, load_tensors, save_tensors
from tether.tasks.property import PropertyTask
from tether.testing.tiny import TinyBackbone
from tether.training.engine import Trainer
from tether.training.settings import TrainingSettings


def trainer(workspace: Any, seed: int = 0) -> Trainer:
    store = Store.open(workspace.store)
    backbone = TinyBackbone(n_features=16, seed=seed)
    head = PropertyHead(store.targets["gap"], 16, n_hidden=8, seed=seed)
    graph = backbone.prepare(store.batch(np.arange(20)))
    head.fit_scale(graph.batch)
    model = AdaptedModel(backbone, [head])
    found = Trainer(
        model,
        [PropertyTask(GraphStream(graph, batch_size=8))],
        groups=Layerwise().apply(model),
        balance=WeightedSum({}),
        settings=TrainingSettings(property_steps=20, lr=1e-2),
    )
    found.start_average()
    return found


def save(one: Trainer, path: Path) -> None:
    one.save(path)


def load(one: Trainer, path: Path) -> None:
    one.resume(path)


def test_continuing_from_a_checkpoint_gives_the_same_bits(workspace: Any, tmp_path: Path) -> None:
    whole, path = trainer(workspace), tmp_path / "c.safetensors"
    for step in range(8):
        if step == 5:
            whole.progress.best_value, whole.progress.stale = 0.25, 2
            save(whole, path)
        whole.step()
    resumed = trainer(workspace, seed=7)  # other weights: all must come from the file
    load(resumed, path)
    assert (resumed.progress.step, resumed.progress.best_value, resumed.progress.stale) == (
        5,
        0.25,
        2,
    )
    for _ in range(3):
        resumed.step()
    for name, value in whole.model.tensors().items():
        assert torch.equal(value, resumed.model.tensors()[name]), name
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name]), name
    assert resumed.progress.task_steps == {"property": 8}


def test_without_the_moments_it_would_not(workspace: Any, tmp_path: Path) -> None:
    whole, path = trainer(workspace), tmp_path / "c.safetensors"
    for _ in range(5):
        whole.step()
    save(whole, path)
    resumed = trainer(workspace)
    load(resumed, path)
    resumed.optimiser.state.clear()
    for one in (whole, resumed):
        one.step()
    weight = "heads.gap.readout.0.weight"
    assert not torch.equal(whole.model.tensors()[weight], resumed.model.tensors()[weight])


def test_a_fresh_run_can_be_saved(workspace: Any, tmp_path: Path) -> None:
    save(trainer(workspace), tmp_path / "c.safetensors")
    load(trainer(workspace, seed=3), tmp_path / "c.safetensors")


def test_what_a_balance_learnt_comes_back_and_must_be_there(workspace: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    first, second = trainer(workspace), trainer(workspace)
    first.balance, second.balance = Constraint(0.1), Constraint(0.2)
    state = first.balance.tensors()
    state["log_multiplier"].fill_(-0.75)
    save(first, path)
    load(second, path)
    assert {name: float(value) for name, value in second.balance.tensors().items()} == {
        name: float(value) for name, value in state.items()
    }
    with pytest.raises(TetherError, match="is no checkpoint of this run"):
        load(trainer(workspace), path)


@pytest.mark.parametrize("damage", ["truncate", "flip header", "empty"])
def test_a_damaged_file_is_refused(damage: str, workspace: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save(trainer(workspace), path)
    content = path.read_bytes()
    harm = {"truncate": content[:-7], "flip header": b"\xff" * 9 + content[9:], "empty": b""}
    path.write_bytes(harm[damage])
    with pytest.raises(TetherError, match=r"c.safetensors cannot be read"):
        load(trainer(workspace), path)


@pytest.mark.parametrize("lacking", ["progress", "average/", "weight/"])
def test_a_file_of_another_kind_is_refused(lacking: str, workspace: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save(trainer(workspace), path)
    metadata = {} if lacking == "progress" else load_metadata(path)
    kept = {k: v for k, v in load_tensors(path).items() if not k.startswith(lacking)}
    save_tensors(path, kept, metadata=metadata)
    with pytest.raises(TetherError, match="is no checkpoint of this run|tensors do not match"):
        load(trainer(workspace), path)


def test_moments_of_unknown_weights_are_refused(workspace: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save(trainer(workspace), path)
    tensors = {**load_tensors(path), "optimiser/exp_avg/nobody.weight": torch.ones(1)}
    save_tensors(path, tensors, metadata=load_metadata(path))
    with pytest.raises(TetherError, match="is no checkpoint of this run"):
        load(trainer(workspace), path)


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    # safetensors writes metadata in any order, another one each time.
    tensors = {"b": torch.arange(3.0), "a": torch.zeros(2, dtype=torch.int64)}
    metadata = {name: f'{name} "{name}"\n é \x7f' for name in "qwertyuiop"}
    content = set()
    for attempt in range(5):
        path = tmp_path / f"{attempt}.safetensors"
        save_tensors(path, tensors, metadata=metadata)
        content.add(path.read_bytes())
    assert len(content) == 1
    assert load_metadata(path) == metadata
    found = load_tensors(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())

"""Which device a run uses, and that what a model is given comes to it there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ase import Atoms

from tether.adapt import adapt
from tether.errors import TetherError
from tether.extract import fingerprints
from tether.graph import Graph
from tether.inputs import BackboneChoice
from tether.jobs import _cuda_devices, _start_worker
from tether.recipe import named_recipe
from tether.run import Run
from tether.serialization import read_json
from tether.structures import from_ase
from tether.testing.tiny import TinyBackbone
from tether.training.device import device_name, find_device
from tether.training.settings import TrainingSettings

TINY = BackboneChoice("tiny", {"n_features": 16})


def test_an_accelerator_is_named_by_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert device_name(torch.device("cuda:1")) == "cuda:1 (card 1)"
    assert device_name(torch.device("cpu")) == "cpu"


def test_a_device_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda:1")
    for name, message in (
        ("cuda:2", "torch finds 2 CUDA devices"),
        ("gpu", "expected auto, cpu, cuda or cuda:<number>"),
        ("meta", "expected auto, cpu, cuda or cuda:<number>"),
    ):
        with pytest.raises(TetherError, match=message):
            find_device(name)


def test_the_device_is_no_part_of_a_runs_identity() -> None:
    assert TrainingSettings(device="cpu").identity() == TrainingSettings().identity()


def test_moving_to_where_a_graph_is_does_nothing(molecules: list[Atoms]) -> None:
    graph = TinyBackbone().prepare(from_ase(molecules[:3]))
    assert graph.to("cpu") is graph
    assert graph.to(torch.device("cpu")).batch is graph.batch
    moved = graph.to("meta")
    # What would have to be waited for there is known: asking a meta tensor would be an error.
    assert (moved.batch.is_periodic, moved.batch.is_charged) == (False, False)
    assert moved.batch.complete == graph.batch.complete
    assert {t.device.type for t in (moved.batch.system_idx, moved.edges["pairs"].ptr)} == {"meta"}


@pytest.mark.parametrize("recipe", ["mft-constraint", "probe", "distillation", "noisy-nodes"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_graph_is_brought_to_the_model(
    workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, accumulate: int
) -> None:
    """`Graph.to` marks what it has seen; a backbone in training takes nothing else."""
    plain, seen = Graph.to, set[int]()
    kept: list[Graph] = []  # or an address would be used twice

    def marked(self: Graph, device: Any = None, dtype: Any = None) -> Graph:
        graph = plain(self, device, dtype)
        if dtype is None:
            seen.add(id(graph.batch.numbers))
            kept.append(graph)
        return graph

    forward, missed = TinyBackbone.forward, []

    def checked(self: TinyBackbone, graph: Graph) -> Any:
        if moved and id(graph.batch.numbers) not in seen:
            missed.append(graph)
        return forward(self, graph)

    moved: list[bool] = []
    to = torch.nn.Module.to

    def moving(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        moved.append(True)
        return to(self, *args, **kwargs)

    monkeypatch.setattr(Graph, "to", marked)
    monkeypatch.setattr(TinyBackbone, "forward", checked)
    monkeypatch.setattr(torch.nn.Module, "to", moving)
    settings = TrainingSettings(
        property_steps=4, batch_size=8, validate_every=2, accumulate=accumulate
    )
    adapt(
        *(workspace.inputs(), named_recipe(recipe), settings),
        out=tmp_path / "run",
        backbone=TINY,
        watch_collapse=True,
    )
    assert moved
    assert seen
    assert not missed


def test_fingerprints_come_back_to_the_cpu(molecules: list[Atoms]) -> None:
    prints = fingerprints(TinyBackbone(n_features=16), [from_ase(molecules[:3])])
    assert prints.shape == (3, 16)


def test_workers_share_the_devices(monkeypatch: pytest.MonkeyPatch, workspace: Any) -> None:
    from queue import Queue
    from types import SimpleNamespace

    def jobs(device: str) -> list[Any]:
        return [SimpleNamespace(settings=TrainingSettings(device=device))]

    assert _cuda_devices(jobs("auto")) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _cuda_devices(jobs("auto")) == ["0", "1"]
    assert _cuda_devices(jobs("cpu")) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert _cuda_devices(jobs("auto")) == ["3", "5"]
    monkeypatch.setattr("tether.jobs.end_with_parent", lambda: None)
    places: Any = Queue()
    places.put("5")
    _start_worker(places)
    import os

    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_the_device_is_written_down(workspace: Any, tmp_path: Path) -> None:
    settings = TrainingSettings(property_steps=2, validate_every=2)
    adapt(workspace.inputs(), named_recipe("full"), settings, out=tmp_path, backbone=TINY)
    assert read_json(Run(tmp_path).provenance)["device"] == "cpu"

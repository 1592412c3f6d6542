"""Compiled losses: the plain loss and its gradients, for batches of any size, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.build import molecule

from tether.backbones.so3krates import So3krates, So3kratesConfig
from tether.balance.weighted_sum import WeightedSum
from tether.data.loader import GraphStream
from tether.errors import TetherError
from tether.graph import Graph
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.movement.full import Full
from tether.structures import from_ase
from tether.targets import Target
from tether.tasks.forcefield import ForceFieldTask
from tether.tasks.property import PropertyTask
from tether.testing.tiny import TinyBackbone
from tether.training.compiled import CompiledLoss, can_compile, find_compiler
from tether.training.engine import Trainer
from tether.training.flat import flatten, unflatten
from tether.training.settings import TrainingSettings

# Of Inductor's own imports.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")

NAMES = ["CH3CH2OH", "CH4", "H2O", "C6H6", "CH3OH", "NH3"]


def labelled(backbone: Any, names: list[str], *, missing: int = 0) -> Graph:
    """A graph with a property, energies and forces, all made up; some properties missing."""
    batch = from_ase([molecule(name) for name in names])
    generator = torch.Generator().manual_seed(0)
    gap = torch.randn(batch.n_systems, generator=generator).double()
    gap[:missing] = torch.nan
    forces = torch.randn(batch.n_atoms, 3, generator=generator)
    energy = torch.randn(batch.n_systems, generator=generator).double()
    graph: Graph = backbone.prepare(batch)
    labels = {"gap": gap, "energy": energy}
    return replace(graph, batch=replace(graph.batch, labels=labels, atom_labels={"forces": forces}))


def model_of(backbone: Any) -> AdaptedModel:
    n_features = backbone.spec.n_features
    return AdaptedModel(backbone, [PropertyHead(Target("gap", "eV"), n_features, n_hidden=8)])


def gradients(model: AdaptedModel, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def tasks_of(graph: Graph) -> list[Any]:
    stream = GraphStream(graph, batch_size=graph.n_systems)
    return [PropertyTask(stream), ForceFieldTask(stream, scale=1.5)]


def assert_same(model: AdaptedModel, task: Any, compiled: CompiledLoss, graph: Graph) -> None:
    wanted_loss, loss = task.loss(model, graph), compiled(graph)
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=1e-5)
    # Twice the loss: what comes behind it in a balance reaches the gradients.
    wanted, found = gradients(model, 2 * wanted_loss), gradients(model, 2 * loss)
    assert {n for n, g in wanted.items() if g is None} == {n for n, g in found.items() if g is None}
    for name, gradient in wanted.items():
        if gradient is not None:
            other = found[name]
            assert other is not None
            torch.testing.assert_close(other, gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.fixture
def _plain_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The traced operations as they are: what Inductor makes of them is tested once, below."""
    monkeypatch.setattr(torch, "compile", lambda traced, **_: traced)


def small_so3krates() -> So3krates:
    return So3krates(So3kratesConfig(n_features=16, n_layers=2, n_heads=2, degrees=(1, 2)))


@pytest.mark.usefixtures("_plain_graph")
@pytest.mark.parametrize("make", [TinyBackbone, small_so3krates])
@pytest.mark.parametrize("which", [0, 1])
def test_the_trace_is_right_for_batches_of_any_size(make: Callable[[], Any], which: int) -> None:
    backbone = make()
    graph = labelled(backbone, NAMES)
    model, task = model_of(backbone), tasks_of(graph)[which]
    compiled = CompiledLoss(model, task)
    for names in (NAMES, NAMES[:4], ["C6H6", "C6H6", "H2O"]):
        assert_same(model, task, compiled, labelled(backbone, names))
    assert len(compiled._compiled) == 1


@pytest.mark.usefixtures("_plain_graph")
def test_missing_labels_and_frozen_weights_are_traced_apart() -> None:
    backbone = TinyBackbone()
    graph = labelled(backbone, NAMES)
    model, task = model_of(backbone), tasks_of(graph)[0]
    compiled = CompiledLoss(model, task)
    assert_same(model, task, compiled, graph)
    for missing in (1, 3):
        assert_same(model, task, compiled, labelled(backbone, NAMES, missing=missing))
    assert len(compiled._compiled) == 2
    for parameter in model.block_parameters():
        parameter.requires_grad_(False)
    assert_same(model, task, compiled, graph)
    assert len(compiled._compiled) == 3


def test_inductor_computes_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # What is kept from before may hold conditions on sizes that are no longer made.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    backbone = TinyBackbone(n_layers=1)
    graph = labelled(backbone, NAMES)
    task = tasks_of(graph)[1]
    model = model_of(backbone)
    compiled = CompiledLoss(model, task)
    assert_same(model, task, compiled, graph)
    # Inductor sums otherwise beyond 4096 terms: that is no reason to compile anew.
    with torch._dynamo.config.patch(error_on_recompile=True):
        for names in (NAMES[:3], NAMES[:1], 120 * NAMES):
            assert_same(model, task, compiled, labelled(backbone, names))


@pytest.mark.usefixtures("_plain_graph")
@pytest.mark.parametrize("names", [["C6H6"], ["H", "H"]])
def test_sizes_that_a_compiler_takes_for_constants_are_computed_plainly(names: list[str]) -> None:
    # The last batch of an epoch may have one structure; atoms alone have no pairs.
    backbone = small_so3krates()
    model, task = model_of(backbone), tasks_of(labelled(backbone, NAMES))[0]
    compiled = CompiledLoss(model, task)
    assert_same(model, task, compiled, labelled(backbone, names))
    assert not compiled._compiled


def test_a_compiled_run_resumes_to_the_same_bits(tmp_path: Any) -> None:
    backbone = TinyBackbone()
    graph = labelled(backbone, NAMES)

    def trainer() -> Trainer:
        model = model_of(TinyBackbone())
        task = PropertyTask(GraphStream(graph, batch_size=3))
        return Trainer(
            model,
            [task],
            groups=Full().apply(model),
            balance=WeightedSum({}),
            settings=TrainingSettings(property_steps=4, lr=1e-3, compile=True),
        )

    torch.manual_seed(0)
    whole = trainer()
    start = {name: t.clone() for name, t in whole.model.tensors().items()}
    for _ in range(4):
        whole.step()
    torch.manual_seed(0)
    first = trainer()
    assert all(torch.equal(t, start[name]) for name, t in first.model.tensors().items())
    first.step()
    first.step()
    first.save(tmp_path / "checkpoint")
    second = trainer()
    second.resume(tmp_path / "checkpoint")
    second.step()
    second.step()
    for name, tensor in whole.model.tensors().items():
        assert torch.equal(tensor, second.model.tensors()[name]), name
    assert any(not torch.equal(t, start[name]) for name, t in whole.model.tensors().items())


@pytest.mark.usefixtures("_plain_graph")
def test_labels_without_an_error_can_be_checked() -> None:
    # Pseudo-labels of the model itself: the plain gradient is that of rounding.
    backbone = small_so3krates()
    graph = labelled(backbone, NAMES)
    energy, forces, _ = backbone.energy_forces((leaf := graph.differentiable()), backbone(leaf))
    batch = replace(
        graph.batch,
        labels={"energy": energy.double(), "gap": graph.batch.labels["gap"]},
        atom_labels={"forces": forces.detach()},
    )
    graph = replace(graph, batch=batch)
    loss = CompiledLoss(model_of(backbone), tasks_of(graph)[1])(graph)
    assert loss.item() < 1e-3


def test_wrong_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def miscompiled(traced: Any, **_: Any) -> Any:
        def run(*tensors: torch.Tensor) -> list[torch.Tensor]:
            loss, *found = traced(*tensors)
            return [loss, *(gradient * 1.01 for gradient in found)]

        return run

    monkeypatch.setattr(torch, "compile", miscompiled)
    backbone = TinyBackbone()
    graph = labelled(backbone, NAMES)
    with pytest.raises(TetherError, match=r"compiled property step is wrong.*off by 0\.00"):
        CompiledLoss(model_of(backbone), tasks_of(graph)[0])(graph)


def test_a_backbone_that_looks_at_its_values_is_refused() -> None:
    class Looking(TinyBackbone):
        def forward(self, graph: Graph) -> Any:
            features = super().forward(graph)
            return features if bool(features.node.isfinite().all()) else self(graph)

    backbone = Looking()
    graph = labelled(backbone, NAMES)
    with pytest.raises(TetherError, match="cannot be traced") as error:
        CompiledLoss(model_of(backbone), tasks_of(graph)[0])(graph)
    assert "training.compile=false" in str(error.value)


def test_a_backbone_that_makes_a_number_of_a_size_is_refused() -> None:
    class Counting(TinyBackbone):
        def forward(self, graph: Graph) -> Any:
            features = super().forward(graph)
            return replace(features, node=features.node / len(features.node))

    backbone = Counting()
    graph = labelled(backbone, NAMES)
    with pytest.raises(TetherError, match="size of the first batch"):
        CompiledLoss(model_of(backbone), tasks_of(graph)[0])(graph)


def test_only_a_loss_without_noise_or_teacher_is_compiled() -> None:
    class Noisy:
        name = "denoising"

    property_task, forcefield_task = tasks_of(labelled(TinyBackbone(), NAMES))
    assert can_compile(property_task)
    assert can_compile(forcefield_task)
    assert not can_compile(Noisy())  # type: ignore[arg-type]


def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_compiler()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(TetherError, match=r"no C\+\+ compiler"):
        find_compiler()


def test_a_graph_comes_back_from_its_tensors() -> None:
    graph = labelled(TinyBackbone(), NAMES)
    tensors, like = flatten(graph, ["gap"])
    again = unflatten(tensors, like)
    assert all(torch.equal(a, b) for a, b in zip(flatten(again, ["gap"])[0], tensors, strict=True))
    assert flatten(again, ["gap"])[1] == like
    partly = labelled(TinyBackbone(), NAMES, missing=1)
    assert flatten(partly, ["gap"])[1] != like
    # What is no target may come and go without another compilation.
    assert flatten(partly, ["energy"])[1] == flatten(graph, ["energy"])[1]

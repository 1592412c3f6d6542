"""Pretraining: objectives, data sets with heads of their own, checkpoints, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from tether.adapt import adapt
from tether.backbones.load import load_backbone
from tether.balance.faded import Faded
from tether.cli.main import main
from tether.corpus import open_corpus
from tether.data.chunks import Chunk
from tether.data.loader import GraphStream
from tether.data.store import Store, write_store
from tether.drift.comparison import measure_collapse
from tether.errors import TetherError
from tether.graph import Graph
from tether.heads.pair import PairHead
from tether.inputs import BackboneChoice, HeadChoice
from tether.model import AdaptedModel
from tether.movement.full import Full
from tether.objective import DataSet, Objective, PretrainInputs, batch_shares
from tether.predict import load_run
from tether.pretrain import check_pretraining, pretrain
from tether.pretrain_config import load_pretrain_config
from tether.recipe import named_recipe
from tether.report.read import read_comparison
from tether.run import Run
from tether.serialization import load_tensors, read_json, save_tensors
from tether.structures import from_ase
from tether.targets import Target
from tether.tasks.denoising import DenoisingTask, NoisyStream
from tether.testing.tiny import TinyBackbone
from tether.training.checkpoint import Progress
from tether.training.engine import Trainer
from tether.training.log import read_log
from tether.training.settings import TrainingSettings

CHOICE = BackboneChoice("tiny", {"n_features": 16})
SETTINGS = TrainingSettings(property_steps=12, batch_size=8, lr=3e-3, validate_every=4)
KINDS = ("denoising", "forcefield", "hybrid")


def inputs(workspace: Any, *more: DataSet, **others: Any) -> PretrainInputs:
    return PretrainInputs((DataSet(workspace.auxiliary), *more), **others)


def run(workspace: Any, out: Path, objective: Objective, **changes: Any) -> Run:
    arguments: dict[str, Any] = {"out": out, "backbone": CHOICE, **changes}
    given = arguments.pop("inputs", inputs(workspace, test=workspace.held_out))
    return pretrain(given, objective, arguments.pop("settings", SETTINGS), **arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_gives_a_backbone_that_is_the_one_it_trained(
    workspace: Any, tmp_path: Path, kind: Any
) -> None:
    done = run(workspace, tmp_path / "made", Objective(kind), licence="MIT")
    loaded = load_backbone(str(done.folder / "backbone.safetensors"))
    assert (loaded.spec.name, loaded.spec.licence) == ("made", "MIT")
    assert loaded.spec.elements == (1, 6, 7, 8)
    best = load_tensors(done.weights)
    of_backbone = {n[9:]: t for n, t in best.items() if n.startswith("backbone.")}
    assert isinstance(loaded, torch.nn.Module)
    own = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    assert own.keys() == of_backbone.keys()
    assert all(torch.equal(own[name], of_backbone[name]) for name in own)
    fresh = TinyBackbone(n_features=16)
    assert not torch.equal(own["interactions.0.filter.weight"], fresh.interactions[0].filter.weight)
    errors = read_json(done.metrics)["errors"]
    measures = set(errors["test"])
    assert ("force_mae" in measures) == (kind != "denoising")
    assert ("denoising" in measures) == (kind != "forcefield")
    assert read_json(done.metrics)["level_of_theory"] == (
        "none" if kind == "denoising" else "unknown"
    )
    card = (done.folder / "card.md").read_text()
    assert "H C N O" in card
    assert "licence of the weights: MIT" in card
    for refuse in (read_comparison, measure_collapse, load_run):
        with pytest.raises(TetherError, match=r"holds a pretraining; .* are in .*made/card\.md"):
            refuse(done.folder)


def test_the_force_field_is_learnt(workspace: Any, tmp_path: Path) -> None:
    longer = replace(SETTINGS, property_steps=150, validate_every=50)
    done = run(workspace, tmp_path / "run", Objective(), settings=longer)
    errors = read_json(done.metrics)["errors"]
    # The labels of the test set come from another network, with another energy of each element.
    forces = Store.open(workspace.held_out).label("forces")
    assert errors["test"]["force_mae"] < 0.8 * float(np.abs(forces).mean())
    assert errors["test"]["energy_mae_per_atom"] < 0.2


def test_a_killed_run_continues_to_the_same_bits(workspace: Any, tmp_path: Path) -> None:
    objective = Objective("hybrid", conditioned=True, fade_by=0.7)
    whole = run(workspace, tmp_path / "whole", objective)

    def kill(progress: Progress) -> None:
        if progress.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(workspace, tmp_path / "killed", objective, report=kill)
    written = load_pretrain_config(tmp_path / "killed" / "config.yaml")
    assert (written.checked_objective(), written.settings()) == (objective, SETTINGS)
    assert written.inputs().datasets == (DataSet(workspace.auxiliary),)
    again = run(workspace, tmp_path / "killed", objective)
    first, second = load_tensors(whole.weights), load_tensors(again.weights)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = run(workspace, tmp_path / "other", objective, seed=1)
    third = load_tensors(other.weights)
    assert not torch.equal(first["backbone.energy_out.weight"], third["backbone.energy_out.weight"])
    with pytest.raises(TetherError, match="holds a run with other objective"):
        run(workspace, tmp_path / "killed", Objective())


def shifted_store(path: Path, workspace: Any) -> Path:
    """The same structures at another level: forces half as large, energies of other elements."""
    store = Store.open(workspace.auxiliary)
    batch = store.batch(range(store.n_systems))
    energy = 0.5 * batch.labels["energy"] - 1000.0 * batch.counts
    other = replace(
        batch,
        labels={"energy": energy},
        atom_labels={"forces": 0.5 * batch.atom_labels["forces"]},
    )
    targets = [
        Target("energy", unit="eV", kind="extensive"),
        Target("forces", unit="eV/Å", level="atom", kind="vector", n_components=3),
    ]
    write_store(path, [Chunk(other, ("b",) * len(store))], targets)
    return path


def test_one_process_trains_in_a_folder(workspace: Any, tmp_path: Path) -> None:
    with (
        Run(tmp_path / "run").held(),
        pytest.raises(TetherError, match=r"another process is training in .*run"),
    ):
        run(workspace, tmp_path / "run", Objective())
    assert run(workspace, tmp_path / "run", Objective()).is_complete


def test_each_level_of_theory_has_a_head_of_its_own(workspace: Any, tmp_path: Path) -> None:
    second = DataSet(shifted_store(tmp_path / "b.arrow", workspace), weight=2.0)
    both = inputs(workspace, second)
    done = run(workspace, tmp_path / "run", Objective("hybrid"), inputs=both)
    logged = run_log_losses(done, tmp_path, workspace, both)
    names = {"forcefield/auxiliary", "denoising/auxiliary", "forcefield/b", "denoising/b"}
    assert logged == names
    kept = load_tensors(done.weights)
    assert float(kept["potentials.b.scale"]) > 0.0
    assert not any(name.startswith("potentials.auxiliary") for name in kept)
    # The first set's potential does not know the other's energies, 1,000 eV an atom away.
    for part in read_json(done.metrics)["errors"].values():
        assert part["energy_mae_per_atom"] < 1.0


def run_log_losses(done: Run, tmp_path: Path, workspace: Any, both: PretrainInputs) -> set[str]:
    longer = replace(SETTINGS, property_steps=26, validate_every=26)
    run(workspace, tmp_path / "long", Objective("hybrid"), inputs=both, settings=longer)
    events = read_log(tmp_path / "long" / done.log.name)
    return {name for e in events if e["event"] == "train" for name in e["losses"]}


def test_direct_forces_leave_no_potential(workspace: Any, tmp_path: Path) -> None:
    done = run(workspace, tmp_path / "run", Objective(forces="direct"))
    assert read_json(done.metrics)["level_of_theory"] == "none"
    kept = load_tensors(done.weights)
    assert any(name.startswith("potentials.auxiliary.direct") for name in kept)
    fresh = TinyBackbone(n_features=16)
    assert torch.equal(kept["backbone.energy_out.weight"], fresh.energy_out.weight)


@pytest.mark.parametrize("recipe", ["full", "mft", "probe"])
def test_a_pretrained_backbone_is_adapted(workspace: Any, tmp_path: Path, recipe: str) -> None:
    made = run(workspace, tmp_path / "made", Objective())
    path = str(made.folder / "backbone.safetensors")
    arguments: dict[str, Any] = {"backbone": BackboneChoice(path), "head": HeadChoice(n_hidden=8)}
    done = adapt(
        workspace.inputs(), named_recipe(recipe), SETTINGS, out=tmp_path / recipe, **arguments
    )
    forgetting = read_json(done.metrics)["forgetting"]
    wanted = read_json(made.metrics)["errors"]["test"]["force_mae"]
    assert forgetting["before"]["force_mae"] == pytest.approx(wanted, rel=1e-5)
    # Other weights under the same path are another run.
    run(workspace, tmp_path / "other", Objective(), seed=1)
    Path(path).write_bytes((tmp_path / "other" / "backbone.safetensors").read_bytes())
    with pytest.raises(TetherError, match="holds a run with other backbone"):
        adapt(workspace.inputs(), named_recipe(recipe), SETTINGS, out=done.folder, **arguments)


def test_pretraining_goes_on_from_a_checkpoint(workspace: Any, tmp_path: Path) -> None:
    first = run(workspace, tmp_path / "first", Objective())
    path = str(first.folder / "backbone.safetensors")
    gentle = replace(SETTINGS, lr=1e-9)
    arguments: dict[str, Any] = {"settings": gentle, "backbone": BackboneChoice(path)}
    second = run(workspace, tmp_path / "second", Objective(), weights="pretrained", **arguments)
    errors = [read_json(one.metrics)["errors"]["test"] for one in (first, second)]
    assert errors[1]["force_mae"] == pytest.approx(errors[0]["force_mae"], rel=1e-3)
    loaded = load_backbone(str(second.folder / "backbone.safetensors"))
    assert isinstance(loaded, TinyBackbone)
    fresh = run(workspace, tmp_path / "fresh", Objective(), **arguments)  # of the same size
    assert read_json(fresh.metrics)["errors"]["test"]["force_mae"] > 1.1 * errors[0]["force_mae"]


def test_random_weights_of_a_checkpoints_size(workspace: Any, tmp_path: Path) -> None:
    made = run(workspace, tmp_path / "made", Objective())
    path = str(made.folder / "backbone.safetensors")
    scratch = load_backbone(path, weights="random", seed=3)
    assert scratch.spec.level_of_theory == "none"
    assert isinstance(scratch, TinyBackbone)
    assert torch.equal(
        scratch.energy_out.weight, TinyBackbone(n_features=16, seed=3).energy_out.weight
    )
    with pytest.raises(TetherError, match="these weights have one size"):
        load_backbone(path, options={"n_features": 8})
    save_tensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(TetherError, match="expected tether backbone 1"):
        load_backbone(str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize("charge", [0.0, 1.0])
def test_weights_hear_the_charges_that_their_data_had(
    workspace: Any, tmp_path: Path, charge: float
) -> None:
    pytest.importorskip("torchmdnet", reason="the extra tensornet is not installed")
    store = Store.open(workspace.auxiliary)
    batch = store.batch(range(store.n_systems))
    labelled = replace(batch, charge=torch.full_like(batch.charge, charge))
    chunk = Chunk(labelled, ("ions",) * len(store))
    write_store(tmp_path / "ions.arrow", [chunk], list(store.targets.values()))
    small = {"n_features": 4, "n_layers": 1, "n_radial": 4}
    made = pretrain(
        PretrainInputs((DataSet(tmp_path / "ions.arrow"),)),
        Objective("denoising"),
        TrainingSettings(property_steps=1, batch_size=2, validate_every=1),
        out=tmp_path / "run",
        backbone=BackboneChoice("tensornet", small),
    )
    backbone = load_backbone(str(made.folder / "backbone.safetensors"))
    assert (backbone.spec.charge, backbone.spec.spin) == (charge > 0, False)
    ion = labelled.select([0])
    if charge:
        assert backbone.prepare(ion).n_systems == 1
    ion = replace(ion, charge=torch.ones_like(ion.charge), ids=("ion",))
    if not charge:
        with pytest.raises(TetherError, match="does not know a charge, found in structure `ion`"):
            backbone.prepare(ion)


def test_weights_fade_and_the_task_goes() -> None:
    weight = torch.nn.Parameter(torch.ones(()))
    balance = Faded({"forcefield": 1.0, "denoising": 0.5}, {"denoising": 10})
    for step, wanted in ((0, 1.5), (5, 1.25), (9, 1.05), (10, 1.0), (50, 1.0)):
        weight.grad = None
        chosen = balance.choose(step, ["forcefield", "denoising"])
        balance.backward({name: weight + 0.0 * len(name) for name in chosen})
        assert weight.grad is not None
        assert float(weight.grad) == pytest.approx(wanted)
        assert ("denoising" in chosen) == (step < 10)


@pytest.mark.parametrize(
    ("sizes", "batch_size", "temperature", "shares"),
    [
        ([90_000, 10_000], 32, 1.0, [29, 3]),
        ([90_000, 10_000], 32, 2.0, [24, 8]),
        ([90_000, 10_000], 32, 1e6, [16, 16]),
        ([10**6, 1, 1], 4, 1.0, [2, 1, 1]),
        ([7], 5, 1.0, [5]),
    ],
)
def test_shares_of_a_batch(
    sizes: list[int], batch_size: int, temperature: float, shares: list[int]
) -> None:
    assert batch_shares(sizes, batch_size=batch_size, temperature=temperature) == shares


def test_cells_are_strained_and_molecules_are_not(molecules: list[Atoms]) -> None:
    backbone = TinyBackbone(n_features=16)
    frames = [bulk("NaCl", "rocksalt", 5.6, cubic=True), molecules[0], bulk("Si")]
    graph = backbone.prepare(from_ase(frames))
    stream = NoisyStream(GraphStream(graph, batch_size=3), (1e-7,), seed=2, strain=0.1)
    rest, moved = stream.stream.batch(0).batch, stream.batch(0).batch
    noise = moved.labels["cell_noise"]
    is_cell = rest.pbc.any(dim=1)
    assert not noise[~is_cell].any()
    assert float(noise[is_cell].abs().min()) > 0.0
    stretch = torch.eye(3) + 0.1 * noise
    torch.testing.assert_close(moved.cell, rest.cell @ stretch)
    torch.testing.assert_close(noise, noise.transpose(1, 2))
    for s in torch.nonzero(is_cell).flatten().tolist():  # atoms follow their cell
        atoms = slice(int(rest.ptr[s]), int(rest.ptr[s + 1]))
        torch.testing.assert_close(moved.positions[atoms], rest.positions[atoms] @ stretch[s])
    many = torch.cat([stream.batch(k).batch.labels["cell_noise"] for k in range(300)])
    of_cells = many[many.flatten(1).any(dim=1)]
    torch.testing.assert_close(of_cells.square().mean(0), torch.ones(3, 3), rtol=0.2, atol=0.0)
    model = AdaptedModel(backbone, [], PairHead(16, cutoff=4.0))
    assert isinstance(model.denoising, PairHead)
    task = DenoisingTask(stream, model.denoising)
    task.loss(model, stream.batch(0)).backward()
    assert float(model.denoising.weights.weight.grad[1].abs().max()) > 0.0


def test_each_structure_has_one_of_the_scales(molecules: list[Atoms]) -> None:
    graph = TinyBackbone(n_features=16).prepare(from_ase(molecules))
    stream = NoisyStream(GraphStream(graph, batch_size=36), (0.01, 0.2))
    rest, moved = stream.stream.batch(0).batch, stream.batch(0).batch
    ratio = (moved.positions - rest.positions) / moved.atom_labels["noise"]
    found = [ratio[rest.system_idx == s].median() for s in range(36)]
    assert {round(float(value), 3) for value in found} == {0.01, 0.2}


def off_equilibrium(n: int, *, seed: int) -> Graph:
    """Dimers that are stretched at random, with the forces of one spring."""
    stretch = 0.3 * np.random.default_rng(seed).uniform(-1.0, 1.0, size=n)
    frames = [Atoms("OO", [[0, 0, 0], [0, 0, 1.5 + each]]) for each in stretch]
    pull = np.zeros((n, 2, 3))
    pull[:, 0, 2], pull[:, 1, 2] = stretch, -stretch
    batch = from_ase(frames, atom_labels={"forces": 5.0 * pull.reshape(-1, 3)})
    return TinyBackbone(n_features=16).prepare(batch)


def test_forces_tell_where_an_atom_off_equilibrium_came_from() -> None:
    """Without them, a stretched bond may be noise or not: half of the noise stays unknown."""

    def learnt(*, conditioned: bool) -> float:
        head = PairHead(16, cutoff=4.0, conditioned=conditioned)
        model = AdaptedModel(TinyBackbone(n_features=16), [], head)
        stream = NoisyStream(GraphStream(off_equilibrium(256, seed=0), batch_size=32), (0.1,))
        task = DenoisingTask(stream, head)
        settings = TrainingSettings(property_steps=250, lr=5e-3)
        trainer = Trainer(
            *(model, [task]),
            groups=Full().apply(model),
            balance=Faded({"denoising": 1.0}, {}),
            settings=settings,
        )
        for _ in range(settings.property_steps):
            trainer.step()
        unseen = GraphStream(off_equilibrium(256, seed=1), batch_size=256)
        judged = replace(stream, stream=unseen, seed=5)
        along = judged.batch(0)
        # Along the bond: how it is turned away cannot be known of two atoms.
        with torch.no_grad():
            forces = along.batch.atom_labels["forces"].float() if conditioned else None
            predicted, _ = head(model.features(along), along.batch, forces)
        bond = along.batch.positions[1::2] - along.batch.positions[::2]
        unit = bond / bond.norm(dim=1, keepdim=True)
        noise = along.batch.atom_labels["noise"]
        error = ((predicted - noise)[1::2] * unit).sum(1)
        return float(error.square().mean() / (noise[1::2] * unit).sum(1).square().mean())

    told, untold = learnt(conditioned=True), learnt(conditioned=False)
    assert told < 0.3
    assert untold > 0.5


def test_a_large_set_is_streamed_to_the_same_weights(
    workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(workspace, validation=workspace.held_out)
    objective = Objective("hybrid", conditioned=True)
    held = run(workspace, tmp_path / "held", objective, inputs=given)
    monkeypatch.setattr("tether.corpus.STREAMED_FROM", 10)
    with pytest.raises(TetherError, match="there is no validation set"):
        run(workspace, tmp_path / "other", objective)
    monkeypatch.setattr("tether.corpus.GraphStream", None)  # nothing is held in memory
    streamed = run(workspace, tmp_path / "streamed", objective, inputs=given)
    first, second = load_tensors(held.weights), load_tensors(streamed.weights)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_sample_of_a_streamed_set_has_every_element(
    workspace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tether.corpus.STREAMED_FROM", 10)
    monkeypatch.setattr("tether.corpus.N_SAMPLED", 2)
    store = Store.open(workspace.auxiliary)
    backbone = TinyBackbone(n_features=16)
    corpus = open_corpus(DataSet(workspace.auxiliary), store, backbone.prepare)
    assert 2 <= corpus.sample.n_systems <= 6
    assert set(corpus.sample.batch.numbers.tolist()) == set(store.numbers_flat.tolist())


def without_forces(path: Path) -> Path:
    batch = from_ase([Atoms(f"H{n}", [[0, 0, 0.7 * k] for k in range(n)]) for n in range(2, 32)])
    write_store(path, [Chunk(replace(batch, ids=tuple(map(str, range(30)))), ("x",) * 30)], [])
    return path


def test_bad_input_is_refused_and_nothing_written(workspace: Any, tmp_path: Path) -> None:
    bare = DataSet(without_forces(tmp_path / "bare.arrow"))
    twice = PretrainInputs((DataSet(workspace.auxiliary), DataSet(workspace.auxiliary)))
    crowd = PretrainInputs(tuple(DataSet(workspace.auxiliary, name=f"s{k}") for k in range(9)))
    cases = [
        (PretrainInputs((bare,)), Objective(), "lack 'forces'"),
        (PretrainInputs((bare,)), Objective("denoising", conditioned=True), "lack 'forces'"),
        (twice, Objective(), "a name of its own"),
        (crowd, Objective(), "`training.batch_size` is 8 for 9 data sets"),
        (PretrainInputs((DataSet(tmp_path / "no.arrow"),)), Objective(), "no.arrow"),
    ]
    for given, objective, message in cases:
        for call in (pretrain, check_pretraining):
            with pytest.raises(TetherError, match=message):
                call(given, objective, SETTINGS, out=tmp_path / "out", backbone=CHOICE)
    assert not (tmp_path / "out").exists()
    # Structures alone are enough to denoise.
    check_pretraining(
        PretrainInputs((bare,)), Objective("denoising"), SETTINGS, out=tmp_path, backbone=CHOICE
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scales": ()}, "`scales` of the objective is empty"),
        ({"scales": (0.1, -1.0)}, r"`scales\[1\]` of the objective is -1"),
        ({"fade_by": 1.5}, "`fade_by` of the objective is 1.5"),
        ({"strain": 0.6}, "`strain` of the objective is 0.6"),
        ({"temperature": 0.0}, "`temperature` of the objective is 0"),
    ],
)
def test_an_objective_that_makes_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TetherError, match=message):
        Objective(**fields)


def test_the_command_line(
    workspace: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "pretrain.yaml"
    config.write_text(
        f"datasets: [{{store: {workspace.auxiliary}, name: made}}]\n"
        "backbone: {name: tiny, options: {n_features: 16}}\n"
        "objective: {kind: hybrid, scales: [0.02, 0.1]}\n"
        "training: {steps: 4, batch_size: 8, validate_every: 2}\n"
    )
    out = tmp_path / "run"
    main(["pretrain", "--config", str(config), "--out", str(out), "--dry-run"])
    assert not out.exists()
    capsys.readouterr()
    main(["pretrain", "--config", str(config), "--out", str(out), "--json", "seed=3"])
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["n_steps"] == 4
    assert load_pretrain_config(out / "config.yaml").seed == 3
    main(["pretrain", "--config", str(config), "--out", str(out), "seed=3"])
    assert "backbone.safetensors" in capsys.readouterr().out
    for change, message in (
        ("training.property_steps=3", "expected steps"),
        ("objective.kind=denoise", "denoise"),
        ("datasets=[{stroe: x}]", "stroe"),
    ):
        with pytest.raises(SystemExit):
            main(["pretrain", "--config", str(config), "--out", str(out), change])
        assert message in capsys.readouterr().err.replace("\n", " ")

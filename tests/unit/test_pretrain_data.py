"""Data of a pretraining: what is held out together, labels checked first, sets side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from tether.corpus import hold_out
from tether.data.chunks import ENERGY, FORCES, Chunk
from tether.data.store import Store, write_store
from tether.errors import TetherError
from tether.heads.pair import PairHead
from tether.inputs import BackboneChoice
from tether.objective import DataSet, Objective, PretrainInputs
from tether.pretrain import VALIDATION_SEED, _denoising_error, check_pretraining, pretrain
from tether.pretrain_parts import Prepared, PretrainRequest, prepare_pretraining
from tether.serialization import read_json
from tether.structures import AtomBatch, from_ase
from tether.tasks.denoising import DenoisingTask
from tether.training.ranks import Ranks
from tether.training.settings import TrainingSettings

CHOICE = BackboneChoice("tiny", {"n_features": 16})
SETTINGS = TrainingSettings(property_steps=4, batch_size=8, lr=3e-3, validate_every=2)


def prepared(*datasets: DataSet, objective: Objective | None = None, **others: Any) -> Prepared:
    inputs = PretrainInputs(datasets, **others)
    asked = objective or Objective()
    request = PretrainRequest(inputs, asked, SETTINGS, 0, CHOICE, "random", "none")
    return prepare_pretraining(request, Ranks())


def named(path: Path, frames: list[Atoms], ids: list[str]) -> Store:
    write_store(path, [Chunk(from_ase(frames, ids=ids), ("here",) * len(ids))], [])
    return Store.open(path)


def edited(path: Path, workspace: Any, **changes: Any) -> Path:
    """The held-out set with other energies or forces; None takes a label away."""
    store = Store.open(workspace.held_out)
    batch = store.batch(range(len(store)))
    labels = {"energy": changes.get("energy", batch.labels["energy"])}
    forces = changes.get("forces", batch.atom_labels["forces"])
    atom_labels = {} if forces is None else {"forces": forces}
    targets = [ENERGY] if forces is None else [ENERGY, FORCES]
    changed = replace(batch, labels=labels, atom_labels=atom_labels)
    write_store(path, [Chunk(changed, ("here",) * len(store))], targets)
    return path


def with_nan(path: Path, workspace: Any, row: int) -> Path:
    store = Store.open(workspace.held_out)
    batch = store.batch(range(len(store)))
    forces = batch.atom_labels["forces"].clone()
    forces[int(batch.ptr[row + 1]) - 1, 2] = torch.nan
    return edited(path, workspace, forces=forces)


@pytest.mark.parametrize("suffix", ["", "/displace-1"])
def test_conformations_of_a_molecule_are_held_out_together(
    molecules: list[Atoms], tmp_path: Path, suffix: str
) -> None:
    """Ids as of `read_hdf5`, and of geometries made of them."""
    frames = [molecules[m] for m in range(36) for _ in range(5)]
    store = named(
        tmp_path / "s.arrow", frames, [f"ani:m{m}:{k}{suffix}" for m in range(36) for k in range(5)]
    )
    train, held = hold_out(store, seed=0)
    assert sorted([*train, *held]) == list(range(180))
    sides = [{name.split(":")[1] for name in store.ids[rows].tolist()} for rows in (train, held)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) >= 8
    if not suffix:  # other names of a molecule would not help
        of = [{tuple(np.sort(frames[row].numbers)) for row in rows} for rows in (train, held)]
        assert not of[0] & of[1]


def test_a_folder_in_an_id_makes_no_family(molecules: list[Atoms], tmp_path: Path) -> None:
    store = named(tmp_path / "s.arrow", molecules, [f"set/mol-{k}" for k in range(36)])
    train, held = hold_out(store, seed=0)
    assert 8 <= len(held) < len(train)


def test_geometries_made_here_stay_with_their_structure(
    molecules: list[Atoms], tmp_path: Path
) -> None:
    kinds = ("displace-0", "strain-11", "modes-0", "md-3", "input-0", "md-0/displace-2")
    ids = [f"a/qm9:{m}/{kind}" for m in range(36) for kind in kinds]
    store = named(tmp_path / "s.arrow", [a for a in molecules for _ in kinds], ids)
    _, held = hold_out(store, seed=3)
    names = np.unique([f"a/qm9:{m}" for m in range(36)])
    chosen = set(names[np.random.default_rng([3]).permutation(36)[:8]].tolist())
    assert {"/".join(one.split("/")[:2]) for one in store.ids[held].tolist()} == chosen
    assert len(held) == 8 * len(kinds)


def test_a_trajectory_of_one_molecule_needs_a_validation_set(
    molecules: list[Atoms], tmp_path: Path
) -> None:
    store = named(tmp_path / "s.arrow", [molecules[3]] * 50, [f"run:{k}" for k in range(50)])
    with pytest.raises(TetherError, match=r"1 molecules or compositions: .* 0 of 50 .*validation"):
        hold_out(store, seed=0)


@pytest.mark.parametrize("which", ["validation", "test"])
def test_labels_to_judge_by_are_checked_first(workspace: Any, tmp_path: Path, which: str) -> None:
    lacking = edited(tmp_path / "lacking.arrow", workspace, forces=None)
    holed = with_nan(tmp_path / "holed.arrow", workspace, 7)
    energy = torch.full((36,), torch.inf, dtype=torch.float64)
    endless = edited(tmp_path / "endless.arrow", workspace, energy=energy)
    conditioned = Objective("denoising", conditioned=True)
    for path, message, objective in (
        (
            lacking,
            "36 of 36 .* in .*lacking.arrow, the first '0', lack 'forces'",
            Objective(),
        ),
        (holed, "1 of 36 .* in .*holed.arrow, the first '7', lack 'forces'", Objective()),
        (holed, "the first '7', lack 'forces'", conditioned),
        (endless, "the first '0', lack 'energy'", Objective()),
    ):
        given = PretrainInputs((DataSet(workspace.auxiliary),), **{which: path})
        for call in (pretrain, check_pretraining):
            with pytest.raises(TetherError, match=message):
                call(given, objective, SETTINGS, out=tmp_path / "run", backbone=CHOICE)
        assert not (tmp_path / "run").exists()
        check_pretraining(
            given, Objective("denoising"), SETTINGS, out=tmp_path / "run", backbone=CHOICE
        )


def test_every_label_of_a_streamed_or_held_out_structure_is_checked(
    workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = DataSet(edited(tmp_path / "plain.arrow", workspace))
    held = int(hold_out(Store.open(plain.store), seed=0)[1][0])
    holed = DataSet(with_nan(tmp_path / "held.arrow", workspace, held))
    with pytest.raises(TetherError, match=f"the first '{held}', lack 'forces'"):
        prepared(holed)
    monkeypatch.setattr("tether.corpus.STREAMED_FROM", 10)
    monkeypatch.setattr("tether.corpus.N_SAMPLED", 2)
    holed = DataSet(with_nan(tmp_path / "holed.arrow", workspace, 17))
    with pytest.raises(TetherError, match="the first '17', lack 'forces'"):
        prepared(holed, validation=workspace.held_out)


def total_energies(batch: AtomBatch) -> torch.Tensor:
    table = torch.zeros(119, dtype=torch.float64)
    table[[1, 6, 7, 8]] = torch.tensor([-13.6, -1030.0, -1485.0, -2041.0]).double()
    shift = torch.zeros(batch.n_systems, dtype=torch.float64)
    return batch.labels["energy"] + shift.index_add(0, batch.system_idx, table[batch.numbers])


def test_an_element_that_no_training_structure_has_counts_in_no_energy_error(
    workspace: Any, tmp_path: Path
) -> None:
    store = Store.open(workspace.held_out)
    batch = store.batch(range(len(store)))
    has_oxygen = torch.from_numpy(store.composition([8])[:, 0] > 0)
    moved = replace(batch, labels={"energy": total_energies(batch)})
    for name, rows in (("train", torch.nonzero(~has_oxygen).flatten()), ("all", torch.arange(36))):
        chunk = Chunk(moved.select(rows), ("here",) * len(rows))
        write_store(tmp_path / f"{name}.arrow", [chunk], [ENERGY, FORCES])
    data, test = DataSet(tmp_path / "train.arrow"), tmp_path / "all.arrow"
    given = PretrainInputs((data,), validation=data.store, test=test)
    done = pretrain(given, Objective(), SETTINGS, out=tmp_path / "run", backbone=CHOICE)
    errors = read_json(done.metrics)["errors"]
    assert errors["test"]["n_energies"] == int((~has_oxygen).sum())
    assert errors["test"]["energy_mae_per_atom"] < 1.0
    assert "n_energies" not in errors["validation"]
    assert "n_energies" in (done.folder / "card.md").read_text()


def test_what_is_held_out_is_so_from_every_set_of_its_store(workspace: Any) -> None:
    ready = prepared(*(DataSet(workspace.auxiliary, name=name) for name in "ab"))
    held = set(ready.watched["validation"].batch.ids)
    for part in ready.parts:
        assert not held & set(part.corpus.sample.batch.ids)
        assert part.corpus.sample.n_systems == 36 - len(held)


@pytest.mark.parametrize("name", ["spice.v2", "keys"])
def test_a_name_that_no_head_can_have(workspace: Any, name: str) -> None:
    first, second = DataSet(workspace.auxiliary), DataSet(workspace.held_out, name=name)
    with pytest.raises(TetherError, match=f"data set name '{name}'.*with a head"):
        prepared(first, second)
    with pytest.raises(TetherError, match=f"data set name '{name}'"):
        prepared(second, objective=Objective(forces="direct"))
    prepared(second)  # the backbone's own head has no name
    prepared(first, second, objective=Objective("denoising"))


def test_a_lone_last_structure_weighs_as_its_atoms(workspace: Any, molecules: list[Atoms]) -> None:
    ready = prepared(DataSet(workspace.auxiliary), objective=Objective("denoising", scales=(0.05,)))
    (task,) = ready.tasks
    assert isinstance(task, DenoisingTask)
    graph = ready.model.backbone.prepare(from_ase([*molecules, *molecules][:65]))

    seen: list[tuple[int, float]] = []

    class Spy(DenoisingTask):
        def loss(self, model: Any, graph: Any, counts: Any = None) -> Any:
            found = super().loss(model, graph, counts)
            seen.append((graph.batch.n_atoms, float(found)))
            return found

    spy = Spy(task.stream, task.head)
    reported = _denoising_error(ready.model, spy, graph)
    n_atoms, losses = np.array(seen).T
    assert len(seen) == 8
    assert n_atoms.sum() == 4 * graph.batch.n_atoms
    assert reported == pytest.approx(np.average(losses, weights=n_atoms), rel=1e-12)
    assert reported != pytest.approx(losses.mean(), rel=1e-3)
    assert task.stream.seed != VALIDATION_SEED


def test_data_sets_have_orders_and_noise_of_their_own(workspace: Any) -> None:
    """The first one has those that it would have alone."""
    first, second = DataSet(workspace.auxiliary), DataSet(workspace.held_out)
    objective = Objective("hybrid")
    shared = {"objective": objective, "validation": workspace.held_out}
    both = {task.name: task.stream for task in prepared(first, second, **shared).tasks}
    alone = {task.name: task.stream for task in prepared(first, **shared).tasks}
    one, other = both["forcefield/auxiliary"], both["forcefield/held_out"]
    assert [a.indices(0).tolist() for a in (one, other)] != [one.indices(0).tolist()] * 2
    noise = [both[f"denoising/{name}"].seed for name in ("auxiliary", "held_out")]
    assert noise[0] == alone["denoising"].seed == 0
    assert noise[1] != noise[0]


def test_heads_of_forces_and_noise_do_not_start_as_twins(workspace: Any) -> None:
    def heads(objective: Objective) -> dict[str, dict[str, torch.Tensor]]:
        model = prepared(DataSet(workspace.auxiliary), objective=objective).model
        found = {"forces": model.potentials["auxiliary"].direct} if model.potentials else {}
        found |= {"noise": model.denoising} if model.denoising else {}
        return {name: head.state_dict() for name, head in found.items()}

    both = heads(Objective("hybrid", forces="direct"))
    drawn = [n for n, tensor in both["forces"].items() if tensor.ndim == 2 and tensor.any()]
    assert drawn
    assert not any(torch.equal(both["forces"][name], both["noise"][name]) for name in drawn)
    # Each alone is what it was.
    fresh = PairHead(16, cutoff=4.0, seed=0).state_dict()
    alone = heads(Objective(forces="direct")) | heads(Objective("denoising"))
    for name in drawn:
        assert torch.equal(alone["forces"][name], fresh[name])
        assert torch.equal(alone["noise"][name], fresh[name])

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.morse import MorsePotential
from torch import Tensor, nn

from tether.cli.label import label_command
from tether.data.chunks import Chunk
from tether.data.store import Store, write_store
from tether.errors import TetherError
from tether.features import Features
from tether.graph import Graph, neighbour_edges
from tether.heads.derivative import forces_stress
from tether.labels.failure import Failure
from tether.labels.label import LabelReport, Sampling, label_structures
from tether.labels.pseudo import potential_calculator, pseudo_label
from tether.labels.shards import chunk_key, open_parts, pack_shard, read_shard, write_shard
from tether.labels.worker import with_labels
from tether.labels.xtb import XtbLabel, xtb_calculator, xtb_label
from tether.structures import AtomBatch, collate, from_ase, to_ase
from tether.testing.tiny import TinyBackbone

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(__file__).parents[2].parent / "shared" / "data"
NAMES = ("H2O", "CH4", "NH3", "C2H4", "CH3OH", "HCN", "CO2", "C2H6")
has_tblite = pytest.mark.skipif(
    find_spec("tblite") is None,
    reason="tblite is not installed (pip install tether[xtb])",
)


def molecules(*names: str) -> AtomBatch:
    return from_ase([molecule(name) for name in names or NAMES], ids=names or NAMES)


class Morse(nn.Module):
    """Pair potential of ASE's MorsePotential (r0 in Å, rho0), in double precision."""

    spec = SimpleNamespace(name="morse", level_of_theory="Morse", to_dict=lambda: {"name": "morse"})

    def __init__(self, poison: int = 0) -> None:
        super().__init__()
        self.depth = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
        self.poison = poison
        self.largest = 0

    def prepare(self, batch: AtomBatch) -> Graph:
        if (batch.numbers == self.poison).any():
            raise TetherError("element X", expected="another", fix="leave it out")
        return Graph(batch, {"pairs": neighbour_edges(batch, 6.0, full=False)})

    def forward(self, graph: Graph) -> Features:
        self.largest = max(self.largest, graph.batch.n_atoms)
        distance = graph.vectors("pairs").norm(dim=1)
        return Features(node=graph.batch.numbers[:, None].double(), edge_distance=distance)

    def energy_forces(
        self, graph: Graph, features: Features, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        assert features.edge_distance is not None
        x = torch.exp(-4.0 * (features.edge_distance / 2.0 - 1.0))
        edges = graph.edges["pairs"]
        pair = self.depth * (x * x - 2.0 * x)
        energy = torch.zeros(graph.n_systems, dtype=pair.dtype)
        energy = energy.index_add(0, graph.batch.system_idx[edges.idx_i], pair)
        forces, stress = forces_stress(energy, graph, create_graph=create_graph)
        return energy, forces, stress


def labels_of(path: Path) -> tuple[AtomBatch, Store]:
    store = Store.open(path)
    return store.batch(range(store.n_systems)), store


# ---------------------------------------------------------------- pseudo-labels


def test_pseudo_labels_are_those_of_the_same_potential_in_ase() -> None:
    batch = collate([molecules(), from_ase(bulk("Ar", a=4.5, cubic=True), ids=["Ar"])])
    labels = pseudo_label(Morse(), batch)
    start = 0
    for s, atoms in enumerate(to_ase(batch)):
        atoms.calc = MorsePotential(epsilon=0.4, r0=2.0, rho0=4.0, rcut1=2.999, rcut2=3.0)
        assert labels.energy[s].item() == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        forces = labels.forces[start : start + len(atoms)].numpy()
        assert np.abs(forces - atoms.get_forces()).max() < 1e-3
        start += len(atoms)
    assert labels.forces.abs().max() > 0.1
    assert not labels.energy.requires_grad
    assert not labels.forces.requires_grad


@pytest.mark.parametrize("max_atoms", [1, 7, 20, 10_000])
def test_slices_do_not_change_labels_and_respect_max_atoms(max_atoms: int) -> None:
    batch, backbone = molecules(), Morse().train()
    seen: list[int] = []
    labels = pseudo_label(backbone, batch, max_atoms=max_atoms, progress=seen.append)
    whole = pseudo_label(Morse(), batch)
    assert torch.allclose(labels.energy, whole.energy, atol=1e-12)
    assert torch.allclose(labels.forces, whole.forces, atol=1e-12)
    assert backbone.largest <= max(max_atoms, int(batch.counts.max()))
    assert seen[-1] == batch.n_systems
    assert seen == sorted(set(seen))
    assert backbone.training
    assert backbone.depth.grad is None


def test_pseudo_label_of_nothing_and_without_a_potential() -> None:
    labels = pseudo_label(Morse(), molecules().select([]))
    assert labels.energy.shape == (0,)
    assert labels.forces.shape == (0, 3)
    with pytest.raises(TetherError, match="'Linear' has no pretrained energy head"):
        pseudo_label(nn.Linear(1, 1), molecules())  # type: ignore[arg-type]
    with pytest.raises(TetherError, match="`max_atoms` is 0"):
        pseudo_label(Morse(), molecules(), max_atoms=0)


def test_calculator_gives_the_labels() -> None:
    atoms = molecule("C2H6")
    atoms.calc = potential_calculator(TinyBackbone())
    labels = pseudo_label(TinyBackbone(), from_ase(atoms))
    assert atoms.get_potential_energy() == pytest.approx(labels.energy.item())
    assert np.allclose(atoms.get_forces(), labels.forces.numpy())


# ---------------------------------------------------------------- GFN2-xTB


@has_tblite
def test_xtb_forces_are_the_slope_of_the_energy(capfd: pytest.CaptureFixture[str]) -> None:
    atoms = molecule("CH3OH")
    atoms.rattle(0.05, seed=1)
    label = xtb_label(atoms.numbers, atoms.positions)
    assert isinstance(label, XtbLabel)

    def energy(step: float, atom: int, axis: int) -> float:
        moved = atoms.positions.copy()
        moved[atom, axis] += step
        shifted = xtb_label(atoms.numbers, moved)
        assert isinstance(shifted, XtbLabel)
        return shifted.energy

    for atom, axis in ((0, 0), (1, 1), (2, 2), (4, 0)):
        slope = (energy(1e-3, atom, axis) - energy(-1e-3, atom, axis)) / 2e-3
        assert label.forces[atom, axis] == pytest.approx(-slope, abs=2e-4)
    assert np.abs(label.forces).max() > 0.1
    assert np.abs(label.forces.sum(axis=0)).max() < 1e-6
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


@has_tblite
def test_xtb_energy_of_water_from_the_documentation_of_tblite() -> None:
    atoms = molecule("H2O")
    label = xtb_label(atoms.numbers, atoms.positions)
    assert isinstance(label, XtbLabel)
    assert label.energy == pytest.approx(-137.96777594361677, abs=1e-5)
    assert label.forces[0] == pytest.approx([0, 0, -0.749527168], abs=1e-4)
    anion = xtb_label(atoms.numbers, atoms.positions, charge=-1, spin=1)
    assert isinstance(anion, XtbLabel)
    assert anion.energy == pytest.approx(-131.50015843891816, abs=1e-5)


@has_tblite
@pytest.mark.parametrize(
    ("name", "charge", "spin", "text"),
    [
        ("OH", 0, 0, r"9 electrons \(charge 0\) cannot have 0 unpaired ones"),
        ("OH", 0, 11, "cannot have 11 unpaired ones"),
        ("OH", 0.5, 1, "must be whole"),
        ("H2O", 0, 1, "cannot have 1 unpaired ones"),
    ],
)
def test_electrons_that_do_not_fit_are_failures(
    name: str, charge: float, spin: float, text: str
) -> None:
    atoms = molecule(name)
    label = xtb_label(atoms.numbers, atoms.positions, charge=charge, spin=spin, name="x")
    assert isinstance(label, Failure)
    assert label.id == "x"
    assert re.search(text, label.reason)


@has_tblite
def test_radicals_ions_and_lanthanides_with_the_right_spin_have_labels() -> None:
    hydroxyl = molecule("OH")
    assert isinstance(xtb_label(hydroxyl.numbers, hydroxyl.positions, spin=1), XtbLabel)
    assert isinstance(xtb_label(hydroxyl.numbers, hydroxyl.positions, charge=-1), XtbLabel)
    cerium = [[0, 0, 0], [0, 0, 1.8]]
    assert isinstance(xtb_label([58, 8], cerium, spin=1, charge=0), XtbLabel)


@has_tblite
def test_what_tblite_refuses_is_a_failure_with_its_reason() -> None:
    same = xtb_label([1, 1], [[0, 0, 0], [0, 0, 0]])
    assert isinstance(same, Failure)
    assert "Too close interatomic distances" in same.reason
    far = xtb_label([11, 17], [[0, 0, 0], [0, 0, 21.0]])
    assert isinstance(far, Failure)
    assert "SCF not converged" in far.reason
    heavy = xtb_label([94, 1], [[0, 0, 0], [0, 0, 2.0]], spin=1)
    assert isinstance(heavy, Failure)
    assert "Z >86" in heavy.reason
    lost = xtb_label([1, 1], [[0, 0, 0], [0, 0, np.nan]])
    assert isinstance(lost, Failure)
    assert "not finite" in lost.reason


@has_tblite
def test_xtb_calculator_uses_charge_and_spin_and_raises() -> None:
    atoms = molecule("OH")
    atoms.info["spin"] = 1.0
    atoms.calc = xtb_calculator()
    assert atoms.get_potential_energy() < -100
    atoms.info["spin"] = 0.0
    atoms.rattle(1e-3)
    with pytest.raises(RuntimeError, match="cannot have 0 unpaired"):
        atoms.get_potential_energy()


@has_tblite
def test_periodic_xtb_does_not_depend_on_the_choice_of_image() -> None:
    atoms = bulk("MgO", "rocksalt", a=4.21)
    args = {"cell": atoms.cell.array, "pbc": atoms.pbc}
    inside = xtb_label(atoms.numbers, atoms.positions, **args)
    moved = atoms.positions.copy()
    moved[1] += atoms.cell.array[0]
    outside = xtb_label(atoms.numbers, moved, **args)
    alone = xtb_label(atoms.numbers, atoms.positions)
    assert isinstance(inside, XtbLabel)
    assert isinstance(outside, XtbLabel)
    assert inside.energy == pytest.approx(outside.energy, abs=1e-4)
    assert isinstance(alone, Failure) or abs(alone.energy - inside.energy) > 1.0


def test_missing_tblite_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tblite", None)
    with pytest.raises(TetherError, match=r"pip install tether\[xtb\]"):
        xtb_label([1, 1], [[0, 0, 0], [0, 0, 0.74]])


# ---------------------------------------------------------------- shards


def test_shard_round_trip(tmp_path: Path) -> None:
    batch = molecules("H2O", "CH4")
    batch = with_labels(batch, torch.tensor([1.0, -2.0]).double(), batch.positions * 2)
    failures = [Failure("ä/displace-0", "why not", 31.5), Failure("b", "no")]
    write_shard(tmp_path / "s.npz", pack_shard(batch, failures))
    read, found = read_shard(tmp_path / "s.npz")
    assert found == failures
    assert read.ids == batch.ids
    assert torch.equal(read.atom_labels["forces"], batch.positions * 2)
    assert chunk_key(read) == chunk_key(batch)
    assert chunk_key(read) != chunk_key(read.select([1, 0]))
    empty = with_labels(batch.select([]), torch.empty(0), torch.empty(0, 3))
    assert read_shard(pack_shard(empty, []))[0].n_systems == 0


def test_parts_refuse_other_parameters(tmp_path: Path) -> None:
    out = tmp_path / "x.arrow"
    open_parts(out, {"seed": 0, "widths": (0.1,)})
    open_parts(out, {"widths": (0.1,), "seed": 0})
    with pytest.raises(TetherError, match=r"begun with other parameters \(seed 0 → 1\)"):
        open_parts(out, {"seed": 1, "widths": (0.1,)})


# ---------------------------------------------------------------- the driver


def label(out: Path, **changes: object) -> LabelReport:
    arguments: dict[str, object] = {
        "with_": "gfn2-xtb",
        "out": out,
        "sampling": Sampling(kinds=("displace", "modes"), n_per_structure=3),
        "seed": 7,
        "workers": 0,
        "chunk_size": 2,
        "max_force": 100.0,
    }
    return label_structures(molecules(), **{**arguments, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Store:
    out = tmp_path_factory.mktemp("reference") / "labels.arrow"
    label(out)
    return Store.open(out)


@has_tblite
def test_store_holds_labels_of_its_own_geometries(reference: Store) -> None:
    batch = reference.batch(range(reference.n_systems))
    assert reference.n_systems == 6 * len(NAMES)
    assert reference.targets["energy"].kind == "extensive"
    assert reference.targets["forces"].level == "atom"
    assert reference.targets["forces"].n_components == 3
    assert reference.targets["energy"].unit == "eV"
    assert reference.metadata["level_of_theory"] == "GFN2-xTB"
    kinds = [f"{kind}-{k}" for kind in ("displace", "modes") for k in range(3)]
    assert batch.ids == tuple(f"{name}/{kind}" for name in NAMES for kind in kinds)
    for s in (0, 20, 47):
        single = batch.select([s])
        fresh = xtb_label(single.numbers.numpy(), single.positions.numpy())
        assert isinstance(fresh, XtbLabel)
        assert single.labels["energy"].item() == pytest.approx(fresh.energy, abs=1e-7)
        assert np.abs(single.atom_labels["forces"].numpy() - fresh.forces).max() < 1e-6
    assert json.loads(Path(f"{reference.path}.failures.json").read_text()) == []
    assert not Path(f"{reference.path}.parts").exists()


@has_tblite
def test_workers_do_not_change_the_result(reference: Store, tmp_path: Path) -> None:
    threads = os.environ.get("OMP_NUM_THREADS")
    report = label(tmp_path / "two.arrow", workers=2)
    assert Store.open(tmp_path / "two.arrow").fingerprint == reference.fingerprint
    assert report.n == reference.n_systems
    assert report.structures_per_second > 0
    assert os.environ.get("OMP_NUM_THREADS") == threads
    label(tmp_path / "other.arrow", seed=8)  # control: the fingerprint does see geometries
    assert Store.open(tmp_path / "other.arrow").fingerprint != reference.fingerprint


SCRIPT = """
import sys
from ase.build import molecule
from tether.labels.label import Sampling, label_structures
from tether.structures import from_ase

if __name__ == "__main__":
    names = sys.argv[2].split(",")
    label_structures(
        from_ase([molecule(n) for n in names], ids=names),
        with_="gfn2-xtb",
        out=sys.argv[1],
        sampling=Sampling(kinds=("displace", "modes"), n_per_structure=60),
        seed=7,
        workers=2,
        chunk_size=1,
    )
"""


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.002)
    return False


def children_of(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return {int(child) for child in tasks.read_text().split()} if tasks.exists() else set()


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@has_tblite
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_resume_after_sigkill_gives_the_same_store(tmp_path: Path) -> None:
    names = list(NAMES)
    script, out = tmp_path / "script.py", tmp_path / "labels.arrow"
    script.write_text(SCRIPT)
    parts = tmp_path / "labels.arrow.parts"
    process = subprocess.Popen([sys.executable, script, out, ",".join(names)])
    try:
        assert wait_until(lambda: len(list(parts.glob("0*.npz"))) >= 2, 60)
        workers = children_of(process.pid)
        assert len(workers) >= 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    assert wait_until(lambda: not any(is_running(pid) for pid in workers), 10), "orphans"
    n_done = len(list(parts.glob("0*.npz")))
    assert 2 <= n_done < len(names)

    arguments = {
        "with_": "gfn2-xtb",
        "sampling": Sampling(kinds=("displace", "modes"), n_per_structure=60),
        "seed": 7,
        "workers": 0,
        "chunk_size": 1,
    }
    with pytest.raises(TetherError, match=r"seed 7 → 8"):
        label_structures(molecules(*names), out=out, **{**arguments, "seed": 8})  # type: ignore[arg-type]
    with pytest.raises(TetherError, match="made from other structures"):
        label_structures(molecules(*names[::-1]), out=out, **arguments)  # type: ignore[arg-type]
    resumed = label_structures(molecules(*names), out=out, **arguments)  # type: ignore[arg-type]
    assert resumed.n_resumed == n_done
    assert not parts.exists()
    fresh = tmp_path / "fresh.arrow"
    label_structures(molecules(*names), out=fresh, **arguments)  # type: ignore[arg-type]
    assert Store.open(out).fingerprint == Store.open(fresh).fingerprint
    assert out.read_bytes() == fresh.read_bytes()


def test_other_structures_leave_no_chunk_behind(tmp_path: Path) -> None:
    out, names = tmp_path / "labels.arrow", ["H2O", "CH4", "NH3"]
    arguments: dict[str, Any] = {
        "backbone": TinyBackbone(), "sampling": Sampling(n_per_structure=1), "workers": 0,
        "chunk_size": 1,
    }  # fmt: skip

    def stop(done: int, labelled: int, failed: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label_structures(molecules(*names), out=out, progress=stop, **arguments)
    first, second = sorted((tmp_path / "labels.arrow.parts").glob("0*.npz"))
    first.unlink()  # of two workers, that of the second chunk may be the faster one
    with pytest.raises(TetherError, match="chunk 1 of .* made from other structures"):
        label_structures(molecules("NH3", "H2O", "CH4"), out=out, **arguments)
    assert list((tmp_path / "labels.arrow.parts").glob("0*.npz")) == [second]
    resumed = label_structures(molecules(*names), out=out, **arguments)
    assert (resumed.n_resumed, resumed.n) == (1, 3)


@has_tblite
def test_a_worker_that_is_killed_costs_nothing(reference: Store, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_one(done: int, labelled: int, failed: int) -> None:
        if not killed:
            victim = multiprocessing.active_children()[0].pid
            assert victim is not None
            killed.append(victim)
            os.kill(victim, signal.SIGKILL)

    label(tmp_path / "x.arrow", workers=1, progress=kill_one)
    assert killed
    assert Store.open(tmp_path / "x.arrow").fingerprint == reference.fingerprint


@has_tblite
def test_failures_are_listed_with_reason(tmp_path: Path) -> None:
    frames = [molecule("H2O"), molecule("OH"), molecule("CH4"), molecule("H2")]
    frames[2].positions[1] = frames[2].positions[2]
    frames[3].set_distance(0, 1, 0.4)  # not a clash, but 100 eV/Å
    out = tmp_path / "x.arrow"
    report = label_structures(
        from_ase(frames, ids=["good", "radical", "same-place", "squeezed"]),
        with_="gfn2-xtb",
        out=out,
        sampling=Sampling(kinds=("input",)),
        workers=0,
    )
    batch, store = labels_of(out)
    assert batch.ids == ("good/input-0",)
    assert store.metadata["n_failures"] == 3
    listed = {f["id"]: f for f in json.loads(Path(f"{out}.failures.json").read_text())}
    assert set(listed) == {"radical/input-0", "same-place/input-0", "squeezed/input-0"}
    assert "unpaired" in listed["radical/input-0"]["reason"]
    assert listed["same-place/input-0"]["value"] == 0.0
    assert "above max_force 30" in listed["squeezed/input-0"]["reason"]
    assert listed["squeezed/input-0"]["value"] > 30
    assert len(report.failures) == 3
    assert report.n == 1


@has_tblite
def test_nothing_labelled_is_an_error_that_says_why(tmp_path: Path) -> None:
    out = tmp_path / "x.arrow"
    with pytest.raises(TetherError, match="no label from 1 structures .*unpaired"):
        label_structures(from_ase(molecule("OH")), with_="gfn2-xtb", out=out, workers=0)
    assert not out.exists()
    assert not Path(f"{out}.parts").exists()
    assert len(json.loads(Path(f"{out}.failures.json").read_text())) == 3


def test_pseudo_labels_of_a_store_by_two_workers(tmp_path: Path) -> None:
    path = tmp_path / "in.arrow"
    write_store(path, [Chunk(molecules(), ("test",) * len(NAMES))], [])
    store = Store.open(path)
    arguments = {
        "backbone": TinyBackbone(seed=3),
        "indices": [6, 1, 3],
        "max_force": 1e6,
        "chunk_size": 2,
    }
    sampling = Sampling(n_per_structure=2)
    for workers in (0, 2):
        out = tmp_path / f"{workers}.arrow"
        label_structures(store, out=out, workers=workers, sampling=sampling, **arguments)  # type: ignore[arg-type]
    batch, labelled = labels_of(tmp_path / "0.arrow")
    assert [name.split("/")[0] for name in batch.ids] == ["CO2"] * 2 + ["CH4"] * 2 + ["C2H4"] * 2
    other, _ = labels_of(tmp_path / "2.arrow")
    assert torch.equal(batch.positions, other.positions)
    assert torch.allclose(batch.labels["energy"], other.labels["energy"], atol=1e-4)
    fresh = pseudo_label(TinyBackbone(seed=3), batch)
    assert torch.allclose(batch.atom_labels["forces"], fresh.forces, atol=1e-4)
    assert labelled.metadata["backbone"]["name"] == "tiny"
    assert labelled.metadata["level_of_theory"] == TinyBackbone().spec.level_of_theory


def test_weights_are_among_the_parameters(tmp_path: Path) -> None:
    out = tmp_path / "x.arrow"

    def stop(done: int, labelled: int, failed: int) -> None:
        raise KeyboardInterrupt

    arguments = {"out": out, "workers": 0, "chunk_size": 1, "max_force": 1e6}
    with pytest.raises(KeyboardInterrupt):
        label_structures(molecules(), backbone=TinyBackbone(seed=0), progress=stop, **arguments)  # type: ignore[arg-type]
    with pytest.raises(TetherError, match="begun with other parameters .weights"):
        label_structures(molecules(), backbone=TinyBackbone(seed=1), **arguments)  # type: ignore[arg-type]
    report = label_structures(molecules(), backbone=TinyBackbone(seed=0), **arguments)  # type: ignore[arg-type]
    assert report.n_resumed == 1


def test_one_bad_structure_does_not_cost_its_chunk(tmp_path: Path) -> None:
    out = tmp_path / "x.arrow"
    sampling = Sampling(kinds=("input",))
    report = label_structures(
        molecules(),
        backbone=Morse(poison=7),
        out=out,
        sampling=sampling,
        max_force=1e6,
        workers=0,
    )
    assert report.n == len(NAMES) - 2
    assert [f.id for f in report.failures] == ["NH3/input-0", "HCN/input-0"]
    assert "element X" in report.failures[0].reason


def test_dynamics_with_a_backbone(tmp_path: Path) -> None:
    out = tmp_path / "x.arrow"
    report = label_structures(
        molecules("H2O", "CH4"),
        backbone=Morse(),
        out=out,
        sampling=Sampling(kinds=("md",), n_per_structure=2, md_every=3),
        workers=0,
    )
    assert report.n == 4
    assert labels_of(out)[0].ids[:2] == ("H2O/md-0", "H2O/md-1")


def test_an_iterable_without_ids_gets_running_numbers(tmp_path: Path) -> None:
    unnamed = replace(molecules("H2O", "CH4"), ids=())
    out = tmp_path / "x.arrow"
    label_structures(
        iter([unnamed, unnamed]),
        backbone=Morse(),
        out=out,
        sampling=Sampling(kinds=("input",)),
        max_force=1e6,
        workers=0,
    )
    assert labels_of(out)[0].ids == tuple(f"{i}/input-0" for i in range(4))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"with_": "dft"}, "`with` is 'dft'; expected one of pseudo, gfn2-xtb"),
        ({"backbone": None}, "without a backbone"),
        ({"with_": "gfn2-xtb"}, "a backbone was given for labels of gfn2-xtb"),
        ({"workers": -1}, "`workers` is -1"),
        ({"chunk_size": 0}, "`chunk_size` is 0"),
        ({"max_force": float("nan")}, "`max_force` is nan"),
        ({"indices": [0]}, "`indices` was given with a AtomBatch"),
        ({"backbone": nn.Linear(1, 1)}, "no pretrained energy head"),
        ({"backbone": "nonsense"}, "nonsense"),
        ({"sampling": Sampling(kinds=("strain",))}, "there is no cell in structures `H2O`"),
        ({"sampling": Sampling(kinds=("strain",), strain=0.5)}, "`strain` is 0.5"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_bad_arguments_are_named(
    tmp_path: Path, changes: dict[str, object], text: str, dry_run: bool
) -> None:
    arguments: dict[str, object] = {"out": tmp_path / "x.arrow", "backbone": Morse(), **changes}
    with pytest.raises(TetherError, match=text):
        label_structures(molecules(), dry_run=dry_run, **arguments)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    report = label_structures(molecules(), backbone=Morse(), out=tmp_path / "x.arrow", dry_run=True)
    assert (report.n_structures, report.n) == (0, 0)
    assert not list(tmp_path.iterdir())


def test_bad_structures_of_a_stream_leave_no_parts(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"backbone": Morse(), "max_force": 1e6, "workers": 0}
    arguments["out"] = tmp_path / "x.arrow"
    with pytest.raises(TetherError, match="there is no cell"):
        label_structures(iter([molecules()]), sampling=Sampling(kinds=("strain",)), **arguments)
    assert not list(tmp_path.iterdir())
    label_structures(iter([molecules()]), sampling=Sampling(kinds=("input",)), **arguments)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kinds": ("noise",)}, "`sampling` is noise"),
        ({"kinds": ("md", "md")}, "`sampling` is md, md"),
        ({"n_per_structure": 0}, "`n_per_structure` is 0"),
        ({"temperature": -3.0}, "`temperature` is -3"),
        ({"widths": (0.0,)}, "`widths` is"),
    ],
)
def test_bad_sampling_is_named(changes: dict[str, object], text: str) -> None:
    with pytest.raises(TetherError, match=text):
        Sampling(**changes)  # type: ignore[arg-type]


def test_a_store_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "x.arrow"
    out.write_text("precious")
    for dry_run in (False, True):
        with pytest.raises(TetherError, match="is there already"):
            label_structures(molecules(), backbone=Morse(), out=out, workers=0, dry_run=dry_run)
    assert out.read_text() == "precious"


# ---------------------------------------------------------------- command line


@has_tblite
def test_command_labels_a_set_of_a_split(tmp_path: Path) -> None:
    import typer
    from typer.testing import CliRunner

    from tether.cli.label import label_command

    app = typer.Typer()
    app.command()(label_command)
    path, out, split = (tmp_path / name for name in ("in.arrow", "out.arrow", "split.json"))
    fingerprint = write_store(path, [Chunk(molecules(), ("test",) * len(NAMES))], [])
    content = {
        "name": "s",
        "method": "file",
        "parameters": {},
        "store": {"path": str(path), "fingerprint": fingerprint, "n_systems": len(NAMES)},
        "indices": {"train": [1, 2, 4], "val": [0], "test/id": [3]},
        "report": {},
    }
    split.write_text(json.dumps(content))
    runner = CliRunner()
    options = ["--with", "gfn2-xtb", "--split", str(split), "--set", "train", "--limit", "2"]
    options += ["--n-per-structure", "2", "--widths", "0.01,0.02", "--workers", "0"]
    command = [str(path), "--out", str(out), *options]

    planned = runner.invoke(app, [*command, "--dry-run", "--json"])
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["geometries"] == 4
    assert not out.exists()

    done = runner.invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["n"] == 4
    assert {name.split("/")[0] for name in Store.open(out).ids} == {"CH4", "NH3"}

    out.unlink()
    table = runner.invoke(app, command)
    assert "structures/s" in table.stdout
    assert "force rms" in table.stdout

    for wrong, text in (
        (["--set", "test/x"], "has no set 'test/x'"),
        (["--widths", "a"], "`widths` is 'a'"),
        (["--limit", "0"], "`limit` is 0"),
        (["--with", "dft", "--dry-run"], "`with` is 'dft'"),
        (["--with", "pseudo", "--backbone", "nonsense", "--dry-run"], "nonsense"),
        (["--max-force", "-1", "--dry-run"], "`max_force` is -1"),
        (["--workers", "-1", "--dry-run"], "`workers` is -1"),
        (["--out", str(path), "--dry-run"], "is there already"),
    ):
        result = runner.invoke(app, [str(path), "--out", str(tmp_path / "y"), *options, *wrong])
        assert isinstance(result.exception, TetherError), result.output
        assert text in str(result.exception)
    alone = runner.invoke(app, [str(path), "--out", str(tmp_path / "y"), "--set", "train"])
    assert "--set was given without --split" in str(alone.exception)
    assert not (tmp_path / "y").exists()


@has_tblite
def test_qm9_molecules_have_small_forces_at_their_minimum(tmp_path: Path) -> None:
    path = DATA / "qm9_gap" / "val.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there (shared data of the project)")
    arrays = np.load(path)
    ptr = np.concatenate([[0], np.cumsum(arrays["n_atoms"])])
    from ase import Atoms

    frames = [
        Atoms(arrays["numbers"][a:b], arrays["positions"][a:b])
        for a, b in itertools.pairwise(ptr[:11])
    ]
    report = {}
    for kind in ("input", "modes"):
        out = tmp_path / f"{kind}.arrow"
        sampling = Sampling(kinds=(kind,), n_per_structure=2)  # type: ignore[arg-type]
        report[kind] = label_structures(
            from_ase(frames), with_="gfn2-xtb", out=out, sampling=sampling, workers=0
        )
    assert not report["input"].failures
    assert not report["modes"].failures
    assert 0.05 < report["input"].force_rms < 0.5  # another method's minimum
    assert report["modes"].force_rms > 2 * report["input"].force_rms


@pytest.mark.parametrize("name", ["n_per_structure", "widths", "strain", "temperature"])
def test_the_defaults_that_the_command_shows_are_the_ones_that_it_has(name: str) -> None:
    # It does not know them: what is not given is left to `Sampling`, which torch comes with.
    shown = get_type_hints(label_command, include_extras=True)[name].__metadata__[0].show_default
    value = getattr(Sampling(), name)
    values = value if isinstance(value, tuple) else (value,)
    assert [float(text) for text in shown.split(",")] == list(values)

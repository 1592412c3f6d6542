from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from ase.build import molecule

from tether.data.chunks import Chunk
from tether.data.store import Store, write_store
from tether.errors import TetherError
from tether.labels.cluster import ray_workers
from tether.labels.dispatch import ATTEMPTS, run_tasks
from tether.labels.label import Sampling, label_structures
from tether.labels.shards import read_shard
from tether.labels.worker import ChunkResult, ChunkTask, Settings, chunk_result, with_labels
from tether.structures import AtomBatch, from_ase
from tether.testing.tiny import TinyBackbone

NAMES = ("H2O", "CH4", "NH3", "C2H4", "CH3OH", "HCN", "CO2", "C2H6")
needs_ray = pytest.mark.skipif(
    find_spec("ray") is None or find_spec("tblite") is None or not Path("/proc/self").exists(),
    reason="needs ray, tblite and /proc (pip install tether[ray,xtb])",
)


def molecules() -> AtomBatch:
    return from_ase([molecule(name) for name in NAMES], ids=NAMES)


# ---------------------------------------------------------------- what a death costs


class DeadError(Exception):
    pass


@dataclass
class Mortals:
    """Workers in this process that die of a structure, or of chance."""

    poison: str = ""
    n_chance: int = 0
    capacity: int = 2
    deaths: tuple[type[Exception], ...] = (DeadError,)
    seen: list[tuple[str, ...]] = field(default_factory=list)

    def submit(self, task: ChunkTask) -> Future[ChunkResult]:
        batch: AtomBatch = pickle.loads(task.batch)
        self.seen.append(batch.ids)
        future: Future[ChunkResult] = Future()
        if self.poison in batch.ids:
            future.set_exception(DeadError())
        elif self.n_chance:
            self.n_chance -= 1
            future.set_exception(DeadError())
        else:
            energy = torch.arange(batch.n_systems, dtype=torch.float64) + len(batch.ids[0])
            labelled = with_labels(batch, energy, batch.positions)
            future.set_result(chunk_result(batch.n_systems, labelled, []))
        return future


def tasks(folder: Path, *, of: int) -> list[ChunkTask]:
    settings = Settings("gfn2-xtb", Sampling(), 0, 30.0, 100)
    batch = molecules()
    return [
        ChunkTask(
            pickle.dumps(batch.select(range(i, i + of))), settings, folder / f"{i:07d}-abc.npz"
        )
        for i in range(0, batch.n_systems, of)
    ]


def test_a_structure_that_kills_its_workers_is_listed_and_costs_no_other(tmp_path: Path) -> None:
    workers = Mortals(poison="CH4")
    results = list(run_tasks(tasks(tmp_path, of=4), workers))
    assert sorted(result[:3] for result in results) == [(4, 3, 1), (4, 4, 0)]
    labelled, failures = read_shard(tmp_path / "0000000-abc.npz")
    assert labelled.ids == ("H2O", "NH3", "C2H4")
    assert [f.id for f in failures] == ["CH4"]
    assert "worker process died" in failures[0].reason
    assert read_shard(tmp_path / "0000004-abc.npz")[0].ids == NAMES[4:]
    assert len(list(tmp_path.iterdir())) == 2
    assert workers.seen.count(NAMES[:4]) == workers.seen.count(("CH4",)) == ATTEMPTS
    assert workers.seen.count(("NH3",)) == 1


def test_a_death_by_chance_costs_no_structure(tmp_path: Path) -> None:
    for n_chance in (0, 1, ATTEMPTS):
        folder = tmp_path / str(n_chance)
        workers = Mortals(n_chance=n_chance)
        assert sum(result.n_failures for result in run_tasks(tasks(folder, of=8), workers)) == 0
        assert read_shard(folder / "0000000-abc.npz")[0].ids == NAMES
        # Control: the last of these took the chunk apart.
        assert (("CH4",) in workers.seen) == (n_chance == ATTEMPTS)


def test_no_more_chunks_are_read_than_workers_have_in_hand(tmp_path: Path) -> None:
    read = []

    def reading() -> object:
        for task in tasks(tmp_path, of=1):
            read.append(task)
            yield task

    workers = Mortals(capacity=3)
    for n_done, _ in enumerate(run_tasks(reading(), workers)):  # type: ignore[arg-type]
        assert len(read) <= 3 + n_done


def test_an_error_of_the_work_is_no_death(tmp_path: Path) -> None:
    workers = Mortals(poison="CH4", deaths=())
    with pytest.raises(DeadError):
        list(run_tasks(tasks(tmp_path, of=4), workers))
    assert workers.seen.count(NAMES[:4]) == 1


# ---------------------------------------------------------------- Ray


# In processes of their own: Ray leaves its subprocesses to the garbage collector, with warnings.
SCRIPT = """
import json, os, pathlib, signal, sys, time
from ase.build import molecule
from tether.labels.label import Sampling, label_structures
from tether.structures import from_ase

def descendants(pid):
    found = []
    for listed in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        for child in listed.read_text().split():
            found += [int(child), *descendants(child)]
    return found

def title(pid):
    return pathlib.Path(f"/proc/{pid}/cmdline").read_text()

def kill_one(done, labelled, failed):
    # Between two tasks no worker is at work: it is looked for until one is.
    deadline = time.monotonic() + 2.0
    while not killed and time.monotonic() < deadline:
        busy = [pid for pid in descendants(os.getpid()) if "ray::_run" in title(pid)]
        if busy:
            os.kill(busy[0], signal.SIGKILL)
            killed.append(busy[0])

names, killed = sys.argv[2:], []
label_structures(
    from_ase([molecule(name) for name in names], ids=names),
    with_="gfn2-xtb",
    out=sys.argv[1],
    sampling=Sampling(kinds=("displace", "modes"), n_per_structure=3),
    seed=7,
    chunk_size=2,
    max_force=100.0,
    ray="local",
    workers=2,
    progress=kill_one,
)
left = [title(pid) for pid in descendants(os.getpid())]
print(json.dumps({"killed": killed, "left": left, "threads": os.environ.get("OMP_NUM_THREADS")}))
"""


@needs_ray
def test_ray_gives_the_same_store_though_a_worker_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "ray.arrow"), *NAMES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report["killed"]) == 1
    assert report["left"] == []
    assert report["threads"] == os.environ.get("OMP_NUM_THREADS")
    label_structures(
        molecules(),
        with_="gfn2-xtb",
        out=tmp_path / "reference.arrow",
        sampling=Sampling(kinds=("displace", "modes"), n_per_structure=3),
        seed=7,
        chunk_size=2,
        max_force=100.0,
        workers=0,
    )
    found, reference = (Store.open(tmp_path / f"{n}.arrow") for n in ("ray", "reference"))
    assert found.fingerprint == reference.fingerprint
    assert json.loads(Path(f"{found.path}.failures.json").read_text()) == []


@needs_ray
def test_command_labels_by_ray_with_a_backbone_and_says_nothing_else(tmp_path: Path) -> None:
    path, out = tmp_path / "in.arrow", tmp_path / "x.arrow"
    write_store(path, [Chunk(molecules(), ("test",) * len(NAMES))], [])
    command = [sys.executable, "-m", "tether.cli", "label", str(path), "--out", str(out)]
    command += ["--backbone", "tiny", "--max-force", "1e6", "--ray", "local", "--workers", "1"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n"] == 3 * len(NAMES)
    assert done.stderr == ""
    here = tmp_path / "y.arrow"
    label_structures(Store.open(path), backbone="tiny", out=here, workers=0, max_force=1e6)
    assert Store.open(out).fingerprint == Store.open(here).fingerprint


@needs_ray
def test_a_connection_of_the_program_is_used_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("neither connect nor disconnect")

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    for name in ("init", "shutdown"):
        monkeypatch.setattr(ray, name, fail)
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 6.0})
    with ray_workers("auto", n=None, backbone=None) as workers:
        assert workers.capacity == 12
    with ray_workers("auto", n=3, backbone=None) as workers:
        assert workers.capacity == 3


def test_ray_that_is_missing_or_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.arrow"
    with pytest.raises(TetherError, match="`workers` is 0; expected 1 or more"):
        label_structures(molecules(), backbone=TinyBackbone(), out=out, ray="local", workers=0)
    if find_spec("ray") is not None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with (
            pytest.raises(TetherError, match="no Ray at 'nowhere': .*; fix: start one with"),
            ray_workers("nowhere", n=1, backbone=None),
        ):
            pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(TetherError, match=r"needs the package ray; .* 'tether\[ray\]'"):
        label_structures(molecules(), backbone=TinyBackbone(), out=out, ray="local")
    assert not list(tmp_path.iterdir())

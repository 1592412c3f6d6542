"""Kill -9 of a random rank of two at a random moment, again and again: nothing may be lost.

Each sitting is ``tether adapt`` on a small backbone under torchrun's own agent, in forks of this
process, which has imported everything: a sitting takes seconds. A killed one must end by itself,
with an error; the same command goes on from the last checkpoint. A run that survived its kills
must end in the bits of one that was never killed: weights and predictions.

``python benchmarks/kill_rank.py [-n 50]``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import molecule
from ase.collections import g2
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tether.cli.main import main as main_of_tether
from tether.data.chunks import Chunk
from tether.data.store import write_store
from tether.labels.pseudo import pseudo_label
from tether.run import Run
from tether.serialization import write_json
from tether.splits.split import Split, StoreReference
from tether.structures import from_ase
from tether.targets import Target
from tether.testing.tiny import TinyBackbone

RESULT = Path(__file__).parent / "results" / "kill_rank.json"
#: A killed job that is still there after this many seconds hangs.
LIMIT = 120.0
N_RANKS, N_STEPS = 2, 160


def launch(data: Path, out: Path) -> None:
    """What torchrun does, with a multi-task run of a few seconds."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=N_RANKS,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, main_of_tether)(command(data, out))


def command(data: Path, out: Path) -> list[str]:
    """Arguments of the run."""
    return [
        "adapt", "--recipe", "mft",
        "--out", str(out), f"store={data}/molecules.arrow", f"split={data}/split.json",
        "targets=[gap]", f"auxiliary={data}/molecules.arrow", "backbone.name=tiny",
        f"training.property_steps={N_STEPS}", "training.validate_every=10",
        "training.batch_size=8", "training.forcefield_batch_size=4",
    ]  # fmt: skip


def write_data(folder: Path) -> None:
    """Small organic molecules with a made-up property, and forces of another small network."""
    frames = [molecule(name) for name in g2.names]
    frames = [a for a in frames if len(a) > 2 and set(a.numbers.tolist()) <= {1, 6, 7, 8}]
    rng = np.random.default_rng(0)
    for atoms in frames:
        atoms.info.clear()
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
    n = len(frames)
    energy, forces, _ = pseudo_label(TinyBackbone(seed=9), from_ase(frames))
    gap = np.array([0.3 * len(atoms) for atoms in frames]) + 0.1 * rng.normal(size=n)
    batch = from_ase(
        frames,
        labels={"gap": gap, "energy": energy.numpy()},
        atom_labels={"forces": forces.numpy()},
        ids=[f"m-{row}" for row in range(n)],
    )
    targets = [
        Target("gap", unit="eV"),
        Target("energy", unit="eV", kind="extensive"),
        Target("forces", unit="eV/Å", level="atom", kind="vector", n_components=3),
    ]
    store = folder / "molecules.arrow"
    fingerprint = write_store(store, [Chunk(batch, ("made",) * n)], targets)
    order = rng.permutation(n)
    sets = {"train": order[:-16], "val": order[-16:-8], "test/id": order[-8:]}
    reference = StoreReference(str(store), fingerprint, n)
    Split("small", "file", {}, sets, store=reference).to_json(folder / "split.json")


def ranks_of(launcher: int) -> list[int]:
    """Processes that torchrun has started, once all are there."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        found = [int(pid) for pid in children.read_text().split()]
        if len(found) == N_RANKS:
            return found
        time.sleep(0.02)
    raise SystemExit("torchrun started no ranks")


def sitting(
    data: Path, out: Path, *, share: float | None, usual: dict[str, Any], rng: random.Random
) -> dict[str, Any]:
    """Start the command; kill a rank after a share of its usual seconds, where one is given.

    Half of the clocks start with the processes, half with the first checkpoint of the sitting. They
    run for at most half of the usual training: a resumed one is shorter, and may be over.
    """
    launcher = multiprocessing.get_context("fork").Process(target=launch, args=(data, out))
    launcher.start()
    assert launcher.pid is not None
    ranks = ranks_of(launcher.pid)
    began = time.monotonic()
    if share is None:
        seen = _new_checkpoint(out, launcher)
        launcher.join()
        ended = time.monotonic()
        return {"code": launcher.exitcode, "start": seen - began, "training": ended - seen}
    if rng.random() < 0.5:
        time.sleep(share * (usual["start"] + usual["training"] / 2))
    else:
        _new_checkpoint(out, launcher)
        time.sleep(share * usual["training"] / 2)
    state = "after it" if Run(out).checkpoint.exists() else "before the first checkpoint"
    victim = rng.randrange(N_RANKS)
    try:
        os.kill(ranks[victim], signal.SIGKILL)
    except ProcessLookupError:
        state = "over"
    began = time.monotonic()
    launcher.join(LIMIT)
    if launcher.exitcode is None:
        raise SystemExit(f"the job hangs: rank {victim} was killed {LIMIT} s ago")
    ended = time.monotonic() - began
    # A rank that had already finished well is no loss, and then there is no error to report.
    return {"code": launcher.exitcode, "state": state, "victim": victim, "ended_after_s": ended}


def _new_checkpoint(out: Path, launcher: Any) -> float:
    """Wait for one, or for the end; the time."""
    path = Run(out).checkpoint
    before = path.stat().st_mtime_ns if path.exists() else 0
    while launcher.is_alive() and (path.stat().st_mtime_ns if path.exists() else 0) == before:
        time.sleep(0.005)
    return time.monotonic()


def same(first: Run, second: Run) -> bool:
    """Whether two runs ended in the same bits."""
    pairs = ((first.weights, second.weights), (first.predictions, second.predictions))
    return all(one.read_bytes() == other.read_bytes() for one, other in pairs)


def write_result(path: Path, kills: list[dict[str, Any]], *, n_runs: int, n_equal: int) -> None:
    """Figures of the kills so far."""
    seconds = [one["ended_after_s"] for one in kills]
    write_json(
        path,
        {
            "kills": len(kills),
            "of_rank": {str(r): sum(one["victim"] == r for one in kills) for r in range(N_RANKS)},
            "moments": {
                state: sum(one["state"] == state for one in kills)
                for state in ("before the first checkpoint", "after it")
            },
            "jobs_that_ended_with_an_error": sum(one["code"] != 0 for one in kills),
            "seconds_until_the_job_ended": {
                "median": float(np.median(seconds)), "largest": float(np.max(seconds)),
            },
            "runs": n_runs,
            "runs_with_the_bits_of_an_unkilled_one": n_equal,
            "ranks": N_RANKS,
            "steps": N_STEPS,
        },
    )  # fmt: skip


def main() -> None:
    """Kill, resume, compare; write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=50, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    rng = random.Random(options.seed)  # noqa: S311
    for module in ("lightning_fabric", "tether.adapt", "tether.config", "tether.testing.tiny"):
        import_module(module)
    folder = Path(tempfile.mkdtemp(prefix="kill_rank"))
    write_data(folder)
    whole = sitting(folder, folder / "whole", share=None, usual={}, rng=rng)
    if whole["code"] != 0:
        raise SystemExit("the run without a kill failed")
    kills: list[dict[str, Any]] = []
    n_runs = n_equal = 0
    while len(kills) < options.n:
        out = folder / f"run-{n_runs}"
        n_kills = rng.randint(1, 5)
        for _ in range(min(n_kills, options.n - len(kills))):
            one = sitting(folder, out, share=rng.random(), usual=whole, rng=rng)
            if one["state"] != "over":
                kills.append(one)
            print(len(kills), json.dumps(one), flush=True)
            if Run(out).is_complete:
                break
        last = sitting(folder, out, share=None, usual=whole, rng=rng)
        n_runs += 1
        n_equal += last["code"] == 0 and same(Run(folder / "whole"), Run(out))
        print(f"{n_equal} of {n_runs} runs equal", flush=True)
        shutil.rmtree(out)
        if kills:
            write_result(options.out, kills, n_runs=n_runs, n_equal=n_equal)
    shutil.rmtree(folder)
    if n_equal != n_runs:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

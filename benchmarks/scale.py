"""Cost of a training step against structures in a batch, atoms in a structure, and ranks.

Property and force field together on a small SO3krates with random weights. Structures and atoms
are varied in one process, one thread; the cost is CPU time, so that other work on the machine
does not count, and the slope is that of a line through the logarithms. Ranks, in turn: the same
batch on one rank, on each of two side by side that know nothing of each other, and twice the batch
on two together. Weak-scaling efficiency is the ratio of the first to the last, by the clock and in
CPU time of the slower rank: the first one is right on an idle machine only. What two processes
side by side lose is the machine's share of it: cores share its memory. Cost against ranks is the
CPU time of all of them; its slope is over that of processes side by side.

``python benchmarks/scale.py [--rounds 7]``
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase import Atoms
from timing import with_labels

from tether.backbones.load import load_backbone
from tether.balance.weighted_sum import WeightedSum
from tether.data.loader import GraphStream
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.movement.full import Full
from tether.serialization import read_json, write_json
from tether.structures import from_ase
from tether.targets import Target
from tether.tasks.forcefield import ForceFieldTask
from tether.tasks.property import PropertyTask
from tether.training.allocator import keep_memory
from tether.training.engine import Trainer
from tether.training.ranks import Ranks, join_ranks
from tether.training.settings import TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

RESULT = Path(__file__).parent / "results" / "scale.json"
SIZE = {"n_features": 64, "n_layers": 2, "n_heads": 4}
STRUCTURES, ATOMS = (8, 16, 32, 64, 128), (20, 38, 74, 146, 290)
#: Atoms in a structure where the structures vary, structures where the atoms vary, and of a rank.
N_ATOMS, N_STRUCTURES, PER_RANK = 20, 16, 64


def alkane(n_atoms: int, rng: np.random.Generator) -> Atoms:
    """A straight chain, slightly displaced: an atom of a longer one has no more neighbours."""
    n_carbons = (n_atoms - 2) // 3
    carbons = np.array([[1.26 * i, 0.45 * (-1) ** i, 0.0] for i in range(n_carbons)])
    up = np.sign(carbons[:, 1:2]) * [[0.0, 0.63, 0.0]]
    sides = [carbons + up + [0.0, 0.0, side] for side in (-0.89, 0.89)]
    ends = [carbons[:1] - [[1.0, 0.4, 0.0]], carbons[-1:] + [[1.0, 0.4, 0.0]]]
    positions = np.concatenate([carbons, *sides, *ends])
    symbols = f"C{n_carbons}H{2 * n_carbons + 2}"
    return Atoms(symbols, positions + 0.03 * rng.normal(size=positions.shape))


def trainer(n_structures: int, n_atoms: int, ranks: Ranks) -> Trainer:
    """Full multi-task fine-tuning on batches of so many structures of so many atoms."""
    rng = np.random.default_rng(0)
    backbone = load_backbone("so3krates", weights="random", seed=0, options=SIZE)
    graph = backbone.prepare(from_ase([alkane(n_atoms, rng) for _ in range(n_structures)]))
    labels = {name: torch.from_numpy(rng.normal(size=n_structures)) for name in ("gap", "energy")}
    forces = torch.from_numpy(rng.normal(size=(graph.batch.n_atoms, 3))).float()
    graph = with_labels(graph, labels, {"forces": forces})
    head = PropertyHead(Target("gap", unit="eV"), SIZE["n_features"])
    head.fit_scale(graph.batch)
    model = AdaptedModel(backbone, [head])
    stream = GraphStream(graph, batch_size=n_structures)
    made = Trainer(
        model,
        [PropertyTask(stream), ForceFieldTask(stream, 1.0)],
        groups=Full().apply(model),
        balance=WeightedSum({}),
        settings=TrainingSettings(),
        ranks=ranks,
    )
    made.start_average()
    return made


def cpu_seconds(trainers: Mapping[int, Trainer], rounds: int) -> dict[int, float]:
    """CPU time of a step of each, the median over rounds in turn."""
    found: dict[int, list[float]] = {size: [] for size in trainers}
    for turn in range(rounds + 1):
        for size, one in trainers.items():
            began = time.process_time()
            one.step()
            if turn:
                found[size].append(time.process_time() - began)
    return {size: float(np.median(values)) for size, values in found.items()}


def line(seconds: Mapping[int, float]) -> dict[str, Any]:
    """Milliseconds by size, and the slope of their logarithms: over all, and of the last two."""
    x, y = np.log(list(seconds)), np.log(list(seconds.values()))
    return {
        "cpu_ms": {str(size): round(1000 * value, 2) for size, value in seconds.items()},
        "slope": float(np.polyfit(x, y, 1)[0]),
        "last_slope": float((y[-1] - y[-2]) / (x[-1] - x[-2])),
    }


def measure_ranks(rounds: int, out: Path) -> None:
    """One rank alone and all together, in turn; under torchrun."""
    ranks = join_ranks()
    alone = trainer(PER_RANK, N_ATOMS, Ranks())
    together = trainer(PER_RANK * ranks.n, N_ATOMS, ranks)
    # Name → steps of this rank, and whether the others make theirs at the same time.
    kinds = {"alone": (alone, False), "beside": (alone, True), "together": (together, True)}
    clock: dict[str, list[float]] = {name: [] for name in kinds}
    cpu: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds + 1):
        for name, (one, everywhere) in kinds.items():
            ranks.total(torch.zeros(1))  # all begin at once
            began, used = time.perf_counter(), time.process_time()
            if everywhere or ranks.is_first:
                one.step()
            seconds, spent = time.perf_counter() - began, time.process_time() - used
            slot = torch.zeros(ranks.n, 2)
            slot[ranks.rank] = torch.tensor([seconds, spent])
            both = ranks.total(slot).amax(dim=0)
            clock[name].append(float(both[0]))
            cpu[name].append(float(both[1]))
    if not ranks.is_first:
        return
    found: dict[str, Any] = {"ranks": ranks.n, "structures_of_a_rank": PER_RANK}
    for kind, seconds in (("clock", clock), ("cpu", cpu)):
        steps = {name: np.array(values[1:]) for name, values in seconds.items()}
        found[kind] = {
            **{f"{name}_ms": 1000 * float(np.median(values)) for name, values in steps.items()},
            "efficiency": float(np.median(steps["alone"] / steps["together"])),
            "efficiency_beside": float(np.median(steps["beside"] / steps["together"])),
        }
    per_rank = 1 / found["cpu"]["efficiency_beside"]
    found["slope"] = 1 + float(np.log(per_rank) / np.log(ranks.n))
    write_json(out, found)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--ranks", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    if options.ranks:
        measure_ranks(options.rounds, options.ranks)
        return
    result: dict[str, Any] = {"load": os.getloadavg()[0], "backbone": SIZE}
    by_structures = {n: trainer(n, N_ATOMS, Ranks()) for n in STRUCTURES}
    result["structures"] = line(cpu_seconds(by_structures, options.rounds))
    by_atoms = {n: trainer(N_STRUCTURES, n, Ranks()) for n in ATOMS}
    result["atoms"] = line(cpu_seconds(by_atoms, options.rounds))
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "ranks.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, "--nproc-per-node", "2", __file__, "--ranks", str(found)]
        subprocess.run([*command, "--rounds", str(4 * options.rounds)], check=True)
        result["weak_scaling"] = read_json(found)
    write_json(options.out, result)
    for name in ("structures", "atoms"):
        slope, last = result[name]["slope"], result[name]["last_slope"]
        print(f"{name}: slope {slope:.3f}, at the end {last:.3f}")
    scaling = result["weak_scaling"]
    for name in ("clock", "cpu"):
        print(
            f"2 ranks, {name}: efficiency {scaling[name]['efficiency']:.2f}, "
            f"over processes side by side {scaling[name]['efficiency_beside']:.2f}"
        )
    print(f"ranks: slope {scaling['slope']:.3f}")


if __name__ == "__main__":
    main()

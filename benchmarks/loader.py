"""Writing, opening and reading a store of many structures: rates, and memory over an epoch.

Structures are QM9 molecules of 18 atoms, each displaced anew, with energy and forces. Each part is
measured in a process of its own, so that its memory is its own. Rates are per second of CPU time of
one thread: other work on the machine changes them little.

``python benchmarks/loader.py [-n 1000000] [--batch 128] [--folder /tmp]``
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tether.data.chunks import ENERGY, FORCES, Chunk, batch_from_arrays
from tether.data.loader import StoreStream
from tether.data.store import Store, write_store
from tether.graph import Graph, neighbour_edges
from tether.serialization import write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tether.structures import AtomBatch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHARED = ROOT.parent / "shared" / "data" / "qm9_gap" / "val.npz"
N_ATOMS, CUTOFF, CHUNK = 18, 4.5, 4096
MIB = 2**20


def molecules() -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers (n, 18) and positions (n, 18, 3) in Å, of QM9 where the shared data are."""
    if not SHARED.exists():
        rng = np.random.default_rng(0)
        return rng.integers(1, 9, (100, N_ATOMS)), rng.uniform(0, 6, (100, N_ATOMS, 3))
    data = np.load(SHARED)
    chosen = np.repeat(data["n_atoms"] == N_ATOMS, data["n_atoms"])
    numbers, positions = data["numbers"][chosen], data["positions"][chosen]
    return numbers.reshape(-1, N_ATOMS), positions.reshape(-1, N_ATOMS, 3)


def chunks(n: int, *, size: int = CHUNK) -> Iterator[Chunk]:
    """Displaced molecules with labels, the same at each call."""
    numbers, positions = molecules()
    rng = np.random.default_rng(0)
    for start in range(0, n, size):
        rows = np.arange(start, min(start + size, n))
        of = rows % len(numbers)
        moved = positions[of] + 0.05 * rng.normal(size=(len(rows), N_ATOMS, 3))
        batch = batch_from_arrays(
            np.full(len(rows), N_ATOMS),
            numbers[of].reshape(-1),
            moved.reshape(-1, 3),
            ids=[f"molecule:{row}" for row in rows],
            labels={"energy": rng.normal(size=len(rows))},
            atom_labels={"forces": rng.normal(size=(len(rows) * N_ATOMS, 3))},
        )
        yield Chunk(batch, ("made",) * len(rows))


def memory() -> dict[str, float]:
    """Resident memory in MiB: of the process alone, and pages of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return {"own": int(kib["RssAnon"]) / 1024, "files": int(kib["RssFile"]) / 1024}


def prepare(batch: AtomBatch) -> Graph:
    """Make a graph of message passing."""
    return Graph(batch, {"near": neighbour_edges(batch, CUTOFF, full=False)})


def write(path: Path, n: int, _batch: int) -> dict[str, Any]:
    """Write the store in shards; its own memory now and then."""
    trace = []

    def watched() -> Iterator[Chunk]:
        for k, chunk in enumerate(chunks(n)):
            if k % 8 == 0:
                trace.append([k * CHUNK, memory()["own"]])
            yield chunk

    before = memory()["own"]
    wall, cpu = time.perf_counter(), time.process_time()
    write_store(path, watched(), [ENERGY, FORCES], shard_size=100_000)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "structures_per_cpu_second": n / cpu,
        "wall_seconds": wall,
        "own_before_mib": before,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "disk_mib": sum(file.stat().st_size for file in path.iterdir()) / MIB,
        "trace": trace,
    }


def read(path: Path, n: int, _batch: int) -> dict[str, Any]:
    """Time opening and random batches, neighbour lists excluded and included."""
    opening = []
    for _ in range(20):
        wall, cpu = time.perf_counter(), time.process_time()
        store = Store.open(path)
        opening.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = 1e3 * np.median(opening, axis=0)

    def rate(size: int, make: Callable[[AtomBatch], object]) -> float:
        rates = []
        for seed in range(7):
            rng = np.random.default_rng(seed)
            rows = [rng.integers(0, n, size) for _ in range(max(4096 // size, 4))]
            began = time.process_time()
            for each in rows:
                make(store.batch(each))
            rates.append(len(rows) * size / (time.process_time() - began))
        return float(np.median(rates))

    sizes = (32, 128, 512)
    return {
        "opening_ms": {"wall": wall, "cpu": cpu, "fastest": 1e3 * min(opening)[0]},
        "structures_per_cpu_second": {size: rate(size, lambda batch: batch) for size in sizes},
        "with_neighbour_lists": {size: rate(size, prepare) for size in sizes},
    }


def epoch(path: Path, n: int, batch_size: int) -> dict[str, Any]:
    """One epoch of random batches with neighbour lists; its memory on the way."""
    store, trace, seen = Store.open(path), [], 0
    wall, cpu = time.perf_counter(), time.process_time()
    n_steps = -(-n // batch_size)
    with StoreStream(store, prepare, batch_size=batch_size) as stream:
        for step in range(n_steps):
            seen += stream.batch(step).n_systems
            if step % max(n_steps // 100, 1) == 0:
                now = memory()
                trace.append([seen, now["own"], now["files"]])
    assert seen == n
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    own = np.array(trace)[len(trace) // 10 :, :2]
    return {
        "batch_size": batch_size,
        "wall_seconds": wall,
        "structures_per_cpu_second": n / cpu,
        "own_mib": {"median": float(np.median(own[:, 1])), "most": float(own[:, 1].max())},
        # From a tenth of the epoch on; a structure is 1 KiB.
        "own_growth_bytes_per_structure": float(np.polyfit(own[:, 0], own[:, 1] * MIB, 1)[0]),
        "trace": trace,
    }


def waits(path: Path, _n: int, batch_size: int) -> dict[str, Any]:
    """How long a consumer waits whose step leaves the processor alone, as on a GPU."""
    result = {}
    with StoreStream(Store.open(path), prepare, batch_size=batch_size) as stream:
        stream.batch(0)
        step = 0
        for milliseconds in (20, 50):
            waited = []
            for _ in range(150):
                time.sleep(milliseconds / 1e3)
                step += 1
                began = time.perf_counter()
                stream.batch(step)
                waited.append(1e3 * (time.perf_counter() - began))
            median, tail = np.percentile(waited[10:], [50, 95])
            result[f"step of {milliseconds} ms"] = {"median_ms": median, "p95_ms": tail}
    return result


PARTS = {"write": write, "read": read, "waits": waits, "epoch": epoch}


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw memory against structures written and read."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    written = np.array(result["write"]["trace"])
    seen, own, files = np.array(result["epoch"]["trace"]).T
    axes.plot(written[:, 0] / 1e6, written[:, 1], color="tab:green", label="writer")
    axes.plot(seen / 1e6, own, color="tab:blue", label="epoch of random batches")
    axes.plot(
        seen / 1e6, files, color="tab:gray", linestyle=":",
        label="pages of the store that the system keeps while memory is free",
    )  # fmt: skip
    axes.set(xlabel="structures, millions", ylabel="resident memory, MiB", ylim=(0, None))
    figure.legend(loc="outside upper center", fontsize=8)
    figure.savefig(path)


def main() -> None:
    """Run the parts, each in a process of its own, and keep what they say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--folder", type=Path, default=Path("/tmp"))  # noqa: S108
    parser.add_argument("--part", choices=PARTS)
    arguments = parser.parse_args()
    path = arguments.folder / "tether-benchmark-store"
    torch.set_num_threads(1)
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](path, arguments.n, arguments.batch)))
        return
    result: dict[str, Any] = {"n": arguments.n, "n_atoms": N_ATOMS, "cutoff": CUTOFF}
    try:
        for part in PARTS:
            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--part", part],
                check=True, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            # On a busy machine wall times say little; CPU times do not change.
            result[part] = {"load": os.getloadavg()[0], **json.loads(done.stdout)}
            print(part, {k: v for k, v in result[part].items() if k != "trace"}, flush=True)
    finally:
        shutil.rmtree(path, ignore_errors=True)
    write_json(RESULTS / "loader.json", result)
    plot(result, RESULTS / "loader.svg")


if __name__ == "__main__":
    main()

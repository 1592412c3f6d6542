"""Seconds and peak memory of the collapse measures: 20,000 atoms × 128 features.

All measures but t-SNE (`cheap_measures`: goal under 60 s and 2 GB on 2 cores), then one joint
t-SNE of the atoms before and after, 40,000 points (`joint_embedding`: goal under 3 minutes). The
peak is that of the process, imports among it. On a busy machine look at the CPU seconds: with one
thread they are what an idle core would take.

``python benchmarks/collapse.py [--atoms 20000] [--features 128] [--jobs 2] [--json FILE]``
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.collapse.classes import PAPER_CLASSES
from tether.collapse.embed import joint_embedding
from tether.collapse.table import cheap_measures

if TYPE_CHECKING:
    from collections.abc import Callable


def features(n_atoms: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ten overlapping classes on a curved sheet, before and after a moderate change."""
    rng = np.random.default_rng(0)
    codes = np.arange(n_atoms) % len(PAPER_CLASSES)
    inner = 2 * rng.normal(size=(len(PAPER_CLASSES), 12))[codes] + rng.normal(size=(n_atoms, 12))
    before = np.tanh(inner @ rng.normal(size=(12, width)) / 4) + 0.05 * rng.normal(
        size=(n_atoms, width)
    )
    after = before @ (np.eye(width) + 0.05 * rng.normal(size=(width, width))) + 0.1
    structure = rng.permutation(np.arange(n_atoms) // 10)
    return before, after, np.array(PAPER_CLASSES)[codes], structure


def timed(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Result, seconds, CPU seconds of all threads and the process's peak memory so far in GB."""
    began, cpu_began = time.perf_counter(), time.process_time()
    result = run()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    figures = {"seconds": seconds, "cpu_seconds": cpu, "peak_gb": peak}
    return result, {name: round(value, 2) for name, value in figures.items()}


def main() -> None:
    """Time both and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--atoms", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=2, help="threads of the t-SNE")
    parser.add_argument("--json", type=Path)
    settings = parser.parse_args()
    before, after, labels, structure = features(settings.atoms, settings.features)
    measures, cheap = timed(lambda: cheap_measures(before, after, labels, structure, seed=0))
    for one in measures:
        print(f"{one.name:20} {one.value:10.4f}  {one.low:.4f} to {one.high:.4f}  n = {one.n}")
    print("all but t-SNE", cheap, flush=True)
    _, tsne = timed(lambda: joint_embedding(before, after, seeds=(0,), n_jobs=settings.jobs))
    print("t-SNE", tsne)
    if settings.json:
        record = {
            "atoms": settings.atoms,
            "features": settings.features,
            "jobs": settings.jobs,
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
            "cheap": cheap,
            "tsne": tsne,
        }
        settings.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Finished runs that are kept in ``benchmarks/results/``, so that a benchmark takes many sittings.

Weights are left out: what stays is what the numbers are made from.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["KEPT", "RESULTS", "ROOT", "copy_runs", "tether"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: What a finished run needs to be summarised, and to be known for the run that it is.
KEPT = (
    *("metrics.json", "predictions.parquet", "provenance.json", "config.yaml", "log.jsonl"),
    "state/identity.json",
)


def tether(*arguments: str) -> None:
    """Run one command of tether, shown as a person would type it."""
    print("$ tether", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "tether.cli", *arguments], check=True)


def copy_runs(source: Path, destination: Path) -> int:
    """Copy the finished runs of a comparison, or of each task of a suite, where they are not yet.

    Parameters
    ----------
    source, destination : Path
        Folders of the comparison or suite.

    Returns
    -------
    int
        Runs copied.
    """
    copied = 0
    for run in sorted([*source.glob("runs/*"), *source.glob("*/runs/*")]):
        copy = destination / run.relative_to(source)
        names = [name for name in KEPT if (run / name).exists()]
        if (copy / "metrics.json").exists() or not _is_whole(run, names):
            continue
        for name in reversed(names):  # metrics.json last: with it, a run counts as finished
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(run / name, copy / name)
        copied += 1
    return copied


def _is_whole(run: Path, names: list[str]) -> bool:
    """Whether all of `KEPT` is there; a fit of an outside model has no configuration of its own."""
    missing = set(KEPT) - set(names)
    if missing == {"config.yaml"}:
        return "recipe" not in json.loads((run / "state" / "identity.json").read_text())
    return not missing

"""Finished runs that are kept in ``benchmarks/results/``, so that a benchmark takes many sittings.

Adapted weights are left out: what stays is what the numbers are made from. Pretrained backbones
stay: they are small, and runs are made from them.
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
#: The same of a pretraining.
KEPT_BACKBONE = tuple("backbone.safetensors" if n == "predictions.parquet" else n for n in KEPT)


def tether(*arguments: str) -> None:
    """Run one command of tether, shown as a person would type it."""
    print("$ tether", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "tether.cli", *arguments], check=True)


def copy_runs(source: Path, destination: Path) -> int:
    """Copy the finished runs of a comparison, or of a suite with its backbones, not yet there.

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
    made = [path.parent for path in source.glob("*/backbone.safetensors")]
    for run in sorted([*made, *source.glob("runs/*"), *source.glob("*/runs/*")]):
        copy = destination / run.relative_to(source)
        wanted = KEPT_BACKBONE if run in made else KEPT
        names = [name for name in wanted if (run / name).exists()]
        if (copy / "metrics.json").exists() or not _is_whole(run, names, wanted):
            continue
        for name in reversed(names):  # metrics.json last: with it, a run counts as finished
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(run / name, copy / name)
        copied += 1
    return copied


def _is_whole(run: Path, names: list[str], wanted: tuple[str, ...]) -> bool:
    """Whether all is there that is wanted; a fit of an outside model has no configuration."""
    missing = set(wanted) - set(names)
    if missing == {"config.yaml"}:
        return "recipe" not in json.loads((run / "state" / "identity.json").read_text())
    return not missing

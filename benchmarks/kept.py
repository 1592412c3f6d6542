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
from typing import TYPE_CHECKING

from tether.data.store import Store

if TYPE_CHECKING:
    from tether.suites.suite import Suite

__all__ = ["KEPT", "RESULTS", "ROOT", "copy_runs", "recognise", "tether"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: What a finished run needs to be summarised, and to be known for the run that it is.
KEPT = (
    *("metrics.json", "predictions.parquet", "provenance.json", "config.yaml", "log.jsonl"),
    "state/identity.json",
)
#: The same of a pretraining.
KEPT_BACKBONE = tuple("backbone.safetensors" if n == "predictions.parquet" else n for n in KEPT)

#: Force MAE in eV/Å up to which labels are the pretrained model's own, to rounding.
ROUNDING = 1e-5


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


def recognise(suite: Suite) -> int:
    """Let kept runs count here whose labels have other last bits than those made here.

    On a CPU with other vector instructions the pretrained model's labels of the same geometries
    differ in their last bits, and so do the fingerprints of their stores. Runs that were made from
    such labels take the fingerprints of those here, in the working copy alone: what is kept in
    the repository says what it was made from.

    Parameters
    ----------
    suite : Suite
        Tasks whose data are not there are left as they are.

    Returns
    -------
    int
        Runs that were given other fingerprints.
    """
    changed = 0
    for task in suite.tasks:
        stores = {key: getattr(task.config, key) for key in ("auxiliary", "forcefield_test")}
        there = {key: path for key, path in stores.items() if path and Path(path).exists()}
        here = {key: Store.open(path).fingerprint for key, path in there.items()}
        for metrics in sorted(task.out.glob("runs/*/metrics.json")):
            path = metrics.parent / "state" / "identity.json"
            identity = json.loads(path.read_text())
            data = identity["data"]
            own = {key: found for key, found in here.items() if data.get(key)}
            if own.items() <= data.items() or not _is_of_own_labels(metrics.parent):
                continue
            path.write_text(json.dumps({**identity, "data": {**data, **own}}, indent=1))
            changed += 1
    return changed


def _is_of_own_labels(run: Path) -> bool:
    """Whether a run's force-field data were labelled by the model that it starts from.

    A run from scratch starts from no such model: it has no force error, and no figure of it comes
    from the labels.
    """
    metrics = json.loads((run / "metrics.json").read_text())
    provenance = json.loads((run / "provenance.json").read_text())
    before = metrics.get("forgetting", {}).get("before")
    levels = [level for level in (before, provenance.get("level_check")) if level]
    errors = [level["force_mae"] for level in levels]
    return bool(levels) and all(error is None or error < ROUNDING for error in errors)


def _is_whole(run: Path, names: list[str], wanted: tuple[str, ...]) -> bool:
    """Whether all is there that is wanted; a fit of an outside model has no configuration."""
    missing = set(wanted) - set(names)
    if missing == {"config.yaml"}:
        identity = json.loads((run / "state" / "identity.json").read_text())
        return set(identity["recipe"]) == {"name"}
    return not missing

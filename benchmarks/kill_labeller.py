"""Kills labelling at random moments, 50 workers and 50 drivers: nothing lost or corrupt.

Molecules of QM9 are labelled with GFN2-xTB by two workers, in turn of the pool and of a local Ray.
Some time after a random shard, or in the start, a random worker or the process that drives them
gets ``kill -9``; then again, until the labelling is done, and with the next labelling. A killed
worker must cost nothing. After a killed driver every shard must be whole, no worker be left, and
the repeated call must take up every shard. Every store must have the fingerprint of a run that
nobody killed.

``python benchmarks/kill_labeller.py [-n 50] [--drivers 50] [--store FILE] [--json FILE]``
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from tether.data.store import Store
from tether.labels.shards import read_shard
from tether.serialization import write_json

N_MOLECULES, CHUNK = 60, 2
#: Then the other way to label has its turn.
KILLS_OF_ONE = 10
CHILD = """
import json, sys
from tether.data.store import Store
from tether.labels.label import Sampling, label_structures

if __name__ == "__main__":
    report = label_structures(
        Store.open(sys.argv[1]),
        with_="gfn2-xtb",
        out=sys.argv[2],
        sampling=Sampling(n_per_structure=int(sys.argv[4])),
        indices=range(int(sys.argv[5])),
        workers=2,
        chunk_size=int(sys.argv[6]),
        ray="local" if sys.argv[3] == "ray" else None,
    )
    print(json.dumps({"resumed": report.n_resumed, "failures": len(report.failures)}))
"""


def descendants(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    found = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it ends while it is looked at
            for child in listed.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def title(pid: int) -> str:
    """Command line of a process; empty when it is gone, or dead and not yet waited for."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def workers_of(pid: int, mode: str) -> list[int]:
    """Processes that label for a driver, or that wait to."""
    marks = ("spawn_main",) if mode == "pool" else ("ray::_run", "ray::IDLE")
    return [one for one in descendants(pid) if any(mark in title(one) for mark in marks)]


class Labelling:
    """One labelling, with what happens to it.

    Parameters
    ----------
    store, out : Path
        Molecules and labels.
    mode : {"pool", "ray"}
        Who labels.
    n_geometries : int
        Of each molecule.
    random : numpy.random.Generator
        Chooses moments and victims.
    victims : dict of str to int
        How many ``worker`` and ``driver`` are still to be killed.
    """

    def __init__(
        self,
        store: Path,
        out: Path,
        mode: str,
        *,
        n_geometries: int,
        random: np.random.Generator,
        victims: dict[str, int],
    ) -> None:
        self.store, self.out, self.mode = store, out, mode
        self.n_geometries, self.random, self.victims = n_geometries, random, victims
        self.parts = out.with_name(out.name + ".parts")
        self.kept: dict[str, int] = {}  # shards that a driver left, and when each was written
        self.kills: list[dict[str, Any]] = []
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        """Begin, or go on, to label."""
        arguments = (self.store, self.out, self.mode, self.n_geometries, N_MOLECULES, CHUNK)
        command = [sys.executable, "-c", CHILD, *map(str, arguments)]
        log = self.out.with_name("stderr.txt").open("a")
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)

    def shards(self) -> dict[str, int]:
        """Finished chunks: name and time of each."""
        found = {}
        for path in self.parts.glob("0*.npz"):
            with suppress(FileNotFoundError):  # the folder is removed at the end
                found[path.name] = path.stat().st_mtime_ns
        return found

    def kill(self) -> bool:
        """Kill someone, some time from now; False where the labelling is over before."""
        after = int(self.random.integers(-1, 4))  # shards from now; -1: whatever happens then
        wanted = len(self.shards()) + after if after >= 0 else 0
        while self.process.poll() is None and len(self.shards()) < wanted:
            time.sleep(0.01)
        time.sleep(float(self.random.uniform(0.0, 1.0)))
        victim = str(self.random.choice([one for one, left in self.victims.items() if left]))
        workers = workers_of(self.process.pid, self.mode)
        while victim == "worker" and not workers and self.process.poll() is None:
            workers = workers_of(self.process.pid, self.mode)
        if self.process.poll() is not None:
            return False
        target = self.process.pid if victim == "driver" else int(self.random.choice(workers))
        try:
            os.kill(target, signal.SIGSTOP)
            if self.out.exists() and not self.parts.exists():  # all is done, but for its end
                os.kill(target, signal.SIGCONT)
                return False
            os.kill(target, signal.SIGKILL)
        except ProcessLookupError:  # it had just ended by itself
            return False
        self.victims[victim] -= 1
        self.kills.append({"mode": self.mode, "victim": victim, "shards": len(self.shards())})
        print(self.kills[-1], flush=True)
        if victim == "driver":
            self.restart(workers)
        return True

    def restart(self, workers: list[int]) -> None:
        """See what a killed driver left, and repeat the call."""
        self.process.communicate()
        shards = self.shards()
        self.kills[-1] |= {
            "workers_left": survivors(workers),
            "shards_lost": len(self.kept.items() - shards.items()),
        }
        for name in shards:
            read_shard(self.parts / name)  # raises where it is not whole
        self.kept = shards
        self.process = self.start()

    def finish(self) -> dict[str, Any]:
        """Wait for the end; the report of the last call."""
        output, _ = self.process.communicate()
        if self.process.returncode:
            raise RuntimeError(f"labelling ended with {self.process.returncode}; see stderr.txt")
        report: dict[str, Any] = json.loads(output.splitlines()[-1])
        report["not_taken_up"] = len(self.kept) - report["resumed"] // CHUNK
        return report | {"fingerprint": Store.open(self.out).fingerprint}


def survivors(pids: list[int], seconds: float = 30.0) -> int:
    """How many of the processes are still there after a while."""
    end = time.monotonic() + seconds
    while (alive := sum(bool(title(pid)) for pid in pids)) and time.monotonic() < end:
        time.sleep(0.1)
    return alive


def run(store: Path, folder: Path, *, n_geometries: int, victims: dict[str, int]) -> dict[str, Any]:
    """Kill so many workers and drivers, and check each store."""

    def start(name: str, mode: str) -> Labelling:
        out = folder / f"{name}.arrow"
        return Labelling(
            store, out, mode, n_geometries=n_geometries, random=random, victims=victims
        )

    random = np.random.default_rng(0)
    reference = start("reference", "pool").finish()
    kills: list[dict[str, Any]] = []
    reports: list[dict[str, Any]] = []
    while any(victims.values()):
        mode = ("pool", "ray")[len(reports) % 2]
        labelling = start(str(len(reports)), mode)
        while any(victims.values()) and len(labelling.kills) < KILLS_OF_ONE and labelling.kill():
            pass
        kills += labelling.kills
        reports.append({"mode": mode, "kills": len(labelling.kills), **labelling.finish()})
        print(len(kills), reports[-1], flush=True)
    return {
        "molecules": N_MOLECULES,
        "geometries": N_MOLECULES * n_geometries,
        "kills": dict(Counter(f"{kill['mode']} {kill['victim']}" for kill in kills)),
        "labellings": len(reports),
        "other_stores": sum(r["fingerprint"] != reference["fingerprint"] for r in reports),
        "failures": sorted({r["failures"] for r in (reference, *reports)}),
        "shards_lost": sum(kill.get("shards_lost", 0) for kill in kills),
        "shards_not_taken_up": sum(r["not_taken_up"] for r in reports),
        "workers_left": sum(kill.get("workers_left", 0) for kill in kills),
        "load": round(os.getloadavg()[0], 1),
        "reports": reports,
        "each": kills,
    }


def main() -> None:
    """Prepare, kill, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=50, help="workers to be killed")
    parser.add_argument("--drivers", type=int, default=50, help="drivers to be killed")
    parser.add_argument("--geometries", type=int, default=6, help="of each molecule")
    parser.add_argument("--store", type=Path, help="molecules; default: a sample of QM9")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = options.store or folder / "molecules.arrow"
        if options.store is None:
            command = [sys.executable, "-m", "tether.cli", "prepare", "qm9", "--out", str(store)]
            subprocess.run([*command, "--limit", str(N_MOLECULES)], check=True)
        victims = {"worker": options.n, "driver": options.drivers}
        content = run(store, folder, n_geometries=options.geometries, victims=victims)
    print({key: value for key, value in content.items() if key not in {"each", "reports"}})
    if options.json:
        write_json(options.json, content)


if __name__ == "__main__":
    main()

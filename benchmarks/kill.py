"""Kill a piece of tether with SIGKILL at random moments, many times; nothing may be lost.

``python benchmarks/kill.py writer [-n 50]`` writes ``results/kill_writer.json``. A mode is a
function of the number of kills and a folder, and returns what it counted; it raises where
something was lost or corrupt.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from loader import chunks

from tether.data.chunks import ENERGY, FORCES
from tether.data.store import Store, write_store
from tether.serialization import write_json

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results"


def killed(command: list[str], within: tuple[float, float], rng: np.random.Generator) -> bool:
    """Start a command, wait for its first line, and kill it at a random moment after.

    Parameters
    ----------
    command : list of str
        Prints a line when what shall be killed begins.
    within : (float, float)
        Seconds after that line, from and to.
    rng : Generator
        Draws the moment.

    Returns
    -------
    bool
        Whether it was still running.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(timeout=rng.uniform(*within))
        except subprocess.TimeoutExpired:
            process.kill()
            return True
        assert process.returncode == 0
        return False


def write(out: Path, *, announce: bool = False) -> str:
    """What is killed: a store of 40 shards."""
    if announce:
        write_store(out.with_name("first"), chunks(10), [ENERGY, FORCES])  # imports all it needs
        print("begins", flush=True)
    return write_store(out, chunks(24_000, size=140), [ENERGY, FORCES], shard_size=600)


def writer(n: int, folder: Path) -> dict[str, Any]:
    """Kill the writer of a sharded store; every other time over an older store."""
    rng = np.random.default_rng(0)
    out, parts = folder / "store", folder / "store.parts"
    write(folder / "whole")
    began = time.perf_counter()
    fingerprint = write(folder / "whole")
    longest = time.perf_counter() - began
    command = [sys.executable, __file__, "writer", "--victim", str(out)]
    kept, n_killed = [], 0
    while n_killed < n:
        old = None
        if n_killed % 2:
            old = write_store(out, chunks(500), [ENERGY], shard_size=200)
        was_killed = killed(command, (0, longest), rng)
        if not was_killed:  # it was faster than the draw
            _clear(folder, "store")
            continue
        n_killed += 1
        shards = {path.name: path.stat().st_ino for path in sorted(parts.glob("*.arrow"))}
        for name in shards:
            Store.open(parts / name).verify()
        complete = False
        if out.exists():
            store = Store.open(out)
            store.verify()
            assert store.fingerprint in {fingerprint, old}
            complete = store.fingerprint == fingerprint
        else:
            assert old is None or (parts / "manifest.json").exists()
        assert write(out) == fingerprint
        store = Store.open(out)
        store.verify()
        assert store.fingerprint == fingerprint
        after = {path.name: path.stat().st_ino for path in out.glob("*.arrow")}
        assert shards.items() <= after.items(), "a finished shard was written again"
        assert {p.name for p in folder.iterdir()} <= {"store", "whole", "first", "store.replaced"}
        kept.append(40 if complete else len(shards))
        _clear(folder, "store")
        _clear(folder, "store.replaced")
    return {
        "n_kills": n_killed,
        "shards_finished_at_the_kill": kept,
        "n_shards": 40,
        "fingerprint": fingerprint,
        "lost": 0,
        "corrupt": 0,
        "all_fingerprints_equal": True,
    }


def _clear(folder: Path, name: str) -> None:
    for file in (folder / name).glob("*"):
        file.unlink()
    if (folder / name).exists():
        (folder / name).rmdir()


MODES: dict[str, Callable[[int, Path], dict[str, Any]]] = {"writer": writer}
#: Run in the process that is killed; each prints a line when it begins.
VICTIMS: dict[str, Callable[[Path], object]] = {"writer": lambda out: write(out, announce=True)}


def main() -> None:
    """Run a mode, or be what it kills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("-n", type=int, default=50)
    parser.add_argument("--victim", type=Path, help="for the script itself")
    arguments = parser.parse_args()
    if arguments.victim:
        VICTIMS[arguments.mode](arguments.victim)
        return
    with TemporaryDirectory(prefix="tether-kill-") as folder:
        result = MODES[arguments.mode](arguments.n, Path(folder))
    print(result)
    write_json(RESULTS / f"kill_{arguments.mode}.json", result)


if __name__ == "__main__":
    main()

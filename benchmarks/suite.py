"""A suite of `tether bench` over several sittings: what is finished is kept in the repository.

``python benchmarks/suite.py qm9-boom [options of tether bench]``

Runs that are in ``benchmarks/results/<suite>/`` are not run again; those that finish are copied
there, without their weights, while the others go on. The data are made anew on each machine: a kept
run is refused if they come out different.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from kept import RESULTS, ROOT, copy_runs

#: Seconds between looks at what has finished.
INTERVAL = 60.0


def keep(work: Path, results: Path) -> None:
    """Copy what has finished since the last look."""
    copied = copy_runs(work, results)
    if copied:
        print(f"{copied} more runs in {results}", flush=True)


def main() -> None:
    """Bring the kept runs, run the suite, keep what it has finished."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", help="qm9-boom, qm9-sizes, matbench-loco, or a YAML file")
    parser.add_argument("--out", type=Path, help="default: runs/<suite>")
    options, others = parser.parse_known_args()
    name = Path(options.suite).stem
    work, results = options.out or ROOT / "runs" / name, RESULTS / name
    copy_runs(results, work)
    command = [sys.executable, "-m", "tether.cli", "bench", options.suite, "--out", str(work)]
    print("$ tether", *command[3:], *others, flush=True)
    bench = subprocess.Popen([*command, *others])
    try:
        while True:
            try:
                bench.wait(INTERVAL)
                break
            except subprocess.TimeoutExpired:
                keep(work, results)
    except BaseException:
        bench.terminate()  # its runs resume from their checkpoints
        bench.wait()
        raise
    finally:
        keep(work, results)
    if bench.returncode:
        sys.exit(bench.returncode)
    shutil.copy(work / "results.json", results / "results.json")
    print(f"results in {results}")


if __name__ == "__main__":
    main()

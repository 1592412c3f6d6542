"""A suite of `tether bench` over several sittings: what is finished is kept in the repository.

``python benchmarks/suite.py qm9-boom [options of tether bench]``

Runs that are in ``benchmarks/results/<suite>/`` are not run again; those that finish are copied
there, without their weights, while the others go on. The data are made anew on each machine: a kept
run is refused if they come out different, but for the last bits of labels, which depend on the CPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from kept import RESULTS, ROOT, copy_runs, recognise, tether

from tether.bench import prepare_suite
from tether.suites.suite import load_suite

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
    parser.add_argument("--data", type=Path, help="as for tether bench")
    parser.add_argument("--task", action="append", default=[], help="as for tether bench")
    options, others = parser.parse_known_args()
    name = Path(options.suite).stem
    suite = options.suite if name == options.suite else os.path.relpath(options.suite, ROOT)
    data = Path(os.path.relpath(options.data, ROOT)) if options.data else None
    work = options.out.resolve() if options.out else Path("runs") / name
    os.chdir(ROOT)  # what is kept names no folder of this machine
    results = RESULTS / name
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # take the bench along
    prepare_suite(load_suite(suite, out=work, data=data, tasks=options.task))
    copy_runs(results, work)
    # The page is of all tasks whose data are there, also of those that are not run now.
    changed = recognise(load_suite(suite, out=work, data=data))
    print(f"{changed} kept runs are of labels with other last bits", flush=True)
    arguments = ["bench", suite, "--out", str(work), *(["--data", str(data)] if data else [])]
    only = [part for task in options.task for part in ("--task", task)]
    print("$ tether", *arguments, *only, *others, flush=True)
    bench = subprocess.Popen([sys.executable, "-m", "tether.cli", *arguments, *only, *others])
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
    if only:
        print(f"without --task, {results / 'results.json'} is written, with the data of all tasks")
        return
    # A sitting may run a part of the suite; the results are those of all of it.
    tether(*arguments, "--status")
    shutil.copy(work / "results.json", results / "results.json")
    print(f"results in {results}")


if __name__ == "__main__":
    main()

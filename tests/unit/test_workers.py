"""A worker does not outlive a parent that was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from tether.workers import end_with_parent

if __name__ == "__main__":
    starts = {"watched": end_with_parent, "unwatched": None}
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=starts[sys.argv[1]]) as pool:
        task = pool.submit(time.sleep, 60)
        while not task.running():
            time.sleep(0.05)
        print(*pool._processes, flush=True)
        task.result()
"""

LAUNCHER = """
import subprocess, sys
rank = "from tether.workers import end_with_parent; import time; end_with_parent(); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", rank if sys.argv[1] == "watched" else rank.replace(
    "end_with_parent()", "None")])
print(child.pid, flush=True)
child.wait()
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that has ended and that nobody waits for is none that works.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("parent_script", [PARENT, LAUNCHER], ids=["pool", "launcher"])
@pytest.mark.parametrize(("start", "survives"), [("watched", False), ("unwatched", True)])
def test_a_worker_ends_with_a_killed_parent(
    tmp_path: Path, parent_script: str, start: str, *, survives: bool
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(parent_script)
    with subprocess.Popen(
        [sys.executable, str(script), start], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        time.sleep(0.5)  # the initializer runs before the task
        assert is_alive(worker)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + (2 if survives else 20)
        while is_alive(worker) and time.monotonic() < deadline:
            time.sleep(0.1)
        try:
            assert is_alive(worker) is survives
        finally:
            if is_alive(worker):
                os.kill(worker, signal.SIGKILL)

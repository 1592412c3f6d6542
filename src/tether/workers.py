"""Processes beside others: they end with the one that started them; how many a launcher started."""

from __future__ import annotations

import os
import threading
import time
from multiprocessing import parent_process

__all__ = ["end_with_parent", "n_ranks", "rank"]

#: Seconds between looks at the parent of a process that multiprocessing did not start.
POLL = 1.0


def n_ranks() -> int:
    """Processes that torchrun, or srun of SLURM, started for this command; 1 without them."""
    # srun's own count, not that of the job: a batch script alone is one process.
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def rank() -> int:
    """Number of this process among them, from 0."""
    if n_ranks() == 1:
        return 0
    return int(os.environ["RANK" if "WORLD_SIZE" in os.environ else "SLURM_PROCID"])


def end_with_parent() -> None:
    """End this process, whatever it is doing, when the one that started it is gone.

    For the start of a worker, or of a rank. A killed parent cannot shut its pool down: its workers
    would go on to the end of their task, unseen, and write to a folder to which a resumed command
    writes as well. What they had written by then is whole, as after any kill.
    """
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()


def _watch_parent(launcher: int) -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
    while parent is None and os.getppid() == launcher:
        time.sleep(POLL)
    os._exit(1)

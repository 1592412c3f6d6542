"""Processes beside others: they end with the one that started them; how many a launcher started."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["end_with_parent", "n_ranks", "rank", "unheard_interrupts"]

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


@contextmanager
def unheard_interrupts() -> Iterator[None]:
    """Processes that are started in the block never hear Ctrl-C, which a terminal sends to all.

    The one that started them hears it, if need be after the block; it ends them, and it alone says
    so: each of them would print a traceback.

    Yields
    ------
    None
        With the signal held back, which children inherit.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows has no such thing
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watch_parent(launcher: int) -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
    while parent is None and os.getppid() == launcher:
        time.sleep(POLL)
    os._exit(1)

"""Worker processes end with the process that started them."""

from __future__ import annotations

import os
import threading
from multiprocessing import parent_process

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """End this process, whatever it is doing, when the one that started it is gone.

    For the start of a worker. A killed parent cannot shut its pool down: its workers would go on
    to the end of their task, unseen, and write to a folder to which a resumed command writes as
    well. What they had written by then is whole, as after any kill.
    """
    threading.Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

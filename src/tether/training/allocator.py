"""Keep freed memory in the process: glibc otherwise returns it to the kernel after each step.

A training step allocates and frees the same large tensors again and again. glibc's default gives
the top of the heap back each time, and the page faults that follow cost a fifth of a force-field
step (measured by ``benchmarks/step.py --no-keep-memory``).
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_memory"]

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_MIB = 1024 * 1024


def keep_memory() -> bool:
    """Raise glibc's trim and mmap thresholds for this process.

    Returns
    -------
    bool
        Whether it was done; False where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = {
        _M_MMAP_THRESHOLD: 32 * _MIB,
        _M_TRIM_THRESHOLD: 2047 * _MIB,
        _M_TOP_PAD: 256 * _MIB,
    }
    return all(mallopt(key, value) == 1 for key, value in settings.items())

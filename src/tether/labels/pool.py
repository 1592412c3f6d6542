"""Where chunks are labelled on one machine: processes of one thread each, or this process."""

from __future__ import annotations

import os
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING

from tether.errors import TetherError
from tether.labels.dispatch import ATTEMPTS
from tether.labels.worker import ChunkResult, ChunkTask, run_task, start_worker
from tether.workers import unheard_interrupts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tether.labels.pseudo import PseudoLabeller

__all__ = ["ONE_THREAD", "Pool", "ThisProcess", "environment", "n_cores", "pool"]

#: Environment variables that give child processes one BLAS and OpenMP thread each.
ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    ),
    "1",
)


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the processes that are started inside the block.

    Libraries read theirs once, when they load; so they must be there before a child starts, and
    they change nothing in this process.

    Parameters
    ----------
    variables : mapping of str to str
        What to set; afterwards the environment is as before.

    Yields
    ------
    None
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class ThisProcess:
    """Labels each chunk as it is submitted, with nothing around it: for accelerators.

    Parameters
    ----------
    backbone : Backbone and Potential, or None
        For "pseudo".
    """

    capacity = 1
    deaths: tuple[type[Exception], ...] = ()

    def __init__(self, backbone: PseudoLabeller | None) -> None:
        self._backbone = backbone

    def submit(self, task: ChunkTask) -> Future[ChunkResult]:
        """A future that is done."""
        future: Future[ChunkResult] = Future()
        future.set_result(run_task(task, self._backbone))
        return future


class Pool:
    """Processes of this machine, each with an executor of its own: they die one by one.

    Parameters
    ----------
    n : int
        Processes; they start with their first chunk.
    backbone : bytes, str or None
        See `start_worker`.
    """

    deaths: tuple[type[Exception], ...] = (BrokenProcessPool,)

    def __init__(self, n: int, backbone: bytes | str | None) -> None:
        self.capacity = n
        self._backbone = backbone
        self._executors = [self._executor() for _ in range(n)]
        self._latest: list[Future[ChunkResult] | None] = [None] * n

    def submit(self, task: ChunkTask) -> Future[ChunkResult]:
        """Give the chunk to a process that has none; see `Workers`."""
        latest = self._latest
        place = next(i for i, future in enumerate(latest) if future is None or future.done())
        with unheard_interrupts():
            try:
                future = self._executors[place].submit(run_task, task)
            except BrokenProcessPool:
                self._executors[place] = self._started()
                future = self._executors[place].submit(run_task, task)
        latest[place] = future
        return future

    def terminate(self) -> None:
        """End the processes at once: nobody wants their chunks any more."""
        for executor in self._executors:
            for process in list(executor._processes.values()):  # noqa: SLF001
                process.terminate()

    def close(self) -> None:
        """End the processes; those that are labelling finish their chunk first."""
        for executor in self._executors:
            executor.shutdown(wait=False, cancel_futures=True)
        for executor in self._executors:
            executor.shutdown()

    def _executor(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            1,
            mp_context=get_context("spawn"),  # forking a process with threads may deadlock
            initializer=start_worker,
            initargs=(self._backbone,),
        )

    def _started(self) -> ProcessPoolExecutor:
        # In place of one that died. Where none lives long enough to say so, no chunk is at fault.
        for _ in range(ATTEMPTS):
            executor = self._executor()
            try:
                executor.submit(n_cores).result()
            except BrokenProcessPool:
                continue
            return executor
        raise TetherError(
            "worker processes die as they start",
            expected="processes that can import this program",
            fix="put the call under `if __name__ == '__main__':`, or set workers=0",
        )


@contextmanager
def pool(n: int, backbone: bytes | str | None) -> Iterator[Pool]:
    """A `Pool`, ended with the block.

    Parameters
    ----------
    n, backbone
        See `Pool`.

    Yields
    ------
    Pool
        Nothing runs in it yet.
    """
    with environment(ONE_THREAD):
        workers = Pool(n, backbone)
        try:
            yield workers
        except BaseException:
            workers.terminate()
            raise
        finally:
            workers.close()

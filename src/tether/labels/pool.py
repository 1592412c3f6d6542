"""Worker processes for labelling: one thread each, and a crash costs one structure, not the run."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context
from typing import TYPE_CHECKING

import torch

from tether.errors import TetherError
from tether.labels.failure import Failure
from tether.labels.shards import read_shard, write_shard
from tether.labels.worker import ChunkResult, ChunkTask, run_task, start_worker, with_labels
from tether.structures import AtomBatch, collate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["n_cores", "one_thread_environment", "run_tasks"]

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def n_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_thread_environment() -> Iterator[None]:
    """Environment variables that give child processes one BLAS and OpenMP thread each.

    Libraries read them once, when they load; so they must be there before a child starts, and
    they change nothing in this process.
    """
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run_tasks(
    tasks: Iterable[ChunkTask], *, workers: int, backbone: bytes | str | None
) -> Iterator[ChunkResult]:
    """Label chunks in worker processes.

    Parameters
    ----------
    tasks : iterable of ChunkTask
        Taken as they are needed, so that memory is flat in their number.
    workers : int
        Processes.
    backbone : bytes, str or None
        See `start_worker`.

    Yields
    ------
    ChunkResult
        As they finish; the shard of each is on disk by then.

    Raises
    ------
    TetherError
        When worker processes do not start at all, or whatever a chunk raised.
    """
    waiting = iter(tasks)
    with one_thread_environment():
        started = False
        while True:
            lost: list[ChunkTask] = []
            for result in _until_broken(waiting, lost, workers=workers, backbone=backbone):
                started = True
                yield result
            if not lost:
                return
            if not started:
                _check_start(backbone)
            for task in lost:
                yield _isolated(task, backbone)


def _executor(workers: int, backbone: bytes | str | None) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        workers,
        mp_context=get_context("spawn"),  # forking a process with threads may deadlock
        initializer=start_worker,
        initargs=(backbone,),
    )


def _until_broken(
    waiting: Iterator[ChunkTask],
    lost: list[ChunkTask],
    *,
    workers: int,
    backbone: bytes | str | None,
) -> Iterator[ChunkResult]:
    # Yields results until all tasks are done or a worker dies; then fills `lost`.
    executor = _executor(workers, backbone)
    running: dict[Future[ChunkResult], ChunkTask] = {}
    unsubmitted: list[ChunkTask] = []
    try:
        while True:
            unsubmitted = list(islice(waiting, 2 * workers - len(running)))
            while unsubmitted:
                running[executor.submit(run_task, unsubmitted[0])] = unsubmitted[0]
                del unsubmitted[0]
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                result = future.result()
                del running[future]
                yield result
    except BrokenProcessPool:
        lost += [*running.values(), *unsubmitted]
    finally:
        executor.shutdown(cancel_futures=True)


def _alone(task: ChunkTask, backbone: bytes | str | None) -> ChunkResult | None:
    # None: the process died.
    with _executor(1, backbone) as executor:
        try:
            return executor.submit(run_task, task).result()
        except BrokenProcessPool:
            return None


def _isolated(task: ChunkTask, backbone: bytes | str | None) -> ChunkResult:
    """Label a chunk that was running when a worker died: alone, then a structure at a time."""
    result = _alone(task, backbone)
    if result is not None:
        return result
    batch: AtomBatch = pickle.loads(task.batch)
    empty = torch.empty(0, 3, dtype=torch.float64)
    parts = [with_labels(batch.select([]), empty[:, 0], empty)]
    failures: list[Failure] = []
    for s in range(batch.n_systems):
        single = batch.select([s])
        path = task.path.with_suffix(f".{s}.npz")
        done = _alone(task._replace(batch=pickle.dumps(single), path=path), backbone)
        if done is None:
            reason = "the worker process died (out of memory, or a crash inside a library)"
            failures.append(Failure(single.ids[0], reason))
        else:
            labelled, found = read_shard(path)
            parts.append(labelled)
            failures += found
            path.unlink()
    labelled = collate(parts)
    write_shard(task.path, labelled, failures)
    return ChunkResult(batch.n_systems, labelled.n_systems, len(failures))


def _check_start(backbone: bytes | str | None) -> None:
    with _executor(1, backbone) as executor:
        try:
            executor.submit(n_cores).result()
        except BrokenProcessPool:
            raise TetherError(
                "worker processes die as they start",
                expected="processes that can import this program",
                fix="put the call under `if __name__ == '__main__':`, or set workers=0",
            ) from None

"""Chunks go out to workers, their shards come back; a crash costs one structure, not the run."""

from __future__ import annotations

import pickle
from collections import deque
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import torch

from tether.labels.failure import Failure
from tether.labels.shards import read_shard, write_shard
from tether.labels.worker import ChunkResult, ChunkTask, chunk_result, with_labels
from tether.structures import AtomBatch, collate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future

__all__ = ["ATTEMPTS", "Workers", "run_tasks"]

#: Workers that may die on a chunk before it is taken apart, and on a structure before it is listed
#: as a failure. More than one: most workers die of something else, a node that goes, or too little
#: memory for all.
ATTEMPTS = 3


class Workers(Protocol):
    """What labels chunks: processes of this machine or of a Ray cluster, or this process."""

    @property
    def capacity(self) -> int:
        """Chunks that may be out at a time, at least 1; it may change."""
        ...

    @property
    def deaths(self) -> tuple[type[Exception], ...]:
        """What a future raises when the worker died, and not the work."""
        ...

    def submit(self, task: ChunkTask) -> Future[ChunkResult]:
        """Have a chunk labelled; called with less than `capacity` out."""
        ...


@dataclass
class _Apart:
    """A chunk that workers die of: its structures are labelled one by one."""

    task: ChunkTask
    n: int
    done: dict[int, ChunkResult] = field(default_factory=dict)

    def together(self) -> ChunkResult:
        """Result of the chunk, in the order of its structures."""
        shards = [read_shard(self.done[s].shard) for s in range(self.n)]
        batches, failures = zip(*shards, strict=True)
        return chunk_result(self.n, collate(batches), [f for found in failures for f in found])


@dataclass
class _Job:
    """A chunk on its way, or structure number `place` of one that was taken apart."""

    task: ChunkTask
    n_deaths: int = 0
    whole: _Apart | None = None
    place: int = 0

    def again(self) -> list[_Job]:
        """What is to be submitted after a death; nothing when this structure is given up."""
        self.n_deaths += 1
        if self.n_deaths < ATTEMPTS:
            return [self]
        if self.whole is not None:
            return []
        batch: AtomBatch = pickle.loads(self.task.batch)
        whole = _Apart(self.task, batch.n_systems)
        singles = [pickle.dumps(batch.select([s])) for s in range(whole.n)]
        return [
            _Job(self.task._replace(batch=single), whole=whole, place=s)
            for s, single in enumerate(singles)
        ]

    def finish(self, result: ChunkResult) -> ChunkResult | None:
        """Result of the chunk, once it has all its structures."""
        if self.whole is None:
            return result
        self.whole.done[self.place] = result
        return self.whole.together() if len(self.whole.done) == self.whole.n else None


def run_tasks(tasks: Iterable[ChunkTask], workers: Workers) -> Iterator[ChunkResult]:
    """Have chunks labelled and write their shards.

    Parameters
    ----------
    tasks : iterable of ChunkTask
        Taken as they are needed, so that memory is flat in their number.
    workers : Workers
        Who labels.

    Yields
    ------
    ChunkResult
        As they finish; the shard of each is on disk by then. A structure on which `ATTEMPTS`
        workers died, first in its chunk and then alone, is a failure in it.

    Raises
    ------
    TetherError
        Whatever a chunk raised.
    """
    fresh = (_Job(task) for task in tasks)
    waiting: deque[_Job] = deque()
    running: dict[Future[ChunkResult], _Job] = {}
    while True:
        n_free = max(0, workers.capacity - len(running))
        waiting.extend(islice(fresh, max(0, n_free - len(waiting))))
        for _ in range(min(n_free, len(waiting))):
            job = waiting.popleft()
            running[workers.submit(job.task)] = job
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            try:
                result = future.result()
            except workers.deaths:
                again = job.again()
                waiting.extend(again)
                if again:
                    continue
                result = _given_up(job.task)
            whole = job.finish(result)
            if whole is not None:
                write_shard(job.task.path, whole.shard)
                yield whole


def _given_up(task: ChunkTask) -> ChunkResult:
    batch: AtomBatch = pickle.loads(task.batch)
    empty = torch.empty(0, 3, dtype=torch.float64)
    reason = "the worker process died (out of memory, or a crash inside a library)"
    failures = [Failure(name, reason) for name in batch.ids]
    return chunk_result(1, with_labels(batch.select([]), empty[:, 0], empty), failures)

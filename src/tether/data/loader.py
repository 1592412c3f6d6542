"""Endless, seeded streams of batches, addressed by step: of a graph in memory, and of a store."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import numpy as np
import torch

from tether.data.shares import balanced_shares
from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from tether.data.store import Store
    from tether.graph import Graph
    from tether.structures import AtomBatch

__all__ = ["GraphStream", "StoreStream"]


class GraphStream:
    """Batches of a prepared graph in an order that is a function of seed and step alone.

    Nothing has to be saved to resume: batch ``k`` is the same whenever it is asked for.

    Parameters
    ----------
    graph : Graph
        All structures, neighbour lists built.
    batch_size : int
        Structures in a batch, at most.
    max_atoms : int, optional
        Atoms in a batch, at most; a batch is closed before it would exceed this.
    seed : int
        Of the order.

    Raises
    ------
    TetherError
        For an empty graph, or a structure larger than `max_atoms`.
    """

    def __init__(
        self, graph: Graph, *, batch_size: int, max_atoms: int | None = None, seed: int = 0
    ) -> None:
        self.graph = graph
        self._order = _Order(graph.batch.counts.numpy(), batch_size, max_atoms, seed)

    def batch(self, step: int) -> Graph:
        """Batch number `step`, counted from 0 over all epochs."""
        return self.graph.select(torch.from_numpy(self.indices(step)))

    def indices(self, step: int) -> NDArray[np.int64]:
        """Structures of batch `step`, shape (n_batch,)."""
        return self._order.rows(step)


class StoreStream:
    """Batches of a store that may be larger than memory, in the order of a `GraphStream`.

    Structures are read at random and their neighbour lists are made in background threads, some
    steps ahead. Batch ``k`` is a function of (seed, step, rank, n_ranks) alone, and the batches of
    all ranks together are the batch of a single one. Use it as a context, or close it.

    Parameters
    ----------
    store : Store
        Structures and labels.
    prepare : callable
        Makes a graph of a batch, in a background thread: `Backbone.prepare`, for example.
    batch_size : int
        Structures in a batch of all ranks together, at most.
    max_atoms : int, optional
        Atoms in a batch of all ranks together, at most.
    seed : int
        Of the order.
    indices : array of int, optional
        Rows of the store to draw from; default all.
    rank, n_ranks : int
        Which share of each batch, see `balanced_shares`. Where a batch has fewer structures than
        there are ranks, some shares are empty.
    n_ahead : int
        Batches that are made ahead of the last one asked for; 0: each when it is asked for.
    n_workers : int
        Threads. A thread holds the interpreter for most of `prepare`, so that a second one helps
        little.

    Raises
    ------
    TetherError
        For nothing to draw from, a structure larger than `max_atoms`, an impossible rank.
    """

    def __init__(
        self,
        store: Store,
        prepare: Callable[[AtomBatch], Graph],
        *,
        batch_size: int,
        max_atoms: int | None = None,
        seed: int = 0,
        indices: Sequence[int] | NDArray[np.integer] | None = None,
        rank: int = 0,
        n_ranks: int = 1,
        n_ahead: int = 4,
        n_workers: int = 1,
    ) -> None:
        if not 0 <= rank < n_ranks:
            raise TetherError(
                f"rank {rank} of {n_ranks}",
                expected="0 <= rank < n_ranks",
                fix="check what starts the processes",
            )
        self._store, self._prepare = store, prepare
        self._rows = None if indices is None else np.asarray(indices, dtype=np.int64)
        sizes = store.n_atoms_per_system
        self._sizes = sizes if self._rows is None else sizes[self._rows]
        self._order = _Order(self._sizes, batch_size, max_atoms, seed)
        self.rank, self.n_ranks, self._n_ahead = rank, n_ranks, n_ahead
        self._pool = ThreadPoolExecutor(n_workers, thread_name_prefix="tether-batches")
        self._ready: dict[int, Future[Graph]] = {}

    def batch(self, step: int) -> Graph:
        """The share of batch number `step` that is this rank's, counted from 0 over all epochs.

        Parameters
        ----------
        step : int
            Any; a step after the last one asked for is likely to be ready.

        Returns
        -------
        Graph
            As `prepare` made it. What it raises is raised here.
        """
        wanted = range(step, step + self._n_ahead + 1)
        for passed in self._ready.keys() - set(wanted):
            self._ready.pop(passed).cancel()
        for ahead in wanted:
            if ahead not in self._ready:
                self._ready[ahead] = self._pool.submit(self._made, self.indices(ahead))
        return self._ready.pop(step).result()

    def indices(self, step: int) -> NDArray[np.int64]:
        """Rows of the store in this rank's share of batch `step`, shape (n_share,)."""
        rows = self._order.rows(step)
        rows = rows[balanced_shares(self._sizes[rows], self.n_ranks)[self.rank]]
        return rows if self._rows is None else self._rows[rows]

    def close(self) -> None:
        """Stop the threads, when what they are at is done."""
        self._pool.shutdown(cancel_futures=True)
        self._ready.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _made(self, rows: NDArray[np.int64]) -> Graph:
        if len(rows):
            return self._prepare(self._store.batch(rows))
        # Not every backbone can prepare nothing.
        first = [0] if self._rows is None else self._rows[:1]
        return self._prepare(self._store.batch(first)).select([])


class _Order:
    """Rows of each step: a function of the seed and the step alone."""

    def __init__(
        self, sizes: NDArray[np.int64], batch_size: int, max_atoms: int | None, seed: int
    ) -> None:
        if len(sizes) == 0 or batch_size < 1:
            raise TetherError(
                f"{len(sizes)} structures in batches of {batch_size}",
                expected="at least one structure, and batches of at least one",
                fix="check the split and training.batch_size",
            )
        if max_atoms is not None and int(sizes.max()) > max_atoms:
            raise TetherError(
                f"a structure has {int(sizes.max())} atoms",
                expected=f"at most max_atoms={max_atoms}",
                fix=f"set max_atoms={int(sizes.max())} or more",
            )
        self._sizes = sizes
        self._batch_size, self._max_atoms, self._seed = batch_size, max_atoms, seed
        self._epochs: list[int] = [0]  # first step of each epoch seen so far
        self._current: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def rows(self, step: int) -> NDArray[np.int64]:
        while True:
            epoch = int(np.searchsorted(self._epochs, step, side="right")) - 1
            order, bounds = self._epoch(epoch)
            n_batches = len(bounds) - 1
            if step < self._epochs[epoch] + n_batches:
                local = step - self._epochs[epoch]
                return order[bounds[local] : bounds[local + 1]]
            self._epochs.append(self._epochs[epoch] + n_batches)

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Order of an epoch, and where its batches begin."""
        if self._current is None or self._current[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._sizes))
            self._current = (epoch, order, self._bounds(self._sizes[order]))
        return self._current[1:]

    def _bounds(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._max_atoms is None:
            return np.append(np.arange(0, len(sizes), self._batch_size), len(sizes))
        ends = np.concatenate([[0], np.cumsum(sizes)])
        bounds = [0]
        while bounds[-1] < len(sizes):
            fits = int(np.searchsorted(ends, ends[bounds[-1]] + self._max_atoms, side="right")) - 1
            bounds.append(min(fits, bounds[-1] + self._batch_size))
        return np.array(bounds)

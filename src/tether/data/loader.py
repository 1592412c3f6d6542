"""`GraphStream`: an endless, seeded stream of batches, addressed by its step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tether.errors import TetherError

if TYPE_CHECKING:
    from tether.graph import Graph

__all__ = ["GraphStream"]


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
        if graph.n_systems == 0 or batch_size < 1:
            raise TetherError(
                f"{graph.n_systems} structures in batches of {batch_size}",
                expected="at least one structure, and batches of at least one",
                fix="check the split and training.batch_size",
            )
        self.graph = graph
        self._sizes = graph.batch.counts.numpy()
        if max_atoms is not None and int(self._sizes.max()) > max_atoms:
            raise TetherError(
                f"a structure has {int(self._sizes.max())} atoms",
                expected=f"at most max_atoms={max_atoms}",
                fix=f"set max_atoms={int(self._sizes.max())} or more",
            )
        self._batch_size, self._max_atoms, self._seed = batch_size, max_atoms, seed
        self._epochs: list[int] = [0]  # first step of each epoch seen so far
        self._current: tuple[int, np.ndarray, np.ndarray] | None = None

    def batch(self, step: int) -> Graph:
        """Batch number `step`, counted from 0 over all epochs."""
        return self.graph.select(torch.from_numpy(self.indices(step)))

    def indices(self, step: int) -> np.ndarray:
        """Structures of batch `step`, shape (n_batch,)."""
        while True:
            epoch = int(np.searchsorted(self._epochs, step, side="right")) - 1
            order, bounds = self._epoch(epoch)
            n_batches = len(bounds) - 1
            if step < self._epochs[epoch] + n_batches:
                local = step - self._epochs[epoch]
                return order[bounds[local] : bounds[local + 1]]
            self._epochs.append(self._epochs[epoch] + n_batches)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Order of an epoch, and where its batches begin."""
        if self._current is None or self._current[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(len(self._sizes))
            self._current = (epoch, order, self._bounds(self._sizes[order]))
        return self._current[1:]

    def _bounds(self, sizes: np.ndarray) -> np.ndarray:
        if self._max_atoms is None:
            return np.append(np.arange(0, len(sizes), self._batch_size), len(sizes))
        ends = np.concatenate([[0], np.cumsum(sizes)])
        bounds = [0]
        while bounds[-1] < len(sizes):
            fits = int(np.searchsorted(ends, ends[bounds[-1]] + self._max_atoms, side="right")) - 1
            bounds.append(min(fits, bounds[-1] + self._batch_size))
        return np.array(bounds)

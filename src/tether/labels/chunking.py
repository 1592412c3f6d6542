"""The structures cut into chunks, and the shards of the chunks put together again."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch

from tether.data.chunks import ENERGY, FORCES, Chunk
from tether.labels.shards import Parts, chunk_key, read_shard
from tether.labels.worker import ChunkTask, Settings
from tether.structures import AtomBatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from tether.labels.failure import Failure

__all__ = ["Chunks", "Merge", "StructureSource", "pieces"]


@runtime_checkable
class StructureSource(Protocol):
    """Structures by index; `tether.data.store.Store` is one."""

    n_systems: int

    def batch(self, indices: Sequence[int]) -> AtomBatch:
        """Structures by index, in that order."""
        ...


def pieces(
    source: StructureSource | AtomBatch | Iterable[AtomBatch],
    indices: Sequence[int] | None,
    chunk_size: int,
) -> Iterator[AtomBatch]:
    """Cut structures into chunks.

    Parameters
    ----------
    source : StructureSource, AtomBatch or iterable of AtomBatch
        Where they are.
    indices : sequence of int or None
        Rows of a store; None: all.
    chunk_size : int
        Structures of a chunk, at most.

    Yields
    ------
    AtomBatch
        The same chunks each time, whatever the number of workers.
    """
    if isinstance(source, StructureSource):
        rows = range(source.n_systems) if indices is None else list(indices)
        for start in range(0, len(rows), chunk_size):
            yield source.batch(rows[start : start + chunk_size])
        return
    batches = [source] if isinstance(source, AtomBatch) else source
    for batch in batches:
        for start in range(0, batch.n_systems, chunk_size):
            yield batch.select(torch.arange(start, min(start + chunk_size, batch.n_systems)))


class Chunks:
    """The chunks in order; remembers each one's shard, and hands out those not yet done.

    Parameters
    ----------
    batches : iterator of AtomBatch
        From `pieces`.
    parts : Parts
        Where shards are.
    settings : Settings
        How chunks are labelled.

    Attributes
    ----------
    paths : list of Path
        Shard of each chunk seen so far.
    n_structures, n_resumed : int
        Structures seen so far; those of them that were labelled before.
    """

    def __init__(self, batches: Iterator[AtomBatch], parts: Parts, settings: Settings) -> None:
        self._batches, self._parts, self._settings = batches, parts, settings
        self.paths: list[Path] = []
        self.n_structures = 0
        self.n_resumed = 0

    def unfinished(self) -> Iterator[ChunkTask]:
        """Tasks that have no shard yet."""
        for index, piece in enumerate(self._batches):
            batch = piece
            if not batch.ids:
                names = range(self.n_structures, self.n_structures + batch.n_systems)
                batch = replace(batch, ids=tuple(str(i) for i in names))
            batch = replace(batch.to("cpu"), labels={}, atom_labels={})
            key = chunk_key(batch)
            path = self._parts.path(index, key)
            self.paths.append(path)
            self.n_structures += batch.n_systems
            if self._parts.is_done(index, key):
                self.n_resumed += batch.n_systems
            else:
                yield ChunkTask(pickle.dumps(batch), self._settings, path)


class Merge:
    """Shards in order, as chunks of a store; gathers failures and the force statistic.

    Parameters
    ----------
    paths : sequence of Path
        Shards.
    source : str
        What the store names as the source of its structures.

    Attributes
    ----------
    failures : list of Failure
        Of all shards, after `read_failures`.
    n : int
        Labelled geometries, after `read_failures`.
    """

    def __init__(self, paths: Sequence[Path], source: str) -> None:
        self._paths, self._source = paths, source
        self.failures: list[Failure] = []
        self.n = 0
        self._squares, self._components = 0.0, 0

    @property
    def force_rms(self) -> float:
        """eV/Å; NaN without labels."""
        return float(np.sqrt(self._squares / self._components)) if self._components else np.nan

    def read_failures(self) -> None:
        """First pass: failures and counts."""
        for path in self._paths:
            batch, failures = read_shard(path)
            self.failures += failures
            self.n += batch.n_systems
            forces = batch.atom_labels["forces"]
            self._squares += float((forces**2).sum())
            self._components += forces.numel()

    def chunks(self) -> Iterator[Chunk]:
        """Second pass: the labelled structures."""
        for path in self._paths:
            batch, _ = read_shard(path)
            sources = (self._source,) * batch.n_systems
            yield Chunk(batch, sources, {"energy": ENERGY, "forces": FORCES})

"""The structures cut into chunks, and the shards of the chunks put together again."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tether.data.chunks import ENERGY, FORCES, STRESS, Chunk
from tether.labels.shards import Parts, chunk_key, read_shard
from tether.labels.worker import ChunkTask, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tether.labels.failure import Failure
    from tether.structures import AtomBatch

__all__ = ["Chunks", "Merge"]


class Chunks:
    """The chunks in order; remembers each one's shard, and hands out those not yet done.

    Parameters
    ----------
    batches : iterator of AtomBatch
        From `tether.data.pieces`; the same each time, whatever the number of workers.
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
    targets : list of Target
        Energy and forces; stress where a shard has it, after `read_failures`.
    """

    def __init__(self, paths: Sequence[Path], source: str) -> None:
        self._paths, self._source = paths, source
        self.failures: list[Failure] = []
        self.n = 0
        self.targets = [ENERGY, FORCES]
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
            if "stress" in batch.labels and STRESS not in self.targets:
                self.targets.append(STRESS)
            forces = batch.atom_labels["forces"]
            self._squares += float((forces**2).sum())
            self._components += forces.numel()

    def chunks(self) -> Iterator[Chunk]:
        """Second pass: the labelled structures."""
        for path in self._paths:
            batch, _ = read_shard(path)
            sources = (self._source,) * batch.n_systems
            present = {*batch.labels, *batch.atom_labels}
            yield Chunk(batch, sources, {t.name: t for t in self.targets if t.name in present})

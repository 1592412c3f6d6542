"""Structures a piece at a time, wherever they are: a store, a batch, or a stream of batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch

from tether.structures import AtomBatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["StructureSource", "pieces"]


@runtime_checkable
class StructureSource(Protocol):
    """Structures by index; `tether.data.store.Store` is one."""

    n_systems: int

    def batch(self, indices: Sequence[int] | NDArray[np.integer]) -> AtomBatch:
        """Structures by index, in that order."""
        ...


def pieces(
    source: StructureSource | AtomBatch | Iterable[AtomBatch],
    size: int,
    *,
    indices: Sequence[int] | NDArray[np.integer] | None = None,
) -> Iterator[AtomBatch]:
    """Cut structures into pieces.

    Parameters
    ----------
    source : StructureSource, AtomBatch or iterable of AtomBatch
        Where they are.
    size : int
        Structures of a piece, at most.
    indices : sequence of int, optional
        Rows of a store; default all.

    Yields
    ------
    AtomBatch
        In order; none is empty.

    Raises
    ------
    TypeError
        If rows are asked of a batch or a stream.
    """
    if isinstance(source, StructureSource):
        rows = np.arange(source.n_systems) if indices is None else np.asarray(indices)
        for start in range(0, len(rows), size):
            yield source.batch(rows[start : start + size])
        return
    if indices is not None:
        raise TypeError("rows can be chosen of a store only: select them before, or pass the store")
    batches = [source] if isinstance(source, AtomBatch) else source
    for batch in batches:
        for start in range(0, batch.n_systems, size):
            yield batch.select(torch.arange(start, min(start + size, batch.n_systems)))

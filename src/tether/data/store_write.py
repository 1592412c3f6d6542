"""Writing a store: streaming, atomic, sealed with the row count and the fingerprint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from tether.atomic import atomic_path
from tether.data.chunks import Chunk
from tether.data.store_columns import ContentHash, columns_of, schema_of
from tether.errors import TetherError
from tether.structures import collate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tether.structures import AtomBatch
    from tether.targets import Target

__all__ = ["ROWS_PER_BATCH", "write_store"]

ROWS_PER_BATCH = 65_536
# A record batch of large structures ends early, so that memory stays bounded.
_ATOMS_PER_BATCH = 2**22


def write_store(
    path: str | Path,
    chunks: Iterable[Chunk],
    targets: Sequence[Target],
    *,
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """Write structures to a store, a chunk at a time, in bounded memory.

    Parameters
    ----------
    path : str or Path
        The file; replaced only when everything is written.
    chunks : iterable of Chunk
        The structures. Labels that are no target are not written; a target that a chunk lacks
        is NaN there.
    targets : sequence of Target
        The labels to keep.
    metadata : mapping, optional
        Anything that JSON can hold, kept in the file.

    Returns
    -------
    str
        The fingerprint.

    Raises
    ------
    TetherError
        When there is no structure, a label has another shape than its target says, or the
        folder cannot be written.
    """
    by_name = {target.name: target for target in targets}
    schema, content, n_systems = schema_of(by_name, metadata or {}), ContentHash(by_name), 0
    conformed = (_conform(chunk, by_name) for chunk in chunks)
    with (
        atomic_path(Path(path)) as part,
        pa.OSFile(str(part), "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        for chunk in _regroup(conformed):
            columns = columns_of(chunk.batch, chunk.sources, schema)
            content.update(columns)
            writer.write_batch(columns)
            n_systems += columns.num_rows
        if n_systems == 0:
            raise TetherError(
                "no structure to write", expected="at least one", fix="check the input"
            )
        # The fingerprint is known only now; an empty last batch carries it, so that a file
        # without it is known to be incomplete.
        seal = {"tether.complete": str(n_systems), "tether.fingerprint": content.hexdigest()}
        empty = pa.RecordBatch.from_pylist([], schema=schema)
        writer.write_batch(empty, custom_metadata=seal)
    return content.hexdigest()


def _conform(chunk: Chunk, targets: Mapping[str, Target]) -> Chunk:
    """The chunk with exactly the labels of `targets`, in double precision."""
    batch = chunk.batch
    if len(batch.ids) != batch.n_systems:
        raise TetherError(
            f"a batch of {batch.n_systems} structures has {len(batch.ids)} ids",
            expected="an id for each structure",
            fix="build the batch with ids=",
        )

    def label(target: Target) -> torch.Tensor:
        atomwise = target.level == "atom"
        has, length = (
            (batch.atom_labels, batch.n_atoms) if atomwise else (batch.labels, batch.n_systems)
        )
        size = target.n_components
        shape = (length,) if size == 1 else (length, size)
        if target.name in (batch.labels if atomwise else batch.atom_labels):
            raise _wrong_label(batch, target, "belongs to " + ("systems" if atomwise else "atoms"))
        value = has.get(target.name)
        if value is None:
            return torch.full(shape, float("nan"), dtype=torch.float64)
        if value.numel() != length * size:
            raise _wrong_label(batch, target, f"has shape {tuple(value.shape)}")
        return value.double().reshape(shape)

    labels = {n: label(t) for n, t in targets.items() if t.level == "system"}
    atom_labels = {n: label(t) for n, t in targets.items() if t.level == "atom"}
    return replace(chunk, batch=replace(batch, labels=labels, atom_labels=atom_labels))


def _wrong_label(batch: AtomBatch, target: Target, problem: str) -> TetherError:
    return TetherError(
        f"label `{target.name}` of structures {batch.ids[0]} to {batch.ids[-1]} {problem}",
        expected=f"{target.n_components} value(s) for each {target.level}",
        fix="give every input the same form of this label, or leave it out",
    )


def _regroup(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Chunks of `ROWS_PER_BATCH` structures (or of as many atoms as memory should hold)."""
    waiting: list[Chunk] = []
    n_systems = n_atoms = 0
    for chunk in chunks:
        if chunk.batch.n_systems == 0:
            continue
        waiting.append(chunk)
        n_systems += chunk.batch.n_systems
        n_atoms += chunk.batch.n_atoms
        while n_systems >= ROWS_PER_BATCH or n_atoms >= _ATOMS_PER_BATCH:
            merged = _merge(waiting)
            rows = torch.arange(merged.batch.n_systems).numpy()
            yield merged.select(rows[:ROWS_PER_BATCH])
            rest = merged.select(rows[ROWS_PER_BATCH:])
            n_systems, n_atoms = rest.batch.n_systems, rest.batch.n_atoms
            waiting = [rest] if n_systems else []
    if waiting:
        yield _merge(waiting)


def _merge(chunks: Sequence[Chunk]) -> Chunk:
    sources = tuple(source for chunk in chunks for source in chunk.sources)
    return Chunk(collate([chunk.batch for chunk in chunks]), sources)

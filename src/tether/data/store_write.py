"""Writing a store: streaming, atomic, sealed with the row count and the fingerprint.

A store is one file, or a folder of shards: files of the same form, and a manifest. Shards are
gathered in ``<out>.parts``, which takes its place when all are there.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from tether.atomic import atomic_path
from tether.data.chunks import Chunk
from tether.data.store_columns import FORMAT_VERSION, ContentHash, columns_of, schema_of
from tether.data.store_file import MANIFEST, StoreFile
from tether.errors import TetherError
from tether.serialization import write_json
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
    shard_size: int | None = None,
) -> str:
    """Write structures to a store, a chunk at a time, in bounded memory.

    Parameters
    ----------
    path : str or Path
        The file or folder; replaced only when everything is written.
    chunks : iterable of Chunk
        The structures. Labels that are no target are not written; a target that a chunk lacks
        is NaN there.
    targets : sequence of Target
        The labels to keep.
    metadata : mapping, optional
        Anything that JSON can hold, kept in the file.
    shard_size : int, optional
        Write a folder of files of this many structures. A call that was killed goes on when it is
        repeated with the same arguments: shards that are whole are compared, not written again.

    Returns
    -------
    str
        The fingerprint: the same for the same structures, in shards or not.

    Raises
    ------
    TetherError
        When there is no structure, a label has another shape than its target says, the place
        cannot be written, or a killed call that is continued had other structures or options.
    """
    out, by_name = Path(path), {target.name: target for target in targets}
    schema, content = schema_of(by_name, metadata or {}), ContentHash(by_name)
    conformed = (_conform(chunk, by_name) for chunk in chunks)
    if shard_size is None:
        _write_file(out, conformed, schema, [content])
    elif shard_size < 1:
        raise TetherError(
            f"`shard_size` is {shard_size}", expected="at least 1", fix="leave it out for one file"
        )
    else:
        parts = out.with_name(out.name + ".parts")
        is_begun = parts.exists()
        try:
            _write_shards(parts, _cut(conformed, shard_size), schema, by_name, content)
        except TetherError:
            if not is_begun:  # what bad input leaves would be in the way of the corrected call
                _remove(parts)
            raise
        _replace(out, parts)
    return content.hexdigest()


def _write_shards(
    parts: Path,
    numbered: Iterable[tuple[int, Chunk]],
    schema: pa.Schema,
    targets: Mapping[str, Target],
    content: ContentHash,
) -> None:
    for left_over in parts.glob(".*.tmp"):  # of a killed call
        left_over.unlink()
    shards: list[dict[str, Any]] = []
    for index, group in groupby(numbered, key=itemgetter(0)):
        shard, own = parts / f"{index:07d}.arrow", ContentHash(targets)
        write = _compare_file if shard.exists() else _write_file
        n_systems = write(shard, (chunk for _, chunk in group), schema, [content, own])
        shards.append({"file": shard.name, "n_systems": n_systems, "fingerprint": own.hexdigest()})
    _require_structures(len(shards))
    for surplus in set(parts.glob("*.arrow")) - {parts / shard["file"] for shard in shards}:
        surplus.unlink()  # a killed call had more structures
    whole = {"format": FORMAT_VERSION, "fingerprint": content.hexdigest(), "shards": shards}
    write_json(parts / MANIFEST, whole)


def _write_file(
    path: Path, chunks: Iterable[Chunk], schema: pa.Schema, hashes: Sequence[ContentHash]
) -> int:
    """One sealed file; the last hash is its own. Returns the number of structures."""
    n_systems = 0
    with (
        atomic_path(path) as part,
        pa.OSFile(str(part), "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        for columns in _hashed(chunks, schema, hashes):
            writer.write_batch(columns)
            n_systems += columns.num_rows
        _require_structures(n_systems)
        # The fingerprint is known only now; an empty last batch carries it, so that a file
        # without it is known to be incomplete.
        seal = {"tether.complete": str(n_systems), "tether.fingerprint": hashes[-1].hexdigest()}
        empty = pa.RecordBatch.from_pylist([], schema=schema)
        writer.write_batch(empty, custom_metadata=seal)
    return n_systems


def _compare_file(
    path: Path, chunks: Iterable[Chunk], schema: pa.Schema, hashes: Sequence[ContentHash]
) -> int:
    """What `_write_file` does, where an earlier call has written the same."""
    file = StoreFile.open(path)
    n_systems: int = sum(columns.num_rows for columns in _hashed(chunks, schema, hashes))
    metadata = json.loads(schema.metadata[b"tether.metadata"])
    if file.fingerprint != hashes[-1].hexdigest() or file.metadata != metadata:
        raise TetherError(
            f"{path} is of another call, which was not finished",
            expected="the same structures, labels and options as in that call",
            fix=f"repeat that call, or remove {path.parent} to start again",
        )
    return n_systems


def _hashed(
    chunks: Iterable[Chunk], schema: pa.Schema, hashes: Sequence[ContentHash]
) -> Iterator[pa.RecordBatch]:
    for chunk in _regroup(chunks):
        columns = columns_of(chunk.batch, chunk.sources, schema)
        for each in hashes:
            each.update(columns)
        yield columns


def _require_structures(n: int) -> None:
    if n == 0:
        raise TetherError("no structure to write", expected="at least one", fix="check the input")


def _cut(chunks: Iterable[Chunk], shard_size: int) -> Iterator[tuple[int, Chunk]]:
    """Chunks that lie within a shard, each with the number of its shard."""
    written = 0
    for chunk in chunks:
        n_systems = chunk.batch.n_systems
        if n_systems == 0:
            continue
        borders = range(shard_size - written % shard_size, n_systems, shard_size)
        for start, stop in pairwise([0, *borders, n_systems]):
            whole = stop - start == n_systems
            yield written // shard_size, chunk if whole else chunk.select(np.arange(start, stop))
            written += stop - start


def _replace(out: Path, parts: Path) -> None:
    """Give the finished folder its name, over a store of either form."""
    aside = out.with_name(out.name + ".replaced")
    _remove(aside)
    if out.exists():
        out.rename(aside)
    # Killed here, the store is whole in `parts`, and the call repeated gives it its name.
    parts.rename(out)
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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

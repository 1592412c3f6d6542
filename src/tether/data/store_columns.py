"""Columns of the store: its Arrow schema, batches as columns, and the hash of their content."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

import tether
from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tether.structures import AtomBatch
    from tether.targets import Target

__all__ = ["FORMAT_VERSION", "ContentHash", "columns_of", "schema_of"]

FORMAT_VERSION = "1"


def schema_of(targets: Mapping[str, Target], metadata: Mapping[str, Any]) -> pa.Schema:
    """Arrow schema of a store with these labels.

    Parameters
    ----------
    targets : mapping of str to Target
        The labels.
    metadata : mapping
        Anything that JSON can hold.

    Returns
    -------
    pyarrow.Schema
        With format version, targets and metadata attached.
    """
    double = pa.float64()
    fields = [
        ("id", pa.string()),
        ("source", pa.string()),
        ("numbers", pa.list_(pa.uint8())),
        ("positions", pa.list_(double)),
        ("cell", pa.list_(double, 9)),
        ("pbc", pa.list_(pa.bool_(), 3)),
        ("charge", double),
        ("spin", double),
    ]
    for name, target in targets.items():
        if target.level == "atom":
            fields.append((f"atom_label.{name}", pa.list_(double)))
        else:
            size = target.n_components
            fields.append((f"label.{name}", double if size == 1 else pa.list_(double, size)))
    header = {
        "tether.format": FORMAT_VERSION,
        "tether.version": tether.__version__,
        "tether.targets": _targets_json(targets),
        "tether.metadata": json.dumps(dict(metadata), ensure_ascii=False),
    }
    return pa.schema(fields, metadata=header)


def columns_of(batch: AtomBatch, sources: Sequence[str], schema: pa.Schema) -> pa.RecordBatch:
    """A batch, whose labels are exactly those of the schema, as columns.

    Parameters
    ----------
    batch : AtomBatch
        The structures.
    sources : sequence of str, length n_systems
        File that each one came from.
    schema : pyarrow.Schema
        From `schema_of`.

    Returns
    -------
    pyarrow.RecordBatch
        One row a structure.

    Raises
    ------
    TetherError
        When an atomic number is outside 0 to 118.
    """
    numbers = batch.numbers.numpy()
    if len(numbers) and (numbers.min() < 0 or numbers.max() > 118):
        raise TetherError(
            f"atomic number {int(numbers.min() if numbers.min() < 0 else numbers.max())}",
            expected="0 to 118",
            fix="check the elements of the input",
        )
    ptr = batch.ptr.numpy()

    def ragged(flat: NDArray[np.generic], width: int) -> pa.Array:
        offsets = pa.array((ptr * width).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(flat).reshape(-1)))

    def fixed(array: NDArray[np.generic], size: int) -> pa.Array:
        flat = pa.array(np.ascontiguousarray(array).reshape(-1))
        return flat if size == 1 else pa.FixedSizeListArray.from_arrays(flat, size)

    columns = [
        pa.array(batch.ids, pa.string()),
        pa.array(sources, pa.string()),
        ragged(numbers.astype(np.uint8), 1),
        ragged(batch.positions.double().numpy(), 3),
        fixed(batch.cell.double().numpy(), 9),
        fixed(batch.pbc.numpy(), 3),
        fixed(batch.charge.double().numpy(), 1),
        fixed(batch.spin.double().numpy(), 1),
    ]
    for field in schema.names[len(columns) :]:
        level, _, name = field.partition(".")
        value = (batch.atom_labels if level == "atom_label" else batch.labels)[name].numpy()
        size = 1 if value.ndim == 1 else value.shape[1]
        columns.append(ragged(value, size) if level == "atom_label" else fixed(value, size))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


class ContentHash:
    """sha256 over targets and columns, the same however rows are grouped into record batches.

    Parameters
    ----------
    targets : mapping of str to Target
        Their units and kinds are part of the content.
    """

    def __init__(self, targets: Mapping[str, Target]) -> None:
        self._targets = _targets_json(targets)
        self._hashes: dict[str, Any] = {}

    def update(self, columns: pa.RecordBatch) -> None:
        """Add rows.

        Parameters
        ----------
        columns : pyarrow.RecordBatch
            The next rows; must not be a slice.
        """
        for name, column in zip(columns.schema.names, columns.columns, strict=True):
            if pa.types.is_string(column.type):
                offsets = np.frombuffer(column.buffers()[1], dtype=np.int32)[: len(column) + 1]
                self._add(f"{name}/length", np.diff(offsets))
                if offsets[-1]:
                    text = np.frombuffer(column.buffers()[2], dtype=np.uint8)
                    self._add(name, text[: offsets[-1]])
                continue
            if pa.types.is_list(column.type):
                self._add(f"{name}/length", np.diff(column.offsets.to_numpy()))
            nested = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
            flat = column.values if nested else column
            self._add(name, flat.to_numpy(zero_copy_only=False))

    def hexdigest(self) -> str:
        """The hash so far, as 64 hexadecimal digits."""
        total = hashlib.sha256(self._targets.encode())
        for name in sorted(self._hashes):
            total.update(name.encode() + self._hashes[name].digest())
        return total.hexdigest()

    def _add(self, name: str, array: NDArray[np.generic]) -> None:
        if name not in self._hashes:
            self._hashes[name] = hashlib.sha256()
        self._hashes[name].update(np.ascontiguousarray(array).view(np.uint8).data)


def _targets_json(targets: Mapping[str, Target]) -> str:
    return json.dumps([target.to_dict() for target in targets.values()], ensure_ascii=False)

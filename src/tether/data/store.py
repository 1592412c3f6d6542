"""`Store`: structures in one memory-mapped Arrow file, by columns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from tether.data.store_columns import FORMAT_VERSION, ContentHash
from tether.data.store_write import write_store
from tether.errors import TetherError
from tether.structures import AtomBatch, collate, ragged_indices
from tether.targets import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Store", "write_store"]


@dataclass(frozen=True)
class _Part:
    """Views into one record batch; nothing is copied but the bits of `pbc` and the offsets."""

    columns: pa.RecordBatch
    ptr: torch.Tensor
    numbers: NDArray[np.uint8]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    labels: dict[str, NDArray[np.float64]]
    atom_labels: dict[str, NDArray[np.float64]]

    @classmethod
    def of(cls, columns: pa.RecordBatch, targets: dict[str, Target]) -> _Part:
        def shaped(flat: pa.Array, size: int) -> NDArray[np.float64]:
            array: NDArray[np.float64] = flat.to_numpy()
            return array if size == 1 else array.reshape(-1, size)

        labels, atom_labels = {}, {}
        for name, target in targets.items():
            if target.level == "atom":
                flat = columns[f"atom_label.{name}"].values
                atom_labels[name] = shaped(flat, target.n_components)
            else:
                column = columns[f"label.{name}"]
                flat = column if target.n_components == 1 else column.values
                labels[name] = shaped(flat, target.n_components)
        numbers = columns["numbers"]
        return cls(
            columns=columns,
            ptr=torch.from_numpy(numbers.offsets.to_numpy().astype(np.int64)),
            numbers=numbers.values.to_numpy(),
            positions=columns["positions"].values.to_numpy().reshape(-1, 3),
            cell=columns["cell"].values.to_numpy().reshape(-1, 3, 3),
            pbc=columns["pbc"].values.to_numpy(zero_copy_only=False).reshape(-1, 3),
            labels=labels,
            atom_labels=atom_labels,
        )

    def take(self, rows: NDArray[np.int64]) -> AtomBatch:
        flat, ptr = ragged_indices(self.ptr, torch.from_numpy(rows))
        atoms = flat.numpy()
        return AtomBatch(
            numbers=torch.from_numpy(self.numbers[atoms].astype(np.int64)),
            positions=torch.from_numpy(self.positions[atoms]),
            ptr=ptr,
            cell=torch.from_numpy(self.cell[rows]),
            pbc=torch.from_numpy(self.pbc[rows]),
            charge=torch.from_numpy(self.columns["charge"].to_numpy()[rows]),
            spin=torch.from_numpy(self.columns["spin"].to_numpy()[rows]),
            labels={n: torch.from_numpy(v[rows]) for n, v in self.labels.items()},
            atom_labels={n: torch.from_numpy(v[atoms]) for n, v in self.atom_labels.items()},
            ids=tuple(self.columns["id"].take(pa.array(rows)).to_pylist()),
        )


class Store:
    """Structures and labels in one Arrow IPC file, memory-mapped and read-only.

    Parameters
    ----------
    path : str or Path
        A file written by `write_store` (by ``tether prepare``).

    Attributes
    ----------
    path : Path
        The file.
    targets : dict of str to Target
        The labels of the store.
    metadata : dict
        What the writer noted.
    fingerprint : str
        sha256 of the columns and targets; `verify` computes it anew.
    n_systems : int
        Number of structures.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
            header = dict(reader.schema.metadata or {})
            version = header.get(b"tether.format", b"none").decode()
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(self.path, str(error).splitlines()[0]) from error
        if version != FORMAT_VERSION:
            raise TetherError(
                f"{self.path} has store format {version!r}",
                expected=f"format {FORMAT_VERSION!r}",
                fix="write it again with `tether prepare`",
            )
        try:
            self._open(reader, header)
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, TetherError):
                raise
            raise _unreadable(self.path, str(error)) from error

    def _open(self, reader: pa.RecordBatchFileReader, header: dict[bytes, bytes]) -> None:
        self.targets = {t["name"]: Target(**t) for t in json.loads(header[b"tether.targets"])}
        self.metadata: dict[str, Any] = json.loads(header[b"tether.metadata"])
        last = reader.num_record_batches - 1
        _, seal = reader.get_batch_with_custom_metadata(last) if last >= 0 else (None, None)
        if seal is None or b"tether.complete" not in seal:
            raise _unreadable(self.path, "its end mark is missing, so it is incomplete")
        batches = [reader.get_batch(i) for i in range(last)]
        self._parts: list[_Part] = [_Part.of(columns, self.targets) for columns in batches]
        sizes = [part.columns.num_rows for part in self._parts]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.n_systems = int(self._starts[-1])
        self.fingerprint = seal[b"tether.fingerprint"].decode()
        if str(self.n_systems) != seal[b"tether.complete"].decode():
            raise _unreadable(
                self.path,
                f"it has {self.n_systems} structures, its end mark says "
                f"{seal[b'tether.complete'].decode()}",
            )

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a store.

        Parameters
        ----------
        path : str or Path
            The file.

        Returns
        -------
        Store
            Memory-mapped: opening reads almost nothing.

        Raises
        ------
        TetherError
            When the file is missing, not a store, incomplete or of another format version.
        """
        return cls(path)

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes map the same file instead of receiving a copy.
        return Store, (self.path,)

    def __len__(self) -> int:
        return self.n_systems

    @cached_property
    def n_atoms_per_system(self) -> NDArray[np.int64]:
        """Atoms of each structure, shape (n_systems,)."""
        return np.concatenate([torch.diff(part.ptr).numpy() for part in self._parts])

    @property
    def n_atoms(self) -> int:
        """Atoms of all structures."""
        return int(self.n_atoms_per_system.sum())

    @cached_property
    def ids(self) -> NDArray[np.object_]:
        """Names of the structures, shape (n_systems,)."""
        return self._texts("id")

    @cached_property
    def sources(self) -> NDArray[np.object_]:
        """File that each structure came from, shape (n_systems,)."""
        return self._texts("source")

    @property
    def numbers_flat(self) -> NDArray[np.uint8]:
        """Atomic numbers of all atoms, shape (n_atoms,); a view where there is one batch."""
        return _joined([part.numbers for part in self._parts])

    def targets_named(self, names: Sequence[str]) -> dict[str, Target]:
        """Some of the labels.

        Parameters
        ----------
        names : sequence of str
            Which ones.

        Returns
        -------
        dict of str to Target
            In that order.

        Raises
        ------
        TetherError
            For one that the store has not.
        """
        for name in names:
            if name not in self.targets:
                raise TetherError(
                    f"store {self.path} has no label {name!r}",
                    expected=f"one of {', '.join(self.targets) or 'none'}",
                    fix="set targets to one of them",
                )
        return {name: self.targets[name] for name in names}

    def label(self, name: str) -> NDArray[np.float64]:
        """A whole label column.

        Parameters
        ----------
        name : str
            A target of the store.

        Returns
        -------
        array, shape (n_systems,), (n_systems, k), (n_atoms,) or (n_atoms, k)
            In the unit of the target, NaN = unlabelled; a read-only view where possible.

        Raises
        ------
        TetherError
            When the store has no such label.
        """
        if name not in self.targets:
            raise TetherError(
                f"{self.path} has no label {name!r}",
                expected=f"one of {', '.join(self.targets) or '(no labels)'}",
                fix="check the spelling, or prepare the store with this target",
            )
        level = "atom_labels" if self.targets[name].level == "atom" else "labels"
        return _joined([getattr(part, level)[name] for part in self._parts])

    def batch(self, indices: Sequence[int] | NDArray[np.integer] | torch.Tensor) -> AtomBatch:
        """Structures by index, in that order; repeats are allowed.

        Parameters
        ----------
        indices : array of int
            From 0 to n_systems - 1.

        Returns
        -------
        AtomBatch
            Double precision, on the CPU, sharing no memory with the store.

        Raises
        ------
        TetherError
            When an index is outside the store.
        """
        idx = np.asarray(indices, dtype=np.int64)
        outside = (idx < 0) | (idx >= self.n_systems)
        if outside.any():
            raise TetherError(
                f"index {int(idx[outside][0])} is outside {self.path}",
                expected=f"0 to {self.n_systems - 1}",
                fix="make the split anew from this store",
            )
        part_of = np.searchsorted(self._starts, idx, side="right") - 1
        touched = np.unique(part_of) if len(idx) else np.zeros(1, dtype=np.int64)
        local = idx - self._starts[part_of]
        pieces: list[AtomBatch] = [
            self._parts[part].take(local[part_of == part]) for part in touched.tolist()
        ]
        if len(pieces) == 1:
            return pieces[0]
        back = np.empty(len(idx), dtype=np.int64)
        back[np.argsort(part_of, kind="stable")] = np.arange(len(idx))
        return collate(pieces).select(torch.from_numpy(back))

    def composition(self, elements: Sequence[int] | None = None) -> NDArray[np.int32]:
        """Atoms of each element in each structure, for linear references.

        Parameters
        ----------
        elements : sequence of int, optional
            Atomic number of each column; default: 0 to 118.

        Returns
        -------
        array, shape (n_systems, n_elements)
            Atoms of other elements are counted nowhere.
        """
        columns = np.arange(119) if elements is None else np.asarray(elements)
        place = np.full(256, len(columns))
        place[columns] = np.arange(len(columns))
        width = len(columns) + 1
        system = np.repeat(np.arange(self.n_systems), self.n_atoms_per_system)
        cell = system * width + place[self.numbers_flat]
        flat = np.bincount(cell, minlength=self.n_systems * width)
        return flat.reshape(self.n_systems, width)[:, :-1].astype(np.int32)

    def verify(self) -> None:
        """Read the whole file and compare its content with the fingerprint.

        Raises
        ------
        TetherError
            When a byte of the data has changed since it was written.
        """
        content = ContentHash(self.targets)
        for part in self._parts:
            content.update(part.columns)
        if content.hexdigest() != self.fingerprint:
            raise _unreadable(self.path, "its content does not match its fingerprint")

    def _texts(self, name: str) -> NDArray[np.object_]:
        return _joined([part.columns[name].to_numpy(zero_copy_only=False) for part in self._parts])


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _unreadable(path: Path, problem: str) -> TetherError:
    return TetherError(
        f"{path} cannot be opened as a store: {problem}",
        expected="a complete Arrow file written by tether",
        fix="write it again with `tether prepare`",
    )

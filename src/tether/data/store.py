"""`Store`: structures in memory-mapped Arrow files, by columns."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tether.data.store_columns import ContentHash
from tether.data.store_file import open_files, unreadable
from tether.data.store_write import write_store
from tether.errors import TetherError
from tether.structures import AtomBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from tether.targets import Target

__all__ = ["Store", "write_store"]


class _Part:
    """Views into one record batch; nothing is copied but the bits of `pbc`."""

    def __init__(self, columns: pa.RecordBatch, targets: dict[str, Target]) -> None:
        def shaped(flat: pa.Array, *size: int) -> NDArray[Any]:
            array: NDArray[Any] = flat.to_numpy(zero_copy_only=False)
            return array if size == (1,) else array.reshape(-1, *size)

        numbers, ids = columns["numbers"], columns["id"].buffers()
        self.ptr: NDArray[np.int32] = numbers.offsets.to_numpy()
        self.id_ptr, self.id_text = np.frombuffer(ids[1], dtype=np.int32), memoryview(ids[2] or b"")
        # By column name: one row a structure; one row an atom.
        self.systems = {
            "cell": shaped(columns["cell"].values, 3, 3),
            "pbc": shaped(columns["pbc"].values, 3),
            "charge": shaped(columns["charge"], 1),
            "spin": shaped(columns["spin"], 1),
        }
        self.atoms = {
            "numbers": shaped(numbers.values, 1),
            "positions": shaped(columns["positions"].values, 3),
        }
        for target in targets.values():
            key, size = _label_column(target), target.n_components
            if target.level == "atom":
                self.atoms[key] = shaped(columns[key].values, size)
            else:
                flat = columns[key] if size == 1 else columns[key].values
                self.systems[key] = shaped(flat, size)

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        borders = zip(self.id_ptr[rows].tolist(), self.id_ptr[rows + 1].tolist(), strict=True)
        return [str(self.id_text[start:stop], "utf-8") for start, stop in borders]


class Store:
    """Structures and labels by columns, memory-mapped and read-only.

    Parameters
    ----------
    path : str or Path
        What `write_store` (or ``tether prepare``) wrote: a file, or a folder of shards.

    Attributes
    ----------
    path : Path
        The file or folder.
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
        files, self.fingerprint = open_files(self.path)
        self.targets, self.metadata = files[0].targets, files[0].metadata
        self._batches = [batch for file in files for batch in file.batches]
        sizes = [batch.num_rows for batch in self._batches]
        self._starts = _ends(np.array(sizes))
        self.n_systems = int(self._starts[-1])

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a store.

        Parameters
        ----------
        path : str or Path
            The file or folder.

        Returns
        -------
        Store
            Memory-mapped: opening reads almost nothing.

        Raises
        ------
        TetherError
            When it is missing, not a store, incomplete or of another format version.
        """
        return cls(path)

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes map the same file instead of receiving a copy.
        return Store, (self.path,)

    def __len__(self) -> int:
        return self.n_systems

    @cached_property
    def _parts(self) -> list[_Part]:
        # pyarrow imports it with its first array, where it is installed, and loses a Ctrl-C that
        # comes meanwhile: the command would go on.
        with suppress(ImportError):
            import_module("pandas")
        return [_Part(columns, self.targets) for columns in self._batches]

    @cached_property
    def n_atoms_per_system(self) -> NDArray[np.int64]:
        """Atoms of each structure, shape (n_systems,)."""
        return np.concatenate([np.diff(part.ptr).astype(np.int64) for part in self._parts])

    @cached_property
    def _first_atoms(self) -> NDArray[np.int64]:
        """Place of each structure's first atom in its part, shape (n_systems,)."""
        return np.concatenate([part.ptr[:-1].astype(np.int64) for part in self._parts])

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
        return _joined([part.atoms["numbers"] for part in self._parts])

    @property
    def charge(self) -> NDArray[np.float64]:
        """Total charge of each structure in e, shape (n_systems,); a view where possible."""
        return _joined([part.systems["charge"] for part in self._parts])

    @property
    def spin(self) -> NDArray[np.float64]:
        """Unpaired electrons of each structure, shape (n_systems,); a view where possible."""
        return _joined([part.systems["spin"] for part in self._parts])

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
        return _joined(self._columns(self.targets[name]))

    def is_labelled(self, name: str) -> NDArray[np.bool_]:
        """Which structures have a label, of each atom and in every component.

        Parameters
        ----------
        name : str
            A target of the store.

        Returns
        -------
        array, shape (n_systems,)
            Read a record batch at a time; infinities are no labels.

        Raises
        ------
        TetherError
            When the store has no such label.
        """
        target = self.targets_named([name])[name]
        known = []
        for part, column in zip(self._parts, self._columns(target), strict=True):
            finite = np.isfinite(column).reshape(len(column), -1).all(axis=1)
            if target.level == "atom":
                lacking = np.searchsorted(part.ptr, np.flatnonzero(~finite), side="right") - 1
                finite = np.ones(len(part.ptr) - 1, dtype=np.bool_)
                finite[lacking] = False
            known.append(finite)
        return _joined(known)

    def _columns(self, target: Target) -> list[NDArray[Any]]:
        """The labels of each part, as they lie in its file."""
        level = "atoms" if target.level == "atom" else "systems"
        return [getattr(part, level)[_label_column(target)] for part in self._parts]

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
        ptr = _ends(self.n_atoms_per_system[idx])
        systems, atoms, ids = self._gather(idx, ptr)
        labelled: dict[str, dict[str, torch.Tensor]] = {"system": {}, "atom": {}}
        for name, target in self.targets.items():
            columns = atoms if target.level == "atom" else systems
            labelled[target.level][name] = torch.from_numpy(columns[_label_column(target)])
        return AtomBatch(
            numbers=torch.from_numpy(atoms["numbers"].astype(np.int64)),
            positions=torch.from_numpy(atoms["positions"]),
            ptr=torch.from_numpy(ptr),
            **{n: torch.from_numpy(systems[n]) for n in ("cell", "pbc", "charge", "spin")},
            labels=labelled["system"],
            atom_labels=labelled["atom"],
            ids=ids,
        )

    def _gather(
        self, idx: NDArray[np.int64], ptr: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]], tuple[str, ...]]:
        """Columns of systems, of atoms, and the ids. A value is copied once: to its place."""
        systems = _empty(self._parts[0].systems, len(idx))
        atoms = _empty(self._parts[0].atoms, int(ptr[-1]))
        ids = np.empty(len(idx), dtype=object)
        part_of = np.searchsorted(self._starts, idx, side="right") - 1
        # Rows and atoms part by part: where they go, and where they come from.
        row_to = np.argsort(part_of, kind="stable")
        by_part = idx[row_to]
        row_from = by_part - self._starts[part_of[row_to]]
        counts = self.n_atoms_per_system[by_part]
        ends = _ends(counts)
        within = np.arange(ends[-1]) - np.repeat(ends[:-1], counts)
        atom_to = within + np.repeat(ptr[row_to], counts)
        atom_from = within + np.repeat(self._first_atoms[by_part], counts)
        touched, first = np.unique(part_of[row_to], return_index=True)
        for number, (start, stop) in zip(touched, pairwise([*first, len(idx)]), strict=True):
            part, rows, flat = self._parts[number], slice(start, stop), slice(*ends[[start, stop]])
            for name, column in part.systems.items():
                systems[name][row_to[rows]] = column[row_from[rows]]
            for name, column in part.atoms.items():
                atoms[name][atom_to[flat]] = column[atom_from[flat]]
            ids[row_to[rows]] = part.ids(row_from[rows])
        return systems, atoms, tuple(ids.tolist())

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
        """Read everything and compare its content with the fingerprint.

        Raises
        ------
        TetherError
            When a byte of the data has changed since it was written.
        """
        content = ContentHash(self.targets)
        for columns in self._batches:
            content.update(columns)
        if content.hexdigest() != self.fingerprint:
            raise unreadable(self.path, "its content does not match its fingerprint")

    def _texts(self, name: str) -> NDArray[np.object_]:
        return _joined([columns[name].to_numpy(zero_copy_only=False) for columns in self._batches])


def _ends(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _label_column(target: Target) -> str:
    return f"atom_label.{target.name}" if target.level == "atom" else f"label.{target.name}"


def _empty(columns: dict[str, NDArray[Any]], length: int) -> dict[str, NDArray[Any]]:
    return {n: np.empty((length, *like.shape[1:]), like.dtype) for n, like in columns.items()}

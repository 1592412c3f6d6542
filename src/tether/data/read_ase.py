"""Structures from files that ASE reads and from ASE databases."""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import shutil
from io import StringIO
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress

from tether.data.chunks import ENERGY, FORCES, STRESS, Chunk, stem
from tether.errors import TetherError
from tether.packages import require
from tether.structures import from_ase
from tether.targets import Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ase import Atoms
    from numpy.typing import NDArray

    Values = dict[str, NDArray[np.float64]]
    Wanted = Mapping[str, Target] | None

__all__ = ["read_ase", "read_ase_database"]

# ASE fixes the units of calculator results; elsewhere the unit of a label is unknown.
_CALCULATED = {
    "energy": ENERGY,
    "free_energy": Target("free_energy", unit="eV", kind="extensive"),
    "forces": FORCES,
    "stress": STRESS,
    "dipole": Target("dipole", unit="e·Å", kind="vector", n_components=3),
    "magmom": Target("magmom", unit="μB", kind="extensive"),
    "charges": Target("charges", unit="e", level="atom"),
    "magmoms": Target("magmoms", unit="μB", level="atom"),
    "energies": Target("energies", unit="eV", level="atom"),
}
_COMPRESSED: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_NOT_LABELS = {
    "numbers", "positions", "tags", "momenta", "masses", "id", "charge", "spin",
    "initial_magmoms", "initial_charges",
}  # fmt: skip


def read_ase(path: Path, *, wanted: Wanted, chunk_size: int) -> Iterator[Chunk]:
    """Structures of any file that `ase.io` reads, compressed or not.

    Numeric entries of ``info`` and ``arrays`` are labels, and so are the results of an attached
    calculator (stress as 9 components, row by row). Text entries are not labels. Truth values of
    ``info`` are labels only where they are wanted: ASE makes one of each bare word of a comment.

    Parameters
    ----------
    path : Path
        The file; its format follows from its name and content.
    wanted : mapping of str to Target, or None
        Labels to read; None means all. A wanted target of level "atom" may stand in ``info``.
    chunk_size : int
        Structures in a chunk.

    Yields
    ------
    Chunk
        The structures in order; ids from ``info["id"]``, else ``<file stem>:<row>``.

    Raises
    ------
    TetherError
        When ASE cannot read the file, or a label changes its shape.
    """
    yield from _chunks(path, _frames(path), wanted, chunk_size)


def read_ase_database(path: Path, *, wanted: Wanted, chunk_size: int) -> Iterator[Chunk]:
    """Structures of an ASE database; key-value pairs and ``data`` are labels.

    Parameters
    ----------
    path : Path
        A ``.db`` file, or an ``.aselmdb`` file (the form of OC20 and OMat24).
    wanted, chunk_size
        As for `read_ase`.

    Yields
    ------
    Chunk
        The structures in order of their database ids, which also name them.

    Raises
    ------
    TetherError
        When the database cannot be read, a label changes its shape, or a package is missing.
    """
    from ase.db import connect

    options = {}
    if path.suffix == ".aselmdb":
        package = "ase-db-backends"
        require("ase_db_backends", "reading .aselmdb files", extra="lmdb", package=package)
        options["readonly"] = True  # else it maps 2 TB and asks for the right to write

    def frames() -> Iterator[Atoms]:
        kind = path.suffix.removeprefix(".")
        database = connect(str(path), type=kind, use_lock_file=False, **options)  # type: ignore[no-untyped-call]
        for row in database.select():
            atoms = row.toatoms()
            atoms.info = {**row.key_value_pairs, **row.data, "id": f"{stem(path)}:{row.id}"}
            yield atoms

    yield from _chunks(path, frames(), wanted, chunk_size)


def _frames(path: Path) -> Iterator[Atoms]:
    from ase.io import iread

    packed = path.suffix in _COMPRESSED
    plain = Path(path.stem) if packed else path
    if plain.suffix in {".xyz", ".extxyz"}:
        with _COMPRESSED.get(path.suffix, open)(path, "rt", encoding="utf-8") as stream:
            yield from _xyz_frames(stream)
    elif not packed:
        yield from iread(str(path), index=":")
    else:
        # ASE seeks backwards between frames; on a compressed file each seek decompresses from
        # the start, so the file is unpacked first.
        with TemporaryDirectory(prefix="tether-") as folder:
            whole = Path(folder) / plain
            with _COMPRESSED[path.suffix](path) as source, whole.open("wb") as unpacked:
                shutil.copyfileobj(source, unpacked)
            yield from iread(str(whole), index=":")


def _xyz_frames(stream: TextIO) -> Iterator[Atoms]:
    """Frames one at a time: ASE's own iterator first lists all of them, and must seek."""
    from ase.io.extxyz import read_xyz

    head = stream.readline()
    while head:
        if head.isspace():
            head = stream.readline()
            continue
        lines = [head, *islice(stream, int(head) + 1)]
        while (head := stream.readline()).lstrip().startswith("VEC"):
            lines.append(head)
        yield from read_xyz(StringIO("".join(lines)), index=0)


def _chunks(
    path: Path, frames: Iterator[Atoms], wanted: Wanted, chunk_size: int
) -> Iterator[Chunk]:
    row = 0
    while True:
        try:
            part = list(islice(frames, chunk_size))
        # ASE's readers raise whatever their parsing trips over (KeyError, IndexError,
        # AssertionError, sqlite3 errors ...): each of them means an unreadable file.
        except Exception as error:
            detail = str(error).strip().splitlines()
            raise TetherError(
                f"{path} cannot be read after structure {row}: "
                f"{type(error).__name__}{': ' + detail[0] if detail else ''}",
                expected="a file that ASE reads, e.g. extended XYZ, .db or .npz",
                fix=f"try `ase.io.read({str(path)!r}, ':')` and repair the file",
            ) from error
        if not part:
            return
        yield _chunk(path, part, row, wanted)
        row += len(part)


def _chunk(path: Path, frames: Sequence[Atoms], row: int, wanted: Wanted) -> Chunk:
    ids = [str(atoms.info.get("id", f"{stem(path)}:{row + i}")) for i, atoms in enumerate(frames)]
    found = [_values(atoms, wanted) for atoms in frames]
    counts = np.array([len(atoms) for atoms in frames])
    systems = _stack([values[0] for values in found], np.ones_like(counts), ids, path)
    atoms_ = _stack([values[1] for values in found], counts, ids, path)
    known = {name for _, _, calculated in found for name in calculated}
    targets = {}
    for level, stacked in (("system", systems), ("atom", atoms_)):
        for name, value in stacked.items():
            size = 1 if value.ndim == 1 else value.shape[1]
            plain = Target(name, level=level, n_components=size)  # type: ignore[arg-type]
            targets[name] = _CALCULATED.get(name, plain) if name in known else plain
    batch = from_ase(frames, labels=systems, atom_labels=atoms_, ids=ids)
    return Chunk(batch, (path.name,) * len(frames), targets)


def _values(atoms: Atoms, wanted: Wanted) -> tuple[Values, Values, set[str]]:
    """Labels of a structure: of itself, of its atoms; and which of them a calculator gave."""
    systems: Values = {}
    per_atom: Values = {}

    def put(name: str, value: object, *, atomwise: bool) -> bool:
        array = np.asarray(value) if not isinstance(value, (str, dict)) else np.asarray("")
        asked = (wanted or {}).get(name)
        if (wanted is not None and asked is None) or array.dtype.kind not in "biuf":
            return False
        if atomwise or (asked is not None and asked.level == "atom"):
            rows = np.atleast_1d(array).astype(np.float64)
            per_atom[name] = rows.reshape(len(rows), math.prod(rows.shape[1:]))
        else:
            systems[name] = array.astype(np.float64).reshape(1, -1)
        return True

    for name, value in atoms.info.items():
        is_flag = wanted is None and np.asarray(value).dtype.kind == "b"
        if name not in _NOT_LABELS and not is_flag:
            put(name, value, atomwise=False)
    for name, value in atoms.arrays.items():
        if name not in _NOT_LABELS:
            put(name, value, atomwise=True)
    calculated = set()
    results: dict[str, Any] = getattr(atoms.calc, "results", {})
    for name, value in results.items():
        if value is None or name not in _CALCULATED:
            continue
        full = _full_stress(value) if name == "stress" else value
        if put(name, full, atomwise=_CALCULATED[name].level == "atom"):
            calculated.add(name)
    return systems, per_atom, calculated


def _full_stress(value: NDArray[np.float64]) -> NDArray[np.float64]:
    full = voigt_6_to_full_3x3_stress(value) if np.size(value) == 6 else value  # type: ignore[no-untyped-call]
    return np.asarray(full)


def _stack(
    values: Sequence[Values], counts: NDArray[np.integer], ids: Sequence[str], path: Path
) -> Values:
    """One array a label, NaN where a structure lacks it."""
    ptr = np.concatenate([[0], np.cumsum(counts)])
    stacked: Values = {}
    for row, found in enumerate(values):
        for name, value in found.items() if counts[row] else ():
            if name not in stacked:
                stacked[name] = np.full((ptr[-1], value.shape[1]), np.nan)
            shape = (int(counts[row]), stacked[name].shape[1])
            if value.shape != shape:
                raise TetherError(
                    f"label `{name}` of structure {ids[row]} in {path} has {value.size} values",
                    expected=f"{int(np.prod(shape))}, as in the structures before it",
                    fix="name the labels to read (targets=, --target), per-atom ones with "
                    "level='atom'",
                )
            stacked[name][ptr[row] : ptr[row + 1]] = value
    return {n: v[:, 0] if v.shape[1] == 1 else v for n, v in stacked.items()}

"""Structures with labels from files, in chunks: the way in for all data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tether.data.chunks import CHUNK_SIZE, Chunk
from tether.data.qm9 import read_qm9
from tether.data.read_ase import read_ase, read_ase_database
from tether.data.read_hdf5 import read_hdf5
from tether.data.read_npz import read_npz
from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tether.targets import Target

__all__ = ["Chunk", "read_structures"]


def read_structures(
    path: str | Path, *, targets: Sequence[Target] | None = None, chunk_size: int = CHUNK_SIZE
) -> Iterator[Chunk]:
    """Read structures with their labels, a chunk at a time.

    Parameters
    ----------
    path : str or Path
        ``qm9`` (the installed `qm9pack`), an ASE database (``.db``, ``.aselmdb``), an ``.npz`` file
        (see `tether.data.read_npz`), an ``.h5`` or ``.hdf5`` file (`tether.data.read_hdf5`), or any
        file that ASE reads, e.g. extended XYZ, also ``.gz``.
    targets : sequence of Target, optional
        Labels to read, none where it is empty; default: all that the file has. A label that is
        missing is no error here.
    chunk_size : int
        Structures in a chunk.

    Yields
    ------
    Chunk
        Structures in the order of the file. Ids are the file's own or ``<file stem>:<row>``.

    Raises
    ------
    TetherError
        When there is no such file, or it cannot be read.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from ase.io import write
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write(f"{folder}/water.xyz", molecule("H2O"))
    ...     [chunk.batch.ids for chunk in read_structures(f"{folder}/water.xyz")]
    [('water:0',)]
    """
    wanted = None if targets is None else {target.name: target for target in targets}
    if str(path) == "qm9":
        yield from read_qm9(wanted=wanted, chunk_size=chunk_size)
        return
    file = Path(path)
    if not file.is_file():
        kind = "a folder" if file.is_dir() else "no such file"
        raise TetherError(
            f"{file}: {kind}",
            expected="a file of structures, or the name qm9",
            fix="check the path",
        )
    if file.suffix == ".npz":
        yield from read_npz(file, wanted=wanted, chunk_size=chunk_size)
    elif file.suffix in {".h5", ".hdf5"}:
        yield from read_hdf5(file, wanted=wanted, chunk_size=chunk_size)
    elif file.suffix in {".db", ".aselmdb"}:
        yield from read_ase_database(file, wanted=wanted, chunk_size=chunk_size)
    else:
        yield from read_ase(file, wanted=wanted, chunk_size=chunk_size)

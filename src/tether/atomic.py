"""Atomic files: a kill at any instant leaves the old file or the new, never a part of one.

Imports no torch, so that splits and reports can use it too.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["atomic_path", "refuse_folder", "write_text"]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without error.

    Parameters
    ----------
    path : Path
        Final place.

    Yields
    ------
    Path
        Where to write.

    Raises
    ------
    TetherError
        When the folder cannot be written, or `path` is one itself.
    """
    refuse_folder(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise TetherError(
            f"cannot write {path} ({error.strerror})",
            expected="a folder that can be written",
            fix="choose another place",
        ) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        # mkstemp makes files private; a result is as readable as any other file of the user.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_folder(path: Path) -> None:
    """Refuse a folder where a file will be written.

    Parameters
    ----------
    path : Path
        Of the file.

    Raises
    ------
    TetherError
        When a folder has its name.
    """
    if path.is_dir():
        raise TetherError(f"{path} is a folder", expected="a file name", fix="choose another name")


def write_text(path: Path, text: str) -> None:
    """Write a text atomically, in UTF-8.

    Parameters
    ----------
    path : Path
        Where.
    text : str
        The whole content.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

"""Atomic files: safetensors, JSON, text. A kill at any instant leaves the old file or the new."""

from __future__ import annotations

import json
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tether.atomic import atomic_path, write_text
from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "differences",
    "load_metadata",
    "load_tensors",
    "read_json",
    "save_tensors",
    "write_json",
]


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically.

    Parameters
    ----------
    path : Path
        Where.
    value : Any
        What ``json.dumps`` takes.
    """
    write_text(path, json.dumps(value, indent=1, sort_keys=False) + "\n")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What changed from one mapping to another, in words.

    Parameters
    ----------
    before, now : mapping
        JSON.

    Returns
    -------
    str
        As ``seed 0 → 1``, separated by commas.
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)!r} → {now.get(name)!r}" for name in names)


def read_json(path: Path) -> Any:
    """Read JSON.

    Parameters
    ----------
    path : Path
        Which file.

    Returns
    -------
    Any
        The value.

    Raises
    ------
    TetherError
        When the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise TetherError(
            f"there is no file {path}", expected="a JSON file", fix="check the path"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TetherError(
            f"{path} is not JSON ({error})", expected="a complete JSON file", fix="write it again"
        ) from None


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, atomically.

    Parameters
    ----------
    path : Path
        Where.
    tensors : mapping of str to Tensor
        Tensors that share no memory.
    metadata : mapping of str to str, optional
        Kept in the header.

    Notes
    -----
    The same tensors and metadata are the same bytes, so that a sha256 names them.
    """
    with atomic_path(path) as temporary:
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
            temporary,
            metadata=dict(metadata or {}),
        )
        if metadata:
            _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Write the header again, its metadata by name: safetensors has them in any order."""
    with path.open("r+b") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file onto the CPU.

    Parameters
    ----------
    path : Path
        Which file.

    Returns
    -------
    dict of str to Tensor
        By name.

    Raises
    ------
    TetherError
        When the file is missing, truncated or not safetensors.
    """
    with _opened(path) as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118


def load_metadata(path: Path) -> dict[str, str]:
    """The header's metadata of a safetensors file.

    Parameters
    ----------
    path : Path
        Which file.

    Returns
    -------
    dict of str to str
        Empty where none was written.
    """
    with _opened(path) as handle:
        return dict(handle.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise TetherError(
            f"there is no file {path}", expected="a safetensors file", fix="check the path"
        )
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except SafetensorError as error:
        raise TetherError(
            f"{path} cannot be read ({error})",
            expected="a complete safetensors file",
            fix="the file is truncated or corrupt: write or download it again",
        ) from None

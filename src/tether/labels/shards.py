"""Finished chunks on disk, so that labelling killed at any instant goes on where it was.

``<out>.parts/`` holds a manifest with the parameters and their hash, and one shard for each
finished chunk, ``<index>-<hash of the chunk's structures>.npz``, written whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tether.atomic import atomic_path
from tether.errors import TetherError
from tether.labels.failure import Failure
from tether.serialization import differences, read_json, write_json
from tether.structures import AtomBatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = [
    "Parts",
    "check_parts",
    "chunk_key",
    "open_parts",
    "pack_shard",
    "read_shard",
    "write_shard",
]

_TENSORS = ("numbers", "positions", "ptr", "cell", "pbc", "charge", "spin")


def chunk_key(batch: AtomBatch) -> str:
    """Hash of the structures of a chunk, labels left aside.

    Parameters
    ----------
    batch : AtomBatch
        The chunk.

    Returns
    -------
    str
        12 hexadecimal digits.
    """
    digest = hashlib.sha256("\n".join(batch.ids).encode())
    for name in _TENSORS:
        digest.update(np.ascontiguousarray(getattr(batch, name).numpy()).tobytes())
    return digest.hexdigest()[:12]


def pack_shard(batch: AtomBatch, failures: Sequence[Failure]) -> bytes:
    """Labelled structures and failures as the content of a shard.

    Parameters
    ----------
    batch : AtomBatch
        With ``labels["energy"]``, where there is one ``labels["stress"]``, and
        ``atom_labels["forces"]``; may be empty.
    failures : sequence of Failure
        Of the same chunk.

    Returns
    -------
    bytes
        An npz file.
    """
    arrays = {name: getattr(batch, name).numpy() for name in _TENSORS}
    arrays |= {name: value.numpy() for name, value in batch.labels.items()}
    arrays["forces"] = batch.atom_labels["forces"].numpy()
    text = json.dumps({"ids": batch.ids, "failures": [f.to_dict() for f in failures]})
    arrays["text"] = np.frombuffer(text.encode(), dtype=np.uint8)
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def write_shard(path: Path, content: bytes) -> None:
    """Write a shard, atomically.

    Parameters
    ----------
    path : Path
        Where.
    content : bytes
        From `pack_shard`.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_shard(shard: Path | bytes) -> tuple[AtomBatch, list[Failure]]:
    """Read a shard.

    Parameters
    ----------
    shard : Path or bytes
        The file, or its content.

    Returns
    -------
    batch, failures
        Labelled structures, and the failures of the chunk.
    """
    source = io.BytesIO(shard) if isinstance(shard, bytes) else shard
    with np.load(source, allow_pickle=False) as arrays:
        text = json.loads(arrays["text"].tobytes())
        batch = AtomBatch(
            **{name: torch.from_numpy(arrays[name]) for name in _TENSORS},
            labels={n: torch.from_numpy(arrays[n]) for n in ("energy", "stress") if n in arrays},
            atom_labels={"forces": torch.from_numpy(arrays["forces"])},
            ids=tuple(text["ids"]),
        )
    return batch, [Failure(**failure) for failure in text["failures"]]


@dataclass(frozen=True)
class Parts:
    """The folder of finished chunks.

    Attributes
    ----------
    folder : Path
        ``<out>.parts``.
    done : mapping of int to str
        Hash of the structures of each chunk that was finished before.
    """

    folder: Path
    done: Mapping[int, str]

    def path(self, index: int, key: str) -> Path:
        """Where the shard of a chunk is or goes."""
        return self.folder / f"{index:07d}-{key}.npz"

    def is_done(self, index: int, key: str) -> bool:
        """Whether a chunk was finished before.

        Raises `TetherError` when it was, but from other structures: what this call has made of
        those is taken back, so that the right ones are not refused afterwards.
        """
        before = self.done.get(index)
        if before is not None and before != key:
            for path in set(self.folder.glob("[0-9]*-*.npz")) - self._paths_done:
                path.unlink()
            raise TetherError(
                f"chunk {index} of {self.folder} was made from other structures",
                expected="the structures that the labelling was started with, in the same order",
                fix=f"give the same input, or remove {self.folder} to start again",
            )
        return before is not None

    @property
    def _paths_done(self) -> set[Path]:
        return {self.path(index, key) for index, key in self.done.items()}

    def remove_if_empty(self) -> None:
        """Remove the folder if no chunk is finished: it would only be in the way of other calls."""
        if not any(self.folder.glob("[0-9]*-*.npz")):
            self.remove()

    def remove(self) -> None:
        """Remove the folder; a kill in between leaves no folder that looks resumable."""
        aside = self.folder.with_name(self.folder.name + ".removed")
        shutil.rmtree(aside, ignore_errors=True)
        self.folder.rename(aside)
        shutil.rmtree(aside)


def _stated(parameters: Mapping[str, Any]) -> dict[str, Any]:
    plain = json.loads(json.dumps(parameters))
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    return {"hash": digest, "parameters": plain}


def check_parts(out: Path, parameters: Mapping[str, Any]) -> None:
    """Whether the labelling of `out` can start or go on; changes nothing.

    Parameters
    ----------
    out : Path
        The store that will be written.
    parameters : mapping
        Everything that the labels depend on, apart from the structures; JSON.

    Raises
    ------
    TetherError
        When `out` is there already and complete, or the parts have other parameters.
    """
    folder = out.with_name(out.name + ".parts")
    manifest, now = folder / "manifest.json", _stated(parameters)
    if manifest.is_file():
        before = read_json(manifest)
        if before["hash"] != now["hash"]:
            raise TetherError(
                f"{folder} was begun with other parameters "
                f"({differences(before['parameters'], now['parameters'])})",
                expected="the parameters that it was begun with",
                fix=f"use those, another --out, or remove {folder} to start again",
            )
    elif out.exists():
        raise TetherError(
            f"{out} is there already",
            expected="a path that does not exist",
            fix=f"remove {out} or choose another --out",
        )


def open_parts(out: Path, parameters: Mapping[str, Any]) -> Parts:
    """Start, or go on with, the labelling of `out`.

    Parameters
    ----------
    out, parameters
        As for `check_parts`, which is called first.

    Returns
    -------
    Parts
        The folder and what is finished in it.
    """
    folder = out.with_name(out.name + ".parts")
    check_parts(out, parameters)
    shutil.rmtree(folder.with_name(folder.name + ".removed"), ignore_errors=True)
    if not (folder / "manifest.json").is_file():
        write_json(folder / "manifest.json", _stated(parameters))
    shards = [path.stem.partition("-") for path in folder.glob("[0-9]*-*.npz")]
    return Parts(folder, {int(index): key for index, _, key in shards})

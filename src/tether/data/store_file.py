"""`StoreFile`: one Arrow file of structures, opened and checked; a store is one or a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tether.data.store_columns import FORMAT_VERSION
from tether.errors import TetherError
from tether.serialization import read_json
from tether.targets import Target

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MANIFEST", "StoreFile", "open_files", "unreadable"]

#: In the folder of a sharded store; written last, so that a folder without it is incomplete.
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class StoreFile:
    """One sealed file, memory-mapped.

    Attributes
    ----------
    targets : dict of str to Target
        Its labels.
    metadata : dict
        What the writer noted.
    batches : list of pyarrow.RecordBatch
        Its rows; views of the file.
    n_systems : int
        Number of structures.
    fingerprint : str
        sha256 of the columns and targets, from the seal.
    """

    targets: dict[str, Target]
    metadata: dict[str, Any]
    batches: list[pa.RecordBatch]
    n_systems: int
    fingerprint: str

    @classmethod
    def open(cls, path: Path) -> StoreFile:
        """Open a file.

        Parameters
        ----------
        path : Path
            Written by `write_store`.

        Returns
        -------
        StoreFile
            Almost nothing is read.

        Raises
        ------
        TetherError
            When the file is missing, not a store, incomplete or of another format version.
        """
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            header = dict(reader.schema.metadata or {})
            version = header.get(b"tether.format", b"none").decode()
        except (OSError, pa.ArrowException) as error:
            raise unreadable(path, str(error).splitlines()[0]) from error
        _check_version(path, version)
        try:
            return cls._opened(path, reader, header)
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, TetherError):
                raise
            raise unreadable(path, str(error)) from error

    @classmethod
    def _opened(
        cls, path: Path, reader: pa.RecordBatchFileReader, header: dict[bytes, bytes]
    ) -> StoreFile:
        targets = {t["name"]: Target(**t) for t in json.loads(header[b"tether.targets"])}
        last = reader.num_record_batches - 1
        _, seal = reader.get_batch_with_custom_metadata(last) if last >= 0 else (None, None)
        if seal is None or b"tether.complete" not in seal:
            raise unreadable(path, "its end mark is missing, so it is incomplete")
        batches = [reader.get_batch(i) for i in range(last)]
        n_systems, said = sum(b.num_rows for b in batches), int(seal[b"tether.complete"])
        if n_systems != said:
            raise unreadable(path, f"it has {n_systems} structures, its end mark says {said}")
        fingerprint = seal[b"tether.fingerprint"].decode()
        metadata = json.loads(header[b"tether.metadata"])
        return cls(targets, metadata, batches, n_systems, fingerprint)


def open_files(path: Path) -> tuple[list[StoreFile], str]:
    """Open a store of either form.

    Parameters
    ----------
    path : Path
        A file, or the folder of a sharded store.

    Returns
    -------
    files : list of StoreFile
        In order.
    fingerprint : str
        Of the whole: the same for the same structures in either form.

    Raises
    ------
    TetherError
        As `StoreFile.open`; and for a folder without a manifest, or with other shards than it
        lists.
    """
    if not path.is_dir():
        file = StoreFile.open(path)
        return [file], file.fingerprint
    if not (path / MANIFEST).is_file():
        raise unreadable(path, f"it is a folder without {MANIFEST}")
    manifest = read_json(path / MANIFEST)
    try:
        _check_version(path, manifest.get("format", "none"))
        shards = [(path / shard["file"], shard["fingerprint"]) for shard in manifest["shards"]]
        fingerprint = manifest["fingerprint"]
    except (KeyError, TypeError, AttributeError) as error:
        raise unreadable(path, f"its {MANIFEST} does not list shards ({error})") from error
    files = [StoreFile.open(shard) for shard, _ in shards]
    for file, (shard, said) in zip(files, shards, strict=True):
        if file.fingerprint != said:
            raise unreadable(path, f"{shard.name} is not the shard that {MANIFEST} lists")
    return files, fingerprint


def unreadable(path: Path, problem: str) -> TetherError:
    """The error for a file that is no store.

    Parameters
    ----------
    path : Path
        The file.
    problem : str
        What is wrong with it.

    Returns
    -------
    TetherError
        To raise.
    """
    return TetherError(
        f"{path} cannot be opened as a store: {problem}",
        expected="a complete store written by tether",
        fix="write it again with `tether prepare`",
    )


def _check_version(path: Path, version: str) -> None:
    if version != FORMAT_VERSION:
        raise TetherError(
            f"{path} has store format {version!r}",
            expected=f"format {FORMAT_VERSION!r}",
            fix="write it again with `tether prepare`",
        )

"""`Run`: a folder with typed paths; folders are the interface between environments."""

from __future__ import annotations

import json
import platform
from contextlib import contextmanager
from dataclasses import dataclass, fields
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from tether.errors import OccupiedError, TetherError
from tether.serialization import differences, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from _typeshed import DataclassInstance

__all__ = ["Run", "environment", "identity_of"]

_PACKAGES = (
    "tether", "torch", "numpy", "scikit-learn", "ase", "vesin", "so3krates-torch", "chgnet",
    "sevenn", "torchmd-net", "tblite", "qm9pack", "openTSNE", "POT", "torchjd", "rdkit", "pymatgen",
    "featomic",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Paths of one run.

    Attributes
    ----------
    folder : Path
        Made when something is first written.
    """

    folder: Path

    @property
    def config(self) -> Path:
        """What was asked for, YAML."""
        return self.folder / "config.yaml"

    @property
    def provenance(self) -> Path:
        """Versions, hashes, device."""
        return self.folder / "provenance.json"

    @property
    def split(self) -> Path:
        """The split used."""
        return self.folder / "split.json"

    @property
    def weights(self) -> Path:
        """Best weights on the ID validation set."""
        return self.folder / "weights.safetensors"

    @property
    def finetuned(self) -> Path:
        """With WiSE-FT, the weights before interpolation."""
        return self.folder / "state" / "finetuned.safetensors"

    @property
    def checkpoint(self) -> Path:
        """State to resume from."""
        return self.folder / "state" / "checkpoint.safetensors"

    @property
    def log(self) -> Path:
        """One JSON object a line."""
        return self.folder / "log.jsonl"

    @property
    def predictions(self) -> Path:
        """A row for each structure and target of the validation and test sets."""
        return self.folder / "predictions.parquet"

    @property
    def metrics(self) -> Path:
        """Written last: a run is complete when it is there."""
        return self.folder / "metrics.json"

    @property
    def is_complete(self) -> bool:
        """Whether the run has finished."""
        return self.metrics.exists()

    @property
    def digest(self) -> str:
        """What tells these results from those of the same run made again, once it is complete."""
        return sha256(self.metrics.read_bytes() + self.predictions.read_bytes()).hexdigest()

    def check(self, identity: dict[str, Any]) -> None:
        """Refuse a folder that holds another run; nothing is written.

        Parameters
        ----------
        identity : dict
            What determines the result (recipe, seed, data, settings).

        Raises
        ------
        TetherError
            When the folder holds a run with another identity, or of none.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise TetherError(
                f"{self.folder} is a file", expected="a folder", fix="choose another place"
            )
        if self._identity.exists():
            # What a file can hold is compared: JSON has no tuples.
            before, wanted = read_json(self._identity), json.loads(json.dumps(identity))
            if before != wanted:
                raise TetherError(
                    f"{self.folder} holds a run with other {_changes(before, wanted)}",
                    expected="an empty folder, or the same run to resume",
                    fix="choose another folder, or delete this one",
                )
        elif any(path.exists() for path in (self.metrics, self.weights, self.checkpoint)):
            raise TetherError(
                f"{self.folder} holds a run without {self._identity.relative_to(self.folder)}",
                expected="an empty folder, or the same run to resume",
                fix="choose another folder, or delete this one",
            )

    def claim(self, identity: dict[str, Any]) -> None:
        """Take the folder for this run, or refuse one that holds another.

        Parameters
        ----------
        identity : dict
            See `check`; written on first use.

        Raises
        ------
        TetherError
            See `check`.
        """
        self.check(identity)
        if not self._identity.exists():
            write_json(self._identity, identity)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training in the folder.

        The operating system lets go of it when this process ends, however it ends.

        Raises
        ------
        OccupiedError
            When another process has it.
        """
        path = self._identity.with_name("lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, blocking=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise OccupiedError(
                f"another process is training in {self.folder}",
                expected="one process a run",
                fix="wait until it has finished, or stop it; this call then continues",
            ) from error
        try:
            yield
        finally:
            lock.release()

    @property
    def _identity(self) -> Path:
        return self.folder / "state" / "identity.json"


def environment() -> dict[str, Any]:
    """Versions and device, for provenance.

    Returns
    -------
    dict
        Python, platform, the widest vector instructions that torch uses (with others, the last bits
        of floats differ), and the version of each package that may matter.
    """
    from torch.backends.cpu import get_cpu_capability  # with torch, which takes seconds to import

    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": get_cpu_capability(),
        **versions,
    }


def identity_of(instance: DataclassInstance, *, first: Collection[str]) -> dict[str, Any]:
    """What a dataclass of settings contributes to the identity of a run, see `Run.claim`.

    Parameters
    ----------
    instance : dataclass
        Plain values, each with a default or in `first`.
    first : collection of str
        Fields of the first version. Those that came later enter only where they are set, so that
        the runs made before are still recognised.

    Returns
    -------
    dict
        Value by field, in their order.
    """
    return {
        field.name: value
        for field in fields(instance)
        if (value := getattr(instance, field.name)) != field.default or field.name in first
    }


def _changes(before: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What differs, with both values where it is one of several: ``settings (lr 1 → 2)``."""
    words = []
    for key in sorted(k for k in {*before, *wanted} if before.get(k) != wanted.get(k)):
        old, new = before.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            words.append(f"{key} ({differences(old, new)})")
        else:
            words.append(key)
    return ", ".join(words)

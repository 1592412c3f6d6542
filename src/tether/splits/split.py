"""`Split`: named, disjoint index sets of one store, with how they were made."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.atomic import atomic_path
from tether.errors import TetherError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Split", "StoreReference", "labelled_rows"]

_SET_NAME = re.compile(r"train|val|test/[\w.+-]+")
_KEYS = ("name", "method", "parameters", "store", "indices", "report")


@dataclass(frozen=True)
class StoreReference:
    """The store that row numbers refer to.

    Attributes
    ----------
    path : str
        Where the store lay when the split was made; for the reader only, never checked.
    fingerprint : str
        Content hash of the store; empty where the split was made from bare arrays.
    n_systems : int or None
        Rows of the store; None where unknown.
    """

    path: str = ""
    fingerprint: str = ""
    n_systems: int | None = None


@dataclass(frozen=True, eq=False)
class Split:
    """Disjoint sets of rows; rows in no set are not used.

    Attributes
    ----------
    name : str
        What people call it.
    method : str
        The rule, see `tether.splits.rule.Method`.
    parameters : dict
        Arguments of the rule, and of what was done to its result.
    indices : dict of str to array, shape (n_set,), int64
        Row numbers by set: "train", "val", "test/<x>". Sorted and read-only after construction.
    report : dict
        What was noticed: unlabelled rows, ranges, leakage, reference lines. JSON-able.
    store : StoreReference
        What the rows refer to.

    Raises
    ------
    TetherError
        For a set that is empty, has an unknown name, shares a row with another set, repeats a row
        or has a row that the store has not.

    Examples
    --------
    >>> split = Split("mine", "file", {}, {"train": [2, 0], "test/ood": [1]})
    >>> split.sizes, split.indices["train"].tolist()
    ({'train': 2, 'test/ood': 1}, [0, 2])
    """

    name: str
    method: str
    parameters: dict[str, Any]
    indices: dict[str, NDArray[np.int64]]
    report: dict[str, Any] = field(default_factory=dict)
    store: StoreReference = field(default_factory=StoreReference)

    def __post_init__(self) -> None:
        if not self.indices:
            raise TetherError(
                f"split {self.name!r} has no set", expected="at least `train`", fix="name the sets"
            )
        clean = {
            name: _checked_set(name, rows, self.store.n_systems)
            for name, rows in self.indices.items()
        }
        _check_disjoint(clean)
        object.__setattr__(self, "indices", clean)

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each set."""
        return {name: len(rows) for name, rows in self.indices.items()}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the set names and rows, for provenance; name and report do not enter."""
        digest = hashlib.sha256()
        for name in sorted(self.indices):
            digest.update(f"{name}:{len(self.indices[name])}:".encode())
            digest.update(self.indices[name].astype("<i8").tobytes())
        return digest.hexdigest()

    def with_indices(
        self,
        indices: dict[str, NDArray[np.int64]],
        *,
        parameters: dict[str, Any] | None = None,
        report: dict[str, Any] | None = None,
    ) -> Split:
        """Return the same split with other sets; `parameters` and `report` are added to the old.

        Parameters
        ----------
        indices : dict of str to array
            The new sets.
        parameters, report : dict, optional
            Entries to add.

        Returns
        -------
        Split
            A new split.
        """
        return replace(
            self,
            indices=indices,
            parameters={**self.parameters, **(parameters or {})},
            report={**self.report, **(report or {})},
        )

    def to_json(self, path: str | Path) -> None:
        """Write split.json; readers see the old file or the whole new one, never a part.

        Parameters
        ----------
        path : str or Path
            The file; its folder must exist.

        Raises
        ------
        TetherError
            When the folder does not exist, or the path is a folder.
        """
        target = Path(path)
        if not target.parent.is_dir():
            raise TetherError(
                f"folder {str(target.parent)!r} of {target.name!r} does not exist",
                expected="an existing folder",
                fix=f"mkdir -p {target.parent}",
            )
        content = {
            "name": self.name,
            "method": self.method,
            "parameters": self.parameters,
            "store": asdict(self.store),
            "indices": {name: rows.tolist() for name, rows in self.indices.items()},
            "report": self.report,
        }
        with atomic_path(target) as temporary:
            text = json.dumps(content, default=_plain, allow_nan=False)
            temporary.write_text(text, encoding="utf-8")

    @classmethod
    def from_json(cls, path: str | Path, *, fingerprint: str | None = None) -> Split:
        """Read split.json.

        Parameters
        ----------
        path : str or Path
            The file.
        fingerprint : str, optional
            Of the store that the rows shall be used with.

        Returns
        -------
        Split
            Validated.

        Raises
        ------
        TetherError
            For a file that is missing or no JSON, for unknown or missing keys, and when the split
            was made for another store.
        """
        source = Path(path)
        content = _read_object(source)
        _check_keys(content, set(_KEYS), f"{str(source)!r}")
        _check_keys(content["store"], {f.name for f in fields(StoreReference)}, "`store`")
        store = StoreReference(**content["store"])
        if fingerprint is not None and store.fingerprint != fingerprint:
            raise TetherError(
                f"{str(source)!r} was made for a store with fingerprint {store.fingerprint!r}",
                expected=f"{fingerprint!r}, the fingerprint of the store in use",
                fix="make the split again with `tether split`, or use its own store "
                f"({store.path or 'path unknown'})",
            )
        return cls(**{**content, "store": store})


def labelled_rows(values: ArrayLike) -> NDArray[np.bool_]:
    """Which rows carry a label: NaN means unlabelled.

    Parameters
    ----------
    values : array, shape (n_systems,) or (n_systems, n_components)
        Labels. A row with one NaN component counts as unlabelled.

    Returns
    -------
    array, shape (n_systems,), bool
        True where labelled.

    Raises
    ------
    TetherError
        For infinite labels, and when no row is labelled.
    """
    array = np.asarray(values, dtype=np.float64)
    flat = array.reshape(len(array), -1)
    infinite = np.flatnonzero(np.any(np.isinf(flat), axis=1))
    if len(infinite):
        raise TetherError(
            f"{len(infinite)} label(s) are infinite, the first in row {infinite[0]}",
            expected="finite values, or NaN for unlabelled",
            fix="correct the data",
        )
    labelled: NDArray[np.bool_] = np.logical_not(np.any(np.isnan(flat), axis=1))
    if not labelled.any():
        raise TetherError(
            f"none of {len(labelled)} rows is labelled",
            expected="at least one value that is not NaN",
            fix="check the name of the target",
        )
    return labelled


def _checked_set(name: str, rows: ArrayLike, n_systems: int | None) -> NDArray[np.int64]:
    if not _SET_NAME.fullmatch(name):
        raise TetherError(
            f"unknown set {name!r}", expected="train, val or test/<name>", fix="rename the set"
        )
    array = np.asarray(rows)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TetherError(
            f"set {name!r} has shape {array.shape} and type {array.dtype}",
            expected="a list of whole row numbers",
            fix="give one integer a structure",
        )
    if array.size == 0:
        raise TetherError(
            f"set {name!r} has size 0",
            expected="at least one structure in each set",
            fix="ask for a larger share, or use more structures; a set that you named can be left "
            "out",
        )
    result = np.sort(array.astype(np.int64))
    limit = np.inf if n_systems is None else n_systems
    if result[0] < 0 or result[-1] >= limit:
        wrong = result[0] if result[0] < 0 else result[-1]
        raise TetherError(
            f"row {wrong} of set {name!r} is out of range",
            expected=f"0 <= row < {'n_systems' if n_systems is None else n_systems}",
            fix="use the store that the rows were made for",
        )
    repeated = result[1:][result[1:] == result[:-1]]
    if len(repeated):
        raise TetherError(
            f"set {name!r} repeats row {repeated[0]} ({len(repeated)} repeat(s))",
            expected="each row once",
            fix="remove the repeats",
        )
    result.setflags(write=False)
    return result


def _check_disjoint(indices: dict[str, NDArray[np.int64]]) -> None:
    names = list(indices)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            shared = np.intersect1d(indices[first], indices[second], assume_unique=True)
            if len(shared):
                raise TetherError(
                    f"sets {first!r} and {second!r} share {len(shared)} row(s), "
                    f"the first is {shared[0]}",
                    expected="disjoint sets",
                    fix="take the rows out of one of them",
                )


def _check_keys(content: object, expected: set[str], where: str) -> None:
    keys = set(content) if isinstance(content, dict) else set()
    if keys != expected:
        unknown, missing = sorted(keys - expected), sorted(expected - keys)
        raise TetherError(
            f"{where} has unknown keys {unknown} and lacks {missing}",
            expected=f"exactly {sorted(expected)}",
            fix="write the file with `tether split`",
        )


def _read_object(source: Path) -> dict[str, Any]:
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TetherError(
            f"{str(source)!r} does not exist", expected="a split.json", fix="run `tether split`"
        ) from None
    except OSError as error:
        raise TetherError(
            f"{str(source)!r} cannot be read ({error.strerror})",
            expected="a split.json",
            fix="check the path",
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TetherError(
            f"{str(source)!r} is not JSON ({error})", expected="JSON", fix="write the file again"
        ) from None
    if not isinstance(content, dict):
        raise TetherError(
            f"{str(source)!r} holds a {type(content).__name__}",
            expected="a JSON object",
            fix="map set names to rows",
        )
    return content


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON-able")

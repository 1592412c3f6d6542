"""Sets that somebody else chose: index files, id files, or one source file a set."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.errors import TetherError
from tether.splits.split import Split, StoreReference, labelled_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["from_file", "from_files", "from_sources", "load_index_file", "plain_list"]


def from_file(
    path: str | Path,
    *,
    n_systems: int,
    ids: Sequence[str] | None = None,
    values: ArrayLike | None = None,
    by_id: bool = False,
    fingerprint: str | None = None,
) -> Split:
    """Read all sets from one file.

    Parameters
    ----------
    path : str or Path
        A split.json; a JSON object ``{set: [rows or ids]}``; or an npz with one array a set, its
        name the set's (``__`` for the ``/`` that numpy's keywords do not allow: ``test__ood``).
    n_systems : int
        Rows of the store.
    ids : sequence of str, optional
        Id of each row, needed where the file names ids. Strings in a file are ids, integers rows.
    values : array, shape (n_systems,) or (n_systems, n_components), optional
        Labels; NaN rows are taken out of every set and counted in ``report["n_unlabelled"]``.
    by_id : bool
        Read integers as ids too.
    fingerprint : str, optional
        Of the store; a split.json that was made for another one is refused.

    Returns
    -------
    Split
        The sets.

    Raises
    ------
    TetherError
        For an unreadable file, an unknown or ambiguous id, and whatever `Split` refuses.
    """
    source = Path(path)
    content = load_index_file(source, by_id=by_id)
    if isinstance(content, dict) and "indices" in content:
        raw: dict[str, Any] = dict(Split.from_json(source, fingerprint=fingerprint).indices)
    elif isinstance(content, dict):
        raw = content
    else:
        raise TetherError(
            f"{str(source)!r} holds one list",
            expected="lists by set name",
            fix="give each list its set: --set train=train.json --set test/ood=ood.json",
        )
    sets = {name: _rows(name, entries, ids, by_id=by_id) for name, entries in raw.items()}
    return _split("file", {"file": str(source), "by_id": by_id}, sets, n_systems, values)


def from_files(
    mapping: Mapping[str, str | Path],
    *,
    n_systems: int,
    ids: Sequence[str] | None = None,
    values: ArrayLike | None = None,
    by_id: bool = False,
) -> Split:
    """Read each set from its own list file.

    Parameters
    ----------
    mapping : mapping of str to path
        File by set name: JSON list, npy, npz with one array, or text with one row or id a line.
    n_systems, ids, values, by_id
        As for `from_file`.

    Returns
    -------
    Split
        The sets.

    Raises
    ------
    TetherError
        As `from_file`.
    """
    sets = {}
    for name, path in mapping.items():
        content = load_index_file(Path(path), by_id=by_id)
        if isinstance(content, dict) and len(content) == 1:
            content = next(iter(content.values()))
        if isinstance(content, dict):
            raise TetherError(
                f"{str(path)!r} holds {len(content)} lists",
                expected=f"one list, for set {name!r}",
                fix="give a file of several sets with --file",
            )
        sets[name] = _rows(name, content, ids, by_id=by_id)
    files = {name: str(path) for name, path in mapping.items()}
    return _split("file", {"files": files, "by_id": by_id}, sets, n_systems, values)


def from_sources(
    sources: Sequence[str], mapping: Mapping[str, str], *, values: ArrayLike | None = None
) -> Split:
    """Make a set of each source file, for data that are published as one file a set.

    Parameters
    ----------
    sources : sequence of str, length n_systems
        Source file of each row.
    mapping : mapping of str to str
        Source by set name: ``{"train": "train.npz", "test/ood": "ood_test.npz"}``; compared with
        the whole source and, where that fits none, with its file name.
    values : array, shape (n_systems,) or (n_systems, n_components), optional
        Labels; NaN rows are taken out of every set and counted in ``report["n_unlabelled"]``.

    Returns
    -------
    Split
        The sets; rows of other sources are in none, ``report["n_other_sources"]`` counts them.

    Raises
    ------
    TetherError
        For a source that no row has, that fits several, or that is given to two sets.

    Examples
    --------
    >>> from_sources(["a.npz", "b.npz", "a.npz"], {"train": "a.npz", "test/id": "b.npz"}).sizes
    {'train': 2, 'test/id': 1}
    """
    known, code = np.unique(np.asarray(sources, dtype=str), return_inverse=True)
    taken: dict[str, str] = {}
    sets = {}
    for name, wanted in mapping.items():
        found = [s for s in known.tolist() if s == wanted]
        found = found or [s for s in known.tolist() if Path(s).name == wanted]
        if len(found) != 1:
            raise TetherError(
                f"source {wanted!r} of set {name!r} fits {len(found)} sources",
                expected=f"exactly one of {', '.join(known.tolist())}",
                fix="name a source of the store",
            )
        if found[0] in taken:
            raise TetherError(
                f"source {found[0]!r} is given to sets {taken[found[0]]!r} and {name!r}",
                expected="one set a source",
                fix="take it out of one of them",
            )
        taken[found[0]] = name
        sets[name] = np.flatnonzero(known[code.reshape(-1)] == found[0])
    split = _split("sources", {"sets": dict(mapping)}, sets, len(sources), values)
    n_used = sum(len(rows) for rows in sets.values())
    return split.with_indices(split.indices, report={"n_other_sources": len(sources) - n_used})


def _split(
    method: str,
    parameters: dict[str, Any],
    sets: Mapping[str, NDArray[np.int64]],
    n_systems: int,
    values: ArrayLike | None,
) -> Split:
    store = StoreReference(n_systems=n_systems)
    # Built once with every row, so that rows out of range are refused before they index labels.
    split = Split(method, method, parameters, dict(sets), {"n_unlabelled": 0}, store)
    if values is None:
        return split
    labelled = labelled_rows(values)
    if len(labelled) != n_systems:
        raise TetherError(
            f"`values` has {len(labelled)} rows",
            expected=f"n_systems = {n_systems}",
            fix="give one value a structure, NaN where unlabelled",
        )
    kept = {name: rows[labelled[rows]] for name, rows in split.indices.items()}
    dropped = {name: len(rows) - len(kept[name]) for name, rows in split.indices.items()}
    empty = [name for name, rows in kept.items() if not len(rows)]
    if empty:
        raise TetherError(
            f"set {empty[0]!r} has size 0 without its {dropped[empty[0]]} unlabelled row(s)",
            expected="at least one labelled structure in each set",
            fix="choose another target, or leave the set out",
        )
    report = {
        "n_unlabelled": int((~labelled).sum()),
        "n_unlabelled_by_set": {name: n for name, n in dropped.items() if n},
    }
    return split.with_indices(kept, report=report)


def load_index_file(source: Path, *, by_id: bool = False) -> Any:
    """Read an index file without a look at what it says.

    Parameters
    ----------
    source : Path
        JSON, npy, npz or txt.
    by_id : bool
        Leave integers in a txt file as text.

    Returns
    -------
    Any
        Lists by name as a dict, or one list or array.

    Raises
    ------
    TetherError
        For a file that is missing, of another kind, or broken.
    """
    if not source.is_file():
        raise TetherError(
            f"{str(source)!r} is not a file", expected="an index file", fix="check the path"
        )
    try:
        match source.suffix:
            case ".json":
                return json.loads(source.read_text(encoding="utf-8"))
            case ".npy":
                return np.load(source, allow_pickle=False)
            case ".npz":
                with np.load(source, allow_pickle=False) as archive:
                    return {key.replace("__", "/"): archive[key] for key in archive.files}
            case ".txt":
                lines = source.read_text(encoding="utf-8").split("\n")
                entries = [line.strip() for line in lines if line.strip()]
                whole = not by_id and all(re.fullmatch(r"-?\d+", entry) for entry in entries)
                return [int(entry) for entry in entries] if whole else entries
    except (ValueError, OSError) as error:
        raise TetherError(
            f"{str(source)!r} cannot be read ({error})",
            expected=f"a valid {source.suffix} file",
            fix="write it again; object arrays are refused",
        ) from None
    raise TetherError(
        f"{str(source)!r} ends in {source.suffix!r}",
        expected="json, npy, npz or txt",
        fix="convert the index file",
    )


def plain_list(entries: Any, what: str) -> NDArray[Any]:
    """One flat array of what a file holds.

    Parameters
    ----------
    entries : Any
        Of `load_index_file`, or a part of it.
    what : str
        Name of the entries, for the error.

    Returns
    -------
    array, shape (n,)
        Of any type.

    Raises
    ------
    TetherError
        For a single value, and for lists inside the list.
    """
    try:
        array = np.asarray(entries)
    except ValueError:  # lists of different lengths
        array = None
    if array is None or array.ndim != 1:
        shape = "lists of different lengths" if array is None else f"shape {array.shape}"
        raise TetherError(
            f"{what} holds {shape}",
            expected="a plain list of row numbers or ids",
            fix="take the inner lists apart: one number or id an entry",
        )
    return array


def _rows(name: str, entries: Any, ids: Sequence[str] | None, *, by_id: bool) -> NDArray[np.int64]:
    array = plain_list(entries, f"set {name!r}")
    if not array.size or (array.dtype.kind in "iu" and not by_id):
        return array
    if array.dtype.kind not in "iuUS":
        raise TetherError(
            f"set {name!r} holds {array.dtype} entries",
            expected="row numbers or ids",
            fix="use integers for rows and strings for ids, not both in one set",
        )
    if ids is None:
        raise TetherError(
            f"set {name!r} names ids", expected="a store with ids", fix="pass ids, or row numbers"
        )
    known, wanted = np.asarray(ids, dtype=str), array.astype(str)
    order = np.argsort(known, kind="stable")
    left = np.searchsorted(known, wanted, sorter=order)
    count = np.searchsorted(known, wanted, side="right", sorter=order) - left
    wrong = np.flatnonzero(count != 1)
    if len(wrong):
        first = wrong[0]
        raise TetherError(
            f"id {str(wanted[first])!r} of set {name!r} occurs {count[first]} times in the store "
            f"({len(wrong)} such id(s))",
            expected="each id exactly once",
            fix="check the ids, or give row numbers",
        )
    return order[left]

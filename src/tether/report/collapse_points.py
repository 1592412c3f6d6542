"""Read the sampled points and structures of a run's `collapse` folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tether.errors import TetherError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Points", "RunPoints", "Structures", "read_points"]

_COORDINATES = ("x_before", "y_before", "x_after", "y_after")


@dataclass(frozen=True)
class Structures:
    """Structures that the points belong to.

    Attributes
    ----------
    ids : list of str
        Each once.
    numbers : list of ndarray of shape (n_atoms,)
        Atomic numbers of each structure.
    positions : list of ndarray of shape (n_atoms, 3)
        In Å.
    subset : list of str
        "test/id", "test/ood", …
    true, pred : dict of str to ndarray of shape (n_structures,)
        By target, NaN where there is none.
    distance : ndarray of shape (n_structures,)
        To the training set, in the pretrained feature space; NaN where unknown.
    """

    ids: list[str]
    numbers: list[NDArray[np.int64]]
    positions: list[NDArray[np.float64]]
    subset: list[str]
    true: dict[str, NDArray[np.float64]]
    pred: dict[str, NDArray[np.float64]]
    distance: NDArray[np.float64]


@dataclass(frozen=True)
class Points:
    """Sampled atoms or edges with their places in the joint embedding of every layer.

    Attributes
    ----------
    number : ndarray of shape (n,)
        Running number of the sample, the same atom in every run of a comparison.
    structure : ndarray of shape (n,)
        Row of its structure in `Structures`.
    atom : ndarray of shape (n, 1) or (n, 2)
        The atom, or both ends of the edge, counted from 0 within the structure.
    classes : list of str
        Class of each point.
    groups : list of str
        Functional group of each atom, "" where it is not known; empty for edges.
    length : ndarray of shape (n,) or None
        Length of each edge in Å; None for atoms.
    layers : dict of int to ndarray of shape (n, 4)
        x and y before, x and y after; layers that could not be embedded are left out.
    """

    number: NDArray[np.int64]
    structure: NDArray[np.int64]
    atom: NDArray[np.int64]
    classes: list[str]
    groups: list[str]
    length: NDArray[np.float64] | None
    layers: dict[int, NDArray[np.float64]]


@dataclass(frozen=True)
class RunPoints:
    """What the explorer needs of a run; a piece that is missing stands in `problems`.

    Attributes
    ----------
    structures : Structures or None
        None where they cannot be read; then there are no points either.
    atoms, edges : Points or None
        Sampled points.
    problems : dict of str to str
        File name to the reason why it is not available.
    """

    structures: Structures | None = None
    atoms: Points | None = None
    edges: Points | None = None
    problems: dict[str, str] = field(default_factory=dict)


def read_points(folder: Path) -> RunPoints:
    """Read `structures.parquet`, `atoms.parquet` and `edges.parquet`.

    Parameters
    ----------
    folder : Path
        A run's `collapse` folder.

    Returns
    -------
    RunPoints
        Whatever could be read, with reasons for the rest.
    """
    problems: dict[str, str] = {}
    try:
        structures = _structures(_table(folder / "structures.parquet"))
    except TetherError as error:
        return RunPoints(problems={"structures.parquet": str(error)})
    found: dict[str, Points | None] = {"atoms": None, "edges": None}
    for kind in found:
        name = f"{kind}.parquet"
        try:
            found[kind] = _points(_table(folder / name), structures, name)
        except TetherError as error:
            problems[name] = str(error)
    return RunPoints(structures, found["atoms"], found["edges"], problems)


def _damaged(name: str, problem: str) -> TetherError:
    return TetherError(
        f"{name} {problem}", expected="what `tether collapse` writes", fix="run it again"
    )


def _table(path: Path) -> pa.Table:
    if not path.is_file():
        raise _damaged(path.name, "is not there")
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path.name, f"cannot be read ({error})") from error


def _column(table: pa.Table, name: str, file: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise _damaged(file, f"has no column {name}")
    return table[name]


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(column.to_numpy(), dtype=np.float64)


def _integers(table: pa.Table, name: str, file: str) -> NDArray[np.int64]:
    return np.asarray(_column(table, name, file).to_numpy(), dtype=np.int64)


def _strings(table: pa.Table, name: str, file: str, rows: NDArray[np.int64]) -> list[str]:
    return [str(value) for value in _column(table, name, file).take(rows).to_pylist()]


def _structures(table: pa.Table) -> Structures:
    file = "structures.parquet"
    ids = [str(value) for value in _column(table, "structure", file).to_pylist()]
    if len(set(ids)) != len(ids):
        raise _damaged(file, "names a structure twice")
    numbers = [
        np.asarray(row, dtype=np.int64) for row in _column(table, "numbers", file).to_pylist()
    ]
    positions = [
        np.asarray(row, dtype=np.float64) for row in _column(table, "positions", file).to_pylist()
    ]
    for name, atoms, places in zip(ids, numbers, positions, strict=True):
        if places.size != 3 * atoms.size or not np.isfinite(places).all():
            raise _damaged(file, f"has {places.size} coordinates for {atoms.size} atoms of {name}")
        if not atoms.size or atoms.min() < 1 or atoms.max() > 118:
            raise _damaged(file, f"has no atoms, or atoms of no element, in {name}")
    nothing = np.full(len(ids), np.nan)
    targets = [
        name.removeprefix("true_")
        for name in table.column_names
        if name.startswith("true_") and f"pred_{name.removeprefix('true_')}" in table.column_names
    ]
    has_distance = "distance_to_train" in table.column_names
    return Structures(
        ids=ids,
        numbers=numbers,
        positions=[places.reshape(-1, 3) for places in positions],
        subset=[str(value) for value in _column(table, "subset", file).to_pylist()],
        true={name: _floats(table[f"true_{name}"]) for name in targets},
        pred={name: _floats(table[f"pred_{name}"]) for name in targets},
        distance=_floats(table["distance_to_train"]) if has_distance else nothing,
    )


def _points(table: pa.Table, structures: Structures, file: str) -> Points:
    is_edges = file == "edges.parquet"
    ends = ("atom_idx_i", "atom_idx_j") if is_edges else ("atom_idx",)
    if table.num_rows == 0:
        raise _damaged(file, "has no rows")
    # Edges are of the last layer only, and their file has no such column.
    layer = (
        np.zeros(table.num_rows, dtype=np.int64) if is_edges else _integers(table, "layer", file)
    )
    number = _integers(table, "edge" if is_edges else "atom", file)
    order = np.lexsort((number, layer))
    layer, number = layer[order], number[order]
    names = np.unique(layer)
    n_points = len(layer) // len(names)
    number_of = number.reshape(len(names), -1) if len(layer) == n_points * len(names) else None
    if number_of is None or (number_of != number_of[0]).any():
        raise _damaged(file, "does not have the same points in every layer")
    places = np.stack([_floats(_column(table, name, file))[order] for name in _COORDINATES], axis=1)
    maps = places.reshape(len(names), n_points, 4)
    has_map = ~np.isnan(maps).all(axis=(1, 2))
    if not np.isfinite(maps[has_map]).all():
        raise _damaged(file, "has a place that is no number")
    if not has_map.any():
        raise _damaged(file, "has no map: there were too few points, or all were the same")
    first = order[:n_points]
    row_of = {name: row for row, name in enumerate(structures.ids)}
    own = _strings(table, "structure", file, first)
    unknown = next((name for name in own if name not in row_of), None)
    if unknown is not None:
        raise _damaged(file, f"has a point of {unknown}, which structures.parquet does not have")
    structure = np.array([row_of[name] for name in own], dtype=np.int64)
    atom = np.stack([_integers(table, end, file)[first] for end in ends], axis=1)
    sizes = np.array([len(structures.numbers[row]) for row in structure])
    if (atom < 0).any() or (atom >= sizes[:, None]).any():
        raise _damaged(file, "names an atom that its structure does not have")
    return Points(
        number=number[:n_points],
        structure=structure,
        atom=atom,
        classes=_strings(table, "class", file, first),
        groups=[] if is_edges else _strings(table, "group", file, first),
        length=_floats(_column(table, "distance", file))[first] if is_edges else None,
        layers={int(names[idx]): maps[idx] for idx in np.flatnonzero(has_map)},
    )

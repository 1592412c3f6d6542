"""The files of ``<run>/collapse/``: what they are called, what is in them, how they are written.

- ``measures.json``: every measure with interval and null, per-class values, ``left_out`` (classes
  of atoms that were not sampled: how many, and of which share of the atoms), provenance. Written
  last: with it the folder is complete.
- ``atoms.parquet``: a row for each sampled atom and layer, with its class, its functional group and
  its place in the t-SNE picture.
- ``edges.parquet``: the same for edges, of the last layer.
- ``structures.parquet``: the structures that the points are in, and the rest of what was looked at,
  with labels, predictions and the distance to the training set.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tether.atomic import atomic_path
from tether.serialization import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tether.drift.points import Points
    from tether.structures import AtomBatch

__all__ = [
    "CollapseFolder",
    "Picture",
    "atom_columns",
    "edge_columns",
    "structure_columns",
    "write_table",
]

FORMAT = 2
_FLOAT_COLUMNS = ("x_before", "y_before", "x_after", "y_after", "distance")


@dataclass(frozen=True)
class CollapseFolder:
    """Paths inside a run.

    Attributes
    ----------
    run : Path
        The run folder.
    """

    run: Path

    @property
    def measures(self) -> Path:
        """Every number; written last."""
        return self.run / "collapse" / "measures.json"

    @property
    def atoms(self) -> Path:
        """Sampled atoms × layers."""
        return self.run / "collapse" / "atoms.parquet"

    @property
    def edges(self) -> Path:
        """Sampled edges."""
        return self.run / "collapse" / "edges.parquet"

    @property
    def structures(self) -> Path:
        """Structures with predictions."""
        return self.run / "collapse" / "structures.parquet"

    def holds(self, settings: Mapping[str, Any]) -> bool:
        """Whether the folder is complete and was made with these settings.

        Parameters
        ----------
        settings : mapping
            As they stand in ``provenance.settings`` of ``measures.json``.

        Returns
        -------
        bool
            False also for a file of another format.
        """
        if not self.measures.exists():
            return False
        content = read_json(self.measures)
        found = content.get("provenance", {}).get("settings") if isinstance(content, dict) else None
        return bool(found == dict(settings) and content.get("format") == FORMAT)


@dataclass(frozen=True)
class Picture:
    """Places of the points in one joint embedding.

    Attributes
    ----------
    before, after : ndarray, shape (n_points, 2)
        Of the pretrained and the adapted features; no unit, axes have no meaning. NaN where there
        is no embedding, as of fewer than 12 points.
    """

    before: NDArray[np.floating]
    after: NDArray[np.floating]

    def columns(self) -> dict[str, Any]:
        """The four columns of a table of points."""
        return {
            "x_before": self.before[:, 0],
            "y_before": self.before[:, 1],
            "x_after": self.after[:, 0],
            "y_after": self.after[:, 1],
        }


def atom_columns(pictures: Sequence[Picture], points: Points) -> dict[str, Any]:
    """Columns of ``atoms.parquet``.

    Parameters
    ----------
    pictures : sequence of Picture
        One a layer, input to output.
    points : Points
        The atoms.

    Returns
    -------
    dict
        Layer by layer, n_layers × n_atoms rows.
    """
    once = {
        "atom": np.arange(points.n_points),
        "structure": points.structure,
        "atom_idx": points.atom_idx[:, 0],
        "number": points.number,
        "class": points.classes.astype(object),
        "group": points.group.astype(object),
        "subset": points.subset,
    }
    parts = [
        {**once, "layer": np.full(points.n_points, layer), **picture.columns()}
        for layer, picture in enumerate(pictures)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def edge_columns(picture: Picture, points: Points) -> dict[str, Any]:
    """Columns of ``edges.parquet``.

    Parameters
    ----------
    picture : Picture
        Of the last layer.
    points : Points
        The edges.

    Returns
    -------
    dict
        One row an edge.
    """
    return {
        "edge": np.arange(points.n_points),
        "structure": points.structure,
        "atom_idx_i": points.atom_idx[:, 0],
        "atom_idx_j": points.atom_idx[:, 1],
        "distance": points.distance,
        "class": points.classes.astype(object),
        "subset": points.subset,
        **picture.columns(),
    }


def structure_columns(
    batches: Sequence[tuple[str, AtomBatch]],
    labels: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    distance_to_train: NDArray[np.floating],
) -> dict[str, Any]:
    """Columns of ``structures.parquet``.

    Parameters
    ----------
    batches : sequence of (str, AtomBatch)
        Name of the set and its structures.
    labels : mapping of str to (ndarray, ndarray)
        Target → (true, predicted) of all structures in order; NaN where there is no label.
    distance_to_train : ndarray, shape (n_systems,)
        See `tether.drift.run`.

    Returns
    -------
    dict
        One row a structure.
    """
    columns: dict[str, Any] = {name: [] for name in ("structure", "numbers", "positions", "subset")}
    for subset, batch in batches:
        ptr = batch.ptr.tolist()
        numbers = batch.numbers.numpy().astype(np.int16)
        positions = batch.positions.numpy().astype(np.float32)
        columns["structure"] += list(batch.ids)
        columns["subset"] += [subset] * batch.n_systems
        columns["numbers"] += [numbers[a:b] for a, b in itertools.pairwise(ptr)]
        columns["positions"] += [positions[a:b].ravel() for a, b in itertools.pairwise(ptr)]
    for name, (true, predicted) in labels.items():
        columns[f"true_{name}"], columns[f"pred_{name}"] = true, predicted
    columns["distance_to_train"] = distance_to_train
    return columns


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    """Write Parquet, atomically.

    Parameters
    ----------
    path : Path
        Where.
    columns : mapping of str to array
        See the functions above; integers become int32, coordinates and distances float32.
    """
    arrays = {}
    for name, values in columns.items():
        if name == "numbers":
            arrays[name] = pa.array(values, pa.list_(pa.int16()))
        elif name == "positions":
            arrays[name] = pa.array(values, pa.list_(pa.float32()))
        elif name in _FLOAT_COLUMNS:
            arrays[name] = pa.array(np.asarray(values, dtype=np.float32))
        elif isinstance(values, np.ndarray) and values.dtype.kind in "iu":
            arrays[name] = pa.array(values.astype(np.int32))
        else:
            arrays[name] = pa.array(values)
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(arrays), temporary)

"""Structures as wholes: fingerprints before and after, predictions, distance to training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq

from tether.collapse.ood import knn_distance
from tether.data.pieces import pieces
from tether.errors import TetherError
from tether.extract import BATCH_SIZE, fingerprints
from tether.sample import some_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from tether.backbones.protocol import Backbone
    from tether.drift.opened import OpenedRun
    from tether.structures import AtomBatch

__all__ = ["Prints", "label_columns", "structure_batches", "take_prints"]

#: Structures of the training set, and of each test set, that are looked at.
MAX_TRAIN, MAX_TEST = 5000, 3000


@dataclass(frozen=True)
class Prints:
    """Mean node features of structures, pretrained and adapted.

    Attributes
    ----------
    rows : dict of str to ndarray, shape (n_systems of the set,)
        Set → rows of the store, ascending; "train" first.
    drawn : dict of str to ndarray of bool, shape (n_systems of the set,)
        Set → which of them were drawn at random. The others are there because sampled atoms are in
        them, as many of each class: they are no sample of the set's structures.
    before, after : dict of str to ndarray, shape (n_systems of the set, n_features)
        Set → fingerprints.
    distance : dict of str to ndarray, shape (n_systems of the set,)
        Test set → distance to the training set: mean over the nearest training structures in the
        pretrained features, standardised by the training set. No unit; NaN where there is none, as
        with fewer than ten training structures.
    """

    rows: dict[str, NDArray[np.int64]]
    drawn: dict[str, NDArray[np.bool_]]
    before: dict[str, NDArray[np.floating]]
    after: dict[str, NDArray[np.floating]]
    distance: dict[str, NDArray[np.float64]]


def take_prints(
    opened: OpenedRun,
    needed: Mapping[str, NDArray[np.int64]],
    *,
    models: tuple[Backbone, Backbone],
    seed: int,
) -> Prints:
    """Fingerprints of a sample of the training set and of test sets.

    Parameters
    ----------
    opened : OpenedRun
        Knows store and split.
    needed : mapping of str to ndarray
        Test set → rows that must be among those looked at: the sampled atoms' structures.
    models : (Backbone, Backbone)
        Pretrained and adapted.
    seed : int
        Of the draw.

    Returns
    -------
    Prints
        Of at most `MAX_TRAIN` and `MAX_TEST` structures a set, and of the needed ones.
    """
    sets = opened.split.indices
    random = {"train": some_rows(sets["train"], MAX_TRAIN, seed=seed)}
    random |= {name: some_rows(sets[name], MAX_TEST, seed=seed) for name in needed}
    rows = {name: np.union1d(r, needed.get(name, r)) for name, r in random.items()}
    drawn = {name: np.isin(r, random[name]) for name, r in rows.items()}
    before, after = (
        {
            name: fingerprints(model, pieces(opened.store, BATCH_SIZE, indices=r))
            for name, r in rows.items()
        }
        for model in models
    )
    distance = {name: _distance(before["train"], before[name]) for name in needed}
    return Prints(rows, drawn, before, after, distance)


def structure_batches(
    opened: OpenedRun, prints: Prints, names: Sequence[str]
) -> list[tuple[str, AtomBatch]]:
    """The structures of each test set.

    Parameters
    ----------
    opened : OpenedRun
        Knows the store.
    prints : Prints
        Says which rows.
    names : sequence of str
        Sets, in order.

    Returns
    -------
    list of (str, AtomBatch)
        One a set.
    """
    return [(name, opened.store.batch(prints.rows[name])) for name in names]


def label_columns(
    opened: OpenedRun, prints: Prints, names: Sequence[str]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Labels and predictions of the structures, from the run's own ``predictions.parquet``.

    Parameters
    ----------
    opened : OpenedRun
        The run.
    prints : Prints
        Says which rows.
    names : sequence of str
        Sets, in order.

    Returns
    -------
    dict of str to (ndarray, ndarray)
        Target → (true, predicted). Targets of atoms are left out: a structure has no one value.
    """
    table = pq.read_table(opened.run.predictions)
    target, subset = (
        np.asarray(table[name].to_pylist(), dtype=object) for name in ("target", "subset")
    )
    values = {name: table[name].to_numpy() for name in ("true", "pred")}
    found = {}
    for name in dict.fromkeys(target.tolist()):
        if opened.store.targets[name].level != "system":
            continue
        parts: dict[str, list[NDArray[np.float64]]] = {"true": [], "pred": []}
        for one in names:
            # Rows of a set stand in the order of the split, which is ascending.
            place = np.searchsorted(opened.split.indices[one], prints.rows[one])
            here = (target == name) & (subset == one)
            for column, found_so_far in parts.items():
                found_so_far.append(values[column][here][place])
        found[name] = (np.concatenate(parts["true"]), np.concatenate(parts["pred"]))
    return found


def _distance(train: NDArray[np.floating], points: NDArray[np.floating]) -> NDArray[np.float64]:
    try:
        return knn_distance(train, points)
    except TetherError:  # the measure of OOD detection says why; the others need no distance
        return np.full(len(points), np.nan)

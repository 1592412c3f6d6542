"""Sampled atoms and edges with their features before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tether.data.pieces import pieces
from tether.drift.groups import UNKNOWN, atom_groups
from tether.extract import BATCH_SIZE, edge_list, extract
from tether.sample import sample_atoms, sample_edges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tether.backbones.protocol import Backbone
    from tether.data.store import Store
    from tether.extract import Extracted
    from tether.sample import AtomSample, EdgeSample

__all__ = ["Points", "SetSample", "atom_points", "edge_points", "take_sample"]


@dataclass(frozen=True)
class SetSample:
    """What was drawn from one set of the split, and its features.

    Attributes
    ----------
    name : str
        Of the set.
    atoms : AtomSample
        Sampled atoms.
    edges : EdgeSample or None
        Sampled edges; None where the backbone has no edge features, or no edge is of a class.
    before, after : Extracted
        Features of both in the pretrained and in the adapted model.
    """

    name: str
    atoms: AtomSample
    edges: EdgeSample | None
    before: Extracted
    after: Extracted


@dataclass(frozen=True)
class Points:
    """Atoms, or edges, of all sets in one list; every array has n_points rows.

    Attributes
    ----------
    before, after : tuple of ndarray, each of shape (n_points, n_features of that layer), float32
        By layer, input to output; for edges only the last.
    classes : ndarray of str
        Such as "C4" or "C–O bonded".
    structure : ndarray of str
        Id of the structure.
    row : ndarray of int
        Its row in the store: points of one structure are not independent.
    subset : ndarray of str
        Set of the split.
    atom_idx : ndarray, shape (n_points, 1) or (n_points, 2)
        The atom, or the two atoms, numbered inside the structure.
    number : ndarray of int
        Atomic number; of edges the first atom's.
    distance : ndarray of float
        Å; 0 for atoms.
    group : ndarray of str
        Functional group of an atom, see `tether.drift.groups`; "" for edges.
    """

    before: tuple[NDArray[np.float32], ...]
    after: tuple[NDArray[np.float32], ...]
    classes: NDArray[np.str_]
    structure: NDArray[np.object_]
    row: NDArray[np.int64]
    subset: NDArray[np.object_]
    atom_idx: NDArray[np.int64]
    number: NDArray[np.int64]
    distance: NDArray[np.float32]
    group: NDArray[np.str_]

    @property
    def n_points(self) -> int:
        """How many."""
        return len(self.classes)

    def of(self, subset: str) -> Points:
        """Those of one set.

        Parameters
        ----------
        subset : str
            Its name.

        Returns
        -------
        Points
            Perhaps none.
        """
        here = self.subset == subset
        return Points(
            before=tuple(layer[here] for layer in self.before),
            after=tuple(layer[here] for layer in self.after),
            classes=self.classes[here],
            structure=self.structure[here],
            row=self.row[here],
            subset=self.subset[here],
            atom_idx=self.atom_idx[here],
            number=self.number[here],
            distance=self.distance[here],
            group=self.group[here],
        )


def take_sample(
    store: Store,
    rows: NDArray[np.int64],
    *,
    name: str,
    models: tuple[Backbone, Backbone],
    per_class: int,
    seed: int,
) -> SetSample:
    """Draw atoms and edges of one set, and take their features.

    Parameters
    ----------
    store : Store
        Where the structures are.
    rows : ndarray, shape (n_rows,)
        The set.
    name : str
        Its name.
    models : (Backbone, Backbone)
        Pretrained and adapted. They see the same batches, so that equal weights give equal bits.
    per_class : int
        Atoms and edges of each class.
    seed : int
        Of the draw.

    Returns
    -------
    SetSample
        Memory holds the chosen points of it only.
    """
    atoms = sample_atoms(store, rows, per_class=per_class, seed=seed)
    known = edge_list(models[0], pieces(store, BATCH_SIZE, indices=atoms.rows))
    edges = None
    if known is not None:
        edges = sample_edges(atoms, known, per_class=per_class, seed=seed)
        edges = edges if edges.chosen.size else None
    before, after = (
        extract(
            model,
            pieces(store, BATCH_SIZE, indices=atoms.rows),
            atoms=atoms.chosen,
            edges=None if edges is None else edges.chosen,
        )
        for model in models
    )
    return SetSample(name, atoms, edges, before, after)


def atom_points(store: Store, samples: Sequence[SetSample]) -> Points:
    """The atoms of all sets.

    Parameters
    ----------
    store : Store
        Knows the structures' ids.
    samples : sequence of SetSample
        One a set.

    Returns
    -------
    Points
        Set by set.
    """
    n_layers = len(samples[0].before.layers)
    row = np.concatenate([one.atoms.rows[one.atoms.system] for one in samples])
    atom_idx = np.concatenate([one.atoms.atom_idx for one in samples])
    return Points(
        before=tuple(
            np.concatenate([one.before.layers[i] for one in samples]) for i in range(n_layers)
        ),
        after=tuple(
            np.concatenate([one.after.layers[i] for one in samples]) for i in range(n_layers)
        ),
        classes=np.concatenate([one.atoms.classes for one in samples]),
        structure=store.ids[row],
        row=row,
        subset=_names([(one.name, len(one.atoms.chosen)) for one in samples]),
        atom_idx=atom_idx[:, None],
        number=np.concatenate([one.atoms.numbers[one.atoms.chosen] for one in samples]),
        distance=np.zeros(len(row), dtype=np.float32),
        group=atom_groups(store, row, atom_idx),
    )


def edge_points(store: Store, samples: Sequence[SetSample]) -> Points | None:
    """The edges of all sets.

    Parameters
    ----------
    store : Store
        Knows the structures' ids.
    samples : sequence of SetSample
        One a set; sets without edges are left out.

    Returns
    -------
    Points or None
        None where no set has edges.
    """
    found = [
        (one, one.edges, one.before.edges, one.after.edges)
        for one in samples
        if one.edges is not None and one.before.edges is not None and one.after.edges is not None
    ]
    if not found:
        return None
    row = np.concatenate([one.atoms.rows[edges.system] for one, edges, _, _ in found])
    pairs = np.concatenate([edges.atom_idx.T for _, edges, _, _ in found])
    first = np.concatenate(
        [one.atoms.numbers[one.atoms.ptr[e.system] + e.atom_idx[0]] for one, e, _, _ in found]
    )
    return Points(
        before=(np.concatenate([before for _, _, before, _ in found]),),
        after=(np.concatenate([after for _, _, _, after in found]),),
        classes=np.concatenate([edges.classes for _, edges, _, _ in found]),
        structure=store.ids[row],
        row=row,
        subset=_names([(one.name, len(edges.chosen)) for one, edges, _, _ in found]),
        atom_idx=pairs,
        number=first,
        distance=np.concatenate([edges.distance for _, edges, _, _ in found]),
        group=np.full(len(row), UNKNOWN),
    )


def _names(counts: Sequence[tuple[str, int]]) -> NDArray[np.object_]:
    names = [name for name, n in counts for _ in range(n)]
    return np.array(names, dtype=object)

"""Balanced samples of atoms and edges of a store: the same points are looked at in every model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tether.collapse.classes import PAPER_CLASSES, atom_classes, balanced_sample, edge_classes
from tether.errors import TetherError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tether.data.store import Store
    from tether.extract import EdgeList

__all__ = ["AtomSample", "EdgeSample", "sample_atoms", "sample_edges", "some_rows"]

#: Structures among which atoms are drawn: enough for the rarest class, and read in a second.
MAX_SYSTEMS = 20_000
#: A rarer class is left out where two others are not: its half has too few points to compare.
LEAST_PER_CLASS = 10
#: Classes where the paper's are not what the atoms are of. Crystals have hundreds; the ten most
#: frequent are anions throughout, the first 40 have metals among them.
MAX_CLASSES = 40


@dataclass(frozen=True)
class AtomSample:
    """Sampled atoms, and the structures that hold them.

    Attributes
    ----------
    rows : ndarray, shape (n_systems,), int64
        Rows of the store with at least one sampled atom, in the order in which they are read.
    numbers : ndarray, shape (n_stream,), int64
        Atomic number of every atom of those structures, sampled or not.
    chosen : ndarray, shape (n_atoms,), int64
        Sampled atoms, numbered over those structures, ascending.
    system : ndarray, shape (n_atoms,), int64
        Place in `rows` of each sampled atom's structure.
    atom_idx : ndarray, shape (n_atoms,), int64
        Its number inside the structure.
    classes : ndarray of str, shape (n_atoms,)
        Its class, such as "C4".
    ptr : ndarray, shape (n_systems + 1,), int64
        Offsets of the structures' atoms.
    n_left_out : int
        Classes that occur among the structures drawn from and were not sampled.
    share_left_out : float
        Share of the atoms that are of those classes, 0 to 1.
    """

    rows: NDArray[np.int64]
    numbers: NDArray[np.int64]
    chosen: NDArray[np.int64]
    system: NDArray[np.int64]
    atom_idx: NDArray[np.int64]
    classes: NDArray[np.str_]
    ptr: NDArray[np.int64]
    n_left_out: int
    share_left_out: float


@dataclass(frozen=True)
class EdgeSample:
    """Sampled edges of the structures of an `AtomSample`.

    Attributes
    ----------
    chosen : ndarray, shape (n_edges,), int64
        Places in the `EdgeList`, ascending.
    system : ndarray, shape (n_edges,), int64
        Place of the structure in `AtomSample.rows`.
    atom_idx : ndarray, shape (2, n_edges), int64
        The two atoms, numbered inside the structure.
    distance : ndarray, shape (n_edges,), float32
        Å.
    classes : ndarray of str, shape (n_edges,)
        Such as "C–O bonded".
    """

    chosen: NDArray[np.int64]
    system: NDArray[np.int64]
    atom_idx: NDArray[np.int64]
    distance: NDArray[np.float32]
    classes: NDArray[np.str_]


def some_rows(rows: NDArray[np.int64], n: int, *, seed: int) -> NDArray[np.int64]:
    """At most `n` of the rows, drawn without repeats, in their old order.

    Parameters
    ----------
    rows : ndarray, shape (n_rows,)
        To draw from.
    n : int
        How many.
    seed : int
        Of the draw.

    Returns
    -------
    ndarray, shape (min(n, n_rows),)
        All of them where there are no more than `n`.
    """
    if len(rows) <= n:
        return rows
    drawn = np.random.default_rng(seed).choice(len(rows), size=n, replace=False)
    return rows[np.sort(drawn)]


def sample_atoms(
    store: Store, rows: NDArray[np.int64], *, per_class: int, seed: int, most: int | None = None
) -> AtomSample:
    """Atoms of some structures, the same number of each class where there are as many.

    Classes are the paper's ten (element × number of neighbours) where at least half of the atoms
    are of them, as in organic molecules, and else the most frequent of all classes, as in crystals:
    at most `MAX_CLASSES`, with no more atoms in all than of ten. Rare ones are left out, see
    `LEAST_PER_CLASS`.

    Parameters
    ----------
    store : Store
        Where the structures are.
    rows : ndarray, shape (n_rows,)
        Structures to draw from; of more than `MAX_SYSTEMS`, that many are drawn first.
    per_class : int
        Atoms of each class; of more than ten classes fewer, ten times as many in all.
    seed : int
        Of the draw.
    most : int, optional
        Atoms in all; `per_class` shrinks until this holds.

    Returns
    -------
    AtomSample
        Only the structures that hold a sampled atom.

    Raises
    ------
    TetherError
        When `per_class` is not positive, or there is no structure.
    """
    if per_class < 1:
        raise TetherError(
            f"`per_class` is {per_class}", expected="a positive integer", fix="set per_class=200"
        )
    if not len(rows):
        raise TetherError(
            "no structure to sample atoms of", expected="at least one", fix="check the split"
        )
    rows = some_rows(rows, MAX_SYSTEMS, seed=seed)
    batch = store.batch(rows)
    numbers, ptr = batch.numbers.numpy(), batch.ptr.numpy()
    classes = atom_classes(
        numbers, batch.positions.numpy(), ptr, batch.cell.numpy(), batch.pbc.numpy()
    )
    ten = per_class * len(PAPER_CLASSES)
    most = ten if most is None else min(most, ten)
    keep = _atom_classes_kept(classes, per_class, most)
    per_class = min(per_class, max(1, most // len(keep)))
    picked = balanced_sample(classes, per_class=per_class, seed=seed, keep=keep)
    system = np.searchsorted(ptr, picked, side="right") - 1
    used, place = np.unique(system, return_inverse=True)
    counts = np.diff(ptr)[used]
    new_ptr = np.concatenate([[0], np.cumsum(counts)])
    atom_idx = picked - ptr[system]
    stream = np.concatenate([numbers[ptr[s] : ptr[s + 1]] for s in used.tolist()])
    return AtomSample(
        rows=rows[used],
        numbers=stream,
        chosen=new_ptr[place] + atom_idx,
        system=place,
        atom_idx=atom_idx,
        classes=classes[picked],
        ptr=new_ptr,
        n_left_out=len(np.unique(classes)) - len(keep),
        share_left_out=float(1 - np.isin(classes, keep).mean()),
    )


def sample_edges(atoms: AtomSample, edges: EdgeList, *, per_class: int, seed: int) -> EdgeSample:
    """Edges of the structures of an atom sample, the same number of each class.

    Parameters
    ----------
    atoms : AtomSample
        Says which structures.
    edges : EdgeList
        Of a backbone on exactly those structures.
    per_class : int
        Edges of each class.
    seed : int
        Of the draw.

    Returns
    -------
    EdgeSample
        Empty where no edge is of a class, as in structures without carbon.
    """
    classes = edge_classes(atoms.numbers, edges.idx, edges.distance)
    number = _counted(classes[classes != ""])
    keep = _without_rare(sorted(number), number, per_class)
    chosen = np.zeros(0, dtype=np.int64)
    if keep:
        chosen = balanced_sample(classes, per_class=per_class, seed=seed, keep=keep)
    pairs = edges.idx[:, chosen]
    system = np.searchsorted(atoms.ptr, pairs[0], side="right") - 1
    return EdgeSample(
        chosen=chosen,
        system=system,
        atom_idx=pairs - atoms.ptr[system],
        distance=edges.distance[chosen],
        classes=classes[chosen],
    )


def _counted(classes: NDArray[np.str_]) -> dict[str, int]:
    names, counts = np.unique(classes, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _atom_classes_kept(classes: NDArray[np.str_], per_class: int, most: int) -> list[str]:
    """Classes to sample `most` atoms of: the paper's, or else the most frequent of all."""
    number = _counted(classes)
    of_paper = [name for name in PAPER_CLASSES if name in number]
    # The water of a few hydrates does not make organic molecules of a thousand oxides.
    if 2 * sum(number[name] for name in of_paper) >= len(classes):
        return _without_rare(of_paper, number, per_class)
    by_frequency = sorted(number, key=lambda name: (-number[name], name))
    n = min(MAX_CLASSES, max(2, most // LEAST_PER_CLASS))
    return _without_rare(by_frequency[:n], number, per_class)


def _without_rare(names: list[str], number: dict[str, int], per_class: int) -> list[str]:
    """Those with enough points, if two are left."""
    common = [name for name in names if number[name] >= min(per_class, LEAST_PER_CLASS)]
    return common if len(common) >= 2 else names

"""`Corpus`: a data set of a pretraining, in memory or read batch by batch from its store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tether.data.loader import GraphStream, StoreStream
from tether.errors import TetherError
from tether.labels.samples import structure_of
from tether.level import shift_energies

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from tether.data.store import Store
    from tether.graph import Graph
    from tether.objective import DataSet
    from tether.structures import AtomBatch
    from tether.tasks.task import Stream

__all__ = ["Corpus", "hold_out", "open_corpus"]

#: Structures from which a data set is read from its store at each step, neighbour lists and all,
#: in the background: memory is then flat in their number.
STREAMED_FROM = 100_000
#: Structures that stand for a streamed set, where its forces and energies are looked at.
N_SAMPLED = 4096
#: Share of the first data set that is held out where no validation set is given; its bounds, in
#: structures that geometries were made of, or compositions.
HELD_OUT, FEWEST, MOST = 0.01, 8, 1000
#: Ids of `read_hdf5`, ``<file stem>:<molecule>:<conformation>``.
_CONFORMATION = re.compile(r"^([^:]*:.+):\d+$")


@dataclass(frozen=True)
class Corpus:
    """A data set, opened.

    Attributes
    ----------
    data : DataSet
        Where it is.
    store : Store
        The file.
    rows : array of int
        Structures to train on.
    prepare : callable
        The backbone's.
    graph : Graph or None
        All of them, prepared; None where they are streamed.
    sample : Graph
        All of them, or some, with every element among them.
    """

    data: DataSet
    store: Store
    rows: NDArray[np.int64]
    prepare: Callable[[AtomBatch], Graph]
    graph: Graph | None
    sample: Graph

    def stream(
        self,
        *,
        batch_size: int,
        seed: int,
        offsets: Tensor | None = None,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> Stream:
        """Batches without end, with shifted energies.

        Parameters
        ----------
        batch_size : int
            Structures.
        seed : int
            Of the order.
        offsets : Tensor, shape (119,), optional
            eV, of each element, see `shift_energies`.
        rank, n_ranks : int
            Of a streamed set, the share of each batch that is wanted.

        Returns
        -------
        Stream
            Batch k is a function of the seed and k.
        """

        def shifted(graph: Graph) -> Graph:
            return graph if offsets is None else shift_energies(graph, offsets)

        if self.graph is not None:
            return GraphStream(shifted(self.graph), batch_size=batch_size, seed=seed)
        return StoreStream(
            self.store,
            lambda batch: shifted(self.prepare(batch)),
            batch_size=batch_size,
            seed=seed,
            indices=self.rows,
            rank=rank,
            n_ranks=n_ranks,
        )


def open_corpus(
    data: DataSet,
    store: Store,
    prepare: Callable[[AtomBatch], Graph],
    *,
    rows: NDArray[np.int64] | None = None,
) -> Corpus:
    """Prepare a data set, or a sample of a large one.

    Parameters
    ----------
    data : DataSet
        Which.
    store : Store
        Its file.
    prepare : callable
        `Backbone.prepare`.
    rows : array of int, optional
        Structures to train on; default all.

    Returns
    -------
    Corpus
        Ready for streams.

    Raises
    ------
    TetherError
        For structures that the backbone does not take.
    """
    rows = np.arange(store.n_systems) if rows is None else rows
    if len(rows) < STREAMED_FROM:
        graph = prepare(store.batch(rows))
        return Corpus(data, store, rows, prepare, graph, graph)
    sample = prepare(store.batch(_sampled(store, rows)))
    return Corpus(data, store, rows, prepare, None, sample)


def _sampled(store: Store, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows spread over the set, and a structure of the whole store for each element."""
    chosen = rows[np.linspace(0, len(rows) - 1, N_SAMPLED).astype(np.int64)]
    _, first_atoms = np.unique(store.numbers_flat, return_index=True)
    ends = np.cumsum(store.n_atoms_per_system)
    return np.union1d(chosen, np.searchsorted(ends, first_atoms, side="right"))


def hold_out(store: Store, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part the geometries of some structures from the others.

    Parameters
    ----------
    store : Store
        Where `tether label` made all of it, geometries of one structure stay together; else
        structures of one composition.
    seed : int
        Of the choice.

    Returns
    -------
    train, held : array of int
        Rows; geometries of one molecule are in one of them, as the others would tell about it.

    Raises
    ------
    TetherError
        For too few molecules or compositions, or too many structures to look through.
    """
    if store.n_systems >= STREAMED_FROM:
        raise TetherError(
            f"{store.path} has {store.n_systems:,} structures, and there is no validation set",
            expected=f"one, for data sets of {STREAMED_FROM:,} or more",
            fix="give `validation`: a store of structures that are not among them",
        )
    family = _families(store)
    n_families = int(family.max()) + 1
    n_held = min(MOST, max(FEWEST, round(HELD_OUT * n_families)))
    is_held = np.isin(family, np.random.default_rng([seed]).permutation(n_families)[:n_held])
    train, held = np.flatnonzero(~is_held), np.flatnonzero(is_held)
    if len(held) > len(train):
        raise TetherError(
            f"{store.path} has {n_families} molecules or compositions: with {n_held} held out, "
            f"{len(train)} of {store.n_systems} structures would be left to train on",
            expected="at least half of them",
            fix="add structures of other molecules, or give a validation set",
        )
    return train, held


def _families(store: Store) -> NDArray[np.intp]:
    """Number of each row's family: geometries of one structure, or structures of one composition.

    What was made here says of what. Elsewhere, conformations of a molecule and frames of a
    trajectory have ids of any kind, but always one composition.
    """
    parents = [structure_of(name) for name in store.ids.tolist()]
    made_of = [_CONFORMATION.sub(r"\1", parent) for parent in parents if parent is not None]
    if len(made_of) == store.n_systems:
        return np.unique(made_of, return_inverse=True)[1]
    atoms = store.composition()
    return np.unique(atoms[:, atoms.any(axis=0)], axis=0, return_inverse=True)[1].reshape(-1)

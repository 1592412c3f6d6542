"""`Table`: the columns that splits are made from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tether.splits.split import StoreReference, labelled_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from tether.splits.labels import Labels

__all__ = ["Table"]


@dataclass(frozen=True)
class Table:
    """What a split is made from: one row a structure. A method asks for the columns that it needs.

    Attributes
    ----------
    n_systems : int
        Rows.
    values : array, shape (n_systems,) or (n_systems, n_components), or None
        Labels of the target; NaN = unlabelled.
    target, unit : str
        Name and unit of the labels, for the report.
    ids, sources : sequence of str, length n_systems, or None
        Id, and file of origin, of each row.
    hashes : array, shape (n_systems,) or (n_systems, n_kinds), or None
        Equal structures are equal in one kind at least; None = copies are not looked for.
    compositions : array, shape (n_systems,), or None
        Equal for equal compositions; for the overlap with pretraining structures.
    n_atoms : array, shape (n_systems,), or None
        For method size.
    elements : Labels or None
        Of each structure, for what the report says of the test sets.
    labels : Labels or None
        For the methods that hold labels out: elements, space groups, scaffolds, …
    descriptors : array, shape (n_systems, n_features), or None
        For clusters, densities and near-duplicates: of the composition, the geometry, or a model's
        fingerprints.
    descriptor_name : str
        What they are, for the report.
    store : StoreReference
        Where the rows come from.
    """

    n_systems: int
    values: ArrayLike | None = None
    target: str = ""
    unit: str = ""
    ids: Sequence[str] | None = None
    sources: Sequence[str] | None = None
    hashes: ArrayLike | None = None
    compositions: ArrayLike | None = None
    n_atoms: ArrayLike | None = None
    elements: Labels | None = None
    labels: Labels | None = None
    descriptors: ArrayLike | None = None
    descriptor_name: str = ""
    store: StoreReference = StoreReference()

    @property
    def labelled(self) -> NDArray[np.int64]:
        """Rows with a label; all rows where there is no target."""
        if self.values is None:
            return np.arange(self.n_systems)
        return np.flatnonzero(labelled_rows(self.values))

    def select(self, rows: NDArray[np.int64]) -> Table:
        """Columns of some rows, those that an OOD rule may look at.

        Parameters
        ----------
        rows : array of int, shape (n,)
            Rows, each once.

        Returns
        -------
        Table
            Of these rows.
        """
        return replace(
            self,
            n_systems=len(rows),
            values=_taken(self.values, rows),
            n_atoms=_taken(self.n_atoms, rows),
            descriptors=_taken(self.descriptors, rows),
            labels=None if self.labels is None else self.labels.select(rows),
            ids=None,
            sources=None,
            elements=None,
            hashes=None,
            compositions=None,
        )


def _taken(column: ArrayLike | None, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
    return None if column is None else np.asarray(column)[rows]

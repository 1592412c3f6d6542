"""Labels that a rule may hold out: elements, groups, space groups, clusters, scaffolds, folds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["Labels", "label_each", "most_alike", "rarest", "with_label"]

# Labels that an error lists before it stops.
_SHOWN = 12


@dataclass(frozen=True)
class Labels:
    """Which structures carry which label; one structure may carry several, or none.

    Attributes
    ----------
    kind : str
        What they are: "element", "space group", …
    names : tuple of str
        Every label, once.
    rows, codes : array, shape (n_pairs,), int64
        Structure ``rows[i]`` carries label ``names[codes[i]]``.
    n_systems : int
        Structures.
    """

    kind: str
    names: tuple[str, ...]
    rows: NDArray[np.int64]
    codes: NDArray[np.int64]
    n_systems: int

    @property
    def counts(self) -> NDArray[np.int64]:
        """Structures that carry each label, shape (n_labels,)."""
        return np.bincount(self.codes, minlength=len(self.names)).astype(np.int64)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether a structure carries any label, shape (n_systems,)."""
        return np.bincount(self.rows, minlength=self.n_systems) > 0

    @property
    def are_exclusive(self) -> bool:
        """Whether no structure carries two."""
        return len(np.unique(self.rows)) == len(self.rows)

    def select(self, rows: ArrayLike) -> Labels:
        """Labels of some structures, numbered anew; names that none of them carries stay.

        Parameters
        ----------
        rows : array of int, shape (n,)
            Structures, each once.

        Returns
        -------
        Labels
            Of these.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        place = np.full(self.n_systems, -1, dtype=np.int64)
        place[chosen] = np.arange(len(chosen))
        kept = place[self.rows] >= 0
        return Labels(self.kind, self.names, place[self.rows[kept]], self.codes[kept], len(chosen))

    def spread(self, rows: ArrayLike, n_systems: int) -> Labels:
        """Undo `select`: number the structures as in a larger set, whose others have no label.

        Parameters
        ----------
        rows : array of int, shape (n_systems of these labels,)
            Where each structure stands in the larger set.
        n_systems : int
            Structures of the larger set.

        Returns
        -------
        Labels
            Of the larger set.
        """
        placed = np.asarray(rows, dtype=np.int64)[self.rows]
        return Labels(self.kind, self.names, placed, self.codes, n_systems)


def label_each(kind: str, labels: Sequence[str]) -> Labels:
    """One label a structure.

    Parameters
    ----------
    kind : str
        What they are.
    labels : sequence of str, length n_systems
        Labels; "" = none.

    Returns
    -------
    Labels
        The same, as pairs.

    Examples
    --------
    >>> label_each("scaffold", ["b", "", "a", "b"]).counts.tolist()
    [1, 2]
    """
    array = np.asarray(labels, dtype=str)
    rows = np.flatnonzero(array != "")
    names, codes = np.unique(array[rows], return_inverse=True)
    return Labels(kind, tuple(names.tolist()), rows, codes.reshape(-1).astype(np.int64), len(array))


def with_label(labels: Labels, held_out: Sequence[str]) -> NDArray[np.bool_]:
    """Mark the structures that carry one of some labels.

    Parameters
    ----------
    labels : Labels
        Of all structures.
    held_out : sequence of str
        Labels, at least one.

    Returns
    -------
    array, shape (n_systems,), bool
        True where one is carried.

    Raises
    ------
    TetherError
        For no label, or one that no structure carries.
    """
    counts = dict(zip(labels.names, labels.counts.tolist(), strict=True))
    wrong = [name for name in held_out if not counts.get(name)]
    if wrong or not held_out:
        raise TetherError(
            f"no structure has {labels.kind} {wrong[0]!r}" if wrong else "`hold_out` is empty",
            expected=f"one of {_listed(counts)}",
            fix=f"say what to test on: --hold-out {next(iter(counts), 'NAME')}",
        )
    marked = np.zeros(labels.n_systems, dtype=bool)
    codes = [labels.names.index(name) for name in held_out]
    marked[labels.rows[np.isin(labels.codes, codes)]] = True
    return marked


def rarest(labels: Labels, fraction: float) -> NDArray[np.bool_]:
    """Mark whole groups, the smallest first, up to a share of the structures.

    As scaffold splits do: frequent scaffolds are trained on and rare ones are tested. No group is
    parted, so that the share may not be reached; groups of one size are taken in the order of their
    names.

    Parameters
    ----------
    labels : Labels
        At most one a structure.
    fraction : float
        At most this share of the structures with a label is marked.

    Returns
    -------
    array, shape (n_systems,), bool
        True in the rare groups.

    Raises
    ------
    TetherError
        When structures carry several labels, or none has any, or the smallest group is above the
        share.
    """
    if not labels.are_exclusive:
        raise TetherError(
            f"structures have several {labels.kind}s each, so that none is a group of its own",
            expected="labels to hold out",
            fix="name one with `hold_out`",
        )
    present = np.flatnonzero(labels.counts)
    order = present[np.argsort(labels.counts[present], kind="stable")]
    total = np.cumsum(labels.counts[order])
    taken = order[total <= fraction * len(labels.rows)]
    if not len(order):
        raise TetherError(
            f"none of {labels.n_systems} structures has any {labels.kind}",
            expected="labels to hold out",
            fix="use another method",
        )
    if not len(taken):
        smallest = int(labels.counts[order[0]])
        raise TetherError(
            f"the smallest {labels.kind} has {smallest} of {len(labels.rows)} structures",
            expected=f"one of at most the share {fraction}",
            fix="raise `ood`, or name labels with `hold_out`",
        )
    marked = np.zeros(labels.n_systems, dtype=bool)
    marked[labels.rows[np.isin(labels.codes, taken)]] = True
    return marked


def most_alike(labels: Labels, share: float, *, exclude: Sequence[str] = ()) -> str:
    """Find the label whose share of the structures is nearest to a given one.

    With it, nested validation is about as hard a question as the OOD test: as much is held out.

    Parameters
    ----------
    labels : Labels
        Of the structures to choose among.
    share : float
        Of structures.
    exclude : sequence of str
        Labels not to choose.

    Returns
    -------
    str
        The label; of several equally near ones the first by name.

    Raises
    ------
    TetherError
        When no label is carried by some but not all of the structures.
    """
    counts = labels.counts
    allowed = (counts > 0) & (counts < labels.n_systems) & ~np.isin(labels.names, list(exclude))
    if not allowed.any():
        raise TetherError(
            f"there is no other {labels.kind} that some training structures have",
            expected="one to validate on",
            fix="leave nested validation out",
        )
    distance = np.where(allowed, np.abs(counts / labels.n_systems - share), np.inf)
    return labels.names[int(np.argmin(distance))]


def _listed(counts: dict[str, int]) -> str:
    present = {name: n for name, n in counts.items() if n}
    frequent = sorted(present, key=lambda name: -present[name])[:_SHOWN]
    more = len(present) - len(frequent)
    listed = ", ".join(f"{name} ({present[name]})" for name in frequent)
    return listed + (f" and {more} more" if more else "")

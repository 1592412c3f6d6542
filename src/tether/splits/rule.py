"""`Rule`: a method of splitting with its arguments."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from tether.errors import TetherError
from tether.splits.property_tail import BOOM_FRACTION

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tether.splits.property_tail import Side
    from tether.splits.sparse import Variant
    from tether.splits.table import Table

__all__ = ["BY_LABEL", "BY_VALUE", "NAMED", "SPARSE", "Method", "Rule"]

Method = Literal[
    "boom",
    "tail",
    "random",
    "file",
    "sources",
    "folds",
    "cluster",
    "sparse-x",
    "sparse-y",
    "element",
    "group",
    "period",
    "chemical-system",
    "space-group",
    "size",
    "scaffold",
]

#: Methods whose sets are named, and which therefore make no validation set unasked.
NAMED = ("random", "file", "sources")
#: Methods that look at the values of the target.
BY_VALUE = ("boom", "tail", "sparse-y")
SPARSE = ("sparse-x", "sparse-y")
#: Methods that hold out labels which the table brings along, or the file of folds.
BY_LABEL = (
    "element",
    "group",
    "period",
    "chemical-system",
    "space-group",
    "scaffold",
    "folds",
)

# Share that is OOD where none is asked for; BOOM's is that of its QM9 split.
_OOD = 0.1

_WITH_OOD = tuple(method for method in get_args(Method) if method not in NAMED)
# Argument → methods that have a use for it.
_USED_BY: dict[str, tuple[str, ...]] = {
    "ood": tuple(method for method in _WITH_OOD if method != "cluster"),
    "side": ("tail",),
    "hold_out": ("cluster", *SPARSE, *BY_LABEL),
    "n_clusters": ("cluster", *SPARSE),
    "variant": SPARSE,
    "n_neighbours": SPARSE,
    "id_fraction": _WITH_OOD,
    "fractions": ("random",),
    "file": ("file", "folds"),
    "sets": ("file", "sources"),
}


@dataclass(frozen=True)
class Rule:
    """A method with its arguments; None, or nothing, stands for the default.

    Attributes
    ----------
    method : str
        Named sets: random, file, sources. By the property: boom, tail, sparse-y. By descriptors:
        cluster, sparse-x. By labels: element, group, period, chemical-system, space-group,
        scaffold, folds. By the number of atoms: size.
    ood : float or None
        Size of "test/ood": a share below 1, or a number of structures; default 0.1. Where labels
        are one a structure, the rarest are held out up to it.
    side : {"both", "low", "high"} or None
        For tail; default "both".
    hold_out : tuple of str
        Labels, clusters or folds that are "test/ood".
    n_clusters : int or None
        For cluster and sparse; default 50.
    variant : {"all", "single", "cluster"} or None
        For sparse: the whole share, one structure a cluster, or one with its neighbours; default
        "all".
    n_neighbours : int or None
        For the variant "cluster"; default 10.
    id_fraction : float or None
        Share of what is not OOD that becomes "test/id"; default 0.05.
    fractions : mapping of str to float or None
        For random: shares by set name; default train 0.8, val 0.1, test/id 0.1.
    file : str or Path or None
        For file: one file with all sets; for folds: the folds.
    sets : mapping of str to str or None
        For file and sources: index file, or source, by set name.
    by_id : bool
        For file: read integers as ids.
    seed : int
        Of every draw.

    Raises
    ------
    TetherError
        For an unknown method, or an argument that the method has no use for.
    """

    method: Method
    ood: float | None = None
    side: Side | None = None
    hold_out: tuple[str, ...] = ()
    n_clusters: int | None = None
    variant: Variant | None = None
    n_neighbours: int | None = None
    id_fraction: float | None = None
    fractions: Mapping[str, float] | None = None
    file: str | Path | None = None
    sets: Mapping[str, str] | None = None
    by_id: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            near = difflib.get_close_matches(str(self.method), get_args(Method), n=1)
            raise TetherError(
                f"`method` is {self.method!r}",
                expected=f"one of {', '.join(get_args(Method))}",
                fix=f"method={near[0] if near else 'boom'}",
            )
        given = [name for name in _USED_BY if getattr(self, name) not in (None, (), {})]
        useless = [name for name in given if self.method not in _USED_BY[name]]
        if self.sets and self.file is not None:
            useless.append("sets")
        if self.by_id and self.method != "file":
            useless.append("by_id")
        if useless:
            raise TetherError(
                f"method {self.method!r} has no use for `{useless[0]}` here",
                expected="arguments of the method only",
                fix=f"leave `{useless[0]}` out",
            )
        # scikit-learn's k-means takes seeds of 32 bits.
        highest = 2**32 - 1 if self.method in {"cluster", *SPARSE} else math.inf
        if not 0 <= self.seed <= highest:
            raise TetherError(
                f"`seed` is {self.seed}",
                expected="a whole number from 0 on, below 2**32 where clusters are made",
                fix="seed=42",
            )
        ood = 0.0 if self.ood is None else self.ood
        if not math.isfinite(ood) or (ood >= 1 and ood != int(ood)):
            raise TetherError(
                f"`ood` is {self.ood}", expected="a share below 1 or a whole number", fix="ood=0.1"
            )

    @property
    def holds_labels_out(self) -> bool:
        """Whether "test/ood" is made of labels, clusters or folds that have names."""
        return bool(self.hold_out) or (self.variant or "all") != "all"

    @property
    def needs_descriptors(self) -> bool:
        """Whether clusters, neighbours or densities are looked for in a descriptor space."""
        return self.method in {"cluster", "sparse-x"} or (
            self.method in SPARSE and self.holds_labels_out
        )

    @property
    def _ood(self) -> float:
        if self.ood is not None:
            return self.ood
        return BOOM_FRACTION if self.method == "boom" else _OOD

    def share(self, n_rows: int) -> float:
        """Share of OOD structures, whether a share or a number was asked for.

        Parameters
        ----------
        n_rows : int
            Structures there are.

        Returns
        -------
        float
            Share.

        Raises
        ------
        TetherError
            For a number that leaves no structure to train on.
        """
        if self._ood < 1:
            return self._ood
        # Beside labels to hold out the size has no say.
        if self._ood >= n_rows and not (self.hold_out and self.method in BY_LABEL):
            raise TetherError(
                f"`ood` is {self._ood:.0f} of {n_rows} structures",
                expected=f"1 to {n_rows - 1}, or a share below 1",
                fix="ask for fewer OOD structures",
            )
        return self._ood / max(1, n_rows)

    @property
    def parameters(self) -> dict[str, Any]:
        """Arguments of a rule that marks OOD structures, defaults included, for provenance."""
        found: dict[str, Any] = {}
        if self.hold_out:
            found["hold_out"] = list(self.hold_out)
        else:
            found["ood"] = self._ood
        variant = self.variant or "all"
        if self.method in SPARSE:
            found["variant"] = variant
        if self.method == "cluster" or variant != "all":
            found["n_clusters"] = 50 if self.n_clusters is None else self.n_clusters
        if variant == "cluster":
            found["n_neighbours"] = 10 if self.n_neighbours is None else self.n_neighbours
        if self.file is not None:
            found["file"] = str(self.file)
        return found

    def check(self, table: Table) -> None:
        """Refuse to start without the columns that the method needs.

        Parameters
        ----------
        table : Table
            What the split shall be made from.

        Raises
        ------
        TetherError
            For a column, a file or sets that are not there.
        """
        missing = {
            "a target": self.method in BY_VALUE and table.values is None,
            "sources": self.method == "sources" and table.sources is None,
            "sets (name=source)": self.method == "sources" and not self.sets,
            "a file, or sets (name=file)": self.method == "file"
            and not self.sets
            and not self.file,
            "a file of folds": self.method == "folds" and self.file is None,
            f"{self.method} labels": self.method in BY_LABEL
            and self.method != "folds"
            and table.labels is None,
            "numbers of atoms": self.method == "size" and table.n_atoms is None,
            "descriptors": self.needs_descriptors and table.descriptors is None,
        }
        for what, wrong in missing.items():
            if wrong:
                raise TetherError(
                    f"method {self.method!r} lacks {what}", expected=what, fix=f"give {what}"
                )

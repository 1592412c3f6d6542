"""A rule on a table: which rows are OOD, for the test and for nested validation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.errors import TetherError
from tether.splits.cluster import cluster_labels
from tether.splits.explicit import from_file, from_files, from_sources
from tether.splits.folds import read_folds
from tether.splits.holdout import check_share, hold_out, largest, ties
from tether.splits.labels import most_alike, rarest, with_label
from tether.splits.property_tail import boom, tail
from tether.splits.random import random_split
from tether.splits.rule import SPARSE
from tether.splits.sparse import sparse_labels, sparsity_of_descriptors, sparsity_of_values

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from tether.splits.rule import Rule
    from tether.splits.split import Split
    from tether.splits.table import Table

__all__ = ["nested_validation", "prepared", "split_by"]

_ID_FRACTION = 0.05


@dataclass(frozen=True)
class _Marked:
    """Rows that a rule holds out, and those that it cannot judge."""

    is_ood: NDArray[np.bool_]
    is_unknown: NDArray[np.bool_]
    report: dict[str, Any] = field(default_factory=dict)


def prepared(table: Table, rule: Rule) -> Table:
    """Add the labels that a rule makes itself: clusters, and folds, read or around sparse points.

    They are made once, of all labelled rows, so that nested validation holds out one of the same.

    Parameters
    ----------
    table : Table
        Of all rows.
    rule : Rule
        What is asked for.

    Returns
    -------
    Table
        With labels where the rule holds out clusters or folds.
    """
    if rule.method == "folds":
        assert rule.file is not None
        return replace(table, labels=read_folds(rule.file, n_systems=table.n_systems))
    rows = table.labelled
    part = table.select(rows)
    n_clusters = 50 if rule.n_clusters is None else rule.n_clusters
    if rule.method == "cluster":
        assert part.descriptors is not None
        labels = cluster_labels(part.descriptors, n_clusters=n_clusters, seed=rule.seed)
    elif rule.method in SPARSE and rule.holds_labels_out:
        assert part.descriptors is not None
        n_neighbours = 10 if rule.n_neighbours is None else rule.n_neighbours
        labels = sparse_labels(
            _sparsity(part, rule),
            part.descriptors,
            fraction=rule.share(len(rows)),
            n_clusters=n_clusters,
            n_neighbours=n_neighbours if rule.variant == "cluster" else 0,
            seed=rule.seed,
        )
    else:
        return table
    return replace(table, labels=labels.spread(rows, table.n_systems))


def split_by(rule: Rule, table: Table) -> Split:
    """Apply a rule.

    Parameters
    ----------
    rule : Rule
        Method and arguments.
    table : Table
        `prepared`.

    Returns
    -------
    Split
        The sets of the rule, without a validation set but where the rule names one.

    Raises
    ------
    TetherError
        For labels that are not there, sets that would be empty, and whatever the method refuses.
    """
    values, n = table.values, table.n_systems
    match rule.method:
        case "boom" | "tail":
            return _by_value(rule, table)
        case "random":
            return random_split(n, fractions=rule.fractions, seed=rule.seed, values=values)
        case "sources":
            assert table.sources is not None
            return from_sources(table.sources, rule.sets or {}, values=values)
        case "file" if rule.file is not None:
            return from_file(
                rule.file,
                n_systems=n,
                ids=table.ids,
                values=values,
                by_id=rule.by_id,
                fingerprint=table.store.fingerprint or None,
            )
        case "file":
            return from_files(
                rule.sets or {}, n_systems=n, ids=table.ids, values=values, by_id=rule.by_id
            )
    rows = table.labelled
    marked = _marked(table.select(rows), rule)
    is_ood, is_unknown = np.zeros((2, n), dtype=bool)
    is_ood[rows], is_unknown[rows] = marked.is_ood, marked.is_unknown
    return hold_out(
        is_ood,
        method=rule.method,
        parameters=rule.parameters,
        report=marked.report,
        values=values,
        unassigned=is_unknown,
        id_fraction=_ID_FRACTION if rule.id_fraction is None else rule.id_fraction,
        seed=rule.seed,
    )


def nested_validation(split: Split, table: Table, rule: Rule, *, ood: float | None = None) -> Split:
    """Make "val" of "train" by the rule that made the OOD test: an OOD validation set.

    For the development of methods, where one asks whether what helps against one shift helps
    against another. It is no default: a checkpoint chosen on OOD data, be they others than the
    test's, has been told of the shift that the test is about.

    Parameters
    ----------
    split : Split
        Of `split_by`. Rows of "test/id" that the rule marks are in no set any more: they are not
        inside the distribution of what is left of "train".
    table : Table
        `prepared`, all rows.
    rule : Rule
        That of the OOD test. A rule that held out labels holds out another label: the one whose
        share of the ID rows is nearest to the share of all rows that the test has.
    ood : float, optional
        Share or number of the ID rows, for a rule without labels; default that of the rule.

    Returns
    -------
    Split
        With "val"; ``parameters["nested_validation"]`` says what is in it.

    Raises
    ------
    TetherError
        When there is no other label, a size is asked of labels, or a set would be empty.
    """
    train, tested = split.indices["train"], split.indices["test/id"]
    inside = np.concatenate([train, tested])
    part = table.select(inside)
    if rule.holds_labels_out:
        if ood is not None:
            raise TetherError(
                f"nested validation is a whole {rule.method} label, not a set of size {ood}",
                expected="no validation size",
                fix="leave the validation size out",
            )
        assert part.labels is not None
        share = split.sizes["test/ood"] / sum(split.sizes.values())
        inner = replace(rule, hold_out=(most_alike(part.labels, share, exclude=rule.hold_out),))
    else:
        inner = replace(rule, ood=rule.ood if ood is None else ood)
    marked = _marked(part, inner).is_ood
    from_train, from_test = np.split(marked, [len(train)])
    indices = {"train": train[~from_train], "val": train[from_train]}
    indices.update({name: rows for name, rows in split.indices.items() if name != "train"})
    indices["test/id"] = tested[~from_test]
    return split.with_indices(indices, parameters={"nested_validation": inner.parameters})


def _by_value(rule: Rule, table: Table) -> Split:
    assert table.values is not None
    id_fraction = _ID_FRACTION if rule.id_fraction is None else rule.id_fraction
    n_rows = len(table.labelled)
    share = rule.share(n_rows)
    if rule.method == "boom":
        return boom(
            table.values, n_ood=round(share * n_rows), seed=rule.seed, id_fraction=id_fraction
        )
    check_share(share, "ood")
    return tail(
        table.values,
        fraction=share,
        side=rule.side or "both",
        id_fraction=id_fraction,
        seed=rule.seed,
    )


def _marked(table: Table, rule: Rule) -> _Marked:
    none = np.zeros(table.n_systems, dtype=bool)
    share = rule.share(table.n_systems)
    if rule.method in {"boom", "tail"}:
        is_ood = none.copy()
        is_ood[_by_value(rule, table).indices["test/ood"]] = True
        return _Marked(is_ood, none)
    if rule.method == "size":
        assert table.n_atoms is not None
        return _marked_largest(table.n_atoms, share)
    if rule.method in SPARSE and not rule.holds_labels_out:
        return _marked_largest(_sparsity(table, rule), share)
    return _marked_labels(table, rule, share)


def _marked_largest(scores: ArrayLike, share: float) -> _Marked:
    marked = largest(scores, share)
    tied = ties(scores, marked)
    return _Marked(marked, np.zeros(len(marked), dtype=bool), {"ties": tied} if tied else {})


def _marked_labels(table: Table, rule: Rule, share: float) -> _Marked:
    labels = table.labels
    assert labels is not None
    report: dict[str, Any] = {"n_labels": int((labels.counts > 0).sum())}
    if rule.method == "folds":
        report["n_in_no_fold"] = int((~labels.known).sum())
    # Without a fold or a cluster a structure is no riddle: it is trained on.
    unknown = ~labels.known & (labels.kind not in {"fold", "cluster"})
    if not rule.hold_out and rule.variant is None and (rule.ood or rule.method == "scaffold"):
        is_ood = rarest(labels, share)
        report["n_labels_held_out"] = len(np.unique(labels.codes[is_ood[labels.rows]]))
        return _Marked(is_ood, unknown, report)
    # With nothing to hold out this says which labels there are.
    held_out = labels.names if rule.variant == "single" and not rule.hold_out else rule.hold_out
    return _Marked(with_label(labels, held_out), unknown, report)


def _sparsity(table: Table, rule: Rule) -> NDArray[np.float64]:
    if rule.method == "sparse-x":
        assert table.descriptors is not None
        return sparsity_of_descriptors(table.descriptors)
    assert table.values is not None
    if np.ndim(table.values) != 1:
        raise TetherError(
            f"values have shape {np.shape(table.values)}",
            expected="one number a structure",
            fix="choose a scalar target, or method sparse-x",
        )
    return sparsity_of_values(table.values)

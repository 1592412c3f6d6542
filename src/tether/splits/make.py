"""`make_split`: one call from arrays to a split with its report; what `tether split` runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tether.errors import TetherError
from tether.splits.apply import nested_validation, prepared, split_by
from tether.splits.near import NEAR_TOLERANCE
from tether.splits.overlap import overlap_report
from tether.splits.random import carve_validation, subsample_train
from tether.splits.report import split_report
from tether.splits.rule import BY_VALUE, NAMED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from tether.splits.rule import Rule
    from tether.splits.split import Split
    from tether.splits.table import Table

__all__ = ["make_split"]


def make_split(
    table: Table,
    rule: Rule,
    *,
    name: str | None = None,
    val_fraction: float | None = None,
    val_size: int | None = None,
    nested: bool = False,
    train_size: int | None = None,
    avoid: Sequence[ArrayLike] = (),
    near: float | None = NEAR_TOLERANCE,
    pretraining: Table | None = None,
) -> Split:
    """Make a split, carve the validation set, shrink the training set, and look at the result.

    Parameters
    ----------
    table : Table
        The columns that the method needs, and hashes and descriptors for the leakage report.
    rule : Rule
        Method and arguments.
    name : str, optional
        Of the split; default: the method, with the target where the method looks at it, and with
        what is held out.
    val_fraction, val_size : optional
        Validation set to carve out of "train", as a share of it or a number. Default: none for the
        methods that name their sets, else 0.05; 0 = none.
    nested : bool
        Make the validation set by the OOD rule itself, inside "train": see `nested_validation`.
    train_size : int, optional
        Rows of "train" to keep; taken after the validation set, so that this does not depend on it.
    avoid : sequence of array of int
        Rows that no set may have, as the test sets of other splits; taken out of the sets of the
        rule, before a validation set is carved.
    near : float or None
        Tolerance of near-duplicates, see `near_duplicates`; None = do not look for them.
    pretraining : Table, optional
        Structures that a backbone was pretrained on, see `overlap_report`.

    Returns
    -------
    Split
        Report: ``n_unlabelled, n_unused, extrapolation, reference_lines, elements, leakage``, …,
        and ``overlap`` where pretraining structures are given.

    Raises
    ------
    TetherError
        For a column that the method lacks, and whatever the method refuses.

    Examples
    --------
    >>> from tether.splits.rule import Rule
    >>> from tether.splits.table import Table
    >>> table = Table(100, n_atoms=np.arange(100))
    >>> split = make_split(table, Rule("size", ood=20))
    >>> split.sizes, int(split.indices["test/ood"][0])
    ({'train': 72, 'val': 4, 'test/id': 4, 'test/ood': 20}, 80)
    """
    rule.check(table)
    table = prepared(table, rule)
    split = split_by(rule, table)
    if avoid:
        split = _without(split, avoid)
    if nested and rule.method in NAMED:
        raise TetherError(
            f"method {rule.method!r} has no OOD rule to make a validation set by",
            expected="a method that holds structures out",
            fix="leave nested validation out",
        )
    if nested:
        split = nested_validation(split, table, rule, ood=val_fraction or val_size)
    else:
        if val_fraction is None and val_size is None and rule.method not in NAMED:
            val_fraction = 0.05
        if val_fraction or val_size:
            split = carve_validation(split, fraction=val_fraction, size=val_size, seed=rule.seed)
    if train_size is not None:
        split = subsample_train(split, train_size, seed=rule.seed)
    return _finished(split, table, name, near=near, pretraining=pretraining)


def _without(split: Split, avoid: Sequence[ArrayLike]) -> Split:
    unwanted = np.unique(np.concatenate([np.asarray(rows, dtype=np.int64) for rows in avoid]))
    indices = {
        name: rows[np.isin(rows, unwanted, invert=True)] for name, rows in split.indices.items()
    }
    n_avoided = sum(split.sizes.values()) - sum(len(rows) for rows in indices.values())
    return split.with_indices(indices, parameters={"n_avoided": n_avoided})


def _finished(
    split: Split,
    table: Table,
    name: str | None,
    *,
    near: float | None,
    pretraining: Table | None,
) -> Split:
    """Add name, target, report and the reference to the store."""
    parts = [split.method]
    if split.method in BY_VALUE and table.target:
        parts.append(table.target)
    parts += split.parameters.get("hold_out", [])
    parameters = {"target": table.target, **split.parameters}
    if table.descriptors is not None:
        parameters["descriptors"] = table.descriptor_name
    report = {**split.report, **split_report(split, table, near=near)}
    if pretraining is not None:
        comparable = table.descriptors is not None and pretraining.descriptors is not None
        wanted = near if comparable else None
        report["overlap"] = overlap_report(split, table, pretraining, near=wanted)
    return replace(
        split,
        name=name or "-".join(parts),
        parameters=parameters,
        report=report,
        store=replace(table.store, n_systems=table.n_systems),
    )

"""`make_split`: one call from arrays to a split with its report; what `tether split` runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from tether.errors import TetherError
from tether.metrics.regression import METRICS
from tether.metrics.shift import clip_oracle, mean_predictor
from tether.splits.explicit import from_file, from_files, from_sources
from tether.splits.leakage import extrapolation_report, leakage_report
from tether.splits.property_tail import Side, boom, tail
from tether.splits.random import carve_validation, random_split, subsample_train
from tether.splits.split import Split, StoreReference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike

__all__ = ["Method", "Table", "make_split", "reference_lines"]

Method = Literal["boom", "tail", "random", "file", "sources"]


@dataclass(frozen=True)
class Table:
    """What a split is made from: one row a structure.

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
    hashes : array, shape (n_systems,), or None
        Equal for equal structures; None = leakage is not looked at.
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
    store: StoreReference = StoreReference()


def make_split(
    table: Table,
    method: Method,
    *,
    name: str | None = None,
    ood: float | None = None,
    side: Side = "both",
    id_fraction: float = 0.05,
    fractions: Mapping[str, float] | None = None,
    file: str | Path | None = None,
    sets: Mapping[str, str] | None = None,
    by_id: bool = False,
    val_fraction: float | None = None,
    val_size: int | None = None,
    train_size: int | None = None,
    seed: int = 42,
) -> Split:
    """Make a split, carve the validation set, shrink the training set, and look at the result.

    Parameters
    ----------
    table : Table
        Labels, ids, sources and hashes by row.
    method : {"boom", "tail", "random", "file", "sources"}
        The rule: `boom`, `tail`, `random_split`, `from_file` or `from_files`, `from_sources`.
    name : str, optional
        Of the split; default: the method, with the target where the method looks at it.
    ood : float, optional
        Size of "test/ood" for boom and tail: a share below 1, or a number of structures.
    side : {"both", "low", "high"}
        Which tail, for method tail.
    id_fraction : float
        Share of what is not OOD that becomes "test/id", for boom and tail.
    fractions : mapping of str to float, optional
        Shares by set name, for method random; default train 0.8, val 0.1, test/id 0.1.
    file : str or Path, optional
        For method file: one file with all sets.
    sets : mapping of str to str, optional
        For file and sources: index file, or source, by set name.
    by_id : bool
        For file: read integers as ids.
    val_fraction, val_size : optional
        Validation set to carve out of "train", as a share of it or a number. Default: 0.05 for boom
        and tail, none for the methods that name their sets; 0 = none.
    train_size : int, optional
        Rows of "train" to keep; taken after the validation set, so that this does not depend on it.
    seed : int
        Of every draw.

    Returns
    -------
    Split
        Report: ``n_unlabelled, n_unused, extrapolation, reference_lines, leakage``, …

    Raises
    ------
    TetherError
        For an argument that the method lacks or has no use for, and whatever the method refuses.
    """
    _check_arguments(table, method, ood=ood, file=file, sets=sets, fractions=fractions)
    split = _base_split(
        table,
        method,
        ood=ood,
        side=side,
        id_fraction=id_fraction,
        fractions=fractions,
        file=file,
        sets=sets or {},
        by_id=by_id,
        seed=seed,
    )
    if val_fraction is None and val_size is None and method in {"boom", "tail"}:
        val_fraction = 0.05
    if val_fraction or val_size:
        split = carve_validation(split, fraction=val_fraction, size=val_size, seed=seed)
    if train_size is not None:
        split = subsample_train(split, train_size, seed=seed)
    return _finished(split, table, name)


def reference_lines(
    split: Split, values: ArrayLike, *, target: str = "", unit: str = ""
) -> list[dict[str, Any]]:
    """Errors of the clip oracle and of the mean predictor on each test set.

    Parameters
    ----------
    split : Split
        With "train".
    values : array, shape (n_systems,)
        Labels; the sets' rows must be labelled.
    target, unit : str
        Copied to the rows.

    Returns
    -------
    list of dict
        Rows of summary.json's "reference_lines": name, target, unit, subset, metric, value.
    """
    array = np.asarray(values, dtype=np.float64)
    train = array[split.indices["train"]]
    rows: list[dict[str, Any]] = []
    for subset, members in split.indices.items():
        if not subset.startswith("test/"):
            continue
        true = array[members]
        predictions = {
            "mean predictor": mean_predictor(train, len(true)),
            "clip oracle": clip_oracle(true, float(train.min()), float(train.max())),
        }
        rows += [
            {
                "name": line,
                "target": target,
                "unit": unit,
                "subset": subset,
                "metric": metric,
                "value": METRICS[metric].function(true, predicted),
            }
            for line, predicted in predictions.items()
            for metric in ("mae", "rmse")
        ]
    return rows


def _base_split(
    table: Table,
    method: Method,
    *,
    ood: float | None,
    side: Side,
    id_fraction: float,
    fractions: Mapping[str, float] | None,
    file: str | Path | None,
    sets: Mapping[str, str],
    by_id: bool,
    seed: int,
) -> Split:
    values, n = table.values, table.n_systems
    match method:
        case "boom":
            assert values is not None
            n_ood = None if ood is None else _count(ood, values)
            return boom(values, n_ood=n_ood, seed=seed, id_fraction=id_fraction)
        case "tail":
            assert values is not None
            share = 0.1 if ood is None else _share(ood, values)
            return tail(values, fraction=share, side=side, id_fraction=id_fraction, seed=seed)
        case "random":
            return random_split(n, fractions=fractions, seed=seed, values=values)
        case "file" if file is not None:
            return from_file(
                file,
                n_systems=n,
                ids=table.ids,
                values=values,
                by_id=by_id,
                fingerprint=table.store.fingerprint or None,
            )
        case "file":
            return from_files(sets, n_systems=n, ids=table.ids, values=values, by_id=by_id)
        case "sources":
            assert table.sources is not None
            return from_sources(table.sources, sets, values=values)


def _finished(split: Split, table: Table, name: str | None) -> Split:
    """Add name, target, report and the reference to the store."""
    looks_at_values = split.method in {"boom", "tail"} and table.target
    default_name = f"{split.method}-{table.target}" if looks_at_values else split.method
    return replace(
        split,
        name=name or default_name,
        parameters={"target": table.target, **split.parameters},
        report={**split.report, **_report(split, table)},
        store=replace(table.store, n_systems=table.n_systems),
    )


def _report(split: Split, table: Table) -> dict[str, Any]:
    n_used = sum(split.sizes.values())
    n_unlabelled = split.report.get("n_unlabelled", 0)
    report: dict[str, Any] = {
        "n_systems": table.n_systems,
        "n_unused": table.n_systems - n_used - n_unlabelled,
        "extrapolation": None,
        "reference_lines": [],
        "leakage": None,
    }
    scalar = table.values is not None and np.ndim(table.values) == 1
    if scalar and table.values is not None and "train" in split.indices:
        report["extrapolation"] = extrapolation_report(split, table.values)
        report["reference_lines"] = reference_lines(
            split, table.values, target=table.target, unit=table.unit
        )
    if table.hashes is not None:
        report["leakage"] = leakage_report(split, table.hashes)
    return report


def _check_arguments(
    table: Table,
    method: str,
    *,
    ood: float | None,
    file: str | Path | None,
    sets: Mapping[str, str] | None,
    fractions: Mapping[str, float] | None,
) -> None:
    if method not in get_args(Method):
        raise TetherError(
            f"`method` is {method!r}",
            expected=f"one of {', '.join(get_args(Method))}",
            fix="method=boom",
        )
    missing = {
        "a target": method in {"boom", "tail"} and table.values is None,
        "sources": method == "sources" and table.sources is None,
        "sets (name=source)": method == "sources" and not sets,
        "a file, or sets (name=file)": method == "file" and not sets and file is None,
    }
    useless = {
        "ood": ood is not None and method not in {"boom", "tail"},
        "file": file is not None and method != "file",
        "sets": bool(sets) and (method not in {"file", "sources"} or file is not None),
        "fractions": fractions is not None and method != "random",
    }
    for what, wrong in missing.items():
        if wrong:
            raise TetherError(f"method {method!r} lacks {what}", expected=what, fix=f"give {what}")
    for what, wrong in useless.items():
        if wrong:
            raise TetherError(
                f"method {method!r} has no use for `{what}` here",
                expected="arguments of the method only",
                fix=f"leave `{what}` out",
            )


def _count(ood: float, values: ArrayLike) -> int:
    if 0 < ood < 1:
        return round(ood * int((~np.isnan(np.asarray(values, dtype=np.float64))).sum()))
    if ood != int(ood):
        raise TetherError(
            f"`ood` is {ood}", expected="a share below 1 or a whole number", fix="ood=0.1"
        )
    return int(ood)


def _share(ood: float, values: ArrayLike) -> float:
    if 0 < ood < 1:
        return ood
    n_labelled = int((~np.isnan(np.asarray(values, dtype=np.float64))).sum())
    return _count(ood, values) / max(1, n_labelled)

"""What is said about a split: its ranges, reference lines, and what its sets share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tether.metrics.regression import METRICS
from tether.metrics.shift import clip_oracle, mean_predictor
from tether.splits.contents import distinctive_elements
from tether.splits.leakage import extrapolation_report, leakage_report
from tether.splits.near import near_duplicates

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from tether.splits.split import Split
    from tether.splits.table import Table

__all__ = ["reference_lines", "split_report"]


def split_report(split: Split, table: Table, *, near: float | None) -> dict[str, Any]:
    """Collect what `make_split` adds to the report of the rule.

    Parameters
    ----------
    split : Split
        As it will be written.
    table : Table
        What it was made from.
    near : float or None
        Tolerance of near-duplicates; None = do not look for them.

    Returns
    -------
    dict
        ``n_systems, n_unused, extrapolation, reference_lines, elements, leakage``; the leakage has
        ``"near"``, see `near_duplicates`, where the table has descriptors.
    """
    n_used = sum(split.sizes.values())
    n_unlabelled = split.report.get("n_unlabelled", 0)
    report: dict[str, Any] = {
        "n_systems": table.n_systems,
        "n_unused": table.n_systems - n_used - n_unlabelled,
        "extrapolation": None,
        "reference_lines": [],
        "elements": {},
        "leakage": None,
    }
    scalar = table.values is not None and np.ndim(table.values) == 1
    if scalar and table.values is not None and "train" in split.indices:
        report["extrapolation"] = extrapolation_report(split, table.values)
        report["reference_lines"] = reference_lines(
            split, table.values, target=table.target, unit=table.unit
        )
    if table.elements is not None and "train" in split.indices:
        report["elements"] = distinctive_elements(split, table.elements)
    if table.hashes is not None:
        report["leakage"] = leakage_report(split, table.hashes)
    if near is not None and table.descriptors is not None:
        found = near_duplicates(split, table.descriptors, tolerance=near)
        report["leakage"] = {
            **(report["leakage"] or {}),
            "near": {"descriptors": table.descriptor_name, **found},
        }
    return report


def reference_lines(
    split: Split, values: ArrayLike, *, target: str = "", unit: str = ""
) -> list[dict[str, Any]]:
    """Errors of the clip oracle and of the mean predictor on each test set.

    Parameters
    ----------
    split : Split
        With "train".
    values : array, shape (n_systems,)
        Labels; NaN is left out, and so is a test set without any label.
    target, unit : str
        Copied to the rows.

    Returns
    -------
    list of dict
        Rows of summary.json's "reference_lines": name, target, unit, subset, metric, value.
    """
    array = np.asarray(values, dtype=np.float64)
    labelled = {name: array[rows][~np.isnan(array[rows])] for name, rows in split.indices.items()}
    train = labelled["train"]
    rows: list[dict[str, Any]] = []
    for subset, true in labelled.items():
        if not subset.startswith("test/") or not true.size:
            continue
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

"""Tables of the split, its leakage report and the provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tether.report.format import as_number, format_quantity, n_decimals
from tether.report.results import subset_label
from tether.report.tables import Cell, Column, Table, number_cell

__all__ = [
    "N_ELEMENTS",
    "elements_table",
    "flatten",
    "key_value_table",
    "leakage_table",
    "split_table",
    "training_range",
]

_MAX_ITEMS = 8
#: Elements of a test set that are named, on pages and on the terminal.
N_ELEMENTS = 5


def flatten(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as (dotted key, text) pairs; long lists are counted, not printed.

    Examples
    --------
    >>> list(flatten({"a": {"b": 1, "c": [1, 2]}}))
    [('a.b', '1'), ('a.c', '1, 2')]
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple):
        plain = all(not isinstance(item, Mapping | list | tuple) for item in value)
        if plain and len(value) <= _MAX_ITEMS:
            yield prefix, ", ".join(str(item) for item in value) or "none"
        elif plain:
            head = ", ".join(str(item) for item in value[:3])
            yield prefix, f"{len(value):,} values: {head}, …"
        else:
            for idx, item in enumerate(value[:_MAX_ITEMS]):
                yield from flatten(item, f"{prefix}[{idx}]")
            if len(value) > _MAX_ITEMS:
                yield f"{prefix}[…]", f"{len(value) - _MAX_ITEMS:,} more"
    elif isinstance(value, float):
        yield prefix, f"{value:.6g}"
    else:
        yield prefix, "not available" if value is None else str(value)


def key_value_table(
    caption: str, value: Mapping[str, Any], *, without: Sequence[str] = ()
) -> Table:
    """Write a nested mapping as a table of two columns.

    Parameters
    ----------
    caption : str
        What it shows.
    value : mapping
        Any JSON object.
    without : sequence of str
        Top-level keys that are shown elsewhere.

    Returns
    -------
    Table
        A row a leaf.
    """
    kept = {key: inner for key, inner in value.items() if key not in without}
    rows = [[Cell(key), Cell(text)] for key, text in flatten(kept)]
    columns = [Column("Item", numeric=False), Column("Value", numeric=False)]
    return Table(caption, columns, rows, [])


def _find(report: object, keys: set[str]) -> dict[str, Any]:
    """Find the first mapping, at any depth, that has all the keys; empty where there is none."""
    if not isinstance(report, Mapping):
        return {}
    if keys <= set(report):
        return dict(report)
    return next(filter(None, (_find(inner, keys) for inner in report.values())), {})


def _extrapolation(split: Mapping[str, Any], target: str, n_targets: int) -> dict[str, Any]:
    """Find ranges of the labels, where they are those of the target."""
    owner = split.get("target")
    # Ranges of nobody knows whom (summaries before there was the key) are the only target's.
    is_own = owner == target if owner else n_targets == 1
    return _find(split.get("report"), {"id_low", "id_high"}) if is_own else {}


def training_range(
    split: Mapping[str, Any], target: str, *, n_targets: int
) -> tuple[float, float] | None:
    """Smallest and largest training label, if the split's report knows them.

    Parameters
    ----------
    split : mapping
        `summary["split"]`.
    target : str
        Which target.
    n_targets : int
        Number of targets of the comparison.

    Returns
    -------
    (float, float) or None
        In the target's unit.
    """
    entry = _extrapolation(split, target, n_targets)
    low, high = as_number(entry.get("id_low")), as_number(entry.get("id_high"))
    return None if low is None or high is None else (low, high)


def split_table(split: Mapping[str, Any], target: str, *, n_targets: int, unit: str) -> Table:
    """Sizes of the sets and, where known, the range of their labels.

    Parameters
    ----------
    split : mapping
        `summary["split"]`.
    target : str
        Which target.
    n_targets : int
        Number of targets of the comparison.
    unit : str
        Of the target.

    Returns
    -------
    Table
        A row a set.
    """
    entry = _extrapolation(split, target, n_targets)
    sets: Mapping[str, Any] = entry.get("sets") or {}
    columns = [Column("Set", numeric=False), Column("Structures")]
    if sets:
        group = f"{target} ({unit})" if unit else target
        columns += [Column("lowest", group=group), Column("highest", group=group)]
        columns.append(Column("Outside the training range"))
    limits = [as_number(row.get(key)) for row in sets.values() for key in ("low", "high")]
    decimals = n_decimals(limits)
    rows = []
    for name, size in (split.get("sizes") or {}).items():
        row = [Cell(subset_label(name)), number_cell(as_number(size), 0)]
        if sets:
            known = sets.get(name, {})
            for key in ("low", "high"):
                value = as_number(known.get(key))
                row.append(number_cell(value, decimals))
            row.append(_outside(known))
        rows.append(row)
    return Table(
        f"Sets of the split, by {target}" if sets else "Sets of the split", columns, rows, []
    )


def _outside(known: Mapping[str, Any]) -> Cell:
    count, share = as_number(known.get("n_outside")), as_number(known.get("fraction_outside"))
    if count is None:
        return number_cell(None, 0)
    text = format_quantity(count, 0)
    return Cell(text if share is None else f"{text} ({100 * share:.1f} %)", count)


def elements_table(split: Mapping[str, Any]) -> Table | None:
    """Elements that tell the test sets from the training set.

    Parameters
    ----------
    split : mapping
        `summary["split"]`.

    Returns
    -------
    Table or None
        A row a set and element, the largest differences first; None where no element does, or
        the split's report does not know.
    """
    report = split.get("report") or {}
    rows = [
        [
            Cell(subset_label(str(name))),
            Cell(str(one["element"])),
            *(number_cell(100 * float(one[key]), 1) for key in ("share", "train_share")),
        ]
        for name, found in (report.get("elements") or {}).items()
        for one in found[:N_ELEMENTS]
    ]
    if not rows:
        return None
    columns = [Column("Set", numeric=False), Column("Element", numeric=False)]
    group = "Structures with it (%)"
    columns += [Column("of the set", group=group), Column("of the training set", group=group)]
    return Table("Elements that tell the test sets from the training set", columns, rows, [])


def leakage_table(split: Mapping[str, Any]) -> Table | None:
    """Structures that two sets share.

    Parameters
    ----------
    split : mapping
        `summary["split"]`.

    Returns
    -------
    Table or None
        A row a pair of sets (one row that says so where none shares any); None where leakage
        was not looked for.
    """
    report = _find(split.get("report"), {"pairs", "n_repeats"})
    if not report:
        return None
    rows = []
    for pair in report["pairs"]:
        names = " and ".join(subset_label(str(name)) for name in pair.get("sets", []))
        count = as_number(pair.get("n_structures"))
        rows.append([Cell(f"shared by {names}"), number_cell(count, 0)])
    if not rows:
        rows.append([Cell("shared by any two sets"), Cell("0", 0.0)])
    for name, repeats in (report["n_repeats"] or {}).items():
        count = as_number(repeats)
        label = f"repeated within {subset_label(str(name))}"
        rows.append([Cell(label), number_cell(count, 0)])
    columns = [Column("Leakage", numeric=False), Column("Structures")]
    return Table("Structures in more than one set, or more than once in one", columns, rows, [])

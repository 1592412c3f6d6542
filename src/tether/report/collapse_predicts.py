"""Does collapse foretell OOD failure? The answer of `collapse.json`, as a table and a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tether.report.collapse_read import KINDS, Collapse
from tether.report.collapse_tables import first_entry, label_of
from tether.report.format import MISSING, as_number, format_interval, format_p
from tether.report.tables import Cell, Column, Table, number_cell

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "foretelling",
    "last_layer_predicts",
    "oriented",
    "predict_label",
    "predicts_table",
    "sorted_predicts",
]

#: Not a measure of collapse: the ID test error, which a measure has to beat to be of use.
BASELINE = "id_rmse"


def _find_entry(collapse: Collapse, predict: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Kind of points and words of the measure that a prediction is about; its own words win."""
    own = {key: predict[key] for key in ("label", "collapse_means") if predict.get(key)}
    kinds = (predict["points"],) if predict.get("points") in KINDS else KINDS
    for kind in kinds:
        entry = first_entry(collapse.known, kind, predict["measure"])
        if entry is not None:
            return kind, {**entry, **own}
    return str(predict.get("points") or ""), {"name": predict["measure"], **own}


def oriented(
    collapse: Collapse, predict: Mapping[str, Any]
) -> tuple[float | None, float | None, float | None]:
    """Rank correlation and its interval, turned so that positive means "collapse foretells".

    Parameters
    ----------
    collapse : Collapse
        Says in which direction each measure collapses.
    predict : mapping
        An entry of `collapse.predicts`.

    Returns
    -------
    (float or None, float or None, float or None)
        Correlation of collapse with the OOD error, and the ends of its interval.
    """
    rho, low, high = (as_number(predict.get(key)) for key in ("rho", "low", "high"))
    _, entry = _find_entry(collapse, predict)
    if entry.get("collapse_means") != "lower" or predict["measure"] == BASELINE:
        return rho, low, high
    turned = [None if value is None else 0.0 - value for value in (rho, high, low)]
    return turned[0], turned[1], turned[2]


def predict_label(collapse: Collapse, predict: Mapping[str, Any]) -> str:
    """Name a measure with what it was taken of, so that no two rows read the same."""
    kind, entry = _find_entry(collapse, predict)
    layer = predict.get("layer")
    place = [kind if kind in {"atoms", "edges"} else ""]
    place.append("" if layer is None else f"layer {layer}")
    words = ", ".join(filter(None, place))
    return f"{label_of(entry)} ({words})" if words else label_of(entry)


def sorted_predicts(collapse: Collapse) -> list[dict[str, Any]]:
    """Predictions without OOD labels first, the strongest first, those not computable last."""

    def rank(entry: Mapping[str, Any]) -> tuple[bool, float]:
        rho = oriented(collapse, entry)[0]
        return bool(entry.get("needs_ood_labels")), 2.0 if rho is None else -rho

    return sorted(collapse.predicts, key=rank)


def last_layer_predicts(collapse: Collapse) -> list[dict[str, Any]]:
    """Sorted predictions of the last layer of each measure, of which a figure can hold all."""
    last: dict[tuple[str, str], int] = {}
    for entry in collapse.predicts:
        layer = entry.get("layer")
        key = (str(entry.get("points")), entry["measure"])
        # "None" means the last layer, so it beats every number.
        found = 10**6 if layer is None else int(layer)
        last[key] = max(last.get(key, -1), found)
    return [
        entry
        for entry in sorted_predicts(collapse)
        if entry.get("layer") is None
        or int(entry["layer"]) == last[str(entry.get("points")), entry["measure"]]
    ]


def predicts_table(collapse: Collapse) -> Table:
    """Rank correlation of each measure with the OOD error over the runs.

    Parameters
    ----------
    collapse : Collapse
        With `predicts`.

    Returns
    -------
    Table
        Sorted as `sorted_predicts` does.
    """
    columns = [Column("Measure", numeric=False), Column("OOD labels", numeric=False)]
    columns += [Column("ρ"), Column("95 % interval"), Column("p"), Column("Runs")]
    rows = []
    for entry in sorted_predicts(collapse):
        rho, low, high = oriented(collapse, entry)
        n_runs, p_value = as_number(entry.get("n")), as_number(entry.get("p_value"))
        interval = format_interval(low, high, 2)
        reason = str(entry.get("missing") or "not computable")
        shown = _rho(rho) if rho is not None else reason
        rows.append(
            [
                Cell(predict_label(collapse, entry)),
                Cell("needed" if entry.get("needs_ood_labels") else "not needed"),
                Cell(shown, rho, muted=rho is None),
                Cell(interval or MISSING, muted=not interval),
                Cell(format_p(p_value).removeprefix("p ").removeprefix("= ") or MISSING),
                number_cell(n_runs, 0),
            ]
        )
    caption = "Rank correlation of collapse with the OOD error, over runs"
    return Table(caption, columns, rows, [])


def _rho(rho: float) -> str:
    return f"{rho:.2f}".replace("-", "−")


def foretelling(collapse: Collapse) -> str:
    """Say in a sentence which measure, computable without OOD labels, foretells OOD failure.

    Parameters
    ----------
    collapse : Collapse
        With `predicts`.

    Returns
    -------
    str
        "" where nothing was predicted.
    """
    entries = [
        (entry, *oriented(collapse, entry))
        for entry in sorted_predicts(collapse)
        if not entry.get("needs_ood_labels")
    ]
    free = [row for row in entries if row[0]["measure"] != BASELINE]
    known = [row for row in free if row[1] is not None]
    if not known:
        return "No measure could be correlated with the OOD error." if free else ""
    # An interval is wider over fewer runs, so that the strongest need not be the one that holds.
    best = next((row for row in known if row[2] is not None and row[2] > 0), None)
    if best is None:
        n_below = sum(high is not None and high < 0 for _, _, _, high in known)
        below = f" ({n_below} below it)" if n_below else ""
        answer = (
            f"No measure that needs no OOD labels foretells the OOD error: of {len(known)}, none "
            f"has an interval above zero{below}. The highest is "
            f"{predict_label(collapse, known[0][0])}: {_numbers(known[0])}."
        )
    else:
        answer = (
            f"Of {len(known)} measures that need no OOD labels, {predict_label(collapse, best[0])} "
            f"foretells the OOD error best: {_numbers(best)}. It was picked as the best of "
            f"{len(known)}, which flatters it."
        )
    baseline = [row for row in entries if row[0]["measure"] == BASELINE and row[1] is not None]
    if baseline:
        answer += f" For comparison, the ID error itself: {_numbers(baseline[0])}."
    return answer


def _numbers(row: tuple[dict[str, Any], float | None, float | None, float | None]) -> str:
    """Correlation, interval and number of runs in words."""
    entry, rho, low, high = row
    n_runs = as_number(entry.get("n"))
    over = "" if n_runs is None else f" over {n_runs:.0f} runs"
    interval = format_interval(low, high, 2)
    return f"ρ = {_rho(rho or 0.0)}, {f'interval {interval}' if interval else 'no interval'}{over}"

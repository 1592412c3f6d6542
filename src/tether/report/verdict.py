"""The one sentence at the top of a report, computed from the data, and what tempers it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tether.report.format import (
    as_number,
    format_interval,
    format_p,
    format_quantity,
    n_decimals,
)
from tether.report.results import (
    REFERENCES,
    best_recipe,
    gain_of,
    level_words,
    pooled_row,
    recipes_of,
    reference_lines_of,
    seed_values,
    subset_label,
    subsets_of,
    unit_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["difference_words", "remarks", "verdict"]


def verdict(summary: Mapping[str, Any], target: str, *, metric: str = "rmse") -> str:
    """Say in one sentence how the best alternative does against full fine-tuning.

    The recipe named is the one with the largest OOD gain over `full` (over `scratch` where
    `full` was not run, else over the first reference of the comparison); the sentence says from
    how many it was picked, says so when it loses, and says so when the interval of the gain
    includes zero. Where there is no gain, it says why.

    Parameters
    ----------
    summary : mapping
        `summary.json`.
    target : str
        Which target.
    metric : {"rmse", "mae"}
        Which error.

    Returns
    -------
    str
        One sentence.
    """
    subsets = subsets_of(summary, target)
    if not subsets:
        return "No run has finished, so there is nothing to compare yet."
    far = "test/ood" if "test/ood" in subsets else subsets[-1]
    others = (str(gain["reference"]) for gain in summary["gains"])
    for reference in dict.fromkeys((*REFERENCES, *others)):
        gains = [
            gain
            for gain in summary["gains"]
            if gain["reference"] == reference
            and not {gain["recipe"], reference} <= set(REFERENCES)
            and (gain["target"], gain["subset"], gain["metric"]) == (target, far, metric)
            and as_number(gain["gain_percent"]) is not None
        ]
        if gains:
            best = max(gains, key=lambda gain: float(gain["gain_percent"]))
            return _gain_sentence(summary, best, len(gains))
    return _plain_sentence(summary, target, far, metric)


def _gain_sentence(summary: Mapping[str, Any], best: Mapping[str, Any], n_recipes: int) -> str:
    recipe, reference, subset = best["recipe"], best["reference"], str(best["subset"])
    metric = str(best["metric"])
    percent = float(best["gain_percent"])
    label = f"{subset_label(subset)} {metric.upper()}"
    p_value = format_p(as_number(best.get("p_value")))
    # It asks about structures, the interval also about seeds: they may answer differently.
    notes = [f"{p_value} of these trained models" if p_value else ""]
    if n_recipes > 1:
        notes.append(f"best of {n_recipes} alternatives")
    interval = (as_number(best.get("low")), as_number(best.get("high")))
    words = difference_words(percent, interval, reference, notes, level=level_words(summary))
    head = f"{recipe}: {label} {words}"
    near = gain_of(
        summary, recipe, reference, target=best["target"], subset="test/id", metric=metric
    )
    change = as_number(near["gain_percent"]) if near and subset != "test/id" else None
    tail = "" if change is None else f"; ID error {_change(-change)}"
    if percent < 0:
        key = {"target": best["target"], "subset": subset, "metric": metric}
        rivals = [gain_of(summary, one, reference, **key) for one in REFERENCES if one != recipe]
        ahead = [
            f"{gain['recipe']}, {float(gain['gain_percent']):.1f} % below it,"
            for gain in rivals
            if gain and (as_number(gain["gain_percent"]) or 0) > 0
        ]
        no_one = f"No recipe but {ahead[0]}" if ahead else "No recipe"
        return f"{no_one} beats {reference} on {label}; the nearest, {head}{tail}."
    return f"{head}{tail}."


def difference_words(
    percent: float,
    interval: tuple[float | None, float | None],
    reference: str,
    notes: Sequence[str],
    *,
    level: str,
) -> str:
    """Write a gain as "12.0 % below full (interval [8.5, 15.5] %, p < 0.001)".

    Parameters
    ----------
    percent : float
        Gain; positive means a smaller error.
    interval : (float, float), either may be None
        Of the gain.
    reference : str
        What it is a gain over.
    notes : sequence of str
        What else stands in the brackets; empty ones are left out.
    level : str
        Of `level_words`.

    Returns
    -------
    str
        Says so where the interval includes zero.
    """
    low, high = interval
    # The gain's interval is turned round with its sign, so that it reads like the number.
    if percent < 0:
        low, high = (None if high is None else -high), (None if low is None else -low)
    text = format_interval(low, high, 1)
    details = [f"{level}interval {text} %" if text else "", *notes]
    aside = ", ".join(filter(None, details))
    unclear = low is not None and high is not None and low <= 0 <= high
    doubt = ", not distinguishable from no difference" if unclear else ""
    side = "below" if percent >= 0 else "above"
    return f"{abs(percent):.1f} % {side} {reference}{f' ({aside})' if aside else ''}{doubt}"


def _change(percent: float) -> str:
    if f"{abs(percent):.1f}" == "0.0":
        return "unchanged"
    return f"{abs(percent):.1f} % {'higher' if percent > 0 else 'lower'}"


def _plain_sentence(summary: Mapping[str, Any], target: str, far: str, metric: str) -> str:
    recipe = best_recipe(summary, target=target, subset=far, metric=metric)
    if recipe is None:
        return f"No {metric.upper()} on {subset_label(far)} was measured."
    unit = unit_of(summary, target)
    parts = []
    for subset in dict.fromkeys([far, "test/id"]):
        row = pooled_row(summary, recipe, target=target, subset=subset, metric=metric)
        value = as_number(row["value"]) if row else None
        if value is not None:
            number = format_quantity(value, n_decimals([value]))
            parts.append(f"{subset_label(subset)} {metric.upper()} {number} {unit}".rstrip())
    why = _why_no_gain(summary, {"target": target, "subset": far, "metric": metric})
    return f"{recipe}: {', '.join(parts)} ({why})."


def _why_no_gain(summary: Mapping[str, Any], query: dict[str, str]) -> str:
    recipes = recipes_of(summary)
    named = (summary.get("config") or {}).get("references") or REFERENCES
    references = [str(name) for name in named if name in recipes]
    if not references:
        missing = [str(name).rpartition("-s")[0] for name in summary.get("missing_runs") or []]
        waiting = [name for name in named if name in missing]
        if waiting:
            return f"no run of {' or '.join(waiting)} has finished"
        return "there is no reference recipe to compare with"
    names = " and ".join(references)
    if set(recipes) <= {*REFERENCES, references[0]}:
        return f"there is no recipe to compare with {names}"
    errors = [seed_values(summary, name, **query).values() for name in references]
    label = f"{subset_label(query['subset'])} {query['metric'].upper()}"
    if not any(errors):
        return f"no {label} of {names} is known"
    if not any(map(any, errors)):
        return f"the {label} of {names} is 0"
    return f"no other recipe has finished on a seed of {names}"


def remarks(summary: Mapping[str, Any], target: str, *, metric: str = "rmse") -> list[str]:
    """Facts that temper the verdict, above all the clip oracle.

    Parameters
    ----------
    summary : mapping
        `summary.json`.
    target : str
        Which target.
    metric : {"rmse", "mae"}
        Which error.

    Returns
    -------
    list of str
        Sentences.
    """
    sentences = []
    query = {"target": target, "subset": "test/ood", "metric": metric}
    lines = reference_lines_of(summary, **query)
    oracle = next((value for name, value in lines.items() if "clip" in name), None)
    best = best_recipe(summary, **query)
    row = pooled_row(summary, best, **query) if best else None
    error = as_number(row["value"]) if row else None
    if best and oracle and error is not None:
        difference = abs(error / oracle - 1) * 100
        if error < oracle:
            beaten = _n_beating(summary, oracle, query)
            sentences.append(
                f"{beaten} of {len(recipes_of(summary))} recipes beat the clip oracle OOD; "
                f"{best}, the best, is {difference:.1f} % below it."
            )
        else:
            sentences.append(
                f"No recipe beats the clip oracle OOD ({best}, the best, is {difference:.1f} % "
                "above it): none of these models extrapolates."
            )
    return sentences


def _n_beating(summary: Mapping[str, Any], oracle: float, query: dict[str, str]) -> int:
    errors = []
    for recipe in recipes_of(summary):
        row = pooled_row(summary, recipe, **query)
        errors.append(as_number(row["value"]) if row else None)
    return sum(error is not None and error < oracle for error in errors)

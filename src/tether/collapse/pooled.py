"""One measure over several runs: the rule that the terminal and the page share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["Pooled", "pool"]


@dataclass(frozen=True)
class Pooled:
    """One measure over runs.

    Attributes
    ----------
    value : float or None
        Mean over the runs that have it.
    low, high : float or None
        Widest reach of the runs' intervals: an interval of one run says nothing of the scatter
        between runs, so the widest is the honest one to show beside a mean.
    before : float or None
        Mean of the pretrained model's values; None for a distance to it.
    null_low, null_high : float or None
        Widest reach of where the value would lie if nothing had changed.
    seeds : tuple of float
        Value of each run that has one.
    missing : str
        Reason where `value` is None.
    """

    value: float | None
    low: float | None
    high: float | None
    before: float | None
    null_low: float | None
    null_high: float | None
    seeds: tuple[float, ...]
    missing: str


def pool(entries: Iterable[Mapping[str, Any] | None]) -> Pooled:
    """Pool one measure over runs.

    Parameters
    ----------
    entries : iterable of mapping or None
        Its measurement in each run, numbers finite or None; None where a run has none.

    Returns
    -------
    Pooled
        Intervals have both ends or none.
    """
    found = [entry for entry in entries if entry is not None]
    seeds = _known(found, "value")
    reasons = (str(entry.get("missing") or "") for entry in found)
    low, high = _reach(found, "low", "high")
    null_low, null_high = _reach(found, "null_low", "null_high")
    return Pooled(
        value=_mean(seeds),
        low=low if seeds else None,
        high=high if seeds else None,
        before=_mean(_known(found, "before")),
        null_low=null_low,
        null_high=null_high,
        seeds=tuple(seeds),
        missing="" if seeds else next(filter(None, reasons), "not measured"),
    )


def _known(entries: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [entry[name] for entry in entries if entry.get(name) is not None]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _reach(
    entries: Sequence[Mapping[str, Any]], low: str, high: str
) -> tuple[float | None, float | None]:
    """Widest interval of the entries that have both of its ends."""
    both = [e for e in entries if e.get(low) is not None and e.get(high) is not None]

    def widest(name: str, choose: Callable[[list[float]], float]) -> float | None:
        values = _known(both, name)
        return choose(values) if values else None

    return widest(low, min), widest(high, max)

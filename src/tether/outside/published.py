"""Published figures of other models, to stand beside ours with their source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from tether.errors import TetherError

__all__ = ["Published", "published_figures"]


@dataclass(frozen=True)
class Published:
    """One published error.

    Attributes
    ----------
    suite : {"qm9-boom", "matbench"}
        Benchmark; its splits are its authors'.
    target : str
        Of QM9 as in `tether.data.qm9`, or the name of the MatBench data set.
    method : str
        Model; where one was trained in several ways, followed by tether's name of the recipe.
    subset : {"test/id", "test/ood"}
        What it was tested on.
    metric : {"mae", "rmse"}
        Which error.
    value : float
        In `unit`.
    unit : str
        That of the target here; "" where it has none.
    source : str
        Where it was published.
    note : str
        What else must be known to compare with it.
    """

    suite: str
    target: str
    method: str
    subset: str
    metric: str
    value: float
    unit: str
    source: str
    note: str


def published_figures(
    *, suite: str | None = None, target: str | None = None
) -> tuple[Published, ...]:
    """Published errors: DPA-3.1-3M on QM9 in BOOM's split, and six models on MatBench.

    Parameters
    ----------
    suite, target : str, optional
        Only those of this benchmark, and of this target; default all.

    Returns
    -------
    tuple of Published
        In the order of the file ``published.json``; empty where nothing is known of the target.

    Raises
    ------
    TetherError
        For a benchmark without published figures.

    Examples
    --------
    >>> [(f.method, f.value, f.unit) for f in published_figures(target="gap")][-1]
    ('clip oracle', 0.0197, 'Ha')
    """
    suites = list(dict.fromkeys(figure.suite for figure in _all_figures()))
    if suite not in {None, *suites}:
        raise TetherError(
            f"no published figures of {suite!r}",
            expected=f"one of {', '.join(suites)}",
            fix="correct the name, or leave it out",
        )
    return tuple(
        figure
        for figure in _all_figures()
        if suite in {None, figure.suite} and target in {None, figure.target}
    )


@cache
def _all_figures() -> tuple[Published, ...]:
    text = (files("tether.outside") / "published.json").read_text(encoding="utf-8")
    content = json.loads(text)
    notes = content["notes"]
    return tuple(Published(**row, note=notes[row["source"]]) for row in content["figures"])

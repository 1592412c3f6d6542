"""Functional collapse: what a model no longer does, whatever its features look like."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tether.collapse.measurement import Measurement
from tether.collapse.ood import ood_auroc
from tether.drift.opened import ID_SET, is_ood
from tether.errors import TetherError

if TYPE_CHECKING:
    from tether.drift.opened import OpenedRun
    from tether.drift.prints import Prints

__all__ = ["detection_measure", "forgetting_measures", "function_measures"]

#: Key of ``metrics.json`` → label and unit.
_FORGETTING = {
    "force_mae": ("MAE of forces on held-out data", "eV/Å"),
    "energy_mae_per_atom": ("MAE of energies on held-out data", "eV/atom"),
}
_PAPER = "arXiv 2601.08486"


def function_measures(opened: OpenedRun, prints: Prints, subset: str) -> list[Measurement]:
    """OOD detection before and after, and forgetting of forces and energies.

    Parameters
    ----------
    opened : OpenedRun
        The run.
    prints : Prints
        Fingerprints of the training set, `subset` and the OOD sets.
    subset : str
        What counts as inside the distribution.

    Returns
    -------
    list of Measurement
        Three; one that cannot be computed says why.
    """
    return [detection_measure(prints, subset), *forgetting_measures(opened)]


def detection_measure(prints: Prints, subset: str) -> Measurement:
    """Whether the distance to the training set tells the OOD structures from those of `subset`.

    Parameters
    ----------
    prints : Prints
        Fingerprints of the training set, `subset` and the OOD sets.
    subset : str
        What counts as inside the distribution.

    Returns
    -------
    Measurement
        AUROC of the adapted features; it needs OOD structures, but none of their labels. Only
        structures drawn at random count. The null is where the pretrained AUROC would lie with
        other structures; an interval or null is left out where `Detection` has none.
    """
    try:
        found = _detection(prints, subset)
    except TetherError as error:
        found = {"missing": error.problem}
    return Measurement(
        name="ood_auroc",
        label="AUROC of OOD detection",
        unit="1",
        family="function",
        collapse_means="lower",
        invariant=False,
        needs_ood_labels=False,
        source="Sun et al., ICML 2022 (arXiv 2204.06507)",
        **found,
    )


def forgetting_measures(opened: OpenedRun) -> list[Measurement]:
    """Errors of the pretrained energy head, from the run's ``metrics.json``.

    Parameters
    ----------
    opened : OpenedRun
        The run.

    Returns
    -------
    list of Measurement
        Without values where the run had no held-out force-field data.
    """
    found = opened.metrics["forgetting"]
    return [
        Measurement(
            name=name,
            label=label,
            unit=unit,
            family="function",
            collapse_means="higher",
            invariant=True,
            needs_ood_labels=False,
            source=_PAPER,
            value=None if found is None else found["after"][name],
            # Random weights have nothing to forget: their run has no error before.
            before=None if found is None else found["before"][name],
            missing="" if found is not None else "the run has no forcefield_test",
        )
        for name, (label, unit) in _FORGETTING.items()
    ]


def _detection(prints: Prints, subset: str) -> dict[str, Any]:
    if is_ood(subset):
        raise TetherError(
            f"{subset!r} is itself outside the distribution",
            expected="a set inside it, to tell the OOD sets from",
            fix=f"measure {ID_SET!r}",
        )
    outside = [name for name in prints.distance if name != subset]
    if not outside:
        raise TetherError(
            "the split has no OOD test set",
            expected="a set beside test/id",
            fix="split again with an OOD rule",
        )
    drawn = prints.drawn
    before, after = (
        ood_auroc(
            features["train"],
            features[subset][drawn[subset]],
            np.concatenate([features[name][drawn[name]] for name in outside]),
        )
        for features in (prints.before, prints.after)
    )
    found = {
        "value": after.value,
        "before": before.value,
        "n": sum(int(drawn[name].sum()) for name in (subset, *outside)),
    }
    if after.half_width > 0:
        found |= {"low": after.low, "high": after.high}
    if before.half_width > 0:
        # From the whole width: cut off at 1, the null of a good detector would be too narrow.
        reach = float(np.sqrt(2.0)) * before.half_width
        found["null_low"] = max(0.0, before.value - reach)
        found["null_high"] = min(1.0, before.value + reach)
    return found

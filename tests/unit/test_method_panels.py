"""What a method found by itself, in the report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tether.report.method_panels import method_panels
from tether.report.read import Comparison, Run


def _comparison(*runs: Run) -> Comparison:
    rows = [{"recipe": run.recipe, "seed": 0} for run in runs]
    return Comparison(Path("c"), {"rows": rows}, list(runs), "", is_single_run=False)


def _run(recipe: str, learnt: list[dict[str, float]], wise: Any = None) -> Run:
    log = [
        {"event": "train", "step": step, **({"balance": values} if values else {})}
        for step, values in enumerate(learnt)
    ]
    return Run(recipe, 0, Path(f"{recipe}-s0"), {"wise": wise} if wise else {}, log)


def test_no_panel_where_nothing_was_learnt() -> None:
    assert method_panels(_comparison(_run("full", [{}, {}]))) == []


def test_weights_of_both_balances_are_weights_beside_the_property() -> None:
    bound = _run("mft-constraint", [{"log_multiplier": math.log(x)} for x in (1.0, 2.0, 5.0)])
    learnt = _run(
        "mft-uncertainty",
        # exp(−s) is the weight of a task: the force field's here is e² times the property's.
        [{"property": 0.0, "forcefield": 0.0}, {"property": 1.0, "forcefield": -1.0}],
    )
    (panel,) = method_panels(_comparison(bound, learnt, _run("full", [{}])))
    assert panel.figure is not None
    lines = {trace.name: list(trace.y) for trace in panel.figure.data}
    assert lines["mft-constraint"] == pytest.approx([1.0, 2.0, 5.0])
    assert lines["mft-uncertainty"] == pytest.approx([1.0, math.exp(2)])
    assert "full" in panel.caption  # which has no such weight


def test_the_curve_of_wise_is_against_the_finetuned_weights() -> None:
    curve = [
        {"a": 0.0, "val_loss": None},
        {"a": 0.5, "val_loss": 3.0},
        {"a": 0.9, "val_loss": 1.8},
        {"a": 1.0, "val_loss": 2.0},
    ]
    run = _run("wise", [{}], {"chosen": 0.9, "curve": curve})
    (panel,) = method_panels(_comparison(run))
    assert panel.figure is not None
    (trace,) = panel.figure.data
    assert list(trace.x) == pytest.approx([0.5, 0.9, 1.0])
    assert list(trace.y) == pytest.approx([1.5, 0.9, 1.0])
    assert "wise-s0 0.9" in panel.caption

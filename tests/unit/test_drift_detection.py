"""OOD detection by fingerprints: which structures count, its null, and what cannot be measured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tether.collapse.ood import auroc, knn_distance
from tether.data.store import Store
from tether.drift.function import detection_measure
from tether.drift.prints import Prints, take_prints
from tether.testing.tiny import TinyBackbone

ID, OOD = "test/id", "test/ood"


def prints_of(before: dict[str, Any], after: dict[str, Any], **drawn: Any) -> Prints:
    every = {name: np.ones(len(x), dtype=bool) for name, x in before.items()}
    rows = {name: np.arange(len(x)) for name, x in before.items()}
    distance = {name: np.zeros(len(x)) for name, x in before.items() if name != "train"}
    return Prints(rows, every | drawn, before, after, distance)


def features(shift: float, n: int = 25) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    sizes = {"train": 200, ID: n, OOD: n}
    found = {name: rng.normal(size=(size, 2)) for name, size in sizes.items()}
    return {**found, OOD: found[OOD] + [shift, 0]}


def test_structures_of_sampled_atoms_are_no_sample() -> None:
    before, after = features(1.5), features(1.0)
    plain = detection_measure(prints_of(before, after), ID)
    # Five of rare classes are added to each set, far out in one and inside in the other.
    added = {ID: np.full((5, 2), 9.0), OOD: np.zeros((5, 2))}
    more = [
        {name: np.concatenate([x, added[name]]) if name in added else x for name, x in one.items()}
        for one in (before, after)
    ]
    random = {name: np.arange(30) < 25 for name in added}
    assert detection_measure(prints_of(*more, **random), ID) == plain
    # Control: they would have changed it.
    counted = detection_measure(prints_of(*more), ID)
    assert counted.value != pytest.approx(plain.value, abs=0.05)
    assert (plain.n, counted.n) == (50, 60)


def test_the_null_is_as_wide_as_the_interval_before_it_is_cut_off() -> None:
    before = features(3.2)
    found = detection_measure(prints_of(before, features(2.7)), ID)
    own = auroc(*(knn_distance(before["train"], before[name]) for name in (ID, OOD)))
    assert own.high == 1.0 < own.value + own.half_width  # cut off
    assert own.half_width == pytest.approx(own.value - own.low)
    assert found.null_low == pytest.approx(own.value - 2**0.5 * own.half_width)
    assert found.null_high == 1.0


def test_where_no_error_is_seen_there_is_no_interval() -> None:
    assert auroc(np.arange(5.0), np.arange(10.0, 15)).half_width == 0.0
    found = detection_measure(prints_of(features(50.0), features(1.0)), ID)
    assert found.before == 1.0
    assert (found.null_low, found.null_high) == (None, None)
    assert found.low is not None
    again = detection_measure(prints_of(features(1.0), features(50.0)), ID)
    assert (again.value, again.low, again.high) == (1.0, None, None)
    assert again.null_low is not None


def test_why_there_is_no_detection() -> None:
    inside = {name: x for name, x in features(1.0).items() if name != OOD}
    assert detection_measure(prints_of(inside, inside), ID).missing == (
        "the split has no OOD test set"
    )
    outside = {name: x for name, x in features(1.0).items() if name != ID}
    assert detection_measure(prints_of(outside, outside), OOD).missing == (
        "'test/ood' is itself outside the distribution"
    )


@pytest.mark.parametrize("n_train", [9, 20])
def test_few_training_structures_stop_this_measure_only(
    workspace: Any, monkeypatch: pytest.MonkeyPatch, n_train: int
) -> None:
    monkeypatch.setattr("tether.drift.prints.MAX_TEST", 4)
    indices = {"train": np.arange(n_train), ID: np.arange(20, 28), OOD: np.arange(28, 36)}
    opened: Any = SimpleNamespace(
        store=Store.open(workspace.store), split=SimpleNamespace(indices=indices)
    )
    models = (TinyBackbone(n_features=8, seed=0), TinyBackbone(n_features=8, seed=1))
    needed = {name: indices[name][:3] for name in (ID, OOD)}
    found = take_prints(opened, needed, models=models, seed=0)
    for name in (ID, OOD):
        assert np.isnan(found.distance[name]).all() == (n_train < 10)
        assert set(needed[name]) <= set(found.rows[name])
        assert found.drawn[name].sum() == 4 < len(found.rows[name])
    measure = detection_measure(found, ID)
    assert measure.missing == ("`train` has 9 points" if n_train < 10 else "")

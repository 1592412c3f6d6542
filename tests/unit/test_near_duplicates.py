"""Near-duplicates across sets, against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tether.errors import TetherError
from tether.splits import near
from tether.splits.near import near_duplicates
from tether.splits.split import Split, StoreReference


def sets(n: int = 300) -> Split:
    order = np.random.default_rng(1).permutation(n)
    indices = {"train": order[:200], "val": order[200:220], "test/ood": order[220:290]}
    return Split("s", "file", {}, indices, store=StoreReference(n_systems=n))


def brute_force(split: Split, table: Any, tolerance: float) -> dict[tuple[str, str], set[Any]]:
    used = np.concatenate(list(split.indices.values()))
    scaled = table / table[used].std(axis=0)
    names, found = list(split.indices), {}
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            found[first, second] = {
                (int(a), int(b))
                for a in split.indices[first]
                for b in split.indices[second]
                if np.sqrt(np.mean(np.square(scaled[a] - scaled[b]))) <= tolerance
            }
    return found


@pytest.mark.parametrize("n_features", [3, 8, 40])
@pytest.mark.parametrize("tolerance", [0.02, 0.3])
def test_pairs_are_those_of_brute_force(n_features: int, tolerance: float) -> None:
    rng = np.random.default_rng(2)
    # Thirty families of near-copies, spread by up to half a deviation.
    table = rng.normal(size=(30, n_features))[rng.integers(30, size=300)]
    table += rng.choice([0, 0.01, 0.2], (300, 1)) * rng.normal(size=(300, n_features))
    table *= rng.uniform(1e-3, 1e3, n_features)
    split = sets()
    expected = {k: v for k, v in brute_force(split, table, tolerance).items() if v}
    report = near_duplicates(split, table, tolerance=tolerance)
    assert expected
    assert {tuple(p["sets"]): p["n_pairs"] for p in report["pairs"]} == {
        key: len(found) for key, found in expected.items()
    }
    for pair in report["pairs"]:
        for side, name in enumerate(pair["sets"]):
            rows = sorted({found[side] for found in expected[tuple(pair["sets"])]})
            assert pair["rows"][name] == rows


def test_distance_has_neither_unit_nor_number_of_features() -> None:
    rng = np.random.default_rng(3)
    split = Split("s", "file", {}, {"train": np.arange(200), "test/id": [200]})
    base = rng.normal(size=(201, 50))
    base[200] = base[0] + 0.05 * base[:200].std(axis=0)
    for table in (
        base,
        base * 1e-6 + 4,
        np.repeat(base, 3, axis=1),
        np.pad(base, [(0, 0), (0, 5)]),
    ):
        inside = near_duplicates(split, table, tolerance=0.052)["pairs"]
        assert [pair["rows"] for pair in inside] == [{"train": [0], "test/id": [200]}]
        assert near_duplicates(split, table, tolerance=0.048)["pairs"] == []


def test_sets_without_a_pair_are_left_out_and_repeats_inside_a_set_do_not_count() -> None:
    table = np.arange(300.0)[:, None]
    assert near_duplicates(sets(), table)["pairs"] == []
    split = Split("s", "file", {}, {"train": [0, 1], "test/id": [2]})
    assert near_duplicates(split, [[0.0], [0.0], [1.0]])["pairs"] == []


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(0).normal(size=(300, 4))
    with pytest.raises(TetherError, match="`tolerance` is 0"):
        near_duplicates(sets(), table, tolerance=0)
    with pytest.raises(TetherError, match=r"shape \(299, 4\); expected \(300, n_features\)"):
        near_duplicates(sets(), table[:299])
    monkeypatch.setattr(near, "_MAX_PAIRS", 100)
    with pytest.raises(TetherError, match="pairs of 'train' and 'val' may be near-duplicates"):
        near_duplicates(sets(), table, tolerance=3)

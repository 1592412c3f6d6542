"""OOD detection, and whether a measure foretells failure: scikit-learn, scipy, brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score

from tether.collapse.ood import auroc, knn_distance, ood_auroc
from tether.collapse.predicts import rank_correlation
from tether.errors import TetherError


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=30),
    st.lists(st.integers(0, 6), min_size=2, max_size=30),
)
def test_auroc_is_scikit_learns_with_ties(inside: list[int], outside: list[int]) -> None:
    label = [0] * len(inside) + [1] * len(outside)
    found = auroc(inside, outside)
    assert found.value == pytest.approx(roc_auc_score(label, inside + outside), abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_delongs_interval_is_the_bootstraps_and_covers() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=150), rng.normal(size=90) + 1
    found = auroc(a, b)
    draws = [auroc(rng.choice(a, len(a)), rng.choice(b, len(b))).value for _ in range(1500)]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.01)
    assert found.high == pytest.approx(high, abs=0.01)
    truth = stats.norm.cdf(1 / np.sqrt(2))
    trials = [auroc(rng.normal(size=60), rng.normal(size=60) + 1) for _ in range(400)]
    assert 0.91 < np.mean([t.low <= truth <= t.high for t in trials]) < 0.98
    # Control: another truth is not covered.
    assert np.mean([t.low <= 0.55 <= t.high for t in trials]) < 0.3


def test_knn_distance_is_the_one_counted_by_hand() -> None:
    rng = np.random.default_rng(0)
    train, x = rng.normal(size=(50, 3)) * [1, 10, 100], rng.normal(size=(20, 3)) * [1, 10, 100]
    scaled = cdist((x - train.mean(0)) / train.std(0), (train - train.mean(0)) / train.std(0))
    known = np.sort(scaled, axis=1)[:, :4].mean(axis=1)
    np.testing.assert_allclose(knn_distance(train, x, k=4), known, rtol=1e-6)
    # Each column counts the same, whatever its unit; a constant one not at all.
    np.testing.assert_allclose(
        knn_distance(train * [5, 1, 1], x * [5, 1, 1], k=4), known, rtol=1e-6
    )
    padded = [np.column_stack([a, np.full(len(a), 3.0)]) for a in (train, x)]
    np.testing.assert_allclose(knn_distance(*padded, k=4), known, rtol=1e-6)


def test_a_collapsed_model_no_longer_detects() -> None:
    rng = np.random.default_rng(0)
    train, inside = rng.normal(size=(300, 8)), rng.normal(size=(150, 8))
    outside = rng.normal(size=(150, 8)) + 1.5
    sound = ood_auroc(train, inside, outside)
    assert sound.low > 0.9
    blind = [train.mean(axis=0) + rng.normal(size=a.shape) for a in (train, inside, outside)]
    lost = ood_auroc(*blind)
    assert lost.low < 0.5 < lost.high


def test_bad_detection() -> None:
    x = np.random.default_rng(0).normal(size=(30, 2))
    with pytest.raises(TetherError, match=r"`train` has 9 points; expected at least 10"):
        ood_auroc(x[:9], x, x)
    with pytest.raises(TetherError, match=r"all points of `train` coincide"):
        ood_auroc(np.ones((30, 2)), x, x)
    with pytest.raises(TetherError, match=r"the features have 2 and 1 columns"):
        ood_auroc(x, x[:, :1], x)
    with pytest.raises(TetherError, match=r"`k` is 0"):
        knn_distance(x, x, k=0)
    with pytest.raises(TetherError, match=r"`points` has 60 value\(s\) that are not finite"):
        ood_auroc(x, x * np.nan, x)
    with pytest.raises(TetherError, match=r"`outside` has shape \(1,\) with 0 value"):
        auroc([1.0, 2], [1.0])
    with pytest.raises(TetherError, match=r"`inside` has shape \(2,\) with 1 value"):
        auroc([1.0, np.nan], [1.0, 2])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(4, 5), st.booleans())
def test_rank_correlation_is_scipys_and_its_p_counts_all_orders(
    seed: int, n: int, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, n))
    if ties:
        x = np.round(x)
    if np.ptp(x) == 0:
        return
    found = rank_correlation(x, y, n_resamples=200)
    known = stats.spearmanr(x, y).statistic
    assert found["rho"] == pytest.approx(known, abs=1e-12)
    ranks = stats.rankdata(y)
    orders = [
        np.corrcoef(order, ranks)[0, 1] for order in itertools.permutations(stats.rankdata(x))
    ]
    extreme = np.abs(orders) >= abs(known) - 1e-9
    assert found["p_value"] == pytest.approx(extreme.mean())
    assert found["n"] == n


def test_interval_and_p_value_of_many_runs() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = x + rng.normal(size=60)
    found = rank_correlation(x, y)
    known = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=500,
        random_state=1,
    ).confidence_interval
    assert found["low"] == pytest.approx(known.low, abs=0.04)
    assert found["high"] == pytest.approx(known.high, abs=0.04)
    assert found["p_value"] < 5e-4
    unrelated = rank_correlation(x, rng.normal(size=60))
    assert unrelated["low"] < 0 < unrelated["high"]
    assert unrelated["p_value"] > 0.05
    assert rank_correlation(x, y, seed=3) == rank_correlation(x, y, seed=3)


def test_p_values_are_right_under_the_null() -> None:
    rng = np.random.default_rng(0)
    found = [
        rank_correlation(*rng.normal(size=(2, 10)), n_resamples=2, n_permutations=400)["p_value"]
        for _ in range(300)
    ]
    assert np.mean(np.array(found) <= 0.1) == pytest.approx(0.1, abs=0.045)


@pytest.mark.parametrize(
    ("values", "errors", "problem"),
    [
        ([1, 2, 3], [1, 2, 3], r"3 run\(s\); expected at least 4"),
        ([], [], r"0 run\(s\)"),
        ([1, 1, 1, 1], [1, 2, 3, 4], "all runs have the same value"),
        ([1, 2, 3, 4], [5, 5, 5, 5], "all runs have the same value"),
        ([1, 2, 3, np.nan], [1, 2, 3, 4], "some values are not finite"),
        ([1, 2, 3, 4], [1, 2, 3], r"`values` has shape \(4,\)"),
    ],
)
def test_not_computable(values: Any, errors: Any, problem: str) -> None:
    with pytest.raises(TetherError, match=rf"not computable: .*{problem}"):
        rank_correlation(values, errors)

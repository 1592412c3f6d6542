"""Statistics over folds and tasks: closed forms, independent implementations, coverage."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from tether.errors import TetherError
from tether.metrics.folds import fold_gain, fold_interval
from tether.metrics.intervals import bootstrap_interval, paired_gain, seed_pooled_interval
from tether.metrics.limit import distance_to_limit, limit_interval
from tether.metrics.tasks import compare_over_tasks, holm, mean_ranks, rank_biserial

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tether.metrics.resampling import Statistic


def simulated(
    rng: np.random.Generator, n_folds: int, *, between: float, n: int = 40, scale: float = 1.0
) -> list[list[NDArray[np.float64]]]:
    """Folds whose errors are of different size; three seeds with common noise on a structure."""
    folds = []
    for _ in range(n_folds):
        size = scale * np.exp(between * rng.normal())
        common = rng.normal(size=n)
        folds.append([size * (common + 0.3 * rng.normal(size=n)) for _ in range(3)])
    return folds


# --- folds --------------------------------------------------------------------------------------


def test_value_is_the_closed_form() -> None:
    folds = [[[1.0, -3.0], [2.0, 2.0]], [[4.0, 4.0, 4.0, -4.0]]]
    assert fold_interval(folds, "mae").value == pytest.approx((2 + 4) / 2)
    by_fold = [(np.sqrt(5) + 2) / 2, 4]
    assert fold_interval(folds, "rmse").value == pytest.approx(np.mean(by_fold))


def test_one_fold_is_the_interval_of_its_seeds() -> None:
    a, b = (simulated(np.random.default_rng(i), 1, between=0.0)[0] for i in (0, 1))
    assert fold_interval([a], "rmse") == seed_pooled_interval(a, "rmse")
    ours, theirs = fold_gain([a], [b], "rmse"), paired_gain(a, b, "rmse")
    assert (ours.percent, ours.low, ours.high) == (theirs.percent, theirs.low, theirs.high)
    assert ours.p_value == 1


def test_the_interval_is_students_over_folds() -> None:
    sizes = np.random.default_rng(1).normal(5, 1, 6)
    folds = [[np.full(10, size)] for size in sizes]
    theirs = stats.ttest_1samp(sizes, 0).confidence_interval(0.9)
    found = fold_interval(folds, level=0.9)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    # A gain over a reference that is the same on all folds is that of the errors themselves.
    gain = fold_gain(folds, [[np.full(10, 5.0)] for _ in sizes], level=0.9)
    assert (gain.low, gain.high) == pytest.approx(
        (100 * (1 - theirs.high / 5), 100 * (1 - theirs.low / 5))
    )
    wild = fold_interval([[np.full(10, size)] for size in (1.0, 9.0)])
    assert wild.low == 0  # an error


@pytest.mark.parametrize("n_folds", [3, 10])
def test_coverage_over_folds_is_what_is_said(n_folds: int) -> None:
    rng = np.random.default_rng(2)
    truth = np.exp(0.4**2 / 2) * np.sqrt(1.09) * np.sqrt(2 / np.pi)
    gain = 100 * (1 - 0.9 * np.exp(0.1**2 / 2))
    hits, gain_hits, pooled_hits = [], [], []
    for _ in range(200):
        folds = simulated(rng, n_folds, between=0.4)
        found = fold_interval(folds)
        hits.append(found.low <= truth <= found.high)
        better = [[0.9 * np.exp(0.1 * rng.normal()) * fold[0]] for fold in folds]
        of_gain = fold_gain(better, [fold[:1] for fold in folds], n_permutations=1)
        gain_hits.append(of_gain.low <= gain <= of_gain.high)
        # Control: structures as units, folds forgotten.
        flat = [np.concatenate([fold[s] for fold in folds]) for s in range(3)]
        naive = bootstrap_interval(flat[0], n_resamples=200)
        pooled_hits.append(naive.low <= truth <= naive.high)
    assert 0.89 <= np.mean(hits) <= 0.99
    assert 0.89 <= np.mean(gain_hits) <= 0.99
    assert np.mean(pooled_hits) < 0.8


def test_gain_is_paired_fold_by_fold() -> None:
    rng = np.random.default_rng(3)
    b = simulated(rng, 8, between=0.8)
    a = [[0.9 * seed for seed in fold] for fold in b]
    gain = fold_gain(a, b, "rmse")
    assert gain.percent == pytest.approx(10)
    assert (gain.low, gain.high) == pytest.approx((10, 10))
    # Eight folds of one sign: 2 of 2**8 arrangements are as extreme.
    assert gain.p_value == pytest.approx(2 / 2**8, abs=0.003)
    # Control: the fold errors themselves differ far more than by 10 %.
    alone = fold_interval(b, "rmse")
    assert alone.high - alone.low > 0.4 * alone.value
    assert fold_gain(b, b, "mae").p_value == 1


def test_gain_p_value_is_uniform_without_a_difference() -> None:
    rng = np.random.default_rng(4)
    p_values = [
        fold_gain(
            simulated(rng, 7, between=0.3, n=20),
            simulated(rng, 7, between=0.3, n=20),
            n_permutations=400,
        ).p_value
        for _ in range(120)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_fold_refusals() -> None:
    folds = simulated(np.random.default_rng(6), 2, between=0.3)
    with pytest.raises(TetherError, match="`errors` has no fold"):
        fold_interval([])
    with pytest.raises(TetherError, match=r"`errors\[1\]` has arrays of shapes \[\(1,\), \(2,\)\]"):
        fold_interval([[[1.0]], [[1.0], [1.0, 2.0]]])
    with pytest.raises(TetherError, match=r"folds of \[40, 40\] structures and .*\[40\]"):
        fold_gain(folds, folds[:1])
    with pytest.raises(TetherError, match="reference has no error"):
        fold_gain(folds, [[np.zeros(40)]] * 2)


# --- the distance to the limit ------------------------------------------------------------------


def test_distance_to_limit() -> None:
    assert distance_to_limit(5.0, 1.0, 9.0, 1.0) == 0.5
    assert distance_to_limit(3.0, 3.0, 9.0, 1.0) == 0
    assert distance_to_limit(9.0, 1.0, 9.0, 1.0) == 1
    assert distance_to_limit(1.0, 2.0, 9.0, 1.0) < 0
    assert np.isnan(distance_to_limit(5.0, 1.0, 1.0, 1.0))


# Noise that differs from seed to seed counts in both levels, as in all intervals over seeds.
@pytest.mark.parametrize(("n_seeds", "spread", "most"), [(1, 0.0, 0.99), (3, 0.05, 1.0)])
@pytest.mark.parametrize("statistic", ["mae", "rmse"])
def test_limit_interval_covers(
    statistic: Statistic, n_seeds: int, spread: float, most: float
) -> None:
    rng = np.random.default_rng(7)
    hits = []
    for number in range(150):
        drawn = {
            name: [
                scale * (1 + spread * rng.normal()) * rng.normal(size=120) for _ in range(n_seeds)
            ]
            for name, scale in {"a": 2.0, "a_id": 1.0, "b": 3.0, "b_id": 1.0}.items()
        }
        found = limit_interval(
            (drawn["a"], drawn["a_id"]),
            (drawn["b"], drawn["b_id"]),
            statistic,
            n_resamples=200,
            seed=number,
        )
        hits.append(found.low <= 0.5 <= found.high)
    assert 0.88 <= np.mean(hits) <= most


def test_limit_interval_is_paired_and_says_when_there_is_no_gap() -> None:
    rng = np.random.default_rng(8)
    ood, inside = [3 * rng.normal(size=50)], [rng.normal(size=60)]
    same = limit_interval((ood, inside), (ood, inside))
    assert (same.value, same.low, same.high) == pytest.approx((1, 1, 1))
    flat = [rng.normal(size=50)]
    noisy = limit_interval((ood, inside), (flat, inside))
    assert np.isnan(noisy.low)
    assert np.isnan(noisy.high)
    with pytest.raises(TetherError, match="1 seeds on OOD and 2 on ID"):
        limit_interval((ood, inside * 2), (ood, inside))
    with pytest.raises(TetherError, match="the ID sets have 60 and 59 structures"):
        limit_interval((ood, inside), (ood, [inside[0][:59]]))


# --- tasks --------------------------------------------------------------------------------------


def test_holm_is_the_closure_of_bonferroni() -> None:
    rng = np.random.default_rng(9)
    for p in (rng.uniform(size=6) ** 2, np.array([0.01, 0.01, 0.5]), np.array([0.2])):
        # Independent: a hypothesis is rejected when every set that has it is, by Bonferroni.
        sets = [
            np.array(chosen)
            for n in range(1, len(p) + 1)
            for chosen in itertools.combinations(range(len(p)), n)
        ]
        expected = [
            max(min(1.0, len(s) * p[s].min()) for s in sets if i in s) for i in range(len(p))
        ]
        np.testing.assert_allclose(holm(p), expected)
    with pytest.raises(TetherError, match=r"hold 1\.5"):
        holm([0.1, 1.5])
    with pytest.raises(TetherError, match="hold nan"):
        holm([np.nan])


def test_rank_biserial() -> None:
    assert rank_biserial([1, 2, 3]) == 1
    assert rank_biserial([-1, 2, -3, 0]) == pytest.approx((2 - 4) / 6)
    assert rank_biserial([0, 0]) == 0
    d = np.random.default_rng(10).normal(0.3, 1, 20)
    statistic = stats.wilcoxon(d, alternative="greater").statistic  # the sum of positive ranks
    assert rank_biserial(d) == pytest.approx(2 * statistic / (20 * 21 / 2) - 1)
    with pytest.raises(TetherError, match="1 value"):
        rank_biserial([1, np.inf])


def test_comparison_over_tasks() -> None:
    rng = np.random.default_rng(11)
    full = np.exp(rng.normal(0, 3, 8))  # tasks of wholly different units
    errors = {"mft": 0.88 * full, "full": full, "same": full * np.exp(0.02 * rng.normal(size=8))}
    mft, same = compare_over_tasks(errors, "full")
    assert (mft.method, mft.reference, mft.n_tasks, mft.n_better) == ("mft", "full", 8, 8)
    assert mft.gain_percent == pytest.approx(12)
    assert mft.p_value == pytest.approx(2 / 2**8)
    assert mft.p_holm == pytest.approx(4 / 2**8)
    assert mft.effect_size == 1
    log = np.log(full / errors["same"])
    bounds = stats.t.interval(0.95, 7, log.mean(), stats.sem(log))
    assert (same.low, same.high) == pytest.approx([100 * (1 - np.exp(-b)) for b in bounds])
    assert same.p_value == pytest.approx(stats.wilcoxon(log).pvalue)
    assert same.p_value > 0.05
    # Units do not matter.
    scaled = {name: np.array(e) * np.arange(1, 9) for name, e in errors.items()}
    assert compare_over_tasks(scaled, "full")[1].p_value == pytest.approx(same.p_value)
    assert compare_over_tasks({"a": full, "full": full}, "full")[0].p_value == 1
    # Five tasks can never be enough.
    few = {name: e[:5] for name, e in errors.items()}
    assert compare_over_tasks(few, "full")[0].p_value > 0.05


def test_task_refusals() -> None:
    with pytest.raises(TetherError, match="`reference` is 'x'.*a, b"):
        compare_over_tasks({"a": [1.0, 2], "b": [1.0, 2]}, "x")
    with pytest.raises(TetherError, match=r"shapes \[\(2,\), \(3,\)\]"):
        compare_over_tasks({"a": [1.0, 2], "b": [1.0, 2, 3]}, "a")
    with pytest.raises(TetherError, match=r"method 'b' has an error of 0\.0"):
        compare_over_tasks({"a": [1.0, 2], "b": [1.0, 0]}, "a")
    with pytest.raises(TetherError, match="2 methods"):
        mean_ranks({"a": [1.0, 2], "b": [1.0, 2]})


@pytest.mark.parametrize(("k", "quantile"), [(3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_critical_difference_is_that_of_the_table(k: int, quantile: float) -> None:
    # Demšar 2006, table 5a: quantiles of the two-tailed Nemenyi test at 0.05.
    rng = np.random.default_rng(12)
    found = mean_ranks({str(i): rng.uniform(1, 2, 14) for i in range(k)})
    expected = quantile * np.sqrt(k * (k + 1) / (6 * 14))
    assert found.critical_difference == pytest.approx(expected, abs=1e-3)
    assert found.ranks.sum() == pytest.approx(k * (k + 1) / 2)


def test_mean_ranks_and_friedman_by_their_formula() -> None:
    errors = {"a": [1.0, 1, 2, 1], "b": [2.0, 3, 1, 2], "c": [3.0, 2, 3, 3]}
    found = mean_ranks(errors)
    assert found.ranks.tolist() == [1.25, 2.0, 2.75]
    chi2 = 12 * 4 / (3 * 4) * (np.square(found.ranks).sum() - 3 * 16 / 4)
    assert found.p_value == pytest.approx(stats.chi2.sf(chi2, 2))
    tied = mean_ranks({"a": [1.0, 1], "b": [1.0, 2], "c": [3.0, 3]})
    assert tied.ranks.tolist() == [1.25, 1.75, 3.0]
    assert mean_ranks({name: [1.0, 2, 3] for name in "abc"}).p_value == 1

"""Bootstrap intervals and paired gains: against scipy, and coverage by simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from scipy import stats

from tether.errors import TetherError
from tether.metrics.intervals import (
    Interval,
    bootstrap_interval,
    paired_gain,
    seed_pooled_interval,
)
from tether.metrics.resampling import Losses, _kept_counts, drawn_means

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["mae", "rmse"]


def value_of(errors: NDArray[np.float64], kind: Kind, axis: int = -1) -> NDArray[np.float64]:
    if kind == "mae":
        return np.asarray(np.abs(errors).mean(axis=axis))
    return np.asarray(np.sqrt(np.square(errors).mean(axis=axis)))


@pytest.mark.parametrize("kind", ["mae", "rmse"])
def test_single_interval_is_scipys(kind: Kind) -> None:
    errors = np.random.default_rng(0).standard_t(5, size=300)
    ours = bootstrap_interval(errors, kind, n_resamples=20_000)
    theirs = stats.bootstrap(
        (errors,),
        lambda x, axis: value_of(x, kind, axis),
        n_resamples=20_000,
        method="percentile",
        random_state=1,
    ).confidence_interval
    assert ours.value == pytest.approx(value_of(errors, kind), rel=1e-12)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)


def coverage(intervals: list[Interval], truth: float) -> float:
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


@pytest.mark.parametrize(
    ("kind", "truth"), [("mae", np.sqrt(2 / np.pi)), ("rmse", 1.0)], ids=["mae", "rmse"]
)
def test_coverage_over_molecules(kind: Kind, truth: float) -> None:
    rng = np.random.default_rng(1)
    n = 400
    intervals = [
        bootstrap_interval(rng.normal(size=200), kind, n_resamples=400, seed=i) for i in range(n)
    ]
    # 95 % nominal; the binomial spread of 400 trials is 1.1 %.
    assert 0.91 < coverage(intervals, truth) < 0.985
    # Control: an interval at level 0.5 must not reach it.
    narrow = [
        bootstrap_interval(rng.normal(size=200), kind, n_resamples=400, level=0.5, seed=i)
        for i in range(n)
    ]
    assert 0.4 < coverage(narrow, truth) < 0.6


def simulated(
    rng: np.random.Generator, n_seeds: int, *, between: float, n: int = 200
) -> list[NDArray[np.float64]]:
    """Errors whose scale varies between seeds by `between`, on shared molecules; E[MAE] = 1."""
    molecule = rng.gamma(4, 0.25, n)  # hard and easy molecules, mean 1
    scale = 1 + between * rng.uniform(-1, 1, n_seeds)
    noise = rng.uniform(0.5, 1.5, (n_seeds, n)) * rng.choice([-1, 1], (n_seeds, n))
    return list(scale[:, None] * molecule * noise)


@pytest.mark.parametrize(
    ("n_seeds", "between", "most"),
    [
        (1, 0.0, 0.985),
        (2, 0.2, 0.99),
        (3, 0.0, 0.995),
        (3, 0.5, 0.985),
        (5, 0.05, 0.99),
        (8, 0.4, 0.985),
    ],
)
def test_coverage_over_seeds(n_seeds: int, between: float, most: float) -> None:
    rng = np.random.default_rng(2)
    intervals = [
        seed_pooled_interval(simulated(rng, n_seeds, between=between), n_resamples=300, seed=i)
        for i in range(400)
    ]
    assert 0.91 < coverage(intervals, 1.0) < most


def test_a_bootstrap_of_three_seeds_would_be_too_narrow() -> None:
    # Control for Student's t: seeds drawn with replacement.
    rng = np.random.default_rng(2)
    found = []
    for _ in range(400):
        errors = np.array(simulated(rng, 3, between=0.5))
        molecules, seeds = rng.integers(200, size=(300, 200)), rng.integers(3, size=(300, 3))
        drawn = np.abs(errors)[:, molecules].mean(axis=2)[seeds, np.arange(300)[:, None]]
        low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
        found.append(Interval(1.0, low, high))
    assert coverage(found, 1.0) < 0.85


def test_pooling_by_concatenation_would_be_too_narrow() -> None:
    # Control for the shared molecules: as if 5 x 200 errors were 1,000 molecules.
    rng = np.random.default_rng(3)
    samples = [simulated(rng, 5, between=0.0) for _ in range(300)]
    joint = [seed_pooled_interval(s, n_resamples=300, seed=i) for i, s in enumerate(samples)]
    flat = [
        bootstrap_interval(np.concatenate(s), n_resamples=300, seed=i)
        for i, s in enumerate(samples)
    ]
    assert coverage(joint, 1.0) > 0.9
    assert coverage(flat, 1.0) < 0.8


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_without_noise_of_molecules_it_is_the_t_interval_of_seeds(level: float) -> None:
    scales = np.array([1.0, 1.1, 1.2, 1.5])
    errors = [np.full(50, s) for s in scales]
    found = seed_pooled_interval(errors, n_resamples=40_000, level=level)
    theirs = stats.ttest_1samp(scales, 0).confidence_interval(level)
    assert found.value == pytest.approx(1.2)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_an_error_is_never_below_zero() -> None:
    found = seed_pooled_interval([np.full(50, 1.0), np.full(50, 2.0)])
    assert found.low == 0
    assert found.high > 6


def test_seeds_of_a_gain_belong_together() -> None:
    # A seed that is hard for both says nothing about which is better.
    scales = np.array([1.0, 1.4, 0.8])
    a, b = ([s * level * np.ones(50) for s in scales] for level in (0.9, 1.0))
    paired = paired_gain(a, b)
    assert (paired.low, paired.high) == pytest.approx((10, 10))
    apart = paired_gain([a[i] for i in (1, 2, 0)], b)
    assert apart.low < -50
    assert apart.high == 100 or apart.high > 70


def test_value_is_the_mean_over_seeds_and_not_the_pooled_rmse() -> None:
    errors = [np.full(10, 1.0), np.full(10, 3.0)]
    assert seed_pooled_interval(errors, "rmse").value == pytest.approx(2.0)  # pooled: sqrt(5)


def test_one_seed_is_the_single_interval() -> None:
    errors = np.random.default_rng(4).normal(size=100)
    assert seed_pooled_interval([errors], "rmse") == bootstrap_interval(errors, "rmse")


def test_reproducible_and_independent_of_memory_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = np.random.default_rng(5).normal(size=100)
    whole = bootstrap_interval(errors)
    assert whole == bootstrap_interval(errors)
    assert whole != bootstrap_interval(errors, seed=1)
    monkeypatch.setattr("tether.metrics.resampling._CHUNK", 700)
    _kept_counts.cache_clear()
    chunked = bootstrap_interval(errors)
    assert chunked.low == pytest.approx(whole.low, rel=1e-12)
    assert chunked.value == whole.value


def test_kept_draws_are_those_of_the_generators_state() -> None:
    losses = [Losses(np.random.default_rng(6).exponential(size=(2, 50)))]
    generator = np.random.default_rng(7)
    first, second = (drawn_means(generator, losses, 30)[0] for _ in range(2))
    assert not np.array_equal(first, second)
    _kept_counts.cache_clear()
    again = np.random.default_rng(7)
    for expected in (first, second):
        np.testing.assert_array_equal(drawn_means(again, losses, 30)[0], expected)
    # What is drawn next is the same too, whether the draws were made or kept.
    assert again.random() == generator.random()
    by_hand = np.random.default_rng(7).integers(50, size=(30, 50))
    np.testing.assert_allclose(first, losses[0].sums[:, by_hand].mean(axis=2), rtol=1e-12)


# --- gains --------------------------------------------------------------------------------------


def test_gain_by_hand() -> None:
    gain = paired_gain([np.full(30, 0.8)], [np.full(30, -1.0)])
    assert gain.percent == pytest.approx(20.0)
    assert (gain.low, gain.high) == pytest.approx((20.0, 20.0))
    assert gain.p_value == pytest.approx(1 / 10_000)
    worse = paired_gain([np.full(30, 1.0)], [np.full(30, 0.8)])
    assert worse.percent == pytest.approx(-25.0)


@pytest.mark.parametrize("kind", ["mae", "rmse"])
def test_p_value_is_scipys(kind: Kind) -> None:
    rng = np.random.default_rng(6)
    a, b = rng.normal(size=60), 1.25 * rng.normal(size=60)
    losses = [np.abs(x) if kind == "mae" else np.square(x) for x in (a, b)]
    expected = stats.permutation_test(
        losses,
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=40_000,
        random_state=1,
    ).pvalue
    assert 0.001 < expected < 0.9
    ours = paired_gain([a], [b], kind, n_permutations=40_000).p_value
    assert ours == pytest.approx(expected, abs=4 * np.sqrt(expected / 40_000) + 1e-3)


def test_p_value_is_exact_for_few_molecules() -> None:
    # Three equal differences: 2 of 8 sign patterns are as extreme.
    p = paired_gain([np.zeros(3)], [np.ones(3)], n_permutations=40_000).p_value
    assert p == pytest.approx(0.25, abs=0.01)


def test_p_value_is_uniform_without_a_difference() -> None:
    rng = np.random.default_rng(7)
    p_values = [
        paired_gain(
            [rng.normal(size=80)], [rng.normal(size=80)], n_permutations=199, n_resamples=1, seed=i
        ).p_value
        for i in range(400)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    assert np.mean(np.array(p_values) <= 0.05) < 0.09


def test_identical_methods_have_no_gain() -> None:
    errors = [np.random.default_rng(8).normal(size=100)]
    gain = paired_gain(errors, errors)
    assert (gain.percent, gain.low, gain.high, gain.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_pairing_narrows_the_interval() -> None:
    # A small, even gain on molecules of very different difficulty shows only when paired.
    rng = np.random.default_rng(9)
    difficulty = rng.lognormal(0, 1.5, 300)
    reference = difficulty * rng.uniform(0.9, 1.1, 300)
    method = 0.97 * difficulty * rng.uniform(0.9, 1.1, 300)
    paired = paired_gain([method], [reference])
    shuffled = paired_gain([rng.permutation(method)], [reference])
    assert paired.low > 0
    assert paired.p_value < 0.01
    assert shuffled.low < 0 < shuffled.high
    assert shuffled.p_value > 0.05


@pytest.mark.parametrize(
    ("independent", "most"),
    # Noise that differs from seed to seed counts in both levels: up to sqrt(2) too wide.
    [(0.02, 0.98), (0.5, 1.0)],
)
def test_gain_interval_covers(independent: float, most: float) -> None:
    rng = np.random.default_rng(10)
    hits = []
    for i in range(300):
        molecule = rng.gamma(4, 0.25, 150)
        errors = []
        for level in (0.9, 1.0):
            shared = level * molecule * rng.uniform(0.5, 1.5, 150)  # what the method finds hard
            scale = rng.uniform(0.99, 1.01, (4, 1))
            noise = rng.uniform(1 - independent, 1 + independent, (4, 150))
            errors.append(list(scale * shared * noise))
        gain = paired_gain(*errors, n_resamples=300, n_permutations=1, seed=i)
        hits.append(gain.low <= 10 <= gain.high)
    assert 0.90 < np.mean(hits) <= most


def test_unequal_numbers_of_seeds() -> None:
    rng = np.random.default_rng(11)
    a, b = ([rng.normal(size=50) * s for _ in range(k)] for s, k in ((0.5, 2), (1.0, 3)))
    gain = paired_gain(a, b, "rmse")
    expected = 100 * (
        1 - np.mean([value_of(x, "rmse") for x in a]) / np.mean([value_of(x, "rmse") for x in b])
    )
    assert gain.percent == pytest.approx(expected)
    assert gain.low < gain.percent < gain.high


def test_refusals() -> None:
    good = np.ones(3)
    with pytest.raises(TetherError, match="`statistic` is 'r2'"):
        bootstrap_interval(good, "r2")  # type: ignore[arg-type]
    with pytest.raises(TetherError, match=r"shapes \[\(2,\), \(3,\)\]"):
        seed_pooled_interval([good, np.ones(2)])
    with pytest.raises(TetherError, match=r"shapes \[\]"):
        seed_pooled_interval([])
    with pytest.raises(TetherError, match=r"shapes \[\(0,\)\]"):
        bootstrap_interval([])
    with pytest.raises(TetherError, match="`errors_by_seed` has 1 value.* not finite"):
        bootstrap_interval([1.0, np.nan])
    with pytest.raises(TetherError, match="`level` 95"):
        bootstrap_interval(good, level=95)
    with pytest.raises(TetherError, match="`n_resamples` is 0"):
        bootstrap_interval(good, n_resamples=0)
    with pytest.raises(TetherError, match="`errors_a` has 3 structures and `errors_b` 2"):
        paired_gain([good], [np.ones(2)])
    with pytest.raises(TetherError, match="reference has no error at all"):
        paired_gain([good], [np.zeros(3)])
    with pytest.raises(TetherError, match=r"`errors_a` has arrays of shapes \[\(\)\]"):
        paired_gain(good, [good])  # type: ignore[arg-type]


def test_atoms_of_a_molecule_are_no_evidence_of_their_own() -> None:
    """Null cases of two methods alike on average, whose errors are shared by a molecule's atoms."""
    generator = np.random.default_rng(0)
    rejected = {"molecules": 0, "atoms": 0}
    for _ in range(60):
        a, b = (tuple(np.repeat(generator.normal(size=30), 12).reshape(30, 12)) for _ in range(2))
        for kind, errors in (
            ("molecules", (a, b)),
            ("atoms", (np.concatenate(a), np.concatenate(b))),
        ):
            gain = paired_gain([errors[0]], [errors[1]], n_resamples=2, n_permutations=400)
            rejected[kind] += gain.p_value < 0.05
    assert rejected["molecules"] < 9
    assert rejected["atoms"] > 25


def test_sizes_of_structures_are_no_spread() -> None:
    """Every atom has the same error: whatever is drawn, the mean over its atoms is that."""
    errors = tuple(np.ones(size) for size in [3] * 50 + [100] * 10)
    for statistic in ("mae", "rmse"):
        found = bootstrap_interval(errors, statistic)
        assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
    # A structure without a label is none, wherever it stands.
    empty = np.empty(0)
    ragged = (np.array([1.0, 2.0]), empty, np.array([4.0]), empty)
    assert bootstrap_interval(ragged) == bootstrap_interval((ragged[0], ragged[2]))
    assert bootstrap_interval(ragged).value == pytest.approx(7 / 3)


def test_draws_that_are_too_many_to_keep_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [np.random.default_rng(s).normal(size=700) for s in range(3)]
    kept = seed_pooled_interval(errors, "rmse", n_resamples=500)
    monkeypatch.setattr("tether.metrics.resampling._KEPT", 0)
    assert seed_pooled_interval(errors, "rmse", n_resamples=500) == kept

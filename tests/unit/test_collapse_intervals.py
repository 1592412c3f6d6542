"""Delete-half intervals: against known standard errors, by coverage, and beside the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tether.collapse.intervals import half_differences, half_width, some_groups, split_halves
from tether.collapse.transport import sliced_wasserstein1
from tether.errors import TetherError


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 100))
def test_halves_part_the_structures(groups: list[int], seed: int) -> None:
    n_groups = len(set(groups))
    if n_groups < 4:
        with pytest.raises(
            TetherError, match=rf"of {n_groups} structure\(s\); expected at least 4"
        ):
            split_halves(groups, seed=seed)
        return
    array = np.array(groups)
    for first, second in split_halves(groups, n_splits=3, seed=seed):
        a, b = set(array[first].tolist()), set(array[second].tolist())
        assert not a & b
        assert len(a) == len(b) == n_groups // 2
        assert set(first) == set(np.flatnonzero(np.isin(array, list(a))))


def test_width_is_that_of_the_mean() -> None:
    x = np.random.default_rng(0).normal(size=400)
    halves = split_halves(np.arange(400), n_splits=4000)
    width = half_width(half_differences(lambda idx: x[idx].mean(), halves), 400)[0]
    known = stats.t.ppf(0.975, 399) * x.std(ddof=1) / 20
    assert width == pytest.approx(known, rel=0.03)


def test_atoms_of_one_structure_are_not_independent() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(80), 10)
    x = rng.normal(size=80)[groups] + 0.1 * rng.normal(size=800)
    by_structure, by_atom = (
        half_width(half_differences(lambda i: x[i].mean(), split_halves(g, n_splits=300)), 80)[0]
        for g in (groups, np.arange(800))
    )
    known = 1.99 * x.reshape(80, 10).mean(axis=1).std(ddof=1) / np.sqrt(80)
    assert by_structure == pytest.approx(known, rel=0.1)
    assert by_atom < 0.5 * known


def test_coverage_by_simulation() -> None:
    rng = np.random.default_rng(0)
    hits = {0.95: 0, 0.5: 0}
    n = 300
    for seed in range(n):
        x = rng.normal(size=100)
        halves = split_halves(np.arange(100), n_splits=20, seed=seed)
        differences = half_differences(lambda idx, x=x: x[idx].std(), halves)  # type: ignore[misc]
        for level in hits:
            width = half_width(differences, 100, level=level)[0]
            hits[level] += abs(x.std() - 1) <= width
    # The binomial spread of 300 trials is 1.3 %. Control: the level matters.
    assert 0.91 < hits[0.95] / n < 0.98
    assert 0.40 < hits[0.5] / n < 0.60


def test_the_naive_bootstrap_is_biased_where_halves_are_not() -> None:
    """Transport between two samples of one distribution: doubles make a resample look farther."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 200, 8))
    value = sliced_wasserstein1(x, y, scale=1.0)
    drawn = [
        sliced_wasserstein1(
            x[rng.integers(200, size=200)], y[rng.integers(200, size=200)], scale=1.0
        )
        for _ in range(40)
    ]
    assert np.quantile(drawn, 0.025) > value  # the value is outside its own interval
    halves = split_halves(np.arange(200))
    differences = half_differences(lambda i: sliced_wasserstein1(x[i], y[i], scale=1.0), halves)
    assert abs(differences.mean()) < 0.5 * differences.std()


def test_values_that_cannot_be_computed_are_left_out() -> None:
    differences = np.array([[1.0, np.nan]] * 3 + [[-1.0, 2.0]] * 3)
    width = half_width(differences, 10_000)
    assert width[0] == pytest.approx(stats.t.ppf(0.975, 6), rel=1e-3)
    assert np.isnan(width[1])  # three splits are too few
    several = half_differences(lambda i: [i.sum(), 1.0], split_halves(np.arange(8), n_splits=5))
    assert several.shape == (5, 2)
    assert (several[:, 1] == 0).all()


def test_some_groups_are_whole() -> None:
    groups = np.repeat(np.arange(30), np.arange(1, 31))
    chosen = some_groups(groups, 100, seed=1)
    assert len(chosen) <= 100
    assert (np.sort(chosen) == chosen).all()
    for group in set(groups[chosen].tolist()):
        assert np.isin(np.flatnonzero(groups == group), chosen).all()
    assert (some_groups(groups, 1000) == np.arange(len(groups))).all()
    assert some_groups(groups, 100, seed=2).tolist() != chosen.tolist()
    with pytest.raises(TetherError, match=r"a structure has 50 points; expected at most 20"):
        some_groups(np.zeros(50), 20)

"""Drift, rank and dimension: closed forms, independent implementations, a published value."""

from __future__ import annotations

import sys
from math import gamma, pi, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import ortho_group, wasserstein_distance

from tether.collapse.rank import effective_rank, intrinsic_dimension
from tether.collapse.similarity import debiased_cka
from tether.collapse.transport import MAX_EXACT, sliced_wasserstein1, wasserstein1
from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# Sums in another order.
MATCH = 1e-9

Array = Any


def normal(n: int, width: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(n, width))


def rotated(x: NDArray[np.float64], seed: int = 2) -> NDArray[np.float64]:
    return x @ ortho_group.rvs(x.shape[1], random_state=seed)


# --- transport


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 40), st.integers(1, 5))
def test_exact_transport_is_the_best_assignment(seed: int, n: int, width: int) -> None:
    x, y = normal(n, width, seed), 2 * normal(n, width, seed + 1) + 1
    cost = cdist(x, y)
    best = cost[linear_sum_assignment(cost)].mean()
    assert wasserstein1(x, y, scale=1.0) == pytest.approx(best, rel=MATCH)


def test_a_shifted_gaussian_is_as_far_as_it_was_shifted() -> None:
    x = normal(400, 8)
    shift = np.zeros(8)
    shift[:2] = 3, 4
    spread = np.sqrt(np.var(x, axis=0).sum())
    assert wasserstein1(x, x + shift) == pytest.approx(5 / spread, rel=MATCH)
    # The cost is the distance, not its square.
    assert wasserstein1(x, x + 2 * shift) == pytest.approx(10 / spread, rel=MATCH)


def test_scaling_a_gaussian_moves_it_by_its_mean_length() -> None:
    """Radially by a factor is optimal, so W1 = E|x| for a doubled Gaussian: closed form."""
    x, width = normal(500, 6), 6
    mean_length = sqrt(2) * gamma((width + 1) / 2) / gamma(width / 2)
    assert wasserstein1(x, 2 * x, scale=1.0) == pytest.approx(mean_length, rel=0.03)


def test_samples_of_one_gaussian_are_far_apart_in_many_dimensions() -> None:
    """The pitfall: two samples of the *same* 128-d Gaussian, 84 to 88 % of the mean distance."""
    x, y = normal(500, 128), normal(500, 128, seed=1)
    share = wasserstein1(x, y, scale=1.0) / cdist(x, y).mean()
    assert 0.84 < share < 0.88


def test_exact_transport_takes_samples_of_different_size() -> None:
    x, y = normal(30, 1), normal(47, 1, seed=1)
    known = wasserstein_distance(x[:, 0], y[:, 0])
    assert wasserstein1(x, y, scale=1.0) == pytest.approx(known, rel=MATCH)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 40), st.integers(2, 40))
def test_sliced_transport_is_scipys_along_each_direction(seed: int, n: int, m: int) -> None:
    x, y = normal(n, 3, seed), normal(m, 3, seed + 1) * 2
    u = np.random.default_rng(5).normal(size=(3, 16))
    u /= np.linalg.norm(u, axis=0)
    known = np.mean([wasserstein_distance(x @ v, y @ v) for v in u.T])
    ours = sliced_wasserstein1(x, y, seed=5, n_directions=16, scale=1.0)
    assert ours == pytest.approx(known, rel=MATCH)


def test_sliced_transport_of_a_shift_has_a_closed_form_and_a_bound() -> None:
    x, width = normal(200, 20), 20
    shift = np.full(width, 3 / sqrt(width))
    ours = sliced_wasserstein1(x, x + shift, scale=1.0, n_directions=4000)
    mean_cosine = gamma(width / 2) / (sqrt(pi) * gamma((width + 1) / 2))
    assert ours == pytest.approx(3 * mean_cosine, rel=0.04)
    y = normal(200, 20, seed=1) * 3
    assert sliced_wasserstein1(x, y) < wasserstein1(x, y)


@pytest.mark.parametrize("distance", [wasserstein1, sliced_wasserstein1])
def test_transport_scales_and_turns_with_both_sides(distance: Callable[..., float]) -> None:
    x, y = normal(150, 10), normal(150, 10, seed=1) + 0.3
    value = distance(x, y)
    assert distance(x, x) == 0.0
    assert distance(x, x.copy()[::-1]) == 0.0
    assert distance(10 * x + 4, 10 * y + 4) == pytest.approx(value, rel=1e-6)
    if distance is wasserstein1:
        assert distance(rotated(x), rotated(y)) == pytest.approx(value, rel=1e-6)
    # Control: turning or scaling one side is a movement.
    stretched = x * np.arange(1, 11)
    assert distance(stretched, rotated(stretched)) > 0.01
    assert distance(x, 10 * x) > 0.1


def test_bad_transports() -> None:
    x = normal(10, 3)
    for distance in (wasserstein1, sliced_wasserstein1):
        with pytest.raises(TetherError, match=r"the features have 3 and 4 columns"):
            distance(x, normal(10, 4))
        with pytest.raises(TetherError, match=r"`after` has 1 value\(s\) that are not finite"):
            distance(x, np.where(np.arange(30).reshape(10, 3) == 4, np.inf, x))
        with pytest.raises(TetherError, match=r"all points of `before` coincide"):
            distance(np.ones((10, 3)), x)
        with pytest.raises(TetherError, match=r"`scale` is 0"):
            distance(x, x, scale=0)
        with pytest.raises(TetherError, match=r"`before` has shape \(10,\)"):
            distance(x[:, 0], x)
    with pytest.raises(TetherError, match=rf"2001 points; expected at most {MAX_EXACT}"):
        wasserstein1(normal(2001, 1), x[:, :1])
    with pytest.raises(TetherError, match=r"`n_directions` is 0"):
        sliced_wasserstein1(x, x, n_directions=0)


def test_without_pot_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(TetherError, match=r"package POT.*pip install 'tether\[collapse\]'"):
        wasserstein1(normal(5, 2), normal(5, 2))


# --- CKA


def cka_of_kernels(x: Array, y: Array) -> float:
    """Song's unbiased HSIC (2012, eq. 5) written with n × n kernels: nothing shared with ours."""

    def hsic(k: Array, m: Array) -> float:
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        one = np.ones(n)
        trace = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return float((trace - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3)))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / sqrt(hsic(k, k) * hsic(m, m))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(12, 40), st.integers(1, 6), st.integers(1, 6))
def test_cka_is_that_of_the_kernels(seed: int, n: int, width: int, other: int) -> None:
    rng = np.random.default_rng(seed)
    # Structure in both, so that neither self-similarity is lost in noise.
    hidden = 3 * rng.normal(size=(n, 2))
    x = hidden @ rng.normal(size=(2, width)) + 0.3 * rng.normal(size=(n, width)) + 1
    y = hidden @ rng.normal(size=(2, other)) + 0.3 * rng.normal(size=(n, other)) - 2
    assert debiased_cka(x, y) == pytest.approx(cka_of_kernels(x, y), rel=1e-6, abs=1e-8)


def test_cka_is_the_published_value() -> None:
    """Printed in the demo of Kornblith et al. (google-research, representation_similarity)."""
    np.random.seed(1337)
    x = np.random.randn(100, 10)
    y = np.random.randn(100, 10) + x
    assert round(debiased_cka(x, y), 5) == 0.51346


def test_cka_does_not_see_rotation_shift_and_scale_but_sees_the_rest() -> None:
    x = normal(300, 20) * np.linspace(0.2, 3, 20)
    assert debiased_cka(x, x.copy()) == 1.0
    for same in (rotated(x), 5 * x, x + 100):
        assert debiased_cka(x, same) == pytest.approx(1, abs=1e-9)
    # Controls: scaling of single columns, and the class-free collapse.
    assert debiased_cka(x, x / np.linspace(0.2, 3, 20)) < 0.9
    assert debiased_cka(x, x.mean(axis=0) + normal(300, 20, seed=4)) < 0.1


def test_unrelated_features_have_cka_0_on_average_also_with_few_points() -> None:
    values = [debiased_cka(normal(40, 30, 2 * i), normal(40, 30, 2 * i + 1)) for i in range(60)]
    assert np.mean(values) == pytest.approx(0, abs=0.05)

    def plain(x: Array, y: Array) -> float:
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
        return float(np.sum((x.T @ y) ** 2) / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y))

    # Control: the plain estimator calls the same features alike.
    assert (
        np.mean([plain(normal(40, 30, 2 * i), normal(40, 30, 2 * i + 1)) for i in range(9)]) > 0.3
    )


def test_bad_cka() -> None:
    x = normal(20, 3)
    with pytest.raises(TetherError, match=r"`before` has 20 points and `after` 19"):
        debiased_cka(x, x[1:])
    with pytest.raises(TetherError, match=r"`before` has 3 points; expected at least 4"):
        debiased_cka(x[:3], x[:3])
    with pytest.raises(TetherError, match=r"all points of `after` coincide"):
        debiased_cka(x, np.ones((20, 3)))
    with pytest.raises(TetherError, match=r"`after` has 20 value\(s\) that are not finite"):
        debiased_cka(x, np.column_stack([x, np.full(20, np.nan)]))
    # A simplex: every pair of points is alike, which is what noise in many dimensions looks like.
    with pytest.raises(TetherError, match=r"not above what noise gives"):
        debiased_cka(np.eye(10), np.eye(10))


# --- rank


def test_effective_rank_of_gaussians() -> None:
    assert effective_rank(normal(20_000, 32)) == pytest.approx(32, rel=0.002)
    # Closed form: deviations 1 and 3 have shares 1/4 and 3/4.
    two = normal(200_000, 2) * [1, 3]
    known = np.exp(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))
    assert effective_rank(two) == pytest.approx(known, rel=0.002)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_effective_rank_of_rank_k_is_k(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    # k directions of equal length, orthogonal to each other and to the mean.
    q, _ = np.linalg.qr(np.column_stack([np.ones(60), rng.normal(size=(60, k))]))
    x = q[:, 1:] @ ortho_group.rvs(8, random_state=seed)[:k] + 5
    assert effective_rank(x) == pytest.approx(k, rel=1e-6)


def test_effective_rank_is_that_of_the_singular_values() -> None:
    x = normal(300, 12) @ normal(12, 12, seed=1)
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    share = values / values.sum()
    assert effective_rank(x) == pytest.approx(float(np.exp(-share @ np.log(share))), rel=1e-8)


def test_the_mean_is_no_direction() -> None:
    x = normal(500, 10)
    assert effective_rank(x + 1000) == pytest.approx(effective_rank(x), rel=1e-6)
    # Control: without centring the mean would be all that is seen.
    values = np.linalg.svd(x + 1000, compute_uv=False)
    share = values / values.sum()
    assert np.exp(-share @ np.log(share)) < 2


# --- intrinsic dimension


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_dimension_of_a_cube(dimension: int) -> None:
    x = np.random.default_rng(0).random((1500, dimension))
    assert intrinsic_dimension(x) == pytest.approx(dimension, rel=0.1)
    # Curled up in ten dimensions it is the same cube.
    waves = np.column_stack([np.sin(x / 3), np.cos(x / 3)]) @ normal(2 * dimension, 10)
    assert intrinsic_dimension(waves) == pytest.approx(dimension, rel=0.15)


def test_dimension_is_facco_s_line_within_its_error() -> None:
    """Independent: the published fit of -ln(1 - F) against ln mu through the origin."""
    x = np.random.default_rng(1).random((1500, 4))
    near = np.sort(cdist(x, x), axis=1)[:, 1:3]
    logs = np.sort(np.log(near[:, 1] / near[:, 0]))
    n = len(logs)
    survival = -np.log(1 - np.arange(n) / n)
    kept = int(0.9 * n)
    line = (logs[:kept] @ survival[:kept]) / (logs[:kept] @ logs[:kept])
    assert intrinsic_dimension(x) == pytest.approx(line, rel=0.06)


def test_dimension_estimate_has_no_bias() -> None:
    rng = np.random.default_rng(0)
    found = [intrinsic_dimension(rng.random((200, 2))) for _ in range(60)]
    assert np.mean(found) == pytest.approx(2, abs=0.06)


def test_doubles_do_not_count_and_groups_keep_them_apart() -> None:
    x = np.random.default_rng(0).random((400, 3))
    doubled = np.concatenate([x, x + 1e-4 * normal(400, 3)])
    structure = np.tile(np.arange(400), 2)
    apart = intrinsic_dimension(doubled, groups=structure)
    assert apart == pytest.approx(intrinsic_dimension(x), rel=0.15)
    # Control: without groups each point's double is its first neighbour, at almost no distance.
    assert intrinsic_dimension(doubled) < 1


@pytest.mark.parametrize("measure", [effective_rank, intrinsic_dimension])
def test_collapsed_and_rotated_are_told_apart(measure: Callable[[Array], float]) -> None:
    x = normal(400, 12)
    value = measure(x)
    for same in (rotated(x), 3 * x, x + 9):
        assert measure(same) == pytest.approx(value, rel=1e-6)
    # Collapse onto few directions, with a little noise in all.
    lost = x[:, :2] @ normal(2, 12, seed=1) + 1e-3 * normal(400, 12, seed=2)
    assert measure(lost) < 0.4 * value
    # Control: squashing columns is no rotation.
    assert measure(x * np.logspace(0, -3, 12)) < 0.8 * value


def test_bad_rank_and_dimension() -> None:
    with pytest.raises(TetherError, match=r"10 points of 10 features; expected more points"):
        effective_rank(normal(10, 10))
    for measure in (effective_rank, intrinsic_dimension):
        with pytest.raises(TetherError, match=r"all points of `features` coincide"):
            measure(np.full((50, 3), 0.1))
        with pytest.raises(TetherError, match=r"2 value\(s\) that are not finite"):
            measure(np.array([[np.nan, np.inf]] * 1 + [[1.0, 2.0]] * 30))
    with pytest.raises(TetherError, match=r"has 19 points; expected at least 20"):
        intrinsic_dimension(normal(19, 2))
    with pytest.raises(TetherError, match=r"30 of 40 points coincide with another one"):
        intrinsic_dimension(np.concatenate([normal(10, 2), *[normal(10, 2, seed=1)] * 3]))
    lattice = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), axis=-1).reshape(-1, 2)
    with pytest.raises(TetherError, match=r"first and second neighbours are equally far"):
        intrinsic_dimension(lattice)

"""Statistics of labels against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.data.statistics import (
    fit_element_reference,
    mean_and_std,
    outlier_scores,
    reference_outlier_scores,
)
from tether.errors import TetherError


def test_mean_and_std_ignore_nan() -> None:
    mean, std = mean_and_std([1.0, np.nan, 5.0])
    assert (mean, std) == (3.0, 2.0)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e9, 1e-12])
def test_constant_target_is_refused(value: float) -> None:
    with pytest.raises(TetherError, match="target `gap` is constant: all 7 values are"):
        mean_and_std([value] * 7, name="gap")


def test_small_spread_on_a_large_offset_is_not_constant() -> None:
    assert mean_and_std([1e6, 1e6 + 1e-3])[1] == pytest.approx(5e-4, rel=1e-3)


def test_target_without_values_is_refused() -> None:
    with pytest.raises(TetherError, match="target `gap` has no value: all 2 are NaN"):
        mean_and_std([np.nan, np.nan], name="gap")
    with pytest.raises(TetherError, match="no value to fit: all 1 are NaN"):
        fit_element_reference([[1]], [np.nan])


@given(st.integers(0, 2**32 - 1))
def test_reference_recovers_what_made_the_values(seed: int) -> None:
    random = np.random.default_rng(seed)
    counts = np.zeros((40, 119), dtype=int)
    counts[:, [1, 6, 8]] = random.integers(0, 9, (40, 3)) + np.eye(40, 3, dtype=int)
    values = counts[:, [1, 6, 8]] @ [-0.5, -38.0, -75.0]
    values[7] = np.nan
    elements, coefficients = fit_element_reference(counts, values)
    assert elements.tolist() == [1, 6, 8]
    np.testing.assert_allclose(coefficients, [-0.5, -38.0, -75.0], atol=1e-8)


def test_reference_of_one_composition_is_of_least_norm() -> None:
    elements, coefficients = fit_element_reference([[2, 1]] * 3, [5.0] * 3, elements=[1, 8])
    assert elements.tolist() == [1, 8]
    np.testing.assert_allclose(coefficients, [2.0, 1.0])


def test_scores_of_a_normal_sample_are_standard_deviations() -> None:
    scores = outlier_scores(np.random.default_rng(0).normal(3.0, 2.0, 20_000))
    assert scores.std() == pytest.approx(1.0, abs=0.03)


def test_scores_without_spread_and_with_nan() -> None:
    assert outlier_scores([1.0, 1.0, 1.0, 2.0, 0.0]).tolist() == [0, 0, 0, np.inf, -np.inf]
    assert np.isnan(outlier_scores([np.nan, 1.0, 2.0])).tolist() == [True, False, False]
    assert np.isnan(outlier_scores([np.nan])).all()


def test_a_gross_error_stands_out_and_does_not_bend_the_fit() -> None:
    random = np.random.default_rng(0)
    counts = random.integers(1, 9, (200, 2))
    values = counts @ [-13.0, -1000.0] + random.normal(0, 0.1, 200)
    clean = reference_outlier_scores(counts, values)
    assert np.abs(clean).max() < 10
    values[5] *= 27.2  # Ha among eV
    values[6] = np.nan
    scores = reference_outlier_scores(counts, values)
    assert abs(scores[5]) > 1000
    assert np.isnan(scores[6])
    others = np.delete(np.arange(200), [5, 6])
    np.testing.assert_allclose(scores[others], clean[others], atol=0.5)


def test_exact_fit_has_no_outliers() -> None:
    counts = np.random.default_rng(0).integers(1, 9, (50, 3))
    assert np.abs(reference_outlier_scores(counts, counts @ [1.1, -38.7, 0.3])).max() == 0

"""Regression metrics and reference lines against closed forms, scipy and scikit-learn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from tether.errors import TetherError
from tether.metrics.regression import METRICS, mae, max_error, r2, rmse, spearman
from tether.metrics.shift import clip_oracle, mean_predictor

if TYPE_CHECKING:
    from numpy.typing import NDArray


def data(n: int = 500) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    true = np.round(rng.gamma(4, size=n), 1)  # with ties
    return true, true + rng.standard_t(3, size=n)


def test_against_scikit_learn_and_scipy() -> None:
    true, pred = data()
    assert mae(true, pred) == pytest.approx(reference.mean_absolute_error(true, pred), rel=1e-12)
    expected = math.sqrt(reference.mean_squared_error(true, pred))
    assert rmse(true, pred) == pytest.approx(expected, rel=1e-12)
    assert max_error(true, pred) == pytest.approx(reference.max_error(true, pred), rel=1e-12)
    assert r2(true, pred) == pytest.approx(reference.r2_score(true, pred), rel=1e-12)
    ranks = [stats.rankdata(x) for x in (true, pred)]
    assert spearman(true, pred) == pytest.approx(np.corrcoef(ranks)[0, 1], rel=1e-12)


def test_by_hand() -> None:
    true, pred = [0.0, 2.0], [1.0, -1.0]
    assert (mae(true, pred), max_error(true, pred)) == (2.0, 3.0)
    assert rmse(true, pred) == pytest.approx(math.sqrt(5))
    assert r2(true, pred) == pytest.approx(1 - 10 / 2)
    assert spearman(true, pred) == pytest.approx(-1.0)


def test_r2_of_the_training_mean_on_a_shifted_set_is_negative() -> None:
    true, _ = data()
    assert r2(true, mean_predictor(true, len(true))) == pytest.approx(0.0, abs=1e-12)
    assert r2(true, mean_predictor(true + 5, len(true))) < -1


def test_constant_side_gives_nan_without_warning() -> None:
    assert math.isnan(r2([1.0, 1.0], [1.0, 2.0]))
    assert math.isnan(spearman([1.0, 1.0], [1.0, 2.0]))
    assert math.isnan(spearman([1.0, 2.0], [3.0, 3.0]))


@pytest.mark.parametrize("name", list(METRICS))
def test_every_metric_refuses_bad_arrays(name: str) -> None:
    function = METRICS[name].function
    with pytest.raises(TetherError, match=r"`true` has shape \(2,\) and `pred` \(3,\)"):
        function([1, 2], [1, 2, 3])
    with pytest.raises(TetherError, match="at least one value"):
        function([], [])
    with pytest.raises(TetherError, match="`pred` has 1 value.* not finite, of 2"):
        function([1, 2], [1, np.nan])
    with pytest.raises(TetherError, match="`true` has 2 value"):
        function([np.inf, np.nan], [1, 2])


@pytest.mark.parametrize("name", list(METRICS))
def test_direction_and_unit_are_true(name: str) -> None:
    true, pred = data()
    metric = METRICS[name]
    better, worse = (metric.function(true, true + s * (pred - true)) for s in (0.3, 3.0))
    assert (better < worse) == (metric.better == "lower")
    factor = metric.function(10 * true, 10 * pred) / metric.function(true, pred)
    assert factor == pytest.approx({"target": 10.0, "none": 1.0}[metric.unit])


def test_table_is_frozen() -> None:
    table: Any = METRICS
    with pytest.raises(TypeError, match="does not support item assignment"):
        table["x"] = METRICS["mae"]


def test_clip_oracle() -> None:
    true = np.array([-2.0, 0.0, 0.5, 1.0, 4.0])
    assert clip_oracle(true, 0, 1).tolist() == [0, 0, 0.5, 1, 1]
    assert rmse(true, clip_oracle(true, 0, 1)) == pytest.approx(math.sqrt(13 / 5))
    with pytest.raises(TetherError, match="ID range is 2 to 1"):
        clip_oracle(true, 2, 1)
    with pytest.raises(TetherError, match="ID range is nan to 1"):
        clip_oracle(true, np.nan, 1)


def test_clip_oracle_is_the_best_prediction_within_the_range() -> None:
    true, pred = data()
    inside = np.clip(pred, 2.0, 5.0)
    oracle = clip_oracle(true, 2.0, 5.0)
    assert (np.abs(oracle - true) <= np.abs(inside - true)).all()
    assert rmse(true, oracle) > 0


def test_mean_predictor() -> None:
    assert mean_predictor([1.0, 2.0, 6.0], 2).tolist() == [3.0, 3.0]
    with pytest.raises(TetherError, match="1 of 2 training labels are not finite"):
        mean_predictor([1.0, np.nan], 2)
    with pytest.raises(TetherError, match="0 of 0 training labels"):
        mean_predictor([], 2)

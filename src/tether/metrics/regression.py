"""Regression metrics, with unit and direction."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import ArrayLike, NDArray

__all__ = ["METRICS", "Metric", "mae", "max_error", "r2", "rmse", "spearman"]


def mae(true: ArrayLike, pred: ArrayLike) -> float:
    r"""Mean absolute error, :math:`\frac{1}{n}\sum_i |\hat y_i - y_i|`.

    Parameters
    ----------
    true, pred : array, shape (n,) or (n, n_components)
        Values in the unit of the target; components count as further values.

    Returns
    -------
    float
        In the unit of the target.

    Raises
    ------
    TetherError
        For shapes that differ, no values, or values that are not finite.
    """
    y, p = _pair(true, pred)
    return float(np.mean(np.abs(p - y)))


def rmse(true: ArrayLike, pred: ArrayLike) -> float:
    r"""Root mean squared error, :math:`\sqrt{\frac{1}{n}\sum_i (\hat y_i - y_i)^2}`.

    Parameters
    ----------
    true, pred : array, shape (n,) or (n, n_components)
        Values in the unit of the target; components count as further values.

    Returns
    -------
    float
        In the unit of the target.

    Raises
    ------
    TetherError
        For shapes that differ, no values, or values that are not finite.
    """
    y, p = _pair(true, pred)
    return float(np.sqrt(np.mean(np.square(p - y))))


def max_error(true: ArrayLike, pred: ArrayLike) -> float:
    r"""Largest absolute error, :math:`\max_i |\hat y_i - y_i|`.

    Parameters
    ----------
    true, pred : array, shape (n,) or (n, n_components)
        Values in the unit of the target.

    Returns
    -------
    float
        In the unit of the target.

    Raises
    ------
    TetherError
        For shapes that differ, no values, or values that are not finite.
    """
    y, p = _pair(true, pred)
    return float(np.max(np.abs(p - y)))


def r2(true: ArrayLike, pred: ArrayLike) -> float:
    r"""Coefficient of determination.

    .. math:: 1 - \frac{\sum_i (\hat y_i - y_i)^2}{\sum_i (y_i - \bar y)^2}

    The mean is that of the evaluated set: on an OOD set the mean of *training* scores below 0.

    Parameters
    ----------
    true, pred : array, shape (n,)
        Values in the unit of the target.

    Returns
    -------
    float
        At most 1, without unit; NaN where all true values are equal.

    Raises
    ------
    TetherError
        For shapes that differ, no values, or values that are not finite.
    """
    y, p = _pair(true, pred)
    spread = np.sum(np.square(y - y.mean()))
    return float(1 - np.sum(np.square(p - y)) / spread) if np.ptp(y) > 0 else float("nan")


def spearman(true: ArrayLike, pred: ArrayLike) -> float:
    r"""Spearman's rank correlation: Pearson's correlation of the ranks, ties at their mean rank.

    Parameters
    ----------
    true, pred : array, shape (n,)
        Values in the unit of the target.

    Returns
    -------
    float
        Between -1 and 1; NaN where one side is constant.

    Raises
    ------
    TetherError
        For shapes that differ, no values, or values that are not finite.
    """
    y, p = _pair(true, pred)
    if np.ptp(y) == 0 or np.ptp(p) == 0:
        return float("nan")
    from scipy import stats  # a third of the time that a command takes to start

    return float(stats.spearmanr(y, p).statistic)


@dataclass(frozen=True)
class Metric:
    """A metric and how to read it.

    Attributes
    ----------
    name : str
        As in metrics.json.
    function : callable
        ``function(true, pred) -> float``.
    unit : {"target", "none"}
        Unit of the result: that of the target, or none.
    better : {"lower", "higher"}
        Direction.
    """

    name: str
    function: Callable[[ArrayLike, ArrayLike], float]
    unit: Literal["target", "none"]
    better: Literal["lower", "higher"]


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "mae": Metric("mae", mae, "target", "lower"),
        "rmse": Metric("rmse", rmse, "target", "lower"),
        "max_error": Metric("max_error", max_error, "target", "lower"),
        "r2": Metric("r2", r2, "none", "higher"),
        "spearman": Metric("spearman", spearman, "none", "higher"),
    }
)


def _pair(true: ArrayLike, pred: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, p = np.asarray(true, dtype=np.float64), np.asarray(pred, dtype=np.float64)
    if y.shape != p.shape or y.size == 0:
        raise TetherError(
            f"`true` has shape {y.shape} and `pred` {p.shape}",
            expected="equal shapes with at least one value",
            fix="pass one prediction a label",
        )
    for name, array in (("true", y), ("pred", p)):
        wrong = int(array.size - np.isfinite(array).sum())
        if wrong:
            raise TetherError(
                f"`{name}` has {wrong} value(s) that are not finite, of {array.size}",
                expected="finite values",
                fix="leave unlabelled structures out, and look at diverged predictions",
            )
    return y, p

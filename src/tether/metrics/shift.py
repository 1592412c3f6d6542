"""Reference lines of a distribution shift: what a model must beat to be said to extrapolate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tether.errors import TetherError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["clip_oracle", "mean_predictor"]


def clip_oracle(true: ArrayLike, id_low: float, id_high: float) -> NDArray[np.float64]:
    r"""Predictions of an oracle that cannot leave the ID range: :math:`\min(\max(y, a), b)`.

    It knows the label, yet says no more than the nearest edge of the ID range. A model with a
    larger OOD error does not extrapolate.

    Parameters
    ----------
    true : array, shape (n,)
        True values.
    id_low, id_high : float
        Range of the training labels.

    Returns
    -------
    array, shape (n,)
        Predictions.

    Raises
    ------
    TetherError
        When `id_low` is above `id_high`, or one is NaN.
    """
    _check_range(id_low, id_high)
    return np.clip(np.asarray(true, dtype=np.float64), id_low, id_high)


def mean_predictor(train_values: ArrayLike, n: int) -> NDArray[np.float64]:
    """Predict the mean of the training labels, whatever the structure.

    Parameters
    ----------
    train_values : array, shape (n_train,)
        Training labels.
    n : int
        Predictions wanted.

    Returns
    -------
    array, shape (n,)
        Predictions.

    Raises
    ------
    TetherError
        Without training labels, or with one that is not finite.
    """
    train = np.asarray(train_values, dtype=np.float64)
    if train.size == 0 or not np.isfinite(train).all():
        raise TetherError(
            f"{int(train.size - np.isfinite(train).sum())} of {train.size} training labels are "
            "not finite",
            expected="at least one, all finite",
            fix="leave unlabelled structures out",
        )
    return np.full(n, train.mean())


def _check_range(id_low: float, id_high: float) -> None:
    if not id_low <= id_high:
        raise TetherError(
            f"ID range is {id_low} to {id_high}",
            expected="id_low <= id_high",
            fix="pass the smallest and the largest training label",
        )

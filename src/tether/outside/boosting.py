"""Gradient-boosted trees on a matrix of descriptors, by scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.errors import TetherError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BoostedTrees", "BoostingSettings", "Trial", "fit_boosting"]


@dataclass(frozen=True)
class BoostingSettings:
    """Plain numbers of the boosting.

    Attributes
    ----------
    learning_rates : tuple of float
        Each is tried; the error on the validation set chooses.
    max_iterations : int
        Trees, at most.
    patience : int
        Trees without a better validation error before the fit stops.
    max_leaf_nodes, min_samples_leaf : int
        Of a tree.
    max_features : float
        Share of the columns that a split chooses among, drawn anew for each.
    """

    learning_rates: tuple[float, ...] = (0.03, 0.1)
    max_iterations: int = 2000
    patience: int = 100
    max_leaf_nodes: int = 31
    min_samples_leaf: int = 20
    max_features: float = 0.3

    def __post_init__(self) -> None:
        for accepted, name, expected in (
            (
                bool(self.learning_rates)
                and all(0.0 < rate <= 1.0 for rate in self.learning_rates),
                "learning_rates",
                "one number in (0, 1] or more",
            ),
            (self.max_iterations >= 1, "max_iterations", "a positive integer"),
            (self.patience >= 1, "patience", "a positive integer"),
            (self.max_leaf_nodes >= 2, "max_leaf_nodes", "2 or more"),
            (self.min_samples_leaf >= 1, "min_samples_leaf", "a positive integer"),
            (0.0 < self.max_features <= 1.0, "max_features", "a number in (0, 1]"),
        ):
            if not accepted:
                raise TetherError(
                    f"`{name}` of the boosting is {getattr(self, name)}",
                    expected=expected,
                    fix=f"leave it at {BoostingSettings.__dataclass_fields__[name].default}",
                )


@dataclass(frozen=True)
class Trial:
    """One fit, judged on the validation set.

    Attributes
    ----------
    learning_rate : float
        With which it was made.
    n_fitted, n_trees : int
        Trees that were grown, and those of them up to the least validation error.
    val_rmse : float
        That error, standardised.
    """

    learning_rate: float
    n_fitted: int
    n_trees: int
    val_rmse: float


@dataclass(frozen=True)
class BoostedTrees:
    """A fitted ensemble, cut where the validation error was least.

    Attributes
    ----------
    trial : Trial
        How it was chosen.
    columns : ndarray of bool, shape (n_columns,)
        Columns of the matrix that it reads.
    model : sklearn.ensemble.HistGradientBoostingRegressor
        With the trees behind the cut still in it.
    """

    trial: Trial
    columns: NDArray[np.bool_]
    model: Any

    def predict(self, matrix: NDArray[np.floating]) -> NDArray[np.float64]:
        """Prediction for each row.

        Parameters
        ----------
        matrix : ndarray, shape (n, n_columns)
            NaN = missing.

        Returns
        -------
        ndarray, shape (n,)
            On the scale of the values that were fitted.
        """
        stages = self.model.staged_predict(matrix[:, self.columns])
        found: NDArray[np.float64] = next(islice(stages, self.trial.n_trees - 1, None))
        return found


def fit_boosting(
    train: tuple[NDArray[np.floating], NDArray[np.floating]],
    val: tuple[NDArray[np.floating], NDArray[np.floating]],
    settings: BoostingSettings,
    *,
    seed: int,
) -> tuple[BoostedTrees, ...]:
    """Fit trees to squared errors, once for each learning rate; the validation set ranks the fits.

    Parameters
    ----------
    train, val : tuple of ndarray
        Matrix (n, n_columns), NaN = missing, and standardised values (n,), NaN = unlabelled.
    settings : BoostingSettings
        Size and search.
    seed : int
        Of the columns that a split may choose among.

    Returns
    -------
    tuple of BoostedTrees
        One for each learning rate, sorted by validation error.

    References
    ----------
    Ke et al., LightGBM, NeurIPS 2017, whose histograms of columns scikit-learn's follow.
    """
    matrix, values = _labelled(*train)
    val_matrix, val_values = _labelled(*val)
    columns = _divisible(matrix, settings.min_samples_leaf)
    inside, outside = matrix[:, columns], val_matrix[:, columns]
    fits = []
    for rate in settings.learning_rates:
        model = _regressor(settings, rate, seed)
        model.fit(inside, values, X_val=outside, y_val=val_values)
        # Minus half the mean squared error; the first is that of the mean, before any tree.
        scores = np.asarray(model.validation_score_)[1:]
        n_trees = int(scores.argmax()) + 1
        rmse = float(np.sqrt(-2.0 * scores[n_trees - 1]))
        fits.append(BoostedTrees(Trial(rate, len(scores), n_trees, rmse), columns, model))
    return tuple(sorted(fits, key=lambda fit: fit.trial.val_rmse))


def _labelled(
    matrix: NDArray[np.floating], values: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    known = ~np.isnan(values)
    return matrix[known], values[known]


def _divisible(matrix: NDArray[np.floating], min_samples_leaf: int) -> NDArray[np.bool_]:
    """Columns that can be split at all: enough rows differ from the column's most common value.

    The others change no tree, but would be drawn in place of columns that do. Where there is none,
    as in a set too small to be split, those with a number: the regressor wants a column.
    """
    filled = np.where(np.isnan(matrix), -np.inf, matrix)
    # A value that all but a few rows have is the median.
    middle = np.partition(filled, len(filled) // 2, axis=0)[len(filled) // 2]
    found: NDArray[np.bool_] = (filled != middle).sum(axis=0) >= min_samples_leaf
    return found if found.any() else ~np.isnan(matrix).all(axis=0)


def _regressor(settings: BoostingSettings, learning_rate: float, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(
        learning_rate=learning_rate,
        max_iter=settings.max_iterations,
        max_leaf_nodes=settings.max_leaf_nodes,
        min_samples_leaf=settings.min_samples_leaf,
        max_features=settings.max_features,
        early_stopping=True,
        n_iter_no_change=settings.patience,
        tol=0.0,
        random_state=seed,
    )

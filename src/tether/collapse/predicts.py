"""Does a measure of collapse foretell the error outside the distribution? Over runs."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from scipy import stats

from tether.errors import TetherError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["MIN_RUNS", "RankCorrelation", "rank_correlation"]

#: With three runs the smallest two-sided p is 1/3: nothing can be said.
MIN_RUNS = 4
# Up to here (5,040 orders) every order is tried.
_MAX_EXACT = 7


class RankCorrelation(TypedDict):
    """Spearman's rank correlation over runs.

    Attributes
    ----------
    rho : float
        Between -1 and 1.
    low, high : float
        95 % bootstrap interval over runs.
    p_value : float
        Two-sided, of the null hypothesis that the values could belong to any of the runs.
    n : int
        Runs.
    """

    rho: float
    low: float
    high: float
    p_value: float
    n: int


def rank_correlation(
    values: ArrayLike,
    ood_error: ArrayLike,
    *,
    seed: int = 0,
    n_resamples: int = 5000,
    n_permutations: int = 10_000,
) -> RankCorrelation:
    """Spearman's correlation of a measure with the OOD error, with interval and p-value.

    Runs are taken as independent. Seeds of one recipe are less so than different recipes, so that
    interval and p-value are on the hopeful side; many measures tried on the same runs are more so.

    Parameters
    ----------
    values : array, shape (n_runs,)
        The measure, one value a run.
    ood_error : array, shape (n_runs,)
        Error of the same runs.
    seed : int
        Of resampling and permutations.
    n_resamples : int
        Bootstrap draws; those in which a side is constant are left out.
    n_permutations : int
        Random orders; up to 7 runs all orders are tried instead.

    Returns
    -------
    RankCorrelation
        Keys `rho`, `low`, `high`, `p_value`, `n`.

    Raises
    ------
    TetherError
        "not computable": under `MIN_RUNS` runs, one side constant, lengths that differ, or values
        that are not finite.

    Examples
    --------
    >>> found = rank_correlation([1, 2, 3, 4, 5], [2, 3, 5, 7, 11])
    >>> found["rho"], round(found["p_value"], 4)  # 2 of 120 orders
    (1.0, 0.0167)
    """
    x, y = (np.asarray(a, dtype=np.float64) for a in (values, ood_error))
    _check(x, y)
    ranks_x, ranks_y = stats.rankdata(x), stats.rankdata(y)
    rho = float(_correlate(ranks_x[None], ranks_y[None])[0])
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(x), size=(n_resamples, len(x)))
    draws = _correlate(stats.rankdata(x[drawn], axis=1), stats.rankdata(y[drawn], axis=1))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    p_value = _permutation_p(ranks_x, ranks_y, rho, n_permutations, generator)
    return RankCorrelation(rho=rho, low=float(low), high=float(high), p_value=p_value, n=len(x))


def _permutation_p(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    rho: float,
    n_permutations: int,
    generator: np.random.Generator,
) -> float:
    exact = len(x) <= _MAX_EXACT
    if exact:
        orders = np.array(list(itertools.permutations(range(len(x)))))
    else:
        orders = np.argsort(generator.random((n_permutations, len(x))), axis=1)
    found = np.abs(_correlate(x[orders], y[None]))
    # Rounding must not make an order as extreme as the observed one count as less.
    n_extreme = int(np.sum(found >= abs(rho) - 1e-12))
    # The observed order is one of all orders; random orders have it added.
    return n_extreme / len(orders) if exact else (n_extreme + 1) / (len(orders) + 1)


def _correlate(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson's correlation of each row; NaN where a row is constant."""
    x, y = (a - a.mean(axis=1, keepdims=True) for a in (x, y))
    norm = np.sqrt(np.sum(x * x, axis=1) * np.sum(y * y, axis=1))
    products = np.sum(x * y, axis=1)
    found = np.full(products.shape, np.nan)
    np.divide(products, norm, out=found, where=norm > 0)
    return found


def _check(x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
    if x.ndim != 1 or x.shape != y.shape:
        raise TetherError(
            f"not computable: `values` has shape {x.shape} and `ood_error` {y.shape}",
            expected="one value and one error a run",
            fix="leave runs without the measure out of both",
        )
    if len(x) < MIN_RUNS:
        raise TetherError(
            f"not computable: {len(x)} run(s)",
            expected=f"at least {MIN_RUNS}",
            fix="compare more recipes or seeds",
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise TetherError(
            "not computable: some values are not finite",
            expected="finite values",
            fix="leave runs without the measure out of both",
        )
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise TetherError(
            "not computable: all runs have the same value",
            expected="values that differ",
            fix="compare recipes that do different things",
        )

"""Statistics of labels: mean and spread, per-element linear reference, robust outlier scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "fit_element_reference",
    "mean_and_std",
    "outlier_scores",
    "reference_outlier_scores",
]

# Of a normal distribution: standard deviation / median absolute deviation.
_MAD_TO_STD = 1.4826


def mean_and_std(values: ArrayLike, *, name: str = "target") -> tuple[float, float]:
    """Mean and (population) standard deviation, ignoring NaN.

    Parameters
    ----------
    values : array, any shape
        Labels, in the unit of the target.
    name : str
        Name of the target, for the message.

    Returns
    -------
    mean, std : float
        In the unit of the values.

    Raises
    ------
    TetherError
        When every value is NaN, or all are equal: nothing can be learnt from either.

    Examples
    --------
    >>> mean_and_std([1.0, 3.0, float("nan")])
    (2.0, 1.0)
    """
    array = np.asarray(values, dtype=np.float64)
    known = array[~np.isnan(array)]
    if known.size == 0:
        raise TetherError(
            f"target `{name}` has no value: all {array.size} are NaN",
            expected="at least two different values",
            fix="leave this target out or add labels",
        )
    mean, std = float(known.mean()), float(known.std())
    # Equal values leave a rounding error of about one ulp of the mean.
    if std <= 4 * np.finfo(np.float64).eps * abs(mean):
        raise TetherError(
            f"target `{name}` is constant: all {known.size} values are {mean:.6g}",
            expected="at least two different values",
            fix="leave this target out, or check the selection of structures",
        )
    return mean, std


def fit_element_reference(
    counts: ArrayLike, values: ArrayLike, *, elements: Sequence[int] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Least-squares contribution of each element to an extensive label.

    Solves ``counts @ coefficients ≈ values`` over the structures with a value. Where the
    compositions do not determine the coefficients (e.g. a single molecule's trajectory), the
    solution of least norm is taken; its predictions are determined all the same.

    Parameters
    ----------
    counts : array, shape (n_systems, n_columns)
        Atoms of each element in each structure.
    values : array, shape (n_systems,)
        The label; NaN where unknown.
    elements : sequence of int, length n_columns, optional
        Atomic number of each column; default: the column's index.

    Returns
    -------
    elements : array of int, shape (n_elements,)
        Atomic numbers that occur, ascending as the columns do.
    coefficients : array, shape (n_elements,)
        In the unit of the values.

    Raises
    ------
    TetherError
        When no value is known.

    Examples
    --------
    >>> found, each = fit_element_reference([[4, 1], [2, 0]], [5.0, 2.0], elements=[1, 6])
    >>> found.tolist(), each.round(6).tolist()
    ([1, 6], [1.0, 1.0])
    """
    matrix = np.asarray(counts)
    target = np.asarray(values, dtype=np.float64)
    numbers = np.arange(matrix.shape[1]) if elements is None else np.asarray(elements)
    known = ~np.isnan(target)
    if not known.any():
        raise TetherError(
            f"no value to fit: all {target.size} are NaN",
            expected="at least one labelled structure",
            fix="leave this target out or add labels",
        )
    present = matrix.any(axis=0)
    reduced = matrix[known][:, present].astype(np.float64)
    coefficients = np.linalg.lstsq(reduced, target[known], rcond=None)[0]
    return numbers[present].astype(np.int64), coefficients.astype(np.float64)


def outlier_scores(values: ArrayLike) -> NDArray[np.float64]:
    """Distance from the median in robust standard deviations (1.4826 MAD), signed.

    Parameters
    ----------
    values : array, shape (n,)
        Labels or residuals; NaN stays NaN.

    Returns
    -------
    array, shape (n,)
        Dimensionless. Where more than half the values are equal, the others score ±inf.

    Examples
    --------
    >>> outlier_scores([0.0, 1.0, 2.0, 100.0]).round(1).tolist()
    [-1.0, -0.3, 0.3, 66.4]
    """
    array = np.asarray(values, dtype=np.float64)
    if np.isnan(array).all():
        return np.full(array.shape, np.nan)
    centred = array - np.nanmedian(array)
    spread = _MAD_TO_STD * np.nanmedian(np.abs(centred))
    if spread > 0:
        return np.asarray(centred / spread)
    scores = np.where(np.isnan(centred), np.nan, np.copysign(np.inf, centred))
    return np.where(centred == 0, 0.0, scores)


def reference_outlier_scores(counts: ArrayLike, values: ArrayLike) -> NDArray[np.float64]:
    """Robust scores of an extensive label against the per-element fit, for each atom of it.

    The fit is of the value per atom against the composition, repeated twice without the
    structures that score beyond 10, so that a gross error does not bend it.

    Parameters
    ----------
    counts : array, shape (n_systems, n_columns)
        Atoms of each element in each structure.
    values : array, shape (n_systems,)
        The label; NaN where unknown.

    Returns
    -------
    array, shape (n_systems,)
        Signed, dimensionless; NaN where the label or the structure is empty. Zero throughout
        where the fit is exact to rounding.
    """
    matrix = np.asarray(counts)
    matrix = matrix[:, matrix.any(axis=0)].astype(np.float64)
    n_atoms = matrix.sum(axis=1)
    target = np.asarray(values, dtype=np.float64)
    usable = np.isfinite(target) & (n_atoms > 0)
    if not usable.any():
        return np.full(len(target), np.nan)
    safe = np.maximum(n_atoms, 1)
    fractions = matrix / safe[:, None]
    per_atom = np.where(usable, target / safe, np.nan)
    trusted, scores = usable, np.full(len(target), np.nan)
    rounding = 1e-9 * max(1.0, float(np.nanmax(np.abs(per_atom))))
    for _ in range(3):
        each = np.linalg.lstsq(fractions[trusted], per_atom[trusted], rcond=None)[0]
        residual = per_atom - fractions @ each
        # An exact fit leaves rounding errors, which are no outliers.
        scores = outlier_scores(np.where(np.abs(residual) < rounding, 0.0, residual))
        trusted = usable & (np.abs(np.nan_to_num(scores)) < 10)
    return scores

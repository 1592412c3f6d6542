"""Data efficiency: at which size of the training set a recipe reaches an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tether.errors import TetherError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Reached", "size_reaching"]


@dataclass(frozen=True)
class Reached:
    """Where a learning curve reaches an error.

    Attributes
    ----------
    size : float or None
        Size of the training set; None where no size that was run suffices.
    at_most : bool
        Whether the smallest size that was run suffices already, so that `size` is a bound.
    """

    size: float | None
    at_most: bool = False


def size_reaching(sizes: ArrayLike, errors: ArrayLike, target: float) -> Reached:
    """Size from which on a learning curve stays at or below an error.

    Between sizes that were run, the logarithm of the error is taken as linear in the logarithm of
    the size, as learning curves nearly are. A curve that rises above the error again has not
    reached it for good, so the last crossing counts. Nothing is extrapolated.

    Parameters
    ----------
    sizes : array, shape (n_sizes,)
        Of the training set, in any order.
    errors : array, shape (n_sizes,)
        Error at each size.
    target : float
        Error to reach, in the same unit.

    Returns
    -------
    Reached
        The size.

    Raises
    ------
    TetherError
        For no sizes, sizes that occur twice, and numbers that are not positive.

    Examples
    --------
    >>> size_reaching([100, 400], [0.4, 0.2], 0.2 * 2**0.5).size  # error ∝ 1 / √size
    200.0
    """
    x, y = np.asarray(sizes, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    numbers = np.concatenate([x.ravel(), y.ravel(), [target]])
    if not (x.ndim == 1 and x.shape == y.shape and x.size and len(np.unique(x)) == x.size):
        raise TetherError(
            f"sizes have shape {x.shape} and errors {y.shape}",
            expected="one error a size, of at least one size, each size once",
            fix="average the errors of one size first",
        )
    if not (np.isfinite(numbers) & (numbers > 0)).all():
        raise TetherError(
            f"sizes, errors or the error to reach hold {numbers[~(numbers > 0)]}",
            expected="positive numbers",
            fix="leave sizes without a result out",
        )
    order = np.argsort(x)
    x, y, wanted = np.log(x[order]), np.log(y[order]), float(np.log(target))
    above = np.flatnonzero(y > wanted)
    if not above.size:
        return Reached(float(np.exp(x[0])), at_most=True)
    last = int(above[-1])
    if last == len(x) - 1:
        return Reached(None)
    share = (y[last] - wanted) / (y[last] - y[last + 1])
    return Reached(round(float(np.exp(x[last] + share * (x[last + 1] - x[last]))), 9))

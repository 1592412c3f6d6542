"""Bootstrap intervals of errors, pooled over seeds, and paired gains with a p-value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Gain",
    "Interval",
    "Statistic",
    "bootstrap_interval",
    "paired_gain",
    "seed_pooled_interval",
]

Statistic = Literal["mae", "rmse"]

# Numbers held at once by a resampling: 32 MiB of doubles, whatever the size of the test set.
_CHUNK = 4_194_304


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap interval.

    Attributes
    ----------
    value : float
        Of the data themselves, in the unit of the errors.
    low, high : float
        Bounds of the percentile interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain:
    """By how much a method is better than a reference.

    Attributes
    ----------
    percent : float
        ``100 * (1 - error of the method / error of the reference)``: positive = better.
    low, high : float
        Bounds of the percentile interval, in percent.
    p_value : float
        Two-sided, of the null hypothesis that on each molecule the two losses could be exchanged.
    """

    percent: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    errors: ArrayLike,
    statistic: Statistic = "mae",
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 42,
) -> Interval:
    r"""Percentile bootstrap over molecules.

    Molecules are drawn n of n with replacement; the statistic is :math:`\frac1n\sum|e_i|` or
    :math:`\sqrt{\frac1n\sum e_i^2}`. As `scipy.stats.bootstrap(method="percentile")` gives.

    Parameters
    ----------
    errors : array, shape (n,)
        Prediction minus truth.
    statistic : {"mae", "rmse"}
        What is bounded.
    n_resamples : int
        Bootstrap samples.
    level : float
        Nominal coverage.
    seed : int
        Of the resampling.

    Returns
    -------
    Interval
        In the unit of the errors. It speaks of the choice of test molecules, not of training.

    Raises
    ------
    TetherError
        For no or non-finite errors, an unknown statistic or impossible settings.
    """
    errors = np.asarray(errors, dtype=np.float64)
    return seed_pooled_interval(
        [errors], statistic, n_resamples=n_resamples, level=level, seed=seed
    )


def seed_pooled_interval(
    errors_by_seed: Sequence[ArrayLike],
    statistic: Statistic = "mae",
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 42,
) -> Interval:
    r"""Hierarchical bootstrap: over training seeds, and over molecules shared by them.

    The value is the mean over seeds of the statistic. A resample draws S − 1 of S seeds with
    replacement (all of them when S = 1) and, since every seed was tested on the same molecules, one
    draw of molecules for all seeds. S − 1 and not S: that makes the variance between seeds that of
    :math:`s^2/S` with the unbiased s², while drawing S gives :math:`\frac{S-1}{S}` of it, half for
    two seeds (Rao and Wu 1988).

    No resampling of two or three seeds can look beyond the best and worst of them: where seeds and
    not molecules dominate, a nominal 95 % interval of three seeds holds 75 to 80 %; the limit for S
    seeds is ``1 - 2**(1 - S)``. Noise that is independent between seeds on one molecule enters both
    levels and makes the interval too wide, by √2 at most. With one seed the interval is that of
    `bootstrap_interval`.

    Parameters
    ----------
    errors_by_seed : sequence of array, each of shape (n,)
        Prediction minus truth; row i is the same molecule in each.
    statistic : {"mae", "rmse"}
        What is bounded.
    n_resamples : int
        Bootstrap samples.
    level : float
        Nominal coverage.
    seed : int
        Of the resampling.

    Returns
    -------
    Interval
        In the unit of the errors.

    Raises
    ------
    TetherError
        For arrays of different lengths, no or non-finite errors, or impossible settings.
    """
    losses = _losses(errors_by_seed, statistic, "errors_by_seed")
    _check_settings(n_resamples, level)
    generator = np.random.default_rng(seed)
    draws = np.empty(n_resamples)
    done = 0
    for chosen in _molecule_draws(generator, losses.shape[1], n_resamples, len(losses)):
        by_seed = _finish(losses[:, chosen].mean(axis=2), statistic)
        weights = _seed_weights(generator, len(losses), len(chosen))
        draws[done : done + len(chosen)] = np.einsum("bs,sb->b", weights, by_seed)
        done += len(chosen)
    low, high = _percentiles(draws, level)
    return Interval(float(_finish(losses.mean(axis=1), statistic).mean()), low, high)


def paired_gain(
    errors_a: Sequence[ArrayLike],
    errors_b: Sequence[ArrayLike],
    statistic: Statistic = "mae",
    *,
    n_resamples: int = 1000,
    n_permutations: int = 9999,
    level: float = 0.95,
    seed: int = 42,
) -> Gain:
    r"""Gain of method a over reference b on the same molecules: :math:`100\,(1 - E_a/E_b)` %.

    E is the mean over seeds of the statistic. The interval is a hierarchical bootstrap as in
    `seed_pooled_interval`: one draw of molecules for both methods and all seeds. Where both have
    the same number of seeds, the s-th of each share their draw (same initialisation and order of
    data), else seeds are drawn independently.

    The p-value is a paired permutation test, that of `scipy.stats.permutation_test` with
    "samples" in a tenth of its time: the losses of a molecule (absolute or squared errors, averaged
    over seeds) are exchanged between a and b at random, which flips the sign of their difference;
    the statistic is the mean difference. It asks whether *these trained models* differ on molecules
    of this kind; what another seed would give, the interval answers. Its smallest value is
    ``1 / (n_permutations + 1)``.

    Parameters
    ----------
    errors_a, errors_b : sequence of array, each of shape (n,)
        Prediction minus truth by seed; row i is the same molecule in all of them.
    statistic : {"mae", "rmse"}
        What is compared.
    n_resamples, n_permutations : int
        Resamples of the interval and of the test.
    level : float
        Nominal coverage.
    seed : int
        Of the resampling.

    Returns
    -------
    Gain
        Positive = a is better.

    Raises
    ------
    TetherError
        For arrays of different lengths, no or non-finite errors, a reference without any error, or
        impossible settings.
    """
    a = _losses(errors_a, statistic, "errors_a")
    b = _losses(errors_b, statistic, "errors_b")
    if a.shape[1] != b.shape[1]:
        raise TetherError(
            f"`errors_a` has {a.shape[1]} molecules and `errors_b` {b.shape[1]}",
            expected="the same molecules",
            fix="evaluate both methods on one test set",
        )
    _check_settings(min(n_resamples, n_permutations), level)
    if not b.any():
        raise TetherError(
            "the reference has no error at all",
            expected="a positive error",
            fix="check that `errors_b` are predictions minus truth",
        )
    draws = _gain_draws(a, b, statistic, n_resamples, seed)
    low, high = _percentiles(draws, level)
    mean_a, mean_b = (float(_finish(x.mean(axis=1), statistic).mean()) for x in (a, b))
    p_value = _exchange_test(a.mean(axis=0) - b.mean(axis=0), n_permutations, seed)
    return Gain(100 * (1 - mean_a / mean_b), low, high, p_value)


def _gain_draws(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    statistic: Statistic,
    n_resamples: int,
    seed: int,
) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    draws = np.empty(n_resamples)
    done = 0
    for chosen in _molecule_draws(generator, a.shape[1], n_resamples, len(a) + len(b)):
        weights_a = _seed_weights(generator, len(a), len(chosen))
        weights_b = weights_a
        if len(a) != len(b):
            weights_b = _seed_weights(generator, len(b), len(chosen))
        by_seed = (_finish(losses[:, chosen].mean(axis=2), statistic) for losses in (a, b))
        mean_a, mean_b = (
            np.einsum("bs,sb->b", weights, values)
            for weights, values in zip((weights_a, weights_b), by_seed, strict=True)
        )
        # A resample in which the reference is faultless says nothing finite; 0/0 is no gain.
        ratio = np.divide(mean_a, mean_b, out=np.ones_like(mean_a), where=mean_b > 0)
        draws[done : done + len(chosen)] = 100 * (1 - ratio)
        done += len(chosen)
    return draws


def _exchange_test(difference: NDArray[np.float64], n_permutations: int, seed: int) -> float:
    """Two-sided p-value of the mean difference under random signs."""
    generator = np.random.default_rng(seed)
    n = len(difference)
    total = float(difference.sum())
    # Rounding must not make an arrangement equal to the observed one count as less extreme.
    limit = abs(total) - 1e-12 * float(np.abs(difference).sum())
    n_bytes = -(-n // 8)
    step = max(1, _CHUNK // n)
    n_extreme = 0
    for start in range(0, n_permutations, step):
        shape = (min(step, n_permutations - start), n_bytes)
        bits = np.unpackbits(generator.integers(256, size=shape, dtype=np.uint8), axis=1, count=n)
        # sum of +-d with a plus where the bit is set
        sums = 2 * (bits.astype(np.float64) @ difference) - total
        n_extreme += int((np.abs(sums) >= limit).sum())
    return (n_extreme + 1) / (n_permutations + 1)


def _losses(errors_by_seed: Sequence[ArrayLike], statistic: str, name: str) -> NDArray[np.float64]:
    """Per-molecule losses whose mean gives the statistic, shape (n_seeds, n)."""
    if statistic not in get_args(Statistic):
        raise TetherError(
            f"`statistic` is {statistic!r}", expected="mae or rmse", fix="statistic='mae'"
        )
    arrays = [np.asarray(errors, dtype=np.float64) for errors in errors_by_seed]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) != 1 or len(shapes[0]) != 1 or shapes[0][0] == 0:
        raise TetherError(
            f"`{name}` has arrays of shapes {shapes}",
            expected="one error array a seed, all of one length above 0",
            fix="test every seed on the same molecules; wrap a single array in a list",
        )
    stacked = np.stack(arrays)
    wrong = int(stacked.size - np.isfinite(stacked).sum())
    if wrong:
        raise TetherError(
            f"`{name}` has {wrong} value(s) that are not finite",
            expected="finite errors",
            fix="leave unlabelled structures out, and look at diverged runs",
        )
    return np.abs(stacked) if statistic == "mae" else np.square(stacked)


def _finish(mean_loss: NDArray[np.float64], statistic: Statistic) -> NDArray[np.float64]:
    return np.sqrt(mean_loss) if statistic == "rmse" else mean_loss


def _molecule_draws(
    generator: np.random.Generator, n: int, n_resamples: int, n_arrays: int
) -> Iterator[NDArray[np.int64]]:
    step = max(1, _CHUNK // (n * n_arrays))
    for start in range(0, n_resamples, step):
        yield generator.integers(n, size=(min(step, n_resamples - start), n))


def _seed_weights(
    generator: np.random.Generator, n_seeds: int, n_draws: int
) -> NDArray[np.float64]:
    n_drawn = max(1, n_seeds - 1)
    counts = generator.multinomial(n_drawn, np.full(n_seeds, 1 / n_seeds), size=n_draws)
    return counts / n_drawn


def _percentiles(draws: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_settings(n_resamples: int, level: float) -> None:
    if n_resamples < 1 or not 0 < level < 1:
        raise TetherError(
            f"`n_resamples` is {n_resamples} and `level` {level}",
            expected="at least 1 resample and a level between 0 and 1",
            fix="n_resamples=1000, level=0.95",
        )

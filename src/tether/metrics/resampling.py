"""What bootstrap intervals and permutation tests of errors are made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeGuard, get_args

import numpy as np

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ErrorsLike",
    "Losses",
    "Statistic",
    "StructureErrors",
    "check_settings",
    "drawn_means",
    "exchange_test",
    "flat_errors",
    "losses_of",
    "percentiles",
    "standard_error",
    "statistic_of",
    "unit_noise",
]

Statistic = Literal["mae", "rmse"]
#: Prediction minus truth of a seed: one number a structure or, of a property of atoms, a tuple with
#: an array for each structure. Atoms of one structure are alike: structures are what is resampled.
StructureErrors: TypeAlias = "NDArray[np.float64] | tuple[NDArray[np.float64], ...]"
ErrorsLike: TypeAlias = "ArrayLike | tuple[NDArray[np.float64], ...]"

# Numbers held at once by a resampling, whatever the size of the test set: 2 MiB of doubles, which a
# processor's cache holds.
_CHUNK = 262_144
# Draws that are kept for the next question: 64 MiB of counts, 33,000 structures at 1,000 resamples.
_KEPT = 33_554_432


@dataclass(frozen=True)
class Losses:
    """Losses of structures, each the sum of those of its atoms where the property is of atoms.

    Attributes
    ----------
    sums : array, shape (n_seeds, n)
        Absolute or squared errors, in the unit of the errors or its square.
    counts : array, shape (n,), or None
        Errors in each structure; None where each has one.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.float64] | None = None

    @property
    def n_seeds(self) -> int:
        """How many seeds."""
        return len(self.sums)

    @property
    def n(self) -> int:
        """How many structures."""
        return int(self.sums.shape[1])

    @property
    def n_errors(self) -> int:
        """How many errors a seed has."""
        return self.n if self.counts is None else int(self.counts.sum())

    def means(self) -> NDArray[np.float64]:
        """Mean over all errors, shape (n_seeds,)."""
        means: NDArray[np.float64]
        if self.counts is None:
            means = self.sums.mean(axis=1)
        else:
            means = self.sums.sum(axis=1) / self.counts.sum()
        return means


def flat_errors(errors: ErrorsLike) -> NDArray[np.float64]:
    """All errors of a seed in one array, shape (n_structures,) or (n_atoms,)."""
    flat: ArrayLike = np.concatenate(errors) if _is_ragged(errors) else errors
    values: NDArray[np.float64] = np.asarray(flat, dtype=np.float64)
    return values


def _is_ragged(errors: ErrorsLike) -> TypeGuard[tuple[NDArray[np.float64], ...]]:
    return isinstance(errors, tuple) and bool(errors) and np.ndim(errors[0]) == 1


def losses_of(errors_by_seed: Sequence[ErrorsLike], statistic: str, name: str) -> Losses:
    """Losses of each structure, whose mean gives the statistic.

    Parameters
    ----------
    errors_by_seed : sequence of ErrorsLike
        Prediction minus truth; row i is the same structure in each.
    statistic : {"mae", "rmse"}
        Absolute or squared errors.
    name : str
        What the caller calls the errors.

    Returns
    -------
    Losses
        Of the structures that have any error: those without one have no part in it.

    Raises
    ------
    TetherError
        For an unknown statistic, arrays of different lengths, and no or non-finite errors.
    """
    if statistic not in get_args(Statistic):
        raise TetherError(
            f"`statistic` is {statistic!r}", expected="mae or rmse", fix="statistic='mae'"
        )
    arrays = [flat_errors(errors) for errors in errors_by_seed]
    sizes = {tuple(map(len, errors)) for errors in errors_by_seed if _is_ragged(errors)}
    shapes = sorted({array.shape for array in arrays})
    if len(sizes) > 1 or len(shapes) != 1 or len(shapes[0]) != 1 or shapes[0][0] == 0:
        raise TetherError(
            f"`{name}` has arrays of shapes {shapes}",
            expected="one error array a seed, all of one length above 0",
            fix="test every seed on the same structures; wrap a single array in a list",
        )
    stacked = np.stack(arrays)
    wrong = int(stacked.size - np.isfinite(stacked).sum())
    if wrong:
        raise TetherError(
            f"`{name}` has {wrong} value(s) that are not finite",
            expected="finite errors",
            fix="leave unlabelled structures out, and look at diverged runs",
        )
    losses = np.abs(stacked) if statistic == "mae" else np.square(stacked)
    if not sizes:
        return Losses(losses)
    counts = np.array([count for count in sizes.pop() if count])
    starts = np.cumsum([0, *counts[:-1]])
    return Losses(np.add.reduceat(losses, starts, axis=1), counts.astype(np.float64))


def statistic_of(mean_loss: NDArray[np.float64], statistic: Statistic) -> NDArray[np.float64]:
    """Statistic of mean losses: the root for "rmse", the mean itself for "mae"."""
    return np.sqrt(mean_loss) if statistic == "rmse" else mean_loss


def drawn_means(
    generator: np.random.Generator, losses: Sequence[Losses], n_resamples: int
) -> list[NDArray[np.float64]]:
    """Mean losses of resampled structures, the same draw for all methods and seeds.

    Of several errors in a structure it is the sum of those drawn over their number: structures of
    different sizes then add nothing to the spread by their sizes alone.

    Parameters
    ----------
    generator : numpy.random.Generator
        Of `default_rng`; moved on by this. From the same state come the same draws, kept a while.
    losses : sequence of Losses
        By method, of the same structures.
    n_resamples : int
        Draws, each of n out of n structures with replacement.

    Returns
    -------
    list of array, each of shape (n_seeds, n_resamples)
        By method.
    """
    n = losses[0].n
    means = [np.empty((one.n_seeds, n_resamples)) for one in losses]
    place = 0
    for some in _counts(generator, n, n_resamples):
        block = slice(place, place := place + len(some))
        # A product in place of picking losses is ten times as fast.
        drawn = some.astype(np.float64)
        for mean, one in zip(means, losses, strict=True):
            n_errors = n if one.counts is None else drawn @ one.counts
            mean[:, block] = one.sums @ drawn.T / n_errors
    return means


def _counts(
    generator: np.random.Generator, n: int, n_resamples: int
) -> Iterator[NDArray[np.uint16]]:
    """How often each of n is drawn in each resample, a block of resamples at a time.

    Nothing is drawn more than 65,535 times: even out of ever so many, 20 times is one in 10^18.
    """
    if n * n_resamples > _KEPT:
        yield from _blocks(generator, n, n_resamples)
        return
    kept, after = _kept_counts(json.dumps(generator.bit_generator.state), n, n_resamples)
    generator.bit_generator.state = json.loads(after)
    yield from kept


# A summary asks hundreds of times for the same draws: those of its validation and test sets.
@lru_cache(maxsize=4)
def _kept_counts(
    state: str, n: int, n_resamples: int
) -> tuple[tuple[NDArray[np.uint16], ...], str]:
    """All of them, by a generator in this state; its state after."""
    generator = np.random.default_rng()
    generator.bit_generator.state = json.loads(state)
    kept = tuple(_blocks(generator, n, n_resamples))
    return kept, json.dumps(generator.bit_generator.state)


def _blocks(
    generator: np.random.Generator, n: int, n_resamples: int
) -> Iterator[NDArray[np.uint16]]:
    step = max(1, _CHUNK // n)
    for start in range(0, n_resamples, step):
        drawn = generator.integers(n, size=(min(step, n_resamples - start), n))
        yield np.array([np.bincount(row, minlength=n) for row in drawn], dtype=np.uint16)


def standard_error(influence: NDArray[np.float64]) -> float:
    r"""Standard error of a value over independent units, :math:`s/\sqrt n`; 0 for one unit.

    Parameters
    ----------
    influence : array, shape (n_units,)
        Values of the seeds or folds whose mean it is; of another function of them, what each adds
        to it to first order, up to a constant.

    Returns
    -------
    float
        In the unit of `influence`.
    """
    n = len(influence)
    return float(influence.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0


def unit_noise(
    generator: np.random.Generator, influence: NDArray[np.float64], n_draws: int
) -> NDArray[np.float64]:
    """What other seeds would have added to a value: Student's t times its standard error.

    Drawing two or three units with replacement never looks beyond the best and the worst of them:
    a nominal 95 % interval of three then holds 75 to 80 %, of two 50 %.

    Parameters
    ----------
    generator : numpy.random.Generator
        Source of the draws.
    influence : array, shape (n_units,)
        See `standard_error`.
    n_draws : int
        Resamples.

    Returns
    -------
    array, shape (n_draws,)
        Zeros for one unit, which says nothing of others.
    """
    if len(influence) == 1:
        return np.zeros(n_draws)
    return standard_error(influence) * generator.standard_t(len(influence) - 1, size=n_draws)


def percentiles(draws: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Bounds between which the share `level` of the draws lies, the same share on either side."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def exchange_test(difference: NDArray[np.float64], n_permutations: int, seed: int) -> float:
    """Two-sided p-value of the mean difference under random signs.

    Parameters
    ----------
    difference : array, shape (n,)
        Of paired losses; under the null hypothesis each could as well have the other sign.
    n_permutations : int
        Random arrangements.
    seed : int
        Of these.

    Returns
    -------
    float
        At least ``1 / (n_permutations + 1)``.
    """
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


def check_settings(n_resamples: int, level: float) -> None:
    """Refuse impossible settings of a resampling.

    Parameters
    ----------
    n_resamples : int
        Resamples.
    level : float
        Nominal coverage.

    Raises
    ------
    TetherError
        For no resample, or a level outside (0, 1).
    """
    if n_resamples < 1 or not 0 < level < 1:
        raise TetherError(
            f"`n_resamples` is {n_resamples} and `level` {level}",
            expected="at least 1 resample and a level between 0 and 1",
            fix="n_resamples=1000, level=0.95",
        )

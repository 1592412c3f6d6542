"""How much of the gap between OOD and ID error a recipe leaves open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tether.errors import TetherError
from tether.metrics.intervals import Interval, ratio_influences
from tether.metrics.resampling import (
    ErrorsLike,
    Losses,
    Statistic,
    check_settings,
    drawn_means,
    losses_of,
    percentiles,
    statistic_of,
    unit_noise,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["distance_to_limit", "limit_interval"]


def distance_to_limit(
    ood: float, inside: float, ood_reference: float, inside_reference: float
) -> float:
    r"""Gap between OOD and ID error, as a share of the reference's gap.

    .. math:: \frac{E^{\mathrm{OOD}} - E^{\mathrm{ID}}}
              {E^{\mathrm{OOD}}_{\mathrm{ref}} - E^{\mathrm{ID}}_{\mathrm{ref}}}

    The ID error of the same recipe is the limit: 0 = as good outside the distribution as inside,
    1 = the gap of the reference (full fine-tuning). A recipe with a *large* ID error comes near its
    limit easily; read it beside the errors.

    Parameters
    ----------
    ood, inside : float
        Errors of the recipe.
    ood_reference, inside_reference : float
        Errors of the reference.

    Returns
    -------
    float
        Without unit; negative where the OOD error is below the ID error. NaN where the reference
        has no gap to compare with.
    """
    gap = ood_reference - inside_reference
    return (ood - inside) / gap if gap > 0 else float("nan")


def limit_interval(
    method: tuple[Sequence[ErrorsLike], Sequence[ErrorsLike]],
    reference: tuple[Sequence[ErrorsLike], Sequence[ErrorsLike]],
    statistic: Statistic = "rmse",
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 42,
) -> Interval:
    """Distance to the limit, with an interval over seeds and structures.

    Errors are means over seeds. A resample draws the OOD structures, the ID structures, and adds
    what other seeds would have as `seed_pooled_interval` does; a seed brings its OOD and its ID
    error, and the s-th seeds of both methods belong together where both have as many.

    Parameters
    ----------
    method, reference : tuple of (errors on OOD, errors on ID)
        Each a sequence of arrays, prediction minus truth by seed; rows are the same structures for
        both methods.
    statistic : {"mae", "rmse"}
        Of the errors.
    n_resamples : int
        Bootstrap samples.
    level : float
        Nominal coverage.
    seed : int
        Of the resampling.

    Returns
    -------
    Interval
        Without unit. Bounds are NaN where so many resamples have no gap of the reference that the
        bounds are not finite: the gap is within its noise.

    Raises
    ------
    TetherError
        For errors that do not fit each other, and impossible settings.
    """
    check_settings(n_resamples, level)
    losses = [
        [losses_of(errors, statistic, name) for errors, name in zip(each, names, strict=True)]
        for each, names in (
            (method, ("errors on OOD", "errors on ID")),
            (reference, ("reference's errors on OOD", "reference's errors on ID")),
        )
    ]
    _check(losses)
    generator = np.random.default_rng(seed)
    drawn = np.empty((2, 2, n_resamples))  # method or reference, OOD or ID
    for side in (0, 1):
        means = drawn_means(generator, [each[side] for each in losses], n_resamples)
        drawn[:, side] = [statistic_of(by_seed, statistic).mean(axis=0) for by_seed in means]
    gap, reference_gap = drawn[:, 0] - drawn[:, 1]
    by_seed = [_gaps(each, statistic) for each in losses]
    value = distance_to_limit(*(_mean(one, statistic) for each in losses for one in each))
    closed = reference_gap + unit_noise(generator, by_seed[1], n_resamples) <= 0
    if closed.mean() >= (1 - level) / 2:
        return Interval(value, float("nan"), float("nan"))
    # The few resamples without a gap of the reference are beyond any bound on the side of `gap`.
    beyond = np.where(gap > 0, np.inf, -np.inf)
    ratio = np.divide(gap, reference_gap, out=beyond, where=reference_gap > 0)
    for influence in ratio_influences(*by_seed):
        ratio += unit_noise(generator, influence, n_resamples)
    return Interval(value, *percentiles(ratio, level))


def _gaps(each: list[Losses], statistic: Statistic) -> NDArray[np.float64]:
    """OOD error minus ID error, by seed."""
    ood, inside = (statistic_of(losses.means(), statistic) for losses in each)
    return ood - inside


def _mean(losses: Losses, statistic: Statistic) -> float:
    return float(statistic_of(losses.means(), statistic).mean())


def _check(losses: list[list[Losses]]) -> None:
    for each in losses:
        if each[0].n_seeds != each[1].n_seeds:
            raise TetherError(
                f"there are {each[0].n_seeds} seeds on OOD and {each[1].n_seeds} on ID",
                expected="the same seeds",
                fix="evaluate every seed on both sets",
            )
    for side, name in enumerate(("OOD", "ID")):
        n, n_reference = (each[side].n for each in losses)
        if n != n_reference:
            raise TetherError(
                f"the {name} sets have {n} and {n_reference} structures",
                expected="the same structures",
                fix="evaluate both methods on one test set",
            )

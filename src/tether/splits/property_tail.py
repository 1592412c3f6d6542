"""Out-of-distribution by property value: BOOM's rule, and a unit-independent one of our own."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.polynomial import chebyshev

from tether.errors import TetherError
from tether.splits.split import Split, StoreReference, labelled_rows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["BOOM_FRACTION", "Side", "boom", "scott_log_density", "tail"]

Side = Literal["low", "high", "both"]

#: BOOM takes 10,000 of the 133,885 molecules of QM9.
BOOM_FRACTION = 10_000 / 133_885
# Every query is itself a sample and so has density >= 1 (unnormalised); all that lies beyond ten
# bandwidths adds less than n * exp(-50) ~ 2e-17 for n = 10**5: below double precision.
_REACH = 10.0
# Within a panel one bandwidth wide a sum of Gaussians is its degree-24 Chebyshev interpolant to
# double precision (the error decays faster than 20**-n).
_DEGREE = 24


def boom(
    values: ArrayLike, *, n_ood: int | None = None, seed: int = 42, id_fraction: float = 0.05
) -> Split:
    """BOOM's split rule, exactly: lowest kernel density of the property is OOD.

    A Gaussian kernel density with scikit-learn's bandwidth "scott" is fitted to the raw values;
    the `n_ood` rows of lowest density are "test/ood". The others are walked in row order, and
    ``random.random() < id_fraction`` (Python's generator, seeded once) makes a row "test/id", else
    "train". Rows of equal density at the threshold: the lower row number goes to OOD (BOOM leaves
    that to ``argpartition``).

    scikit-learn's "scott" is ``n ** (-1 / 5)`` and **ignores the spread of the data**, so the split
    depends on the unit: the gap of QM9 in Ha and in eV give different OOD sets. Use `tail` where
    that matters.

    Parameters
    ----------
    values : array, shape (n_systems,)
        The property; NaN rows go to no set and are counted in ``report["n_unlabelled"]``.
    n_ood : int, optional
        Size of the OOD set; default 10,000 of 133,885, BOOM's share of QM9.
    seed : int
        BOOM uses 42.
    id_fraction : float
        Chance of a row outside OOD to be in the ID test.

    Returns
    -------
    Split
        Sets "train", "test/id", "test/ood". ``report["bandwidth_in_std"]`` says how coarse the
        density was.

    Raises
    ------
    TetherError
        When a set would be empty, or when the spread of the values is so far below the bandwidth
        that all densities are equal to rounding.

    Notes
    -----
    arXiv 2505.01912, ``boom/data/prepare_splits_qm9.py`` (Apache-2.0). BOOM's own table has one row
    a SMILES string and includes the 3,054 uncharacterised molecules, so that the same rule on
    another QM9 file picks slightly other molecules. Densities are evaluated as
    `scott_log_density` says: 130,000 values take seconds.
    """
    array, rows = _scalar_rows(values)
    known = array[rows]
    n_ood = round(BOOM_FRACTION * len(rows)) if n_ood is None else n_ood
    _check_count(n_ood, len(rows))
    _check_fraction(id_fraction, "id_fraction")
    log_density = scott_log_density(known)
    if np.ptp(log_density) < 1e-9:
        raise TetherError(
            f"the values spread over {np.ptp(known):.3g}, BOOM's bandwidth is "
            f"{_scott(len(rows)):.3g}: their densities cannot be told apart",
            expected="a spread not far below the bandwidth",
            fix="use method tail, which standardises, or another unit",
        )
    is_ood = np.zeros(len(rows), dtype=bool)
    is_ood[np.argsort(log_density, kind="stable")[:n_ood]] = True
    generator = random.Random(seed)  # noqa: S311 - BOOM's generator, not cryptography
    draws = np.array([generator.random() for _ in range(len(rows) - n_ood)])
    is_id = np.zeros(len(rows), dtype=bool)
    is_id[~is_ood] = draws < id_fraction
    return Split(
        name="boom",
        method="boom",
        parameters={"n_ood": int(n_ood), "seed": seed, "id_fraction": id_fraction},
        indices={
            "train": rows[~is_ood & ~is_id],
            "test/id": rows[is_id],
            "test/ood": rows[is_ood],
        },
        report={
            "n_unlabelled": len(array) - len(rows),
            "bandwidth_in_std": float(_scott(len(rows)) / known.std()),
        },
        store=StoreReference(n_systems=len(array)),
    )


def tail(
    values: ArrayLike,
    *,
    fraction: float = 0.1,
    side: Side = "both",
    id_fraction: float = 0.05,
    seed: int = 42,
) -> Split:
    """Tail rule that does not depend on the unit: the largest ``|z|`` is OOD.

    ``z = (value - mean) / std``; OOD are the ``round(fraction * n)`` rows with the largest ``|z|``
    ("both"), the smallest z ("low") or the largest z ("high"). ``round(id_fraction * n_rest)`` of
    the others, drawn without replacement, are the ID test. Ties go to the lower row number.

    Parameters
    ----------
    values : array, shape (n_systems,)
        The property; NaN rows go to no set and are counted in ``report["n_unlabelled"]``.
    fraction : float
        Share of the labelled rows that is OOD.
    side : {"both", "low", "high"}
        Which tail.
    id_fraction : float
        Share of the others that is the ID test.
    seed : int
        Of the draw of the ID test.

    Returns
    -------
    Split
        Sets "train", "test/id", "test/ood"; the same for ``a * values + b`` with a > 0.

    Raises
    ------
    TetherError
        For equal values, an unknown side, a fraction outside (0, 1) or an empty set.
    """
    if side not in get_args(Side):
        raise TetherError(
            f"`side` is {side!r}", expected=f"one of {', '.join(get_args(Side))}", fix="side=both"
        )
    _check_fraction(fraction, "fraction")
    _check_fraction(id_fraction, "id_fraction")
    array, rows = _scalar_rows(values)
    known = array[rows]
    if np.ptp(known) == 0:
        raise TetherError(
            f"all {len(rows)} values are {known[0]}",
            expected="values that differ",
            fix="use method random",
        )
    # Rounded, so that a change of unit, which moves the last bits, cannot reorder ties.
    z = np.round((known - known.mean()) / known.std(), 9)
    score = {"both": -np.abs(z), "low": z, "high": -z}[side]
    order = np.argsort(score, kind="stable")
    n_ood = round(fraction * len(rows))
    _check_count(n_ood, len(rows))
    rest = np.random.default_rng(seed).permutation(np.sort(order[n_ood:]))
    n_id = round(id_fraction * len(rest))
    return Split(
        name="tail",
        method="tail",
        parameters={"fraction": fraction, "side": side, "id_fraction": id_fraction, "seed": seed},
        indices={
            "train": rows[rest[n_id:]],
            "test/id": rows[rest[:n_id]],
            "test/ood": rows[order[:n_ood]],
        },
        report={"n_unlabelled": len(array) - len(rows)},
        store=StoreReference(n_systems=len(array)),
    )


def scott_log_density(values: ArrayLike) -> NDArray[np.float64]:
    r"""Gaussian kernel density of each value, with scikit-learn's "scott" bandwidth.

    .. math:: \log \frac{1}{n h \sqrt{2\pi}} \sum_j e^{-(x_i - x_j)^2 / 2h^2},
              \qquad h = n^{-1/5}

    What ``KernelDensity(kernel="gaussian", bandwidth="scott").fit(x).score_samples(x)`` gives, to
    rounding, in O(n) instead of O(n²): equal values count once with a weight; terms beyond ten
    bandwidths are below double precision and left out; a stretch of one bandwidth that holds many
    values is evaluated at Chebyshev nodes and interpolated.

    Parameters
    ----------
    values : array, shape (n,)
        Finite values.

    Returns
    -------
    array, shape (n,)
        Log density, in 1 / unit of the values.
    """
    array = np.asarray(values, dtype=np.float64)
    bandwidth = _scott(len(array))
    unique, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    scaled = (unique - unique[0]) / bandwidth
    panel = np.floor(scaled)
    starts = np.flatnonzero(np.concatenate([[True], panel[1:] != panel[:-1]]))
    stops = np.append(starts[1:], len(scaled))
    left = np.searchsorted(scaled, panel[starts] - _REACH)
    right = np.searchsorted(scaled, panel[starts] + 1 + _REACH)
    total = np.empty(len(scaled))
    for start, stop, low, high in zip(starts, stops, left, right, strict=True):
        # Differences before the division: far from the origin `scaled` has lost digits.
        near = (unique[low:high] - unique[start]) / bandwidth
        inner = slice(start - low, stop - low)
        total[start:stop] = _panel_sum(near[inner], near, counts[low:high])
    log_density = np.log(total) - np.log(len(array) * bandwidth * np.sqrt(2 * np.pi))
    return np.asarray(log_density[inverse.reshape(-1)], dtype=np.float64)


def _panel_sum(
    queries: NDArray[np.float64],
    samples: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Weighted sum of unit Gaussians at the queries, the first 0 and all in [0, 1]."""

    def gaussians(points: NDArray[np.float64]) -> NDArray[np.float64]:
        terms = np.exp(-0.5 * np.square(points[:, None] - samples))
        return np.asarray(terms @ counts, dtype=np.float64)

    if len(queries) <= 2 * _DEGREE:
        return gaussians(queries)
    nodes = chebyshev.chebpts1(_DEGREE + 1)
    # At Chebyshev nodes the fit has as many points as coefficients and is the interpolant.
    coefficients = chebyshev.chebfit(nodes, gaussians(0.5 * (nodes + 1)), _DEGREE)
    return np.asarray(chebyshev.chebval(2 * queries - 1, coefficients), dtype=np.float64)


def _scott(n: int) -> float:
    return float(n ** (-1 / 5))


def _scalar_rows(values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise TetherError(
            f"values have shape {array.shape}",
            expected="one number a structure",
            fix="choose a scalar target, or a method that does not look at values",
        )
    return array, np.flatnonzero(labelled_rows(array))


def _check_count(n_ood: int, n_rows: int) -> None:
    if not 0 < n_ood < n_rows:
        raise TetherError(
            f"set 'test/ood' would have size {n_ood} of {n_rows} labelled rows",
            expected=f"0 < n_ood < {n_rows}",
            fix="choose another number of OOD structures",
        )


def _check_fraction(fraction: float, name: str) -> None:
    if not 0 < fraction < 1:
        raise TetherError(
            f"`{name}` is {fraction}", expected="a number between 0 and 1", fix=f"{name}=0.05"
        )

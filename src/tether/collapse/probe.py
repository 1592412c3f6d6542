"""Linear probe: whether the class of an atom can be read from its features."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from tether.collapse.checks import as_classes, as_features, as_groups, check_spread
from tether.errors import TetherError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["balanced_accuracy", "linear_probe", "probe_hits"]

# Steps of the solver. The last digits of the weights do not change who is told from whom.
_MAX_STEPS = 300


def linear_probe(
    features: ArrayLike, classes: ArrayLike, *, groups: ArrayLike | None = None, seed: int = 0
) -> float:
    """Balanced accuracy of a logistic regression on atoms that it has not seen.

    The structures are parted in two halves, and each half is classified by a model of the other.
    The features are centred and divided by *one* number, so that a rotation changes nothing but
    rounding; classes weigh the same, whatever their size.

    Parameters
    ----------
    features : array, shape (n, n_features)
        One row a point.
    classes : array of str, shape (n,)
        Class of each point.
    groups : array, shape (n,), optional
        Structure of each point: no structure is in both halves.
    seed : int
        Of the halves.

    Returns
    -------
    float
        Between 0 and 1; chance is 1 / number of classes.

    Raises
    ------
    TetherError
        For one class, a class that is in one half only, points that coincide, or values that are
        not finite.

    References
    ----------
    Alain and Bengio, Understanding intermediate layers using linear classifier probes
    (arXiv 1610.01644).
    """
    hits = probe_hits(features, classes, groups=groups, seed=seed)
    names, codes = as_classes(classes, len(hits))
    return balanced_accuracy(hits, codes, len(names))


def probe_hits(
    features: ArrayLike, classes: ArrayLike, *, groups: ArrayLike | None = None, seed: int = 0
) -> NDArray[np.bool_]:
    """Which points `linear_probe` classifies rightly.

    Parameters
    ----------
    features, classes, groups, seed
        See `linear_probe`.

    Returns
    -------
    ndarray of bool, shape (n,)
        One a point.

    Raises
    ------
    TetherError
        See `linear_probe`.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x = as_features(features, least=4)
    names, codes = as_classes(classes, len(x))
    x = (x - x.mean(axis=0)) / (check_spread(x) / np.sqrt(x.shape[1]))
    group = as_groups(groups, len(x))
    n_groups = int(group.max()) + 1
    order = np.random.default_rng(seed).permutation(n_groups)
    first = (order < n_groups // 2)[group]
    hits = np.zeros(len(x), dtype=bool)
    for train in (first, ~first):
        if len(np.unique(codes[train])) < len(names):
            raise TetherError(
                "a class occurs in one half of the structures only",
                expected="every class on both sides",
                fix="leave rare classes out, or look at atoms of more structures",
            )
        probe = LogisticRegression(class_weight="balanced", max_iter=_MAX_STEPS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            probe.fit(x[train], codes[train])
        hits[~train] = probe.predict(x[~train]) == codes[~train]
    return hits


def balanced_accuracy(hits: NDArray[np.bool_], codes: NDArray[np.intp], n_classes: int) -> float:
    """Mean over classes of the share of hits.

    Parameters
    ----------
    hits : ndarray of bool, shape (n,)
        Whether each point was classified rightly.
    codes : ndarray of int, shape (n,)
        Class of each point, counted from 0.
    n_classes : int
        Classes.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    TetherError
        When a class has no point.
    """
    counts = np.bincount(codes, minlength=n_classes)
    if not counts.all():
        raise TetherError(
            f"class number {int(counts.argmin())} has no point",
            expected="at least one point a class",
            fix="leave rare classes out, or look at more atoms",
        )
    return float(np.mean(np.bincount(codes, weights=hits, minlength=n_classes) / counts))

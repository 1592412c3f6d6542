"""How well classes of atoms are told apart in feature space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tether.collapse.checks import as_classes, as_features, as_groups, check_spread
from tether.collapse.distances import distance_rows, nearest
from tether.errors import TetherError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["class_purity", "davies_bouldin", "knn_purity", "silhouette"]


def davies_bouldin(features: ArrayLike, classes: ArrayLike) -> float:
    r"""Davies–Bouldin index of labelled classes.

    .. math:: \frac1K \sum_i \max_{j \ne i} \frac{s_i + s_j}{d_{ij}}

    with the mean distance :math:`s` of a class's points to their mean and the distance
    :math:`d` of two means. Unchanged by rotation, shift and scaling.

    Parameters
    ----------
    features : array, shape (n, n_features)
        One row a point.
    classes : array of str, shape (n,)
        Class of each point.

    Returns
    -------
    float
        Pure number, 0 or more; larger = classes overlap more.

    Raises
    ------
    TetherError
        For one class, a class with a single point, two classes with one mean, or values that are
        not finite.

    References
    ----------
    Davies and Bouldin, IEEE TPAMI 1, 224 (1979).

    Examples
    --------
    >>> davies_bouldin([[0.0], [2], [10], [12]], ["a", "a", "b", "b"])
    0.2
    """
    x = as_features(features)
    names, codes = as_classes(classes, len(x))
    spread = check_spread(x)
    counts = np.bincount(codes)
    member = np.eye(len(names))[codes]
    means = (member.T @ (x - x.mean(axis=0))) / counts[:, None]
    lengths = np.linalg.norm(x - x.mean(axis=0) - means[codes], axis=1)
    scatter = np.bincount(codes, weights=lengths) / counts
    between = np.linalg.norm(means[:, None] - means, axis=2)
    np.fill_diagonal(between, np.inf)
    if not between.min() > 1e-12 * spread:
        raise TetherError(
            "two classes have the same mean",
            expected="means that differ",
            fix="none: the index is infinite there; silhouette and kNN purity are not",
        )
    return float(np.mean(np.max((scatter[:, None] + scatter) / between, axis=1)))


def silhouette(
    features: ArrayLike, classes: ArrayLike, *, distances: NDArray[np.float64] | None = None
) -> float:
    r"""Mean silhouette of labelled classes.

    For each point :math:`(b - a) / \max(a, b)`, with its mean distance a to the other points of
    its class and b to those of the nearest other class. Unchanged by rotation, shift and scaling.

    Parameters
    ----------
    features : array, shape (n, n_features)
        One row a point.
    classes : array of str, shape (n,)
        Class of each point.
    distances : ndarray, shape (n, n), optional
        `pair_distances` of the features, to save computing them again.

    Returns
    -------
    float
        Between -1 and 1; larger = better separated.

    Raises
    ------
    TetherError
        For one class, a class with a single point, points that coincide, or values that are not
        finite.

    References
    ----------
    Rousseeuw, J. Comput. Appl. Math. 20, 53 (1987).

    Examples
    --------
    >>> round(silhouette([[0.0], [1], [10], [11]], ["a", "a", "b", "b"]), 4)
    0.8997
    """
    x = as_features(features)
    names, codes = as_classes(classes, len(x))
    check_spread(x)
    member = np.eye(len(names))[codes]
    counts = np.bincount(codes)
    total = 0.0
    for start, rows in distance_rows(x, distances):
        own = codes[start : start + len(rows)]
        each = np.arange(len(rows))
        sums = rows @ member
        within = sums[each, own] / (counts[own] - 1)
        others = sums / counts
        others[each, own] = np.inf
        between = others.min(axis=1)
        larger = np.maximum(within, between)
        total += float(np.sum((between - within) / np.where(larger > 0, larger, 1)))
    return total / len(x)


def knn_purity(
    features: ArrayLike,
    classes: ArrayLike,
    *,
    k: int = 10,
    groups: ArrayLike | None = None,
    distances: NDArray[np.float64] | None = None,
) -> float:
    """Share of same-class points among the nearest neighbours, balanced over classes.

    Neighbours count with the inverse size of their class, and the mean is taken within classes
    first and then over them: features that know nothing of K classes score 1/K, however unequal
    the classes are. Unchanged by rotation, shift and scaling.

    Parameters
    ----------
    features : array, shape (n, n_features)
        One row a point.
    classes : array of str, shape (n,)
        Class of each point.
    k : int
        Neighbours.
    groups : array, shape (n,), optional
        Structure of each point; neighbours are looked for in other structures.
    distances : ndarray, shape (n, n), optional
        `pair_distances` of the features, to save computing them again.

    Returns
    -------
    float
        Between 0 and 1; larger = better separated.

    Raises
    ------
    TetherError
        For one class, too few points outside a structure for `k`, points that coincide, or values
        that are not finite.

    Examples
    --------
    >>> knn_purity([[0.0], [1], [10], [11]], ["a", "a", "b", "b"], k=1)
    1.0
    """
    purity = class_purity(features, classes, k=k, groups=groups, distances=distances)
    return float(np.mean(list(purity.values())))


def class_purity(
    features: ArrayLike,
    classes: ArrayLike,
    *,
    k: int = 10,
    groups: ArrayLike | None = None,
    distances: NDArray[np.float64] | None = None,
) -> dict[str, float]:
    """`knn_purity` of each class.

    Parameters
    ----------
    features, classes, k, groups, distances
        See `knn_purity`.

    Returns
    -------
    dict of str to float
        Class, sorted → share between 0 and 1.

    Raises
    ------
    TetherError
        See `knn_purity`.
    """
    if k < 1:
        raise TetherError(f"`k` is {k}", expected="at least 1 neighbour", fix="k=10")
    x = as_features(features, least=k + 1)
    names, codes = as_classes(classes, len(x), least=1)
    check_spread(x)
    idx, _ = nearest(x, k, groups=as_groups(groups, len(x)), distances=distances)
    weight = 1 / np.bincount(codes)[codes][idx]
    same = np.sum(weight * (codes[idx] == codes[:, None]), axis=1) / weight.sum(axis=1)
    mean = np.bincount(codes, weights=same) / np.bincount(codes)
    return dict(zip(names.tolist(), mean.tolist(), strict=True))

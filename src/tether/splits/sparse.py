"""Structures in thinly populated regions: of a descriptor space (SparseX), of a property (SparseY).

Omee et al. mark the least dense structures, spread them over the space with k-means, and hold out
either one from each cluster ("single") or, fold by fold, one with its nearest neighbours
("cluster").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from tether.errors import TetherError
from tether.splits.cluster import cluster_labels, standardised
from tether.splits.holdout import largest
from tether.splits.labels import Labels
from tether.splits.property_tail import scott_log_density

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Variant", "sparse_labels", "sparsity_of_descriptors", "sparsity_of_values"]

Variant = Literal["all", "single", "cluster"]


def sparsity_of_descriptors(descriptors: ArrayLike, *, k: int = 10) -> NDArray[np.float64]:
    """Mean distance of each structure to its nearest others, in standardised descriptors.

    A rank of densities that needs no bandwidth. Omee et al. take a kernel density after t-SNE to
    two dimensions; t-SNE evens densities out and is another one with each seed, so that this keeps
    to the descriptors themselves.

    Parameters
    ----------
    descriptors : array, shape (n_systems, n_features)
        Finite values.
    k : int
        Neighbours.

    Returns
    -------
    array, shape (n_systems,)
        Large where structures are few; in standard deviations of a descriptor.

    Raises
    ------
    TetherError
        For fewer than ``k + 1`` structures, and for bad descriptors.
    """
    from sklearn.neighbors import NearestNeighbors

    table = standardised(descriptors)
    if len(table) <= k:
        raise TetherError(
            f"there are {len(table)} structures", expected=f"more than {k}", fix="use more data"
        )
    # Without an argument kneighbors leaves each point itself out.
    distance = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(table).kneighbors()[0]
    found: NDArray[np.float64] = distance.mean(axis=1)
    return found


def sparsity_of_values(values: ArrayLike) -> NDArray[np.float64]:
    """Negative logarithm of the kernel density of each value, after standardising.

    Parameters
    ----------
    values : array, shape (n_systems,)
        The property, finite.

    Returns
    -------
    array, shape (n_systems,)
        Large where values are few; the same in every unit.

    Raises
    ------
    TetherError
        When all values are equal.
    """
    # Rounded as in `tail`, so that a change of unit cannot reorder ties.
    return -np.round(scott_log_density(standardised(np.asarray(values)[:, None])[:, 0]), 9)


def sparse_labels(
    sparsity: ArrayLike,
    descriptors: ArrayLike,
    *,
    fraction: float = 0.1,
    n_clusters: int = 50,
    n_neighbours: int = 10,
    seed: int = 42,
) -> Labels:
    """Folds of Omee et al.: the sparsest structure of each cluster, with its neighbours.

    The sparsest ``round(fraction * n)`` structures are clustered by k-means in the descriptors; of
    each cluster the sparsest is the seed of one fold (Omee et al. draw one at random), which gets
    the seed's nearest other structures in the descriptors, whether sparse or not. A structure may
    be in several folds.

    Parameters
    ----------
    sparsity : array, shape (n_systems,)
        Of `sparsity_of_descriptors` or `sparsity_of_values`.
    descriptors : array, shape (n_systems, n_features)
        Where clusters and neighbours are looked for.
    fraction : float
        Share of candidates; Omee et al. take 500 structures.
    n_clusters : int
        Folds.
    n_neighbours : int
        Structures of a fold beside its seed; 0 gives the variant "single".
    seed : int
        Of k-means.

    Returns
    -------
    Labels
        Folds "0", "1", …

    Raises
    ------
    TetherError
        For arrays of different lengths, and for fewer candidates than folds or structures than
        neighbours.

    References
    ----------
    Omee, Fu, Dong, Hu and Hu, npj Comput. Mater. 10, 144 (2024).
    """
    score, table = np.asarray(sparsity, dtype=np.float64), standardised(descriptors)
    if len(score) != len(table):
        raise TetherError(
            f"{len(score)} densities and {len(table)} descriptors",
            expected="one of each a structure",
            fix="give arrays of the same store",
        )
    candidates = np.flatnonzero(largest(score, fraction))
    if len(candidates) < n_clusters:
        raise TetherError(
            f"{len(candidates)} of {len(score)} structures are candidates for {n_clusters} folds",
            expected="at least one a fold",
            fix="raise `ood` or lower `n_clusters`",
        )
    clusters = cluster_labels(table[candidates], n_clusters=n_clusters, seed=seed)
    # Sparsest first, so that the first of each cluster is its seed.
    order = np.argsort(-score[candidates], kind="stable")
    members, codes = clusters.rows[order], clusters.codes[order]
    _, first = np.unique(codes, return_index=True)
    seeds = candidates[members[first]]
    neighbours = _nearest(table, seeds, n_neighbours)
    folds = [
        np.union1d([row], near[near != row][:n_neighbours])
        for row, near in zip(seeds, neighbours, strict=True)
    ]
    rows = np.concatenate(folds)
    codes = np.repeat(np.arange(len(folds)), [len(fold) for fold in folds])
    names = tuple(str(number) for number in range(len(folds)))
    return Labels("fold", names, rows.astype(np.int64), codes.astype(np.int64), len(score))


def _nearest(table: NDArray[np.float64], rows: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The n nearest others of each row and, first where no other coincides, the row itself."""
    from sklearn.neighbors import NearestNeighbors

    if not 0 <= n < len(table):
        raise TetherError(
            f"`n_neighbours` is {n}",
            expected=f"0 to {len(table) - 1}, the other structures there are",
            fix="choose another number of neighbours",
        )
    finder = NearestNeighbors(n_neighbors=n + 1, algorithm="brute").fit(table)
    found: NDArray[np.int64] = finder.kneighbors(table[rows], return_distance=False)
    return found

"""Clusters of structures in a descriptor space, for leave-one-cluster-out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tether.errors import TetherError
from tether.splits.labels import Labels, label_each

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["cluster_labels", "standardised"]


def cluster_labels(descriptors: ArrayLike, *, n_clusters: int = 50, seed: int = 42) -> Labels:
    """k-means clusters of standardised descriptors, by scikit-learn.

    Parameters
    ----------
    descriptors : array, shape (n_systems, n_features)
        Of the composition, the geometry, or a pretrained model's fingerprints.
    n_clusters : int
        Clusters; 50 as in the LOCO folds of Omee et al.
    seed : int
        Of the ten starts, of which the best is kept.

    Returns
    -------
    Labels
        "0" is the largest cluster. Fewer than `n_clusters` where fewer structures differ.

    Raises
    ------
    TetherError
        For descriptors that are no finite table, all equal, or of fewer structures than clusters.

    References
    ----------
    Meredig et al., Mol. Syst. Des. Eng. 3, 819 (2018), leave-one-cluster-out; Omee et al., npj
    Comput. Mater. 10, 144 (2024), 50 clusters.
    """
    from sklearn.cluster import KMeans

    table = standardised(descriptors)
    if not 2 <= n_clusters <= len(table):
        raise TetherError(
            f"`n_clusters` is {n_clusters}",
            expected=f"2 to {len(table)}, the structures there are",
            fix="choose another number of clusters",
        )
    # k-means finds no more clusters than there are different points, and warns of it.
    n_different = len(np.unique(table, axis=0))
    model = KMeans(min(n_clusters, n_different), n_init=10, random_state=seed).fit(table)
    by_size = np.argsort(-np.bincount(model.labels_), kind="stable")
    rank = np.argsort(by_size)[model.labels_]
    return label_each("cluster", [str(number) for number in rank])


def standardised(descriptors: ArrayLike) -> NDArray[np.float64]:
    """Shift and scale each column to mean 0 and deviation 1; constant columns are left out.

    Parameters
    ----------
    descriptors : array, shape (n_systems, n_features)
        Finite values.

    Returns
    -------
    array, shape (n_systems, n_varying)
        Without unit.

    Raises
    ------
    TetherError
        For another shape, values that are not finite, or when no column varies.
    """
    table = np.asarray(descriptors, dtype=np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        wrong = int(table.size - np.isfinite(table).sum())
        raise TetherError(
            f"descriptors have shape {table.shape} and {wrong} value(s) that are not finite",
            expected="(n_systems, n_features), all finite",
            fix="give one row of numbers a structure",
        )
    deviation = table.std(axis=0)
    # Rounding makes the deviation of a constant column a hair above zero.
    varying = deviation > 1e-9 * np.abs(table).max(axis=0, initial=0.0)
    if not varying.any():
        raise TetherError(
            f"all {len(table)} structures have the same descriptors",
            expected="structures that differ",
            fix="choose other descriptors",
        )
    kept = table[:, varying]
    scaled: NDArray[np.float64] = (kept - kept.mean(axis=0)) / deviation[varying]
    return scaled

"""t-SNE of pretrained and adapted features together, and Davies–Bouldin on it as in the paper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tether.collapse.checks import as_features, check_same_width, check_spread
from tether.collapse.separation import davies_bouldin
from tether.errors import TetherError
from tether.packages import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    Start = Literal["pca", "random"]

__all__ = ["davies_bouldin_tsne", "joint_embedding", "open_tsne"]

#: Fewest points of both sets together for which a t-SNE says anything.
MIN_POINTS = 12


def joint_embedding(
    before: ArrayLike,
    after: ArrayLike,
    *,
    seeds: Sequence[int],
    perplexity: float = 30,
    start: Start = "pca",
    n_jobs: int = 1,
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """One t-SNE of both feature sets, so that they share a picture, for each seed.

    Embedded apart, two sets would lie differently even if nothing had changed. Coordinates have no
    unit, and neither distances between clusters nor their sizes have a meaning.

    Parameters
    ----------
    before, after : array, shape (n, n_features) and (m, n_features)
        Features; no scaling.
    seeds : sequence of int
        One embedding each. Affinities are computed once, with the first seed.
    perplexity : float
        Number of neighbours that count; a third of the points where there are fewer than three
        times as many.
    start : {"pca", "random"}
        Where the points start: at their principal components, which keeps the large picture, or
        at random places, as in the recipe whose spread the paper's numbers have.
    n_jobs : int
        Threads.

    Returns
    -------
    list of (ndarray, ndarray), shape (n, 2) and (m, 2), float32
        Coordinates for each seed.

    Raises
    ------
    TetherError
        For widths that differ, fewer than `MIN_POINTS` points in all, points that coincide, values
        that are not finite, no seed, or when openTSNE is not installed.

    References
    ----------
    Poličar et al., openTSNE, J. Stat. Softw. 109 (2024).
    """
    x, y = as_features(before, "before", least=1), as_features(after, "after", least=1)
    check_same_width(x, y)
    both = as_features(np.concatenate([x, y]), "before and after", least=MIN_POINTS)
    check_spread(both)
    if not seeds:
        raise TetherError("no seed", expected="at least one", fix="seeds=(0, 1, 2)")
    affinities, initialization, tsne = open_tsne()
    neighbours = affinities.PerplexityBasedNN(
        both, perplexity=min(perplexity, (len(both) - 1) // 3), n_jobs=n_jobs, random_state=seeds[0]
    )
    pictures = []
    for seed in seeds:
        begin = getattr(initialization, start)
        place = begin(both if start == "pca" else len(both), random_state=seed)
        found = tsne(n_jobs=n_jobs, random_state=seed).fit(
            affinities=neighbours, initialization=place
        )
        picture = np.asarray(found, dtype=np.float32)
        pictures.append((picture[: len(x)], picture[len(x) :]))
    return pictures


def davies_bouldin_tsne(
    before: ArrayLike,
    after: ArrayLike,
    before_classes: ArrayLike,
    after_classes: ArrayLike,
    *,
    seeds: Sequence[int],
    perplexity: float = 30,
) -> NDArray[np.float64]:
    """Davies–Bouldin index on t-SNE coordinates of both sets, for each seed.

    The paper's measure is the ratio of the two. The index changes severalfold with the seed on the
    same features: never quote one seed.

    Parameters
    ----------
    before, after : array, shape (n, n_features) and (m, n_features)
        Features.
    before_classes, after_classes : array of str, shape (n,) and (m,)
        Class of each point.
    seeds : sequence of int
        One embedding each, from a random start.
    perplexity : float
        See `joint_embedding`; here enough points for it are asked for.

    Returns
    -------
    ndarray, shape (n_seeds, 2)
        Index of `before` and of `after`.

    Raises
    ------
    TetherError
        For fewer points in all than three times the perplexity, and as `joint_embedding` and
        `davies_bouldin`.
    """
    x, y = as_features(before, "before"), as_features(after, "after")
    n = len(x) + len(y)
    if n <= 3 * perplexity:
        raise TetherError(
            f"{n} points in all for perplexity {perplexity:g}",
            expected=f"more than {3 * perplexity:g}",
            fix="look at more atoms",
        )
    pictures = joint_embedding(x, y, seeds=seeds, perplexity=perplexity, start="random")
    pairs = (
        (davies_bouldin(a, before_classes), davies_bouldin(b, after_classes)) for a, b in pictures
    )
    return np.array(list(pairs))


def open_tsne() -> tuple[Any, Any, Any]:
    """Import what is needed of openTSNE.

    Returns
    -------
    affinity, initialization : module
        Of openTSNE.
    TSNE : type
        The estimator.

    Raises
    ------
    TetherError
        When the package is not installed.
    """
    require("openTSNE", "t-SNE", extra="collapse")
    from openTSNE import TSNE, affinity, initialization

    return affinity, initialization, TSNE

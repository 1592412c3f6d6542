"""All measures of two feature sets of the same points, with interval and null."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tether.collapse.checks import as_classes
from tether.collapse.embed import davies_bouldin_tsne, open_tsne
from tether.collapse.facts import FACTS, Found
from tether.collapse.intervals import half_width, split_halves
from tether.collapse.points import N_SPLITS, Points, interval_width, pair_points, some_points
from tether.collapse.probe import balanced_accuracy, probe_hits
from tether.collapse.rank import effective_rank, intrinsic_dimension
from tether.collapse.separation import davies_bouldin, knn_purity, silhouette
from tether.collapse.similarity import debiased_cka
from tether.collapse.transport import sliced_wasserstein1, wasserstein1
from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from tether.collapse.facts import Fact
    from tether.collapse.measurement import Measurement

__all__ = ["cheap_measures", "tsne_measures"]

#: Points a side of the exact transport; of measures that look at all pairs; of the t-SNE.
MAX_TRANSPORT, MAX_PAIRS, MAX_TSNE = 1000, 4000, 4000
#: Points of a class, below which it is left out of the measures that know classes.
MIN_CLASS = 10
#: An exact transport takes 0.2 s.
N_TRANSPORT_SPLITS = 10

_STRUCTURE: Mapping[str, Callable[[Points], float]] = {
    "effective_rank": lambda p: effective_rank(p.features),
    "davies_bouldin": lambda p: davies_bouldin(p.features, p.classes),
    "silhouette": lambda p: silhouette(p.features, p.classes, distances=p.distances),
    "knn_purity": lambda p: knn_purity(
        p.features, p.classes, groups=p.groups, distances=p.distances
    ),
    "intrinsic_dimension": lambda p: intrinsic_dimension(
        p.features, groups=p.groups, distances=p.distances
    ),
}


def cheap_measures(
    before: ArrayLike,
    after: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    seed: int,
    layer: int | None = None,
) -> list[Measurement]:
    """Every measure but those on t-SNE.

    Measures of all pairs look at most at `MAX_PAIRS` points, of randomly drawn whole structures.
    Transport compares the *same* points before and after, on halves of at most `MAX_TRANSPORT`
    (exact) points; its null compares two disjoint halves of the pretrained features, as large:
    below it, features moved less than they differ between one sample and another. The null of CKA
    is the range of random halves of the pretrained columns; unrelated features have 0. For the
    nulls of the other measures and all intervals see `tether.collapse.intervals`; the probe's
    interval is of its test points, not of its training.

    Parameters
    ----------
    before, after : array, shape (n, n_features)
        Pretrained and adapted features of the same points.
    labels : array of str, shape (n,)
        Class of each point.
    groups : array, shape (n,)
        Structure of each point.
    seed : int
        Of all draws.
    layer : int, optional
        Written into the measurements.

    Returns
    -------
    list of Measurement
        One a measure, always all of them; one that cannot be computed says why.

    Raises
    ------
    TetherError
        When the arrays do not belong together.
    """
    one, two = pair_points(before, after, labels, groups)
    known = one.of_known_classes(MIN_CLASS)
    found = {
        **_transport(one, two, seed),
        "cka": _similarity(one, two, seed),
        **_structure(("effective_rank",), one, two, seed),
        **_structure(("intrinsic_dimension",), *some_points(one, two, MAX_PAIRS, seed=seed), seed),
    }
    one, two = one.take(known), two.take(known)
    found |= _structure(("davies_bouldin",), one, two, seed)
    one, two = some_points(one, two, MAX_PAIRS, seed=seed)
    found |= _structure(("silhouette", "knn_purity"), one, two, seed)
    found["linear_probe"] = _probe(one, two, seed)
    return [
        fact.measured(found[name], layer=layer) for name, fact in FACTS.items() if name in found
    ]


def tsne_measures(
    before: ArrayLike,
    after: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    seeds: Sequence[int],
    perplexity: float = 30,
    layer: int | None = None,
) -> list[Measurement]:
    """Davies–Bouldin on t-SNE as in the paper, and its ratio to the pretrained model's.

    One half of the structures is embedded before and after together, once a seed. The null embeds
    it with the other half of the *pretrained* features: as many points, nothing learnt, either half
    in either place. The value is the mean over seeds; interval and null are ranges over seeds,
    which say how far the number depends on chance and little of the structures.

    Parameters
    ----------
    before, after, labels, layer
        See `cheap_measures`.
    groups : array, shape (n,), optional
        Structure of each point.
    seeds : sequence of int
        One t-SNE each.
    perplexity : float
        Of the t-SNE.

    Returns
    -------
    list of Measurement
        Two; without values, but with the reason, where they cannot be computed.

    Raises
    ------
    TetherError
        When the arrays do not belong together, there is no seed, or openTSNE is not installed.
    """
    if not seeds:
        raise TetherError("no seed", expected="at least one", fix="seeds=(0, 1, 2)")
    open_tsne()
    one, two = pair_points(before, after, labels, groups)
    known = one.of_known_classes(MIN_CLASS)
    one, two = some_points(one.take(known), two.take(known), MAX_TSNE, seed=seeds[0])
    index = FACTS["davies_bouldin_tsne"]
    ratio = FACTS["davies_bouldin_tsne_ratio"]
    try:
        as_classes(one.classes, len(one.classes))
        ((a, b),) = split_halves(one.groups, n_splits=1, seed=seeds[0])
        own, other = one.classes[a], one.classes[b]
        first = one.features[a]
        pairs = davies_bouldin_tsne(
            first, two.features[a], own, own, seeds=seeds, perplexity=perplexity
        )
        null = davies_bouldin_tsne(
            first, one.features[b], own, other, seeds=seeds, perplexity=perplexity
        )
    except TetherError as error:
        missing = Found(math.nan, missing=error.problem)
        return [fact.measured(missing, layer=layer) for fact in (index, ratio)]
    # Which half comes first is chance: the null has their ratio both ways round.
    by_chance = null[:, 1] / null[:, 0]
    both_ways = np.concatenate([by_chance, 1 / by_chance])
    return [
        _over_seeds(index, pairs[:, 1], pairs[:, 0], null.ravel(), n=len(a), layer=layer),
        _over_seeds(ratio, pairs[:, 1] / pairs[:, 0], np.ones(1), both_ways, n=len(a), layer=layer),
    ]


def _over_seeds(
    fact: Fact,
    values: NDArray[np.float64],
    base: NDArray[np.float64],
    chance: NDArray[np.float64],
    *,
    n: int,
    layer: int | None,
) -> Measurement:
    """Mean over seeds, with ranges over seeds as interval and null."""
    found = Found(
        float(values.mean()),
        before=float(base.mean()),
        null=(float(chance.min()), float(chance.max())),
        n=n,
    )
    measured = fact.measured(found, layer=layer)
    return replace(measured, low=float(values.min()), high=float(values.max()))


def _structure(
    names: tuple[str, ...], before: Points, after: Points, seed: int
) -> dict[str, Found]:
    """Measures of one feature set, taken on both."""
    values, reasons = _values(names, after)
    base, _ = _values(names, before)

    def widths(points: Points) -> NDArray[np.float64]:
        return interval_width(
            lambda idx: _values(names, points.take(idx))[0],
            points,
            n_values=len(names),
            seed=seed,
        )

    own, null = widths(after), math.sqrt(2) * widths(before)
    return {
        name: Found(
            float(values[i]),
            half_width=float(own[i]),
            before=float(base[i]),
            null=(float(base[i] - null[i]), float(base[i] + null[i])),
            n=len(after),
            missing=reasons[i],
        )
        for i, name in enumerate(names)
    }


def _values(names: tuple[str, ...], points: Points) -> tuple[NDArray[np.float64], list[str]]:
    """Values with NaN where there is none, and the reasons."""
    values, reasons = np.full(len(names), np.nan), [""] * len(names)
    for i, name in enumerate(names):
        try:
            values[i] = _STRUCTURE[name](points)
        except TetherError as error:
            reasons[i] = error.problem
    return values, reasons


def _probe(before: Points, after: Points, seed: int) -> Found:
    results = []
    try:
        names, codes = as_classes(after.classes, len(after))
        for points in (after, before):
            hits = probe_hits(points.features, points.classes, groups=points.groups, seed=seed)

            def accuracy(idx: NDArray[np.intp], hits: NDArray[np.bool_] = hits) -> float:
                return _or_nan(lambda: balanced_accuracy(hits[idx], codes[idx], len(names)))

            width = interval_width(accuracy, points, n_values=1, seed=seed)
            results.append((accuracy(np.arange(len(hits))), float(width[0])))
    except TetherError as error:
        return Found(math.nan, missing=error.problem, n=len(after))
    (value, width_after), (base, width_before) = results
    spread = math.sqrt(2) * width_before
    null = (base - spread, base + spread)
    return Found(value, half_width=width_after, before=base, null=null, n=len(after))


def _similarity(before: Points, after: Points, seed: int) -> Found:
    """CKA of all points; null: random halves of the pretrained columns."""
    x, y = before.features, after.features
    try:
        value = debiased_cka(x, y)
    except TetherError as error:
        return Found(math.nan, missing=error.problem, n=len(before))
    width = interval_width(
        lambda idx: _or_nan(lambda: debiased_cka(x[idx], y[idx])), before, n_values=1, seed=seed
    )
    generator = np.random.default_rng(seed)

    def halves_alike() -> float:
        left, right = np.array_split(generator.permutation(x.shape[1]), 2)
        return _or_nan(lambda: debiased_cka(x[:, left], x[:, right]))

    draws = [halves_alike() for _ in range(N_SPLITS)]
    return Found(value, half_width=float(width[0]), null=_range(draws), n=len(before))


def _transport(before: Points, after: Points, seed: int) -> dict[str, Found]:
    """Both transports: same points before and after; null: disjoint halves of `before`."""
    exact = some_points(before, after, 2 * MAX_TRANSPORT, seed=seed)
    return {
        "wasserstein1": _moved(wasserstein1, *exact, N_TRANSPORT_SPLITS, seed),
        "sliced_wasserstein1": _moved(
            lambda x, y: sliced_wasserstein1(x, y, seed=seed), before, after, N_SPLITS, seed
        ),
    }


def _moved(
    distance: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
    before: Points,
    after: Points,
    n_splits: int,
    seed: int,
) -> Found:
    try:
        halves = split_halves(before.groups, n_splits=n_splits, seed=seed)
        n = min(len(half) for pair in halves for half in pair)
        # Equal n: the distance of two samples depends on their size.
        generator = np.random.default_rng(seed)
        halves = [
            (np.sort(generator.permutation(a)[:n]), np.sort(generator.permutation(b)[:n]))
            for a, b in halves
        ]
        x, y = before.features, after.features
        pairs = np.array([[distance(x[idx], y[idx]) for idx in pair] for pair in halves])
        null = [distance(x[a], x[b]) for a, b in halves]
    except TetherError as error:
        return Found(math.nan, missing=error.problem, n=len(before))
    differences = (pairs[:, :1] - pairs[:, 1:]) / 2
    width = half_width(differences, before.n_groups)
    return Found(float(pairs.mean()), half_width=float(width[0]), null=_range(null), n=n)


def _range(draws: list[float]) -> tuple[float, float]:
    """Between the 2.5 and the 97.5 percentile."""
    if not draws or not np.isfinite(draws).all():
        return math.nan, math.nan
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _or_nan(measure: Callable[[], float]) -> float:
    try:
        return measure()
    except TetherError:
        return math.nan

"""All measures of two feature sets of the same points, with interval and null."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tether.collapse.checks import as_classes, as_groups
from tether.collapse.distances import pair_distances
from tether.collapse.embed import davies_bouldin_tsne
from tether.collapse.facts import FACTS, Found
from tether.collapse.intervals import half_differences, half_width, some_groups, split_halves
from tether.collapse.probe import balanced_accuracy, probe_hits
from tether.collapse.rank import effective_rank, intrinsic_dimension
from tether.collapse.separation import davies_bouldin, knn_purity, silhouette
from tether.collapse.similarity import debiased_cka
from tether.collapse.transport import sliced_wasserstein1, wasserstein1
from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from tether.collapse.measurement import Measurement

    Halves = list[tuple[NDArray[np.intp], NDArray[np.intp]]]

__all__ = ["cheap_measures", "tsne_measures"]

#: Points a side of the exact transport; of measures that look at all pairs; of the t-SNE.
MAX_TRANSPORT, MAX_PAIRS, MAX_TSNE = 1000, 4000, 4000
#: Points of a class, below which it is left out of the measures that know classes.
MIN_CLASS = 10
N_SPLITS, N_TRANSPORT_SPLITS = 20, 10


@dataclass(frozen=True)
class _Points:
    """Features with what is known of their points; distances are computed when asked for."""

    features: NDArray[np.float64]
    classes: NDArray[np.str_]
    groups: NDArray[np.intp]

    @cached_property
    def distances(self) -> NDArray[np.float64]:
        return pair_distances(self.features)

    def take(self, idx: NDArray[np.intp]) -> _Points:
        return _Points(self.features[idx], self.classes[idx], self.groups[idx])


_STRUCTURE: Mapping[str, Callable[[_Points], float]] = {
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
    (exact) points; its null compares two disjoint halves of the pretrained features, as large: below
    it, features moved less than they differ between one sample and another. The null of CKA are
    random halves of the pretrained columns, and unrelated features have 0. For the nulls of the
    other measures and all intervals see `tether.collapse.intervals`; the probe's interval is of its
    test points, not of its training.

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
    one, two = _pair(before, after, labels, groups)
    known = _known_classes(one.classes)
    found = {
        **_transport(one, two, seed),
        "cka": _similarity(one, two, seed),
        **_structure(("effective_rank",), one, two, seed),
        **_structure(("intrinsic_dimension",), *_some(one, two, MAX_PAIRS, seed), seed),
    }
    one, two = one.take(known), two.take(known)
    found |= _structure(("davies_bouldin",), one, two, seed)
    one, two = _some(one, two, MAX_PAIRS, seed)
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
    it with the other half of the *pretrained* features: as many points, nothing learnt. The value
    is the mean over seeds; interval and null are ranges over seeds, which say how far the number
    depends on chance and nothing of the structures.

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
    one, two = _pair(before, after, labels, groups)
    known = _known_classes(one.classes)
    one, two = _some(one.take(known), two.take(known), MAX_TSNE, seeds[0])
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
        if "package" in error.problem:
            raise
        missing = Found(math.nan, missing=error.problem)
        return [fact.measured(missing, layer=layer) for fact in (index, ratio)]
    rows = (
        (index, pairs[:, 1], pairs[:, 0], null[:, 1]),
        (ratio, pairs[:, 1] / pairs[:, 0], np.ones(1), null[:, 1] / null[:, 0]),
    )
    return [
        replace(
            fact.measured(
                Found(
                    float(values.mean()),
                    before=float(base.mean()),
                    null=(float(chance.min()), float(chance.max())),
                    n=len(a),
                ),
                layer=layer,
            ),
            low=float(values.min()),
            high=float(values.max()),
        )
        for fact, values, base, chance in rows
    ]


def _structure(
    names: tuple[str, ...], before: _Points, after: _Points, seed: int
) -> dict[str, Found]:
    """Measures of one feature set, taken on both."""
    halves = _halves(before.groups, N_SPLITS, seed)
    n_groups = len(np.unique(before.groups))
    values, reasons = _values(names, after)
    base, _ = _values(names, before)

    def widths(points: _Points) -> NDArray[np.float64]:
        if not halves:
            return np.full(len(names), np.nan)
        differences = half_differences(lambda idx: _values(names, points.take(idx))[0], halves)
        return half_width(differences, n_groups)

    own, null = widths(after), math.sqrt(2) * widths(before)
    return {
        name: Found(
            float(values[i]),
            half_width=float(own[i]),
            before=float(base[i]),
            null=(float(base[i] - null[i]), float(base[i] + null[i])),
            n=len(after.features),
            missing=reasons[i],
        )
        for i, name in enumerate(names)
    }


def _values(names: tuple[str, ...], points: _Points) -> tuple[NDArray[np.float64], list[str]]:
    """Values with NaN where there is none, and the reasons."""
    values, reasons = np.full(len(names), np.nan), [""] * len(names)
    for i, name in enumerate(names):
        try:
            values[i] = _STRUCTURE[name](points)
        except TetherError as error:
            reasons[i] = error.problem
    return values, reasons


def _probe(before: _Points, after: _Points, seed: int) -> Found:
    halves = _halves(before.groups, N_SPLITS, seed)
    results = []
    try:
        names, codes = as_classes(after.classes, len(after.classes))

        def accuracy(hits: NDArray[np.bool_], idx: NDArray[np.intp]) -> float:
            return balanced_accuracy(hits[idx], codes[idx], len(names))

        for points in (after, before):
            hits = probe_hits(points.features, points.classes, groups=points.groups, seed=seed)
            value = accuracy(hits, np.arange(len(hits)))
            differences = half_differences(lambda idx, hits=hits: accuracy(hits, idx), halves)  # type: ignore[misc]
            width = half_width(differences, len(np.unique(points.groups)))
            results.append((value, float(width[0])))
    except TetherError as error:
        return Found(math.nan, missing=error.problem, n=len(after.features))
    (value, width), (base, spread) = results
    null = (base - math.sqrt(2) * spread, base + math.sqrt(2) * spread)
    return Found(value, half_width=width, before=base, null=null, n=len(after.features))


def _similarity(before: _Points, after: _Points, seed: int) -> Found:
    """CKA of all points; null: random halves of the pretrained columns."""
    n = len(before.features)
    try:
        value = debiased_cka(before.features, after.features)
    except TetherError as error:
        return Found(math.nan, missing=error.problem, n=n)
    halves = _halves(before.groups, N_SPLITS, seed)
    width = math.nan
    if halves:
        differences = half_differences(
            lambda idx: _or_nan(lambda: debiased_cka(before.features[idx], after.features[idx])),
            halves,
        )
        width = float(half_width(differences, len(np.unique(before.groups)))[0])
    columns = before.features.shape[1]
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(N_SPLITS if columns > 1 else 0):
        order = generator.permutation(columns)
        left, right = order[: columns // 2], order[columns // 2 :]
        pair = before.features[:, left], before.features[:, right]
        draws.append(_or_nan(lambda pair=pair: debiased_cka(*pair)))  # type: ignore[misc]
    return Found(value, half_width=width, null=_range(draws), n=n)


def _transport(before: _Points, after: _Points, seed: int) -> dict[str, Found]:
    """Both transports: same points before and after; null: disjoint halves of `before`."""
    exact = _some(before, after, 2 * MAX_TRANSPORT, seed)
    return {
        "wasserstein1": _moved(wasserstein1, *exact, N_TRANSPORT_SPLITS, seed),
        "sliced_wasserstein1": _moved(
            lambda x, y: sliced_wasserstein1(x, y, seed=seed), before, after, N_SPLITS, seed
        ),
    }


def _moved(
    distance: Callable[[NDArray[np.float64], NDArray[np.float64]], float],
    before: _Points,
    after: _Points,
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
        return Found(math.nan, missing=error.problem, n=len(before.features))
    differences = (pairs[:, :1] - pairs[:, 1:]) / 2
    width = half_width(differences, len(np.unique(before.groups)))
    return Found(float(pairs.mean()), half_width=float(width[0]), null=_range(null), n=n)


def _pair(
    before: ArrayLike, after: ArrayLike, labels: ArrayLike, groups: ArrayLike | None
) -> tuple[_Points, _Points]:
    x, y = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    classes = np.asarray(labels).astype(np.str_)
    if x.ndim != 2 or x.shape != y.shape or classes.shape != x.shape[:1]:
        raise TetherError(
            f"`before` has shape {x.shape}, `after` {y.shape} and `labels` {classes.shape}",
            expected="(n, n_features) twice and (n,)",
            fix="extract the same layer of the same atoms from both models",
        )
    group = as_groups(groups, len(x))
    return _Points(x, classes, group), _Points(y, classes, group)


def _known_classes(classes: NDArray[np.str_]) -> NDArray[np.intp]:
    """Points of classes with enough of them."""
    _, codes, counts = np.unique(classes, return_inverse=True, return_counts=True)
    return np.flatnonzero(counts[codes] >= MIN_CLASS)


def _some(before: _Points, after: _Points, most: int, seed: int) -> tuple[_Points, _Points]:
    try:
        idx = some_groups(before.groups, most, seed=seed)
    except TetherError:
        # One structure with more points than all that may be looked at: no structure to keep whole.
        idx = np.sort(np.random.default_rng(seed).permutation(len(before.groups))[:most])
    return before.take(idx), after.take(idx)


def _halves(groups: NDArray[np.intp], n_splits: int, seed: int) -> Halves:
    try:
        return split_halves(groups, n_splits=n_splits, seed=seed)
    except TetherError:
        return []  # no interval; the value stands


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

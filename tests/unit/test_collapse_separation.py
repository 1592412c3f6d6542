"""How well classes are told apart: against scikit-learn, brute force, and models that collapsed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import ortho_group
from sklearn import metrics

from tether.collapse.distances import distance_rows, nearest, pair_distances
from tether.collapse.probe import balanced_accuracy, linear_probe, probe_hits
from tether.collapse.separation import class_purity, davies_bouldin, knn_purity, silhouette
from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Measure = Callable[[NDArray[np.float64], NDArray[np.str_]], float]

# Rounding of a matrix product against differences taken one by one.
MATCH = 1e-9
# The solver of the probe stops early; what it classifies changes for a point or two.
PROBE_MATCH = 0.02

MEASURES: dict[str, Measure] = {
    "davies_bouldin": davies_bouldin,
    "silhouette": silhouette,
    "knn_purity": knn_purity,
    "linear_probe": linear_probe,
}
#: Whether a collapse makes the measure larger.
GROWS = {"davies_bouldin"}


def clusters(
    n: int = 300, n_classes: int = 5, width: int = 12, noise: float = 0.5, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % n_classes
    means = rng.normal(size=(n_classes, width))
    features = means[codes] + noise * rng.normal(size=(n, width))
    return features, np.array([f"c{code}" for code in codes])


def collapsed(features: NDArray[np.float64], seed: int = 1) -> NDArray[np.float64]:
    """The class-free mean plus noise of the same spread: nothing of the classes is left."""
    rng = np.random.default_rng(seed)
    return features.mean(axis=0) + features.std() * rng.normal(size=features.shape)


def rotated(features: NDArray[np.float64], seed: int = 2) -> NDArray[np.float64]:
    width = features.shape[1]
    return features @ ortho_group.rvs(width, random_state=seed)


@pytest.mark.parametrize("seed", range(3))
def test_davies_bouldin_and_silhouette_are_scikit_learns(seed: int) -> None:
    x, classes = clusters(n=157, seed=seed)
    assert davies_bouldin(x, classes) == pytest.approx(
        metrics.davies_bouldin_score(x, classes), rel=MATCH
    )
    assert silhouette(x, classes) == pytest.approx(metrics.silhouette_score(x, classes), rel=MATCH)


def purity_by_hand(
    x: NDArray[np.float64], classes: NDArray[np.str_], k: int, groups: NDArray[np.int64]
) -> float:
    distance = cdist(x, x)
    sizes = {name: int((classes == name).sum()) for name in set(classes.tolist())}
    shares: dict[str, list[float]] = {name: [] for name in sizes}
    for i in range(len(x)):
        others = [j for j in range(len(x)) if groups[j] != groups[i]]
        near = sorted(others, key=lambda j: distance[i, j])[:k]
        weight = [1 / sizes[classes[j]] for j in near]
        same = sum(w for j, w in zip(near, weight, strict=True) if classes[j] == classes[i])
        shares[classes[i]].append(same / sum(weight))
    return float(np.mean([np.mean(values) for values in shares.values()]))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 8), st.booleans())
def test_purity_is_the_one_counted_by_hand(seed: int, k: int, together: bool) -> None:
    rng = np.random.default_rng(seed)
    x, classes = rng.normal(size=(60, 4)), rng.choice(["a", "b", "b", "c"], 60)
    groups = np.arange(60) // 3 if together else np.arange(60)
    ours = knn_purity(x, classes, k=k, groups=groups if together else None)
    assert ours == pytest.approx(purity_by_hand(x, classes, k, groups), abs=MATCH)


def test_purity_by_chance_is_one_over_the_classes_however_unequal() -> None:
    rng = np.random.default_rng(0)
    x, classes = rng.normal(size=(1500, 6)), np.repeat(["a", "b", "c"], [1200, 200, 100])
    assert knn_purity(x, classes) == pytest.approx(1 / 3, abs=0.03)
    # Control: the plain share of the same class is that of the largest class.
    idx, _ = nearest(x, 10, groups=np.arange(len(x)))
    assert float(np.mean(classes[idx] == classes[:, None])) > 0.6


def test_atoms_of_the_same_structure_do_not_vouch_for_each_other() -> None:
    rng = np.random.default_rng(0)
    # Each structure has its own corner and one class for all its atoms.
    structure = np.repeat(np.arange(60), 12)
    x = 10 * rng.normal(size=(60, 5))[structure] + rng.normal(size=(720, 5))
    classes = rng.choice(["a", "b"], 60)[structure]
    assert knn_purity(x, classes) > 0.95
    assert knn_purity(x, classes, groups=structure) == pytest.approx(0.5, abs=0.15)


def test_purity_of_each_class() -> None:
    rng = np.random.default_rng(0)
    # "a" stands alone, "b" and "c" are one cloud.
    x = np.concatenate([rng.normal(size=(60, 3)) + 50, rng.normal(size=(120, 3))])
    found = class_purity(x, np.repeat(["a", "b", "c"], 60))
    assert list(found) == ["a", "b", "c"]
    assert found["a"] == 1.0
    assert found["b"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("name", MEASURES)
def test_collapsed_and_rotated_are_told_apart(name: str) -> None:
    measure = MEASURES[name]
    x, classes = clusters()
    value = measure(x, classes)
    tolerance = PROBE_MATCH if name == "linear_probe" else MATCH
    for same in (rotated(x), 3 * x, x + 7):
        assert measure(same, classes) == pytest.approx(value, abs=tolerance)
    lost = measure(collapsed(x), classes)
    assert (lost > 2 * value) if name in GROWS else (lost < 0.6 * value)


@pytest.mark.parametrize("name", MEASURES)
def test_invariance_has_a_limit(name: str) -> None:
    """Control: a map that blows up one direction without classes is no rotation, and is seen."""
    x, classes = clusters(noise=0.8)
    stretched = np.column_stack([x, 300 * np.random.default_rng(3).normal(size=len(x))])
    value, seen = (MEASURES[name](a, classes) for a in (x, stretched))
    assert abs(seen - value) > 0.2


def test_probe_is_at_chance_without_information_and_perfect_with_it() -> None:
    x, classes = clusters(n=1500, noise=0.05)
    assert linear_probe(x, classes) == 1.0
    assert linear_probe(collapsed(x), classes) == pytest.approx(0.2, abs=0.05)


def test_probe_never_trains_on_the_structure_that_it_classifies() -> None:
    rng = np.random.default_rng(0)
    # A structure's place tells its class, but only to one who has seen the structure.
    structure = np.repeat(np.arange(40), 20)
    x = rng.normal(size=(40, 60))[structure] + 0.01 * rng.normal(size=(800, 60))
    classes = rng.choice(["a", "b"], 40)[structure]
    assert linear_probe(x, classes) > 0.98
    assert linear_probe(x, classes, groups=structure) < 0.8


def test_balanced_accuracy_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    true, guess = rng.choice(3, 200, p=[0.7, 0.2, 0.1]), rng.choice(3, 200)
    ours = balanced_accuracy(true == guess, true, 3)
    assert ours == pytest.approx(metrics.balanced_accuracy_score(true, guess))
    with pytest.raises(TetherError, match=r"class number 2 has no point; expected at least one"):
        balanced_accuracy(np.ones(2, bool), np.array([0, 1]), 3)


def test_distances_are_those_of_scipy_and_blocks_are_seams_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = 5 + np.random.default_rng(0).normal(size=(41, 7))
    whole = pair_distances(x)
    np.testing.assert_allclose(whole, cdist(x, x), atol=1e-7)
    assert (np.diag(whole) == 0).all()
    values = [silhouette(x, np.arange(41) % 3), knn_purity(x, np.arange(41) % 3, k=4)]
    monkeypatch.setattr("tether.collapse.distances._BLOCK", 41 * 5)
    assert [start for start, _ in distance_rows(x)] == list(range(0, 41, 5))
    np.testing.assert_allclose(pair_distances(x), whole, atol=1e-12)
    again = [silhouette(x, np.arange(41) % 3), knn_purity(x, np.arange(41) % 3, k=4)]
    assert again == pytest.approx(values, abs=MATCH)


def test_given_distances_are_used() -> None:
    x, classes = clusters(n=60)
    distances = pair_distances(x)
    for measure in (silhouette, knn_purity):
        assert measure(x, classes, distances=distances) == measure(x, classes)
        assert measure(x, classes, distances=distances[::-1]) != measure(x, classes)
        with pytest.raises(TetherError, match=r"`distances` has shape \(3, 3\)"):
            measure(x, classes, distances=np.zeros((3, 3)))


@pytest.mark.parametrize("measure", [*MEASURES.values(), class_purity, probe_hits])
def test_bad_input_gives_an_error_and_never_a_number(measure: Measure) -> None:
    x, classes = clusters(n=60)
    nan = x.copy()
    nan[3, 2] = np.nan
    with pytest.raises(TetherError, match=r"`features` has 1 value\(s\) that are not finite"):
        measure(nan, classes)
    with pytest.raises(TetherError, match=r"all 60 points are of the class 'c0'"):
        measure(x, np.full(60, "c0"))
    with pytest.raises(TetherError, match=r"`classes` has shape \(59,\)"):
        measure(x, classes[1:])
    with pytest.raises(TetherError, match=r"all points of `features` coincide"):
        measure(np.full((60, 4), 0.1), classes)
    with pytest.raises(TetherError, match=r"`features` has (shape \(0,\)|0 points)"):
        measure(np.zeros(0), classes[:0])


def test_too_few_points_for_k_and_classes_of_one() -> None:
    x, classes = clusters(n=60)
    with pytest.raises(TetherError, match=r"has 10 points; expected at least 11"):
        knn_purity(x[:10], classes[:10])
    with pytest.raises(TetherError, match=r"9 points lie outside the largest structure"):
        knn_purity(x[:20], classes[:20], groups=np.repeat([0, 1], [11, 9]))
    with pytest.raises(TetherError, match=r"`k` is 0"):
        knn_purity(x, classes, k=0)
    lonely = np.array(["a"] * 59 + ["b"])
    for measure in (davies_bouldin, silhouette):
        with pytest.raises(TetherError, match=r"class 'b' has 1 point\(s\); expected at least 2"):
            measure(x, lonely)
    with pytest.raises(TetherError, match=r"two classes have the same mean"):
        davies_bouldin([[1.0], [-1], [2], [-2]], ["a", "a", "b", "b"])
    with pytest.raises(TetherError, match=r"a class occurs in one half of the structures only"):
        linear_probe(x, classes, groups=classes)
    with pytest.raises(TetherError, match=r"`groups` has shape \(5,\)"):
        knn_purity(x, classes, groups=np.zeros(5))

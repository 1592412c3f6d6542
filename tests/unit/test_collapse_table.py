"""The table of all measures, the t-SNE and `Measurement`: zero drift, collapse, rotation, gaps."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.stats import ortho_group

from tether.collapse import embed, table
from tether.collapse.embed import davies_bouldin_tsne, joint_embedding
from tether.collapse.facts import FACTS, Found
from tether.collapse.measurement import Measurement
from tether.collapse.separation import knn_purity
from tether.collapse.table import cheap_measures, tsne_measures
from tether.errors import TetherError

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHEAP = set(FACTS) - {"davies_bouldin_tsne", "davies_bouldin_tsne_ratio"}
STRUCTURE = {name for name in CHEAP if FACTS[name].family == "structure"}
DRIFT = CHEAP - STRUCTURE
# The probe's solver stops early; all else changes by rounding only.
ROTATION = {"linear_probe": 0.02}


class Sample:
    """Structures of four atoms with five classes, in 12 features of a low-dimensional kind."""

    def __init__(self, n: int = 400, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        codes = rng.permutation(np.arange(n) % 5)
        self.labels: NDArray[np.str_] = np.array([f"c{code}" for code in codes])
        self.groups = np.arange(n) // 4
        x = rng.normal(size=(5, 12))[codes] + 0.5 * rng.normal(size=(n, 12))
        self.before: NDArray[np.float64] = x * np.linspace(1.5, 0.5, 12)
        self.rng = rng

    def measure(self, after: Any, **kw: Any) -> dict[str, Measurement]:
        found = cheap_measures(self.before, after, self.labels, self.groups, seed=0, **kw)
        return {one.name: one for one in found}

    def collapsed(self) -> NDArray[np.float64]:
        """The class-free mean plus noise along two directions."""
        noise = self.rng.normal(size=(len(self.before), 2)) @ self.rng.normal(size=(2, 12))
        return self.before.mean(axis=0) + noise + 0.01 * self.rng.normal(size=self.before.shape)


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample()


def test_zero_drift_is_exactly_zero(sample: Sample) -> None:
    found = sample.measure(sample.before.copy(), layer=3)
    assert set(found) == CHEAP
    for name in ("wasserstein1", "sliced_wasserstein1"):
        one = found[name]
        assert (one.value, one.low, one.high) == (0.0, 0.0, 0.0)
        assert one.null_low is not None
        assert one.null_low > 0
        assert one.before is None
    assert (found["cka"].value, found["cka"].low, found["cka"].high) == (1.0, 1.0, 1.0)
    for name in STRUCTURE:
        one = found[name]
        assert one.value == one.before
        assert one.null_low is not None
        assert one.null_high is not None
        assert one.value is not None
        assert one.null_low <= one.value <= one.null_high
    for one in found.values():
        assert one.layer == 3
        assert one.n in {200, 400}  # transport: halves
        assert not one.needs_ood_labels


def test_collapse_leaves_the_null_in_the_direction_that_is_said(sample: Sample) -> None:
    found = sample.measure(sample.collapsed())
    for name, one in found.items():
        assert one.value is not None, name
        assert one.low is not None, name
        assert one.high is not None, name
        assert one.null_low is not None, name
        assert one.null_high is not None, name
        assert one.low <= one.value <= one.high
        if one.collapse_means == "higher":
            assert one.low > one.null_high, name
        else:
            assert one.high < one.null_low, name


def test_rotation_is_no_collapse_for_the_measures_that_claim_it(sample: Sample) -> None:
    rotated = sample.before @ ortho_group.rvs(12, random_state=1)
    found, same = sample.measure(rotated), sample.measure(sample.before)
    for name, one in found.items():
        changed = abs((one.value or 0) - (same[name].value or 0))
        if one.invariant:
            assert changed < ROTATION.get(name, 1e-6), name
        else:  # control: what does not claim it must see it
            assert changed > 0.001, name
    assert {name for name in CHEAP if not FACTS[name].invariant} == {
        "wasserstein1",
        "sliced_wasserstein1",
    }


def test_other_atoms_lie_within_the_null(sample: Sample) -> None:
    """The null's meaning: features of as many other structures are inside, most of the time."""
    inside = []
    nulls = sample.measure(sample.before)
    for seed in range(1, 9):
        rng = np.random.default_rng(seed)
        # Other structures of the same kind: same class means, new noise.
        fresh = Sample()
        codes = np.array([int(c[1]) for c in fresh.labels])
        means = np.random.default_rng(0)
        means.permutation(np.arange(400) % 5)
        x = means.normal(size=(5, 12))[codes] + 0.5 * rng.normal(size=(400, 12))
        value = knn_purity(x * np.linspace(1.5, 0.5, 12), fresh.labels, groups=fresh.groups)
        low, high = nulls["knn_purity"].null_low, nulls["knn_purity"].null_high
        inside.append(low is not None and high is not None and low <= value <= high)
    assert sum(inside) >= 6


def test_the_same_seed_gives_the_same_numbers(sample: Sample) -> None:
    after = sample.before + 0.1
    assert sample.measure(after) == sample.measure(after)


def test_caps_are_stated_in_n(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_PAIRS", 200)
    monkeypatch.setattr(table, "MAX_TRANSPORT", 60)
    found = sample.measure(sample.before)
    assert found["silhouette"].n == found["intrinsic_dimension"].n == 200
    assert found["wasserstein1"].n == 60
    assert found["effective_rank"].n == found["cka"].n == 400


def test_what_cannot_be_computed_says_why(sample: Sample) -> None:
    broken = sample.before.copy()
    broken[0, 0] = np.nan
    for one in sample.measure(broken).values():
        assert (one.value, one.low, one.high) == (None, None, None)
        assert "not finite" in one.missing, one.name
    dead = sample.measure(np.ones_like(sample.before))
    for name in ("cka", *STRUCTURE):
        assert dead[name].value is None
        assert "coincide" in dead[name].missing
    one_class = cheap_measures(sample.before, sample.before, ["a"] * 400, sample.groups, seed=0)
    for one in one_class:
        if one.name in {"davies_bouldin", "silhouette", "knn_purity", "linear_probe"}:
            assert one.value is None
            assert "all 400 points are of the class 'a'" in one.missing
        else:
            assert one.value is not None
    few = cheap_measures(
        sample.before[:12], sample.before[:12], sample.labels[:12], sample.groups[:12], seed=0
    )
    assert all(one.missing for one in few if one.name in STRUCTURE)


def test_without_structures_to_draw_there_is_a_value_without_interval(sample: Sample) -> None:
    found = {
        one.name: one
        for one in cheap_measures(
            sample.before, sample.before, sample.labels, np.arange(400) % 3, seed=0
        )
    }
    for name in ("cka", "effective_rank", "silhouette", "linear_probe"):
        assert found[name].value is not None, name
        assert found[name].low is None, name
    assert "3 structure(s)" in found["wasserstein1"].missing


def test_rare_classes_are_left_out(sample: Sample) -> None:
    labels = sample.labels.copy()
    labels[:3] = "rare"
    found = cheap_measures(sample.before, sample.before, labels, sample.groups, seed=0)
    n = {one.name: one.n for one in found}
    assert n["davies_bouldin"] == n["knn_purity"] == 397
    assert n["effective_rank"] == 400


def test_arrays_must_belong_together(sample: Sample) -> None:
    x = sample.before
    for before, after, labels in (
        (x, x[:, 1:], sample.labels),
        (x, x[1:], sample.labels),
        (x, x, sample.labels[1:]),
    ):
        with pytest.raises(TetherError, match=r"`before` has shape \(400, 12\)"):
            cheap_measures(before, after, labels, sample.groups, seed=0)
    with pytest.raises(TetherError, match=r"`groups` has shape \(3,\)"):
        cheap_measures(x, x, sample.labels, np.arange(3), seed=0)


# --- t-SNE


def test_joint_embedding_shares_a_picture() -> None:
    s = Sample(120)
    ((a, b),) = joint_embedding(s.before, s.before, seeds=(0,), perplexity=10)
    assert a.shape == b.shape == (120, 2)
    assert a.dtype == np.float32
    # The same point before and after is at one place; by chance it would be a picture apart.
    apart = np.linalg.norm(a - b, axis=1)
    assert np.median(apart) < 0.1 * np.linalg.norm(a.std(axis=0))
    assert knn_purity(a, s.labels, k=5) > 0.8
    ((c, _),) = joint_embedding(s.before, s.before, seeds=(0,), perplexity=10)
    np.testing.assert_array_equal(a, c)
    few = joint_embedding(s.before[:8], s.before[:5], seeds=(0, 1))
    assert [pair[1].shape for pair in few] == [(5, 2), (5, 2)]


def test_tsne_measures_see_collapse() -> None:
    s = Sample(160)
    kw: dict[str, Any] = {"seeds": (0, 1), "perplexity": 10, "layer": 2}
    index, ratio = tsne_measures(s.before, s.collapsed(), s.labels, s.groups, **kw)
    assert (index.name, ratio.name) == ("davies_bouldin_tsne", "davies_bouldin_tsne_ratio")
    assert ratio.before == 1.0
    assert ratio.n == 80
    assert ratio.layer == 2
    assert ratio.low is not None
    assert ratio.null_low is not None
    assert ratio.null_high is not None
    assert ratio.low > ratio.null_high
    assert 0.3 < ratio.null_low < 3
    assert index.value is not None
    assert index.before is not None
    assert index.value > index.before


def test_the_papers_measure_changes_with_the_seed() -> None:
    """Same features: what is seen is chance, which is why several seeds are asked for."""
    s = Sample(160)
    found = davies_bouldin_tsne(s.before, s.before, s.labels, s.labels, seeds=(0, 1), perplexity=10)
    assert found.shape == (2, 2)
    assert np.ptp(found[:, 0]) > 0


def test_bad_tsne(monkeypatch: pytest.MonkeyPatch) -> None:
    s = Sample(60)
    with pytest.raises(TetherError, match=r"has 11 points; expected at least 12"):
        joint_embedding(s.before[:6], s.before[:5], seeds=(0,))
    with pytest.raises(TetherError, match=r"columns; expected the same width"):
        joint_embedding(s.before, s.before[:, 1:], seeds=(0,))
    with pytest.raises(TetherError, match=r"no seed"):
        joint_embedding(s.before, s.before, seeds=())
    with pytest.raises(TetherError, match=r"no seed"):
        tsne_measures(s.before, s.before, s.labels, seeds=())
    with pytest.raises(TetherError, match=r"60 points in all for perplexity 30"):
        davies_bouldin_tsne(s.before[:30], s.before[:30], s.labels, s.labels, seeds=(0,))
    for after, words in (
        (s.before, "60 points in all for perplexity 30"),
        (s.before * np.nan, "not finite"),
    ):
        for one in tsne_measures(s.before, after, s.labels, seeds=(0,)):
            assert one.value is None
            assert words in one.missing
    for one in tsne_measures(s.before, s.before, ["a"] * 60, seeds=(0,)):
        assert "all 60 points are of the class 'a'" in one.missing
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    with pytest.raises(TetherError, match=r"package openTSNE.*pip install 'tether\[collapse\]'"):
        embed.joint_embedding(s.before, s.before, seeds=(0,))
    with pytest.raises(TetherError, match=r"package openTSNE"):
        tsne_measures(s.before, s.before, s.labels, seeds=(0,), perplexity=5)


# --- Measurement


def test_measurements_survive_json() -> None:
    one = FACTS["cka"].measured(Found(0.5, half_width=0.9, null=(0.1, 1.2), n=9), layer=None)
    assert (one.low, one.high, one.null_high) == (-0.4, 1.0, 1.0)  # ends at the bounds
    assert Measurement.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    record = one.to_dict() | {"more": 1}
    del record["n"]
    with pytest.raises(TetherError, match=r"unknown or absent fields \['more', 'n'\]"):
        Measurement.from_dict(record)


def test_a_measurement_has_a_value_or_a_reason() -> None:
    one = FACTS["cka"].measured(Found(math.nan, half_width=1.0, missing="why not"), layer=0)
    assert (one.value, one.low, one.missing) == (None, None, "why not")
    for change in ({"missing": ""}, {"value": 1.0}):
        with pytest.raises(TetherError, match=r"either a value or the reason"):
            replace(one, **change)  # type: ignore[arg-type]


def test_every_fact_is_told_in_full() -> None:
    assert len({fact.label for fact in FACTS.values()}) == len(FACTS)
    for name, fact in FACTS.items():
        assert fact.name == name
        assert fact.unit
        assert fact.source
        assert fact.bounds[0] < fact.bounds[1]

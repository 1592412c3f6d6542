"""Splits: what holds for any values."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tether.errors import TetherError
from tether.splits.leakage import leakage_report, structure_hashes
from tether.splits.property_tail import boom, scott_log_density, tail
from tether.splits.random import carve_validation, random_split, subsample_train
from tether.splits.split import Split

if TYPE_CHECKING:
    from numpy.typing import NDArray

values = arrays(
    np.float64,
    st.integers(30, 200),
    elements=st.one_of(st.floats(-1e3, 1e3), st.integers(-3, 3).map(float), st.just(np.nan)),
)
seeds = st.integers(0, 2**32 - 1)


def is_partition(split: Split, labels: NDArray[np.float64]) -> bool:
    used = np.sort(np.concatenate(list(split.indices.values())))
    return used.tolist() == np.flatnonzero(~np.isnan(labels)).tolist()


@settings(max_examples=60, deadline=None)
@given(values, seeds)
def test_tail_partitions_the_labelled_rows_and_takes_the_tail(
    labels: NDArray[np.float64], seed: int
) -> None:
    known = labels[~np.isnan(labels)]
    assume(len(known) >= 25 and known.std() > 1e-3)
    split = tail(labels, fraction=0.2, id_fraction=0.2, seed=seed)
    assert is_partition(split, labels)
    assert split.report["n_unlabelled"] == len(labels) - len(known)
    distance = np.abs(labels - known.mean())
    rest = np.concatenate([split.indices["train"], split.indices["test/id"]])
    slack = 1e-8 * known.std()
    assert distance[split.indices["test/ood"]].min() >= distance[rest].max() - slack


@settings(max_examples=60, deadline=None)
@given(values)
def test_boom_takes_the_lowest_densities(labels: NDArray[np.float64]) -> None:
    rows = np.flatnonzero(~np.isnan(labels))
    assume(len(rows) >= 25)
    try:
        split = boom(labels, n_ood=5, id_fraction=0.3)
    except TetherError as error:
        assert re.search("cannot be told apart|has size 0", str(error))
        return
    assert is_partition(split, labels)
    density = np.full(len(labels), np.nan)
    density[rows] = scott_log_density(labels[rows])
    rest = np.concatenate([split.indices["train"], split.indices["test/id"]])
    assert density[split.indices["test/ood"]].max() <= density[rest].min()


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float64, st.integers(2, 150), elements=st.floats(-50, 50)),
    st.sampled_from([1e-2, 1.0, 1e3]),
)
def test_density_is_the_sum_of_gaussians(x: NDArray[np.float64], scale: float) -> None:
    x = x * scale
    h = len(x) ** -0.2
    terms = np.exp(-0.5 * np.square((x[:, None] - x) / h)).sum(axis=1)
    exact = np.log(terms / (len(x) * h * np.sqrt(2 * np.pi)))
    np.testing.assert_allclose(scott_log_density(x), exact, rtol=0, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 300), seeds, st.floats(0.1, 0.5), st.integers(1, 5))
def test_random_carve_and_subsample_keep_sets_apart(
    n: int, seed: int, fraction: float, size: int
) -> None:
    base = random_split(n, fractions={"train": 0.7, "test/id": 0.3}, seed=seed)
    assert is_partition(base, np.zeros(n))
    carved = carve_validation(base, fraction=fraction, seed=seed)
    assert is_partition(carved, np.zeros(n))
    shrunk = subsample_train(carved, size, seed=seed)
    assert set(shrunk.indices["train"]) <= set(carved.indices["train"])
    for name in ("val", "test/id"):
        assert shrunk.indices[name].tolist() == carved.indices[name].tolist()
    assert base.indices["test/id"].tolist() == carved.indices["test/id"].tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(20, 100), seeds)
def test_json_round_trip(n: int, seed: int) -> None:
    split = random_split(n, seed=seed)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "split.json"
        split.to_json(path)
        back = Split.from_json(path)
    assert back.fingerprint == split.fingerprint
    assert back.sizes == split.sizes


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 30))
def test_planted_duplicates_are_found_and_nothing_else(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 12, n)
    pieces = [(rng.choice([1, 6, 8], k), rng.normal(size=(k, 3)) * 2) for k in counts]
    pick = int(rng.integers(n))
    order = rng.permutation(counts[pick])
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    numbers, positions = pieces[pick]
    pieces.append((numbers[order], positions[order] @ rotation + rng.normal(size=3)))
    ptr = np.concatenate([[0], np.cumsum([len(z) for z, _ in pieces])])
    hashes = structure_hashes(
        np.concatenate([z for z, _ in pieces]), np.concatenate([x for _, x in pieces]), ptr
    )
    split = Split("s", "file", {}, {"train": np.arange(n), "test/id": np.array([n])})
    report = leakage_report(split, hashes)
    assert [pair["rows"] for pair in report["pairs"]] == [{"train": [pick], "test/id": [n]}]

"""Splits: rules, validation, files, and the published QM9 gap split."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sklearn.neighbors import KernelDensity

from tether.errors import TetherError
from tether.splits.explicit import from_file, from_files, from_sources
from tether.splits.make import make_split
from tether.splits.property_tail import boom, scott_log_density, tail
from tether.splits.random import carve_validation, random_split, subsample_train
from tether.splits.rule import Method, Rule
from tether.splits.split import Split, StoreReference, labelled_rows
from tether.splits.table import Table

if TYPE_CHECKING:
    from numpy.typing import NDArray

QM9 = Path(__file__).parents[2].parent / "shared" / "data" / "qm9_gap"
HARTREE = 27.211386245988


def naive_boom(values: NDArray[np.float64], n_ood: int) -> dict[str, set[int]]:
    """BOOM's script, line by line, but for a stable order of equal densities."""
    kde = KernelDensity(kernel="gaussian", bandwidth="scott").fit(values[:, None])
    scores = np.exp(kde.score_samples(values[:, None]))
    ood = set(np.argsort(scores, kind="stable")[:n_ood].tolist())
    random.seed(42)
    sets: dict[str, set[int]] = {"train": set(), "test/id": set(), "test/ood": ood}
    for row in range(len(values)):
        if row not in ood:
            sets["test/id" if random.random() < 0.05 else "train"].add(row)
    return sets


def as_sets(split: Split) -> dict[str, set[int]]:
    return {name: set(rows.tolist()) for name, rows in split.indices.items()}


def gaps(n: int = 3000, digits: int = 3) -> NDArray[np.float64]:
    return np.round(np.random.default_rng(1).gamma(9, 0.03, n), digits)


def small() -> Split:
    return Split("s", "file", {}, {"train": np.arange(20), "test/ood": np.arange(20, 25)})


# --- BOOM ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [3, 12])
@pytest.mark.parametrize("scale", [1.0, 30.0, 3000.0])
def test_boom_is_the_published_script(digits: int, scale: float) -> None:
    values = gaps(digits=digits) * scale
    assert as_sets(boom(values, n_ood=250)) == naive_boom(values, 250)


def test_boom_bandwidth_counts_molecules_and_not_unique_values() -> None:
    # Control: the bandwidth of the unique values picks other molecules.
    rng = np.random.default_rng(6)
    values = np.round(rng.choice(rng.uniform(0, 30, 300), 3000, p=rng.dirichlet(np.ones(300))), 1)
    unique, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    assert len(unique) < len(values) / 5
    wrong = KernelDensity(bandwidth="scott").fit(unique[:, None], sample_weight=counts)
    score = wrong.score_samples(unique[:, None])[inverse]
    picked = set(np.argsort(score, kind="stable")[:250].tolist())
    assert picked != as_sets(boom(values, n_ood=250))["test/ood"]


@pytest.mark.parametrize("scale", [1e-3, 0.05, 1.0, 50.0, 1e5])
def test_density_matches_brute_force(scale: float) -> None:
    values = np.random.default_rng(2).standard_t(3, size=2000) * scale + 7 * scale
    bandwidth = len(values) ** -0.2
    terms = np.exp(-0.5 * np.square((values[:, None] - values) / bandwidth))
    exact = np.log(terms.sum(axis=1) / (len(values) * bandwidth * np.sqrt(2 * np.pi)))
    np.testing.assert_allclose(scott_log_density(values), exact, rtol=0, atol=1e-12)


def test_boom_ties_go_to_the_lower_row() -> None:
    values = np.array([0.0, 5.0, 0.0, 5.0, 0.0, 5.0, 0.0, 0.0, *[0.0] * 40])
    assert boom(values, n_ood=2).indices["test/ood"].tolist() == [1, 3]


def test_boom_default_size_is_the_share_of_qm9() -> None:
    assert boom(gaps()).sizes["test/ood"] == round(3000 * 10_000 / 133_885)


def test_boom_depends_on_the_unit_and_tail_does_not() -> None:
    # Skewed: a wide bandwidth ranks by distance from the mean, a narrow one by local density.
    values = gaps(digits=4)
    hartree, electronvolt = boom(values, n_ood=250), boom(values * HARTREE, n_ood=250)
    assert as_sets(hartree)["test/ood"] != as_sets(electronvolt)["test/ood"]
    for side in ("both", "low", "high"):
        first, second = tail(values, side=side), tail(values * HARTREE - 3.0, side=side)
        assert as_sets(first) == as_sets(second)


def test_boom_refuses_a_spread_below_resolution() -> None:
    with pytest.raises(TetherError, match="cannot be told apart.*method tail"):
        boom(gaps() * 1e-9, n_ood=200)


@pytest.mark.parametrize("n_ood", [0, 3000, -1])
def test_boom_refuses_empty_sets(n_ood: int) -> None:
    with pytest.raises(TetherError, match=f"set 'test/ood' would have size {n_ood} of 3000"):
        boom(gaps(), n_ood=n_ood)


# --- tail ---------------------------------------------------------------------------------------


def test_tail_sides() -> None:
    values = np.arange(100.0)
    assert tail(values, side="low").indices["test/ood"].tolist() == list(range(10))
    assert tail(values, side="high").indices["test/ood"].tolist() == list(range(90, 100))
    both = tail(values, side="both").indices["test/ood"].tolist()
    assert both == [*range(5), *range(95, 100)]


def test_tail_refusals() -> None:
    with pytest.raises(TetherError, match="`side` is 'left'.*both"):
        tail(np.arange(9.0), side="left")  # type: ignore[arg-type]
    with pytest.raises(TetherError, match=r"all 9 values are 2\.0"):
        tail(np.full(9, 2.0))
    with pytest.raises(TetherError, match=r"`fraction` is 1\.5"):
        tail(np.arange(9.0), fraction=1.5)
    with pytest.raises(TetherError, match=r"values have shape \(4, 2\)"):
        tail(np.zeros((4, 2)))


# --- unlabelled rows ----------------------------------------------------------------------------


def test_unlabelled_rows_go_to_no_set_and_are_counted(tmp_path: Path) -> None:
    values = gaps(400)
    values[[3, 77, 250]] = np.nan
    halves = {"train": list(range(200)), "test/id": list(range(200, 400))}
    path = tmp_path / "sets.json"
    path.write_text(json.dumps(halves))
    splits = [
        boom(values, n_ood=40),
        tail(values),
        random_split(400, values=values),
        from_file(path, n_systems=400, values=values),
        from_sources(["a"] * 200 + ["b"] * 200, {"train": "a", "test/id": "b"}, values=values),
    ]
    for split in splits:
        used = np.concatenate(list(split.indices.values()))
        assert not np.isnan(values[used]).any()
        assert split.report["n_unlabelled"] == 3
        assert len(used) == 397
    assert splits[3].report["n_unlabelled_by_set"] == {"train": 2, "test/id": 1}


def test_boom_with_unlabelled_rows_is_boom_of_the_others() -> None:
    values = gaps(500)
    holes = np.insert(values, [0, 100, 500], np.nan)
    rows = np.flatnonzero(~np.isnan(holes))
    without, having = boom(values, n_ood=50), boom(holes, n_ood=50)
    for name, members in without.indices.items():
        assert having.indices[name].tolist() == rows[members].tolist()


def test_labels_that_are_infinite_or_absent() -> None:
    with pytest.raises(TetherError, match="1 label.* infinite, the first in row 2"):
        labelled_rows([0.0, np.nan, np.inf])
    with pytest.raises(TetherError, match="none of 2 rows is labelled"):
        labelled_rows([np.nan, np.nan])


# --- Split --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ({"train": [0, 1], "val": []}, "set 'val' has size 0"),
        ({"train": [0, 1], "val": [1, 2]}, "sets 'train' and 'val' share 1 row.*first is 1"),
        ({"train": [0, 0]}, "set 'train' repeats row 0"),
        ({"train": [0, 5]}, "row 5 of set 'train' is out of range.*row < 5"),
        ({"train": [-1, 2]}, "row -1 of set 'train' is out of range"),
        ({"train": [0.0, 1.0]}, "set 'train' has shape .2,. and type float64"),
        ({"training": [0]}, "unknown set 'training'.*test/<name>"),
        ({"test/": [0]}, "unknown set 'test/'"),
        ({}, "has no set"),
    ],
)
def test_split_refuses(indices: dict[str, Any], message: str) -> None:
    with pytest.raises(TetherError, match=message):
        Split("s", "file", {}, indices, store=StoreReference(n_systems=5))


def test_split_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        small().indices["train"][0] = 3


def test_json_round_trip(tmp_path: Path) -> None:
    store = StoreReference("qm9.arrow", "abc", 25)
    parameters = {"a": 1, "b": [0.5, None]}
    split = Split("s", "tail", parameters, small().indices, {"n": np.int64(3)}, store)
    split.to_json(tmp_path / "split.json")
    back = Split.from_json(tmp_path / "split.json", fingerprint="abc")
    assert as_sets(back) == as_sets(split)
    assert (back.name, back.method, back.parameters) == ("s", "tail", parameters)
    assert (back.report, back.store) == ({"n": 3}, store)
    assert back.fingerprint == split.fingerprint
    content = json.loads((tmp_path / "split.json").read_text())
    assert list(content) == ["name", "method", "parameters", "store", "indices", "report"]
    assert content["store"] == {"path": "qm9.arrow", "fingerprint": "abc", "n_systems": 25}
    assert [p.name for p in tmp_path.iterdir()] == ["split.json"]


def test_fingerprint_sees_rows_and_set_names() -> None:
    other = small().with_indices({"train": np.arange(19), "test/ood": np.arange(20, 25)})
    renamed = Split("s", "file", {}, {"train": np.arange(20), "test/x": np.arange(20, 25)})
    assert len({small().fingerprint, other.fingerprint, renamed.fingerprint}) == 3


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    small().to_json(path)
    before = path.read_text()
    with pytest.raises(TypeError, match="object is not JSON-able"):
        small().with_indices(small().indices, report={"x": object()}).to_json(path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["split.json"]


def test_json_refusals(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    small().to_json(path)
    with pytest.raises(TetherError, match="made for a store with fingerprint ''.*'abc'"):
        Split.from_json(path, fingerprint="abc")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "colour": 1}))
    with pytest.raises(TetherError, match=r"unknown keys \['colour'\] and lacks \[\]"):
        Split.from_json(path)
    del content["report"]
    path.write_text(json.dumps(content))
    with pytest.raises(TetherError, match=r"unknown keys \[\] and lacks \['report'\]"):
        Split.from_json(path)
    path.write_text("{")
    with pytest.raises(TetherError, match="is not JSON"):
        Split.from_json(path)
    with pytest.raises(TetherError, match="does not exist"):
        Split.from_json(tmp_path / "none.json")
    with pytest.raises(TetherError, match="folder .* does not exist"):
        small().to_json(tmp_path / "none" / "split.json")
    with pytest.raises(TetherError, match="cannot be read .Is a directory"):
        Split.from_json(tmp_path)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(TetherError, match=r"folder.json is a folder; expected a file name"):
        small().to_json(tmp_path / "folder.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.json", "split.json"]


# --- random, validation, subsets ----------------------------------------------------------------


def test_random_fractions_use_every_row() -> None:
    split = random_split(7, fractions={"train": 0.5, "val": 0.25, "test/id": 0.25})
    assert sum(split.sizes.values()) == 7
    assert as_sets(random_split(50, seed=1)) != as_sets(random_split(50, seed=2))


def test_random_refusals() -> None:
    with pytest.raises(TetherError, match=r"add up to 1\.1"):
        random_split(10, fractions={"train": 0.9, "val": 0.2})
    with pytest.raises(TetherError, match="add up to nan"):
        random_split(10, fractions={"train": 0.9, "val": np.nan})
    with pytest.raises(TetherError, match="add up to 12.*at most 10"):
        random_split(10, sizes={"train": 9, "val": 3})
    with pytest.raises(TetherError, match="both `fractions` and `sizes`"):
        random_split(10, sizes={"train": 1}, fractions={"train": 0.1})
    with pytest.raises(TetherError, match="set 'val' has size 0"):
        random_split(5, fractions={"train": 0.8, "val": 0.02, "test/id": 0.18})
    with pytest.raises(TetherError, match="`values` has 3 rows"):
        random_split(5, values=np.zeros(3))


def test_validation_comes_from_train_only() -> None:
    split = carve_validation(small(), size=4)
    assert split.sizes == {"train": 16, "val": 4, "test/ood": 5}
    assert as_sets(split)["val"] < as_sets(small())["train"]
    assert split.parameters["val_size"] == 4
    with pytest.raises(TetherError, match="has a `val` set of 4 already"):
        carve_validation(split, size=1)
    with pytest.raises(TetherError, match="set 'val' would have size 20 of 20"):
        carve_validation(small(), size=20)
    for fraction in (np.nan, np.inf):
        with pytest.raises(TetherError, match=f"`val_fraction` is {fraction}"):
            carve_validation(small(), fraction=fraction)
    with pytest.raises(TetherError, match="both `fraction` and `size`"):
        carve_validation(small(), size=2, fraction=0.1)


def test_training_subsets_are_nested() -> None:
    parent = random_split(200)
    subsets = [as_sets(subsample_train(parent, n))["train"] for n in (10, 50, 160)]
    assert subsets[0] < subsets[1] < subsets[2] == as_sets(parent)["train"]
    assert subsample_train(parent, 10).report["n_train_left_out"] == 150
    with pytest.raises(TetherError, match="would have size 161.*1 to 160"):
        subsample_train(parent, 161)


# --- explicit -----------------------------------------------------------------------------------


def test_from_file_forms_agree(tmp_path: Path) -> None:
    expected = {"train": [0, 2, 4], "test/ood": [1, 3]}
    ids = [f"mol{i}" for i in range(5)]
    small_split = Split("s", "file", {}, {k: np.array(v) for k, v in expected.items()})
    small_split.to_json(tmp_path / "split.json")
    (tmp_path / "rows.json").write_text(json.dumps(expected))
    by_name = {k: [ids[i] for i in v] for k, v in expected.items()}
    (tmp_path / "ids.json").write_text(json.dumps(by_name))
    np.savez(tmp_path / "a.npz", train=[0, 2, 4], test__ood=[1, 3])
    for name in ("split.json", "rows.json", "ids.json", "a.npz"):
        split = from_file(tmp_path / name, n_systems=5, ids=ids)
        assert {k: v.tolist() for k, v in split.indices.items()} == expected, name
    np.save(tmp_path / "train.npy", [0, 2, 4])
    (tmp_path / "ood.txt").write_text("mol1\nmol3\n")
    files = {"train": tmp_path / "train.npy", "test/ood": tmp_path / "ood.txt"}
    split = from_files(files, n_systems=5, ids=ids)
    assert {k: v.tolist() for k, v in split.indices.items()} == expected


def test_integers_are_rows_unless_ids_are_asked_for(tmp_path: Path) -> None:
    ids = ["010", "011", "012", "013"]
    (tmp_path / "a.txt").write_text("012\n010\n")
    split = from_files({"train": tmp_path / "a.txt"}, n_systems=4, ids=ids, by_id=True)
    assert split.indices["train"].tolist() == [0, 2]
    with pytest.raises(TetherError, match="row 12 of set 'train' is out of range"):
        from_files({"train": tmp_path / "a.txt"}, n_systems=4, ids=ids)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["x"]}, "id 'x' of set 'train' occurs 0 times"),
        ({"train": ["b"]}, "id 'b' of set 'train' occurs 2 times"),
        ({"train": [0, 3]}, "row 3 of set 'train' is out of range"),
        ({"train": [[1, 2], [0]]}, "set 'train' holds lists of different lengths"),
        ({"train": "b"}, "set 'train' holds shape"),
        ({"train": [0.5]}, "set 'train' holds float64 entries"),
        ([0, 1], "holds one list.*--set"),
        ({"indices": {"train": [0]}, "x": 1}, "unknown keys .'x'."),
    ],
)
def test_from_file_refuses(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "f.json").write_text(json.dumps(content))
    with pytest.raises(TetherError, match=message):
        from_file(tmp_path / "f.json", n_systems=3, ids=["a", "b", "b"])


def test_from_file_refuses_other_files(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(TetherError, match="cannot be read"):
        from_files({"train": tmp_path / "o.npy"}, n_systems=3)
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(TetherError, match=r"ends in '\.csv'"):
        from_file(tmp_path / "a.csv", n_systems=3)
    with pytest.raises(TetherError, match="is not a file"):
        from_file(tmp_path / "b.json", n_systems=3)


def test_set_without_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps({"train": [0], "val": [1]}))
    with pytest.raises(TetherError, match="set 'val' has size 0 without its 1 unlabelled"):
        from_file(tmp_path / "f.json", n_systems=2, values=[1.0, np.nan])


def test_from_sources() -> None:
    sources = ["d/train.npz", "d/ood.npz", "d/train.npz", "d/other.npz"]
    split = from_sources(sources, {"train": "train.npz", "test/ood": "d/ood.npz"})
    assert as_sets(split) == {"train": {0, 2}, "test/ood": {1}}
    assert split.report["n_other_sources"] == 1
    with pytest.raises(TetherError, match="source 'x.npz' of set 'train' fits 0.*d/ood.npz"):
        from_sources(sources, {"train": "x.npz"})
    with pytest.raises(TetherError, match="given to sets 'train' and 'val'"):
        from_sources(sources, {"train": "train.npz", "val": "d/train.npz"})
    with pytest.raises(TetherError, match="fits 2 sources"):
        from_sources(["a/x.npz", "b/x.npz"], {"train": "x.npz"})


# --- make_split ---------------------------------------------------------------------------------


def test_make_split_reports() -> None:
    values = gaps(1000, digits=5)
    values[5] = np.nan
    store = StoreReference("x.arrow", "f", 1000)
    hashes = np.arange(1000)
    table = Table(1000, values, target="gap", unit="Ha", hashes=hashes, store=store)
    split = make_split(table, Rule("boom", ood=0.1), train_size=500)
    assert split.name == "boom-gap"
    assert split.store == store
    assert split.sizes["train"] == 500
    assert split.sizes["test/ood"] == 100
    report = split.report
    assert report["n_unlabelled"] == 1
    assert report["n_unused"] == 999 - sum(split.sizes.values())
    assert report["leakage"]["pairs"] == []
    lines = report["reference_lines"]
    assert {"name", "target", "unit", "subset", "metric", "value"} == set(lines[0])
    value = {(r["name"], r["subset"], r["metric"]): r["value"] for r in lines}
    train, ood = values[split.indices["train"]], values[split.indices["test/ood"]]
    beyond = np.maximum(train.min() - ood, 0) + np.maximum(ood - train.max(), 0)
    assert value["clip oracle", "test/ood", "mae"] == pytest.approx(beyond.mean())
    assert value["mean predictor", "test/ood", "rmse"] == pytest.approx(
        np.sqrt(np.mean((ood - train.mean()) ** 2))
    )


def test_validation_does_not_depend_on_the_training_size() -> None:
    table = Table(1000, gaps(1000))
    large, tiny = (make_split(table, Rule("tail"), train_size=n) for n in (700, 20))
    assert as_sets(large)["val"] == as_sets(tiny)["val"]
    assert "val" not in make_split(table, Rule("tail"), val_fraction=0).indices


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("loco", {}, "`method` is 'loco'"),
        ("boom", {}, "method 'boom' lacks a target"),
        ("sources", {"sets": {"train": "a"}}, "method 'sources' lacks sources"),
        ("file", {}, "method 'file' lacks a file"),
        ("random", {"ood": 0.1}, "method 'random' has no use for `ood`"),
        ("random", {"sets": {"train": "a"}}, "no use for `sets`"),
        ("file", {"file": "a", "sets": {"train": "b"}}, "no use for `sets`"),
    ],
)
def test_make_split_refuses(method: Method, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TetherError, match=message):
        make_split(Table(10), Rule(method, **arguments))


def test_make_split_ood_must_be_whole() -> None:
    with pytest.raises(TetherError, match=r"`ood` is 10\.5"):
        make_split(Table(1000, gaps(1000)), Rule("boom", ood=10.5))


# --- real data ----------------------------------------------------------------------------------


def published() -> tuple[NDArray[Any], list[str], list[Any]]:
    if not QM9.is_dir():
        pytest.skip(f"{QM9} is absent: the published QM9 gap split is not here")
    files = {n: np.load(QM9 / f"{n}.npz") for n in ("train", "val", "id_test", "ood_test")}
    sources = [f"{n}.npz" for n, f in files.items() for _ in range(len(f["n_atoms"]))]
    return np.concatenate([f["gap"] for f in files.values()]), sources, list(files.values())


def test_published_gap_split() -> None:
    values, sources, _ = published()
    names = ("train", "val", "id_test", "ood_test")
    sets = dict(zip(("train", "val", "test/id", "test/ood"), names, strict=True))
    sets = {name: f"{source}.npz" for name, source in sets.items()}
    table = Table(len(values), values, target="gap", unit="Ha", sources=sources)
    split = make_split(table, Rule("sources", sets=sets))
    assert split.sizes == {"train": 111_548, "val": 5_870, "test/id": 3_050, "test/ood": 4_990}
    clip = [r for r in split.report["reference_lines"] if r["name"] == "clip oracle"]
    rmse = {r["subset"]: r["value"] for r in clip if r["metric"] == "rmse"}
    assert rmse["test/ood"] == pytest.approx(0.0197, abs=3e-4)  # REFERENCE, section 2
    assert rmse["test/id"] == 0
    # BOOM puts every tail value into OOD, so the published OOD set must lie outside its ID range.
    assert split.report["extrapolation"]["sets"]["test/ood"]["fraction_outside"] > 0.9
    # Its rule, on what is here of its rows, finds its OOD rows again.
    again = boom(values, n_ood=4_990)
    shared = as_sets(again)["test/ood"] & as_sets(split)["test/ood"]
    assert len(shared) > 0.9 * 4_990


def test_boom_on_130_000_values_takes_seconds() -> None:
    for scale in (0.03, 1.0, 300.0):
        values = np.random.default_rng(5).normal(size=130_000) * scale
        start = time.process_time()
        split = boom(values, n_ood=10_000)
        assert time.process_time() - start < 10
        assert split.sizes["test/ood"] == 10_000

"""OOD rules on tables: what is held out, what validation is made of, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tether.errors import TetherError
from tether.splits.cluster import cluster_labels
from tether.splits.folds import read_folds
from tether.splits.holdout import hold_out, largest
from tether.splits.labels import Labels, label_each, most_alike, rarest, with_label
from tether.splits.make import make_split
from tether.splits.rule import Rule
from tether.splits.sparse import sparse_labels, sparsity_of_descriptors, sparsity_of_values
from tether.splits.table import Table

if TYPE_CHECKING:
    from numpy.typing import NDArray

MATBENCH = Path(__file__).parents[2].parent / "shared" / "data" / "matbench"


def blobs(n: int = 40, n_blobs: int = 5) -> tuple[NDArray[Any], NDArray[Any]]:
    """Points around well separated centres, and which centre each is of."""
    rng = np.random.default_rng(0)
    code = np.repeat(np.arange(n_blobs), n * (1 + np.arange(n_blobs)))
    return 100 * np.eye(n_blobs)[code] + rng.normal(size=(len(code), n_blobs)), code


def pairs(kind: str, *sets: set[str]) -> Labels:
    """Labels from one set of names a structure."""
    names = tuple(sorted(set().union(*sets)))
    rows, codes = zip(
        *[(row, names.index(name)) for row, found in enumerate(sets) for name in sorted(found)],
        strict=True,
    )
    return Labels(kind, names, np.array(rows), np.array(codes), len(sets))


def members(split: Any, name: str) -> set[int]:
    return set(split.indices[name].tolist())


# --- holding out --------------------------------------------------------------------------------


def test_hold_out_makes_the_others_train_and_id_test() -> None:
    values = np.arange(100.0)
    values[[3, 50]] = np.nan
    marked = np.arange(100) < 20
    split = hold_out(marked, method="mine", values=values, id_fraction=0.25)
    assert members(split, "test/ood") == set(range(20)) - {3}
    assert split.sizes == {"train": 59, "test/id": 20, "test/ood": 19}
    assert split.report == {"n_unlabelled": 2}
    other = hold_out(marked, method="mine", values=values, id_fraction=0.25, seed=1)
    assert members(other, "test/id") != members(split, "test/id")


def test_rows_that_the_rule_cannot_judge_are_in_no_set_and_listed() -> None:
    unknown = np.arange(30) % 10 == 0
    split = hold_out(np.arange(30) < 5, method="mine", unassigned=unknown, id_fraction=0.2)
    assert split.report["unassigned_rows"] == [0, 10, 20]
    assert not set(np.concatenate(list(split.indices.values()))) & {0, 10, 20}
    assert "unassigned_rows" not in hold_out(np.arange(30) < 5, method="mine").report
    with pytest.raises(TetherError, match="30 labels and 2 marks for 30 structures"):
        hold_out(np.arange(30) < 5, method="mine", unassigned=[True, False])


def test_largest_prefers_the_lower_row_and_refuses_equal_scores() -> None:
    assert np.flatnonzero(largest([1, 5, 5, 5, 0], 0.4)).tolist() == [1, 2]
    with pytest.raises(TetherError, match="all 3 structures have the score 2"):
        largest([2, 2, 2], 0.5)
    with pytest.raises(TetherError, match=r"`ood` is 1\.5"):
        largest([1, 2], 1.5)


def test_size_says_where_equal_sizes_are_parted() -> None:
    n_atoms = np.repeat([5, 9, 12], [60, 30, 10])
    report = make_split(Table(100, n_atoms=n_atoms), Rule("size", ood=25)).report
    assert report["ties"] == {"score": 9.0, "n_marked": 15, "n_others": 15}
    assert "ties" not in make_split(Table(100, n_atoms=n_atoms), Rule("size", ood=40)).report


@pytest.mark.parametrize("method", ["size", "tail", "boom", "sparse-y"])
def test_more_ood_structures_than_there_are(method: Any) -> None:
    table = Table(60, np.random.default_rng(0).normal(size=60), n_atoms=np.arange(60))
    with pytest.raises(TetherError, match=r"`ood` is 100 of 60 structures; expected 1 to 59"):
        make_split(table, Rule(method, ood=100))
    with pytest.raises(TetherError, match=r"`ood` is -0\.1|set 'test/ood' would have size -6"):
        make_split(table, Rule(method, ood=-0.1))


def test_rarest_of_nothing() -> None:
    with pytest.raises(TetherError, match="none of 2 structures has any scaffold"):
        rarest(label_each("scaffold", ["", ""]), 0.1)


# --- labels -------------------------------------------------------------------------------------


def test_label_out_takes_every_structure_that_carries_it() -> None:
    labels = pairs("element", {"Fe", "O"}, {"O"}, {"Fe"}, {"Na", "Cl"})
    assert np.flatnonzero(with_label(labels, ["Fe"])).tolist() == [0, 2]
    assert np.flatnonzero(with_label(labels, ["Fe", "Cl"])).tolist() == [0, 2, 3]
    with pytest.raises(TetherError, match=r"no structure has element 'Xe'; .*Fe \(2\), O \(2\)"):
        with_label(labels, ["Xe"])
    # A label that only structures outside a selection carry is not there.
    with pytest.raises(TetherError, match="no structure has element 'Na'"):
        with_label(labels.select([0, 1]), ["Na"])


def test_select_and_spread_are_inverse() -> None:
    labels = pairs("element", {"Fe", "O"}, {"O"}, {"Fe"}, {"Na", "Cl"})
    rows = np.array([3, 0])
    selected = labels.select(rows)
    assert np.flatnonzero(with_label(selected, ["Fe"])).tolist() == [1]
    back = selected.spread(rows, 4)
    assert np.flatnonzero(with_label(back, ["Fe"])).tolist() == [0]
    assert back.known.tolist() == [True, False, False, True]


def test_rarest_takes_whole_groups_and_no_more_than_the_share() -> None:
    labels = label_each("scaffold", [*"aaaaaa", *"bb", "c", *"dd", ""])
    marked = rarest(labels, 0.3)  # of 11 with a label: c, then b; d would be too much
    assert np.flatnonzero(marked).tolist() == [6, 7, 8]
    assert np.flatnonzero(rarest(labels, 0.5)).tolist() == [6, 7, 8, 9, 10]
    with pytest.raises(TetherError, match="smallest scaffold has 1 of 11 structures"):
        rarest(labels, 0.05)
    with pytest.raises(TetherError, match="several elements each"):
        rarest(pairs("element", {"Fe", "O"}, {"O"}), 0.5)


def test_most_alike_is_nearest_in_share_and_never_excluded_or_universal() -> None:
    labels = pairs("element", *[{"O", "Na"}] * 2, *[{"O", "K"}] * 5, *[{"O", "Li"}] * 4)
    assert most_alike(labels, 4 / 11) == "Li"
    assert most_alike(labels, 4 / 11, exclude=["Li"]) == "K"
    assert most_alike(labels, 1.0) == "K"  # every structure has oxygen: nothing would be left
    with pytest.raises(TetherError, match="no other element"):
        most_alike(labels, 0.5, exclude=["K", "Li", "Na"])


# --- clusters and sparse regions ----------------------------------------------------------------


def test_clusters_are_the_blobs_largest_first() -> None:
    points, code = blobs()
    labels = cluster_labels(points, n_clusters=5)
    assert labels.counts.tolist() == [200, 160, 120, 80, 40]
    for number in range(5):
        assert (with_label(labels, [str(number)]) == (code == 4 - number)).all()


def test_clusters_see_every_descriptor_whatever_its_unit() -> None:
    rng = np.random.default_rng(1)
    halves = np.repeat([0.0, 1.0], 100)
    small = np.stack([1e-6 * (halves + 0.01 * rng.normal(size=200)), 1e3 * rng.normal(size=200)], 1)
    labels = cluster_labels(small, n_clusters=2)
    found = with_label(labels, ["0"])
    assert max(np.mean(found == halves), np.mean(found != halves)) > 0.95
    # Control: without standardising, k-means cuts the column of the larger numbers.
    from sklearn.cluster import KMeans

    raw = KMeans(2, n_init=10, random_state=0).fit(small).labels_
    assert max(np.mean(raw == halves), np.mean(raw != halves)) < 0.8


def test_cluster_refusals() -> None:
    with pytest.raises(TetherError, match="`n_clusters` is 9; expected 2 to 3"):
        cluster_labels(np.eye(3), n_clusters=9)
    with pytest.raises(TetherError, match=r"shape \(2, 1\) and 1 value"):
        cluster_labels([[1.0], [np.nan]])
    with pytest.raises(TetherError, match="all 4 structures have the same descriptors"):
        cluster_labels(np.full((4, 2), 0.1))
    assert len(cluster_labels([[0.0], [0.0], [1.0]], n_clusters=3).names) == 2


def test_sparsity_is_the_brute_force_distance_to_the_nearest_others() -> None:
    x = np.random.default_rng(2).normal(size=(60, 3))
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    distance = np.linalg.norm(z[:, None] - z, axis=2)
    np.fill_diagonal(distance, np.inf)
    expected = np.sort(distance, axis=1)[:, :4].mean(axis=1)
    np.testing.assert_allclose(sparsity_of_descriptors(x * [1, 50, 0.1] + 3, k=4), expected)


def test_sparsity_of_values_marks_gaps_and_not_only_tails() -> None:
    values = np.concatenate([np.linspace(0, 1, 200), [5.0], np.linspace(9, 10, 200)])
    score = sparsity_of_values(values)
    assert np.argmax(score) == 200
    order = np.argsort(sparsity_of_values(values * 27.2 - 4), kind="stable")
    assert (order == np.argsort(score, kind="stable")).all()


def test_sparse_folds_have_one_seed_of_each_cluster_and_its_neighbours() -> None:
    points, code = blobs(20)
    far = np.flatnonzero(np.diff(code, prepend=-1))  # one of each blob, moved out
    points[far] += 8 * np.sign(points[far].sum(axis=1))[:, None]
    score = sparsity_of_descriptors(points)
    single = sparse_labels(score, points, fraction=5.1 / 300, n_clusters=5, n_neighbours=0)
    assert sorted(single.rows.tolist()) == far.tolist()
    folds = sparse_labels(score, points, fraction=5.1 / 300, n_clusters=5, n_neighbours=6)
    for name in folds.names:
        rows = np.flatnonzero(with_label(folds, [name]))
        assert len(rows) == 7
        assert len(set(code[rows])) == 1  # neighbours are of the seed's blob
    with pytest.raises(TetherError, match="5 of 300 structures are candidates for 9 folds"):
        sparse_labels(score, points, fraction=5.1 / 300, n_clusters=9)
    for wrong in (-1, 300):
        with pytest.raises(TetherError, match=f"`n_neighbours` is {wrong}; expected 0 to 299"):
            sparse_labels(score, points, n_clusters=5, n_neighbours=wrong)


# --- folds --------------------------------------------------------------------------------------


def test_folds_from_lists_and_from_numbers_agree(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"loco": [[0, 4], [1, 2]]}))
    (tmp_path / "b.json").write_text(json.dumps([[0, 4], [1, 2]]))
    np.save(tmp_path / "c.npy", [0, 1, 1, -1, 0])
    (tmp_path / "c.txt").write_text("0\n1\n1\n-1\n0\n")
    for name in ("a.json", "b.json", "c.npy", "c.txt"):
        labels = read_folds(tmp_path / name, n_systems=5)
        assert np.flatnonzero(with_label(labels, ["1"])).tolist() == [1, 2]
        assert labels.counts.tolist() == [2, 2]
    with pytest.raises(TetherError, match="fold 0 of .*rows from 0 to 4; .*row < 4"):
        read_folds(tmp_path / "a.json", n_systems=4)
    (tmp_path / "d.json").write_text(json.dumps({"train": [0], "val": [1]}))
    with pytest.raises(TetherError, match="neither lists of rows nor 5 fold numbers"):
        read_folds(tmp_path / "d.json", n_systems=5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([["a", "b"], ["c"]], "fold 0 of .*has rows such as 'a'.*whole rows"),
        ([[1, 2], [3, [4]]], "fold 1 of .*lists of different lengths.*plain list"),
        ([[1, 2], [[3], [4]]], "fold 1 of .*shape .2, 1."),
        ([[1], 2], "holds lists of different lengths"),
        (3, "holds shape"),
    ],
)
def test_folds_that_are_no_lists_of_rows(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "f.json").write_text(json.dumps(content))
    with pytest.raises(TetherError, match=message):
        read_folds(tmp_path / "f.json", n_systems=5)


def test_published_loco_fold() -> None:
    path = MATBENCH / "jdft2d_loco.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent: the published LOCO folds are not here")
    folds = json.loads(path.read_text())["loco_ofm50"]
    values = np.load(MATBENCH / "jdft2d.npz")["target"]
    table = Table(len(values), values, target="e", unit="meV/atom")
    split = make_split(table, Rule("folds", file=path, hold_out=("7",)))
    assert members(split, "test/ood") == set(folds[7])
    assert sum(split.sizes.values()) == 636
    assert split.name == "folds-7"
    assert split.parameters["hold_out"] == ["7"]
    assert split.report["n_labels"] == 50


# --- make_split ---------------------------------------------------------------------------------


def table_of(n: int = 300, **columns: Any) -> Table:
    return Table(n, np.random.default_rng(3).normal(size=n), target="y", **columns)


@pytest.mark.parametrize(
    ("rule", "columns"),
    [
        (Rule("size", ood=0.2), {"n_atoms": np.arange(300)}),
        (Rule("size", ood=60), {"n_atoms": np.arange(300)}),
        (Rule("cluster", n_clusters=5, hold_out=("2",)), {"descriptors": blobs(20)[0]}),
        (Rule("sparse-x"), {"descriptors": blobs(20)[0]}),
        (Rule("sparse-y"), {}),
        (
            Rule("sparse-x", variant="cluster", n_clusters=5, hold_out=("2",)),
            {"descriptors": blobs(20)[0]},
        ),
        (
            Rule("sparse-y", variant="single", n_clusters=5),
            {"descriptors": blobs(20)[0]},
        ),
        (
            Rule("space-group", hold_out=("12",)),
            {"labels": label_each("space group", [str(i % 20 + 1) for i in range(300)])},
        ),
        (
            Rule("scaffold"),
            {"labels": label_each("scaffold", [str(i**2 // 900) for i in range(300)])},
        ),
    ],
    ids=lambda value: f"{value.method}-{value.variant}" if isinstance(value, Rule) else "",
)
def test_validation_is_of_the_id_part_only(rule: Rule, columns: dict[str, Any]) -> None:
    table = table_of(**columns)
    bare = make_split(table, rule, val_fraction=0)
    split = make_split(table, rule)
    assert members(split, "test/ood") == members(bare, "test/ood")
    assert members(split, "val") | members(split, "train") == members(bare, "train")
    assert split.sizes["val"] == round(0.05 * bare.sizes["train"])
    assert sum(bare.sizes.values()) == 300
    assert "nested_validation" not in split.parameters
    json.dumps(split.parameters)


def test_nested_validation_holds_out_another_label() -> None:
    names = ["a"] * 30 + ["b"] * 33 + ["c"] * 90 + ["d"] * 147
    table = table_of(labels=label_each("scaffold", names))
    split = make_split(table, Rule("scaffold", hold_out=("a",)), nested=True)
    held_out = {row for row, name in enumerate(names) if name == "b"}
    assert split.parameters["nested_validation"] == {"hold_out": ["b"]}
    assert members(split, "test/ood") == set(range(30))
    assert members(split, "val") <= held_out
    # What is left of the ID test is inside what is left of training.
    assert not (members(split, "train") | members(split, "test/id")) & held_out
    assert split.report["n_unused"] == len(held_out) - split.sizes["val"]
    with pytest.raises(TetherError, match=r"a whole scaffold label, not a set of size 0\.1"):
        make_split(table, Rule("scaffold", hold_out=("a",)), nested=True, val_fraction=0.1)


def test_nested_validation_of_a_score_is_next_in_line() -> None:
    table = table_of(n_atoms=np.arange(300))
    split = make_split(table, Rule("size", ood=50), nested=True, val_size=40)
    assert members(split, "test/ood") == set(range(250, 300))
    assert members(split, "val") <= set(range(210, 250))
    assert max(members(split, "train") | members(split, "test/id")) == 209
    with pytest.raises(TetherError, match="'random' has no OOD rule"):
        make_split(table, Rule("random"), nested=True)


@pytest.mark.parametrize("method", ["boom", "tail"])
def test_nested_validation_by_value_is_outside_the_training_range(method: Any) -> None:
    split = make_split(table_of(1000), Rule(method, ood=0.1), nested=True)
    outside = split.report["extrapolation"]["sets"]
    assert outside["val"]["fraction_outside"] > 0.9
    assert outside["test/id"]["fraction_outside"] == 0
    plain = make_split(table_of(1000), Rule(method, ood=0.1))
    assert plain.report["extrapolation"]["sets"]["val"]["fraction_outside"] < 0.1


def test_unlabelled_rows_do_not_count_for_shares_or_clusters() -> None:
    points, _ = blobs(20)
    table = table_of(descriptors=points, n_atoms=np.arange(300))
    values = np.array(table.values)
    values[250:] = np.nan
    holed = Table(300, values, n_atoms=table.n_atoms, descriptors=points)
    assert members(make_split(holed, Rule("size", ood=0.1)), "test/ood") == set(range(225, 250))
    clusters = make_split(holed, Rule("cluster", n_clusters=5, hold_out=("0",)))
    # The largest blob, rows 200 to 299, has lost half and is the second now.
    assert members(clusters, "test/ood") == set(range(120, 200))


@pytest.mark.parametrize(
    ("rule", "columns", "message"),
    [
        (Rule("size"), {}, "'size' lacks numbers of atoms"),
        (Rule("cluster", hold_out=("0",)), {}, "'cluster' lacks descriptors"),
        (Rule("sparse-y", variant="single"), {}, "'sparse-y' lacks descriptors"),
        (Rule("element", hold_out=("Fe",)), {}, "'element' lacks element labels"),
        (Rule("folds", hold_out=("1",)), {}, "'folds' lacks a file of folds"),
        (
            Rule("scaffold", ood=0.5, hold_out=()),
            {"labels": label_each("scaffold", ["a"] * 300)},
            "smallest scaffold has 300 of 300",
        ),
        (
            Rule("cluster", n_clusters=5),
            {"descriptors": blobs(20)[0]},
            "`hold_out` is empty; expected one of 0 .100., 1 .80.",
        ),
    ],
)
def test_make_split_refuses(rule: Rule, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(TetherError, match=message):
        make_split(table_of(**columns), rule)


@pytest.mark.parametrize(
    ("method", "arguments", "useless"),
    [
        ("size", {"hold_out": ("1",)}, "hold_out"),
        ("element", {"n_clusters": 3}, "n_clusters"),
        ("boom", {"side": "low"}, "side"),
        ("cluster", {"variant": "single"}, "variant"),
        ("random", {"id_fraction": 0.1}, "id_fraction"),
        ("tail", {"file": "a.json"}, "file"),
        ("folds", {"by_id": True}, "by_id"),
    ],
)
def test_rule_refuses_what_its_method_does_not_use(
    method: Any, arguments: dict[str, Any], useless: str
) -> None:
    with pytest.raises(TetherError, match=f"method '{method}' has no use for `{useless}`"):
        Rule(method, **arguments)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("random", {"seed": -1}, "`seed` is -1; expected a whole number"),
        ("cluster", {"seed": 2**32}, "`seed` is 4294967296"),
        ("tail", {"ood": float("inf")}, "`ood` is inf"),
        ("boom", {"ood": float("nan")}, "`ood` is nan"),
    ],
)
def test_rule_refuses_numbers_that_it_cannot_use(
    method: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TetherError, match=message):
        Rule(method, **arguments)
    assert Rule("random", seed=5_000_000_000).seed == 5_000_000_000

"""`tether split`: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write

from tether.data.read import read_structures
from tether.data.store import Store, write_store
from tether.errors import TetherError
from tether.split_table import split_table
from tether.splits.leakage import leakage_report
from tether.splits.rule import Rule
from tether.splits.split import Split
from tether.targets import Target


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 random molecules from two files; the last is a copy of the first."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(8)
    frames = [Atoms("CHO", positions=rng.normal(size=(3, 3)) * 2) for _ in range(99)]
    frames.append(frames[0].copy())
    for atoms, value in zip(frames, rng.normal(size=100), strict=True):
        atoms.info["gap"] = value
    write(folder / "a.xyz", frames[:80])
    write(folder / "b.xyz", frames[80:])
    target = Target("gap", unit="eV")
    chunks = (c for n in "ab" for c in read_structures(folder / f"{n}.xyz", targets=[target]))
    write_store(folder / "s.arrow", chunks, [target])
    return folder / "s.arrow"


def run_split(*arguments: object) -> str:
    import typer
    from typer.testing import CliRunner

    from tether.cli.split import split_command

    app = typer.Typer()
    app.command()(split_command)
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_cli_writes_what_it_prints(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "split.json"
    sets = ("--set", "train=a.xyz", "--set", "test/ood=b.xyz")
    printed = run_split(store, "--method", "sources", *sets, "--val-size", 8, "--out", out)
    content = json.loads(out.read_text())
    split = Split.from_json(out, fingerprint=content["store"]["fingerprint"])
    assert split.sizes == {"train": 72, "val": 8, "test/ood": 20}
    assert content["store"]["n_systems"] == 100
    assert "LEAKAGE: 1 structure(s) are in both" in printed
    assert "clip oracle on test/ood: MAE" in printed
    assert "mean predictor on test/ood: MAE" in printed
    # What it wrote is a file that it reads.
    again = run_split(store, "--method", "file", "--file", out, "--out", out, "--json")
    assert json.loads(again)["fingerprint"] == split.fingerprint


def test_cli_says_what_is_held_out(tmp_path: Path) -> None:
    frames = [bulk("MgO", "rocksalt", a=4.2 + 0.01 * k) for k in range(8)]
    frames += [bulk("FeO", "rocksalt", a=4.2 + 0.01 * k) for k in range(4)]
    write(tmp_path / "oxides.xyz", frames)
    chunks = read_structures(tmp_path / "oxides.xyz", targets=[])
    write_store(tmp_path / "s.arrow", chunks, [])
    store, out = tmp_path / "s.arrow", tmp_path / "split.json"
    held = ("--hold-out", "Fe", "--id-fraction", 0.25, "--val-fraction", 0)
    printed = run_split(store, "--method", "element", *held, "--out", out)
    assert "structures of test/ood (of train): Fe in 100 % (0 %), Mg in 0 % (100 %)" in printed
    assert "structures of test/id (of train)" not in printed  # oxygen tells nothing
    elements = Split.from_json(out).report["elements"]
    assert elements["test/id"] == []
    assert elements["test/ood"][1] == {"element": "Mg", "share": 0.0, "train_share": 1.0}


def test_cli_dry_run_writes_nothing(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "split.json"
    printed = run_split(
        store, "--method", "tail", "--ood", 0.2, "--dry-run", "--json", "--out", out
    )
    summary = json.loads(printed)
    assert summary["sizes"] == {"train": 72, "val": 4, "test/id": 4, "test/ood": 20}
    assert summary["parameters"]["target"] == "gap"
    assert summary["report"]["reference_lines"][0]["unit"] == "eV"
    assert summary["out"] is None
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "sources", "--set", "train"], "--set 'train' is a repeat or has no name"),
        (["--method", "random", "--set", "train=a"], "is not all numbers"),
        (["--target", "homo"], "has no label 'homo'"),
        (["--out", "s.arrow"], "ends in '.arrow'"),
        (["--method", "loco"], "`method` is 'loco'"),
        (["--method", "skaffold"], "fix: method=scaffold"),
    ],
)
def test_cli_refuses(store: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(TetherError, match=message):
        run_split(store, "--dry-run", *arguments)


# --- columns of a store -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight molecules four times over, every copy a little larger than the one before."""
    folder = tmp_path_factory.mktemp("molecules")
    names = ["C6H6", "C5H5N", "CH4", "CH3CH2OH", "cyclobutene", "H2O", "CH3", "bicyclobutane"]
    frames = []
    for scale in (1.0, 1.01, 1.02, 1.03):
        for name in names:
            atoms = molecule(name)
            atoms.positions *= scale
            atoms.info["gap"] = scale * len(atoms)
            frames.append(atoms)
    return _store(folder / "m", frames)


@pytest.fixture(scope="module")
def crystals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten each of rock salt, caesium chloride, copper and zinc oxide, slightly strained."""
    folder = tmp_path_factory.mktemp("crystals")
    parents = [
        bulk("NaCl", "rocksalt", a=5.64),
        bulk("CsCl", "cesiumchloride", a=4.12),
        bulk("Cu", "fcc", a=3.61),
        bulk("ZnO", "wurtzite", a=3.25, c=5.2),
    ]
    frames = []
    for k in range(40):
        atoms = parents[k % 4].copy()
        atoms.set_cell(atoms.cell * (1 + 0.001 * (k // 4)), scale_atoms=True)
        atoms.info["gap"] = float(k)
        frames.append(atoms)
    return _store(folder / "c", frames)


def _store(stem: Path, frames: list[Atoms]) -> Path:
    write(stem.with_suffix(".xyz"), frames)
    target = Target("gap", unit="eV")
    path = stem.with_suffix(".arrow")
    write_store(path, read_structures(stem.with_suffix(".xyz"), targets=[target]), [target])
    return path


@pytest.mark.parametrize(
    ("arguments", "ood"),
    [
        (["element", "--hold-out", "Na"], [0]),
        (["group", "--hold-out", "17"], [0, 1]),
        (["period", "--hold-out", "6"], [1]),
        (["chemical-system", "--hold-out", "O-Zn"], [3]),
        (["space-group", "--hold-out", "225"], [0, 2]),
        (["cluster", "--n-clusters", "4", "--hold-out", "0"], None),
        (["cluster", "--n-clusters", "4", "--hold-out", "0", "--descriptors", "both"], None),
    ],
)
def test_methods_on_crystals(
    crystals: Path, tmp_path: Path, arguments: list[str], ood: list[int] | None
) -> None:
    out = tmp_path / "split.json"
    run_split(crystals, "--method", *arguments, "--out", out)
    content = json.loads(out.read_text())
    families = {row % 4 for row in content["indices"]["test/ood"]}
    assert len(content["indices"]["test/ood"]) == 10 * len(families)
    assert families == set(ood) if ood is not None else len(families) == 1
    assert content["parameters"]["hold_out"] == arguments[-1:] or "--descriptors" in arguments


def test_molecules_in_a_box_have_no_space_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [bulk("Cu"), bulk("Al"), bulk("Ag"), molecule("H2O", vacuum=3.0)]
    for number, atoms in enumerate(frames):
        atoms.info.update(id=f"s-{number}", gap=float(number))
    monkeypatch.setattr("tether.split_table._CHUNK", 2)
    with pytest.raises(TetherError, match="1 of 4 structures are not periodic.*first is 's-3'"):
        split_table(Store.open(_store(tmp_path / "s", frames)), Rule("space-group"))


def test_scaffold_lists_molecules_that_it_cannot_judge(molecules: Path, tmp_path: Path) -> None:
    out = tmp_path / "split.json"
    printed = run_split(
        molecules,
        "--method",
        "scaffold",
        "--hold-out",
        "c1ccccc1",
        "--id-fraction",
        0.2,
        "--out",
        out,
    )
    split = Split.from_json(out)
    assert split.indices["test/ood"].tolist() == [0, 8, 16, 24]
    assert split.report["unassigned_rows"] == [6, 14, 22, 30]  # the methyl radicals
    assert "NOT JUDGED: 4 structure(s)" in printed
    assert sum(split.sizes.values()) == 28


def test_without_any_bonds_there_is_no_scaffold(tmp_path: Path) -> None:
    # Neutral NaMg has an odd number of electrons and no bond order that fits.
    frames = [Atoms("NaMg", [[0, 0, 0], [0, 0, z]], info={"gap": z}) for z in (2.8, 2.9)]
    store = Store.open(_store(tmp_path / "s", frames))
    with pytest.raises(TetherError, match="in none of 2 structures could bonds be perceived"):
        split_table(store, Rule("scaffold"))


def test_an_id_test_of_nothing_has_a_way_out(tmp_path: Path) -> None:
    frames = [Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.7 + 0.01 * k]]) for k in range(6)]
    for number, atoms in enumerate(frames):
        atoms.info["gap"] = float(number)
    path = _store(tmp_path / "s", frames)
    with pytest.raises(TetherError, match="'test/id' has size 0.*ask for a larger share, or use"):
        run_split(path, "--method", "tail", "--dry-run")


def test_size_and_nested_validation(molecules: Path, tmp_path: Path) -> None:
    out = tmp_path / "split.json"
    options = ("--ood", 4, "--nested-validation", "--val-size", 4, "--id-fraction", 0.2)
    printed = run_split(molecules, "--method", "size", *options, "--out", out)
    n_atoms = Store.open(molecules).n_atoms_per_system
    split = Split.from_json(out)
    largest = {name: n_atoms[rows].max() for name, rows in split.indices.items()}
    assert largest["train"] <= n_atoms[split.indices["val"]].min()
    assert largest["val"] <= n_atoms[split.indices["test/ood"]].min()
    assert "NESTED VALIDATION: val is OOD by the rule of the test; ood 4" in printed
    assert "TIES" not in printed
    halved = run_split(molecules, "--method", "size", "--ood", 2, "--dry-run")
    largest_size = int(n_atoms.max())
    assert f"TIES: 2 structure(s) with {largest_size} atoms are OOD and 2 are not" in halved


def test_fingerprints_of_a_model_come_from_a_file(crystals: Path, tmp_path: Path) -> None:
    prints = np.eye(4)[np.arange(40) % 4] + np.arange(40)[:, None] * [0, 0, 0, 1e-4]
    np.save(tmp_path / "prints.npy", prints)
    given = ("--descriptors", tmp_path / "prints.npy", "--out", tmp_path / "split.json")
    run_split(crystals, "--method", "cluster", "--n-clusters", 4, "--hold-out", 2, *given)
    ood = Split.from_json(tmp_path / "split.json").indices["test/ood"]
    assert len({row % 4 for row in ood}) == 1
    # With a method that needs none, they are for the near-duplicates.
    printed = run_split(crystals, "--method", "random", *given)
    assert "NEAR-DUPLICATES within 0.01 by" in printed
    assert "NEAR-DUPLICATES" not in run_split(crystals, "--method", "random", "--dry-run")
    assert "NEAR-DUPLICATES" not in run_split(crystals, "--method", "random", "--near", 0, *given)
    np.savez(tmp_path / "two.npz", a=prints, b=prints)
    np.save(tmp_path / "text.npy", prints.astype(str))
    for name, message in (
        ("text.npy", "are of type <U32; expected real numbers"),
        ("two.npz", "have 2 arrays; expected one array of shape .40, n_features"),
        ("prints.csv", "neither a known name nor an npy or npz file"),
    ):
        with pytest.raises(TetherError, match=message):
            run_split(crystals, "--method", "random", "--descriptors", tmp_path / name)


def test_a_table_has_only_the_columns_that_are_needed(crystals: Path) -> None:
    table = split_table(Store.open(crystals), Rule("random"))
    assert (table.labels, table.descriptors, table.n_atoms) == (None, None, None)
    assert split_table(Store.open(crystals), Rule("sparse-y")).descriptors is None
    sparse = split_table(Store.open(crystals), Rule("sparse-x"))
    assert sparse.descriptor_name == "composition"
    both = split_table(Store.open(crystals), Rule("random"), descriptors="both")
    assert np.shape(both.descriptors) == (40, 108 + 105)


def test_copies_that_prepare_finds_are_leakage(tmp_path: Path) -> None:
    salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    moved, reordered = salt.copy(), salt[[3, 1, 2, 0, 4, 5, 7, 6]]
    moved.translate([0.5, 1.1, 4.0])
    moved.wrap()
    water, boxed = molecule("H2O", vacuum=5.0), molecule("H2O", vacuum=6.0)
    frames = [salt, water, molecule("CH4"), moved, reordered, boxed]
    for gap, atoms in enumerate(frames):
        atoms.info["gap"] = float(gap)
    store = Store.open(_store(tmp_path / "s", frames))
    rows = {"train": [0, 1, 2], "test/ood": [3, 4, 5]}
    hashes = split_table(store, Rule("random")).hashes
    assert hashes is not None
    (pair,) = leakage_report(Split("s", "file", {}, rows), hashes)["pairs"]
    assert pair["rows"] == {"train": [0, 1], "test/ood": [3, 4, 5]}


def test_structures_in_no_fold_are_counted_aloud(store: Path, tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps([[0, 1, 2], [3, 4, 5]]))
    folds = ("--method", "folds", "--file", tmp_path / "f.json", "--hold-out", 0)
    printed = run_split(store, *folds, "--out", tmp_path / "split.json")
    assert "IN NO FOLD: 94 structure(s)" in printed


def test_cli_avoids_what_other_splits_test_on(store: Path, tmp_path: Path) -> None:
    tested = tmp_path / "tested.json"
    run_split(store, "--target", "gap", "--ood", 20, "--val-size", 8, "--out", tested)
    sets = ("--method", "random", "--set", "train=0.9", "--set", "val=0.1")
    out = tmp_path / "rest.json"
    printed = run_split(store, *sets, "--avoid", tested, "--train-size", 40, "--out", out)
    first, rest = Split.from_json(tested), Split.from_json(out)
    unwanted = np.concatenate([rows for name, rows in first.indices.items() if name != "train"])
    chosen = np.concatenate(list(rest.indices.values()))
    assert not np.isin(chosen, unwanted).any()
    assert rest.sizes["train"] == 40
    assert rest.parameters["n_avoided"] == len(unwanted)
    assert f"{len(unwanted)} of them avoided" in printed
    # Without it, the same draw has rows of that test.
    run_split(store, *sets, "--out", out)
    assert np.isin(np.concatenate(list(Split.from_json(out).indices.values())), unwanted).any()

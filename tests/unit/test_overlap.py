"""Overlap with pretraining structures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write

from tether.data.prepare import prepare
from tether.errors import TetherError
from tether.splits.overlap import composition_codes, overlap_report
from tether.splits.split import Split, StoreReference
from tether.splits.table import Table

DATA = Path(__file__).parents[3] / "shared" / "data"


def _table(hashes: list[int], compositions: list[int], *, near: bool = False) -> Table:
    points = np.array(hashes, dtype=float)[:, None] if near else None
    return Table(
        len(hashes),
        hashes=np.array(hashes),
        compositions=np.array(compositions),
        descriptors=points,
        descriptor_name="test" if near else "",
    )


def test_compositions_are_ratios_of_elements() -> None:
    cells = [[14] * 2, [14] * 8, [11, 17], [17, 11, 11, 17], [8, 1, 1], [8, 8, 1, 1], []]
    ptr = np.cumsum([0, *map(len, cells)])
    codes = composition_codes(np.concatenate(cells).astype(int), ptr)
    same = codes[:, None] == codes[None]
    assert same[0, 1]
    assert same[2, 3]
    # Water is not hydrogen peroxide, and nothing else agrees.
    assert same.sum() == len(cells) + 4


def test_each_set_counts_its_own() -> None:
    split = Split(
        "s", "file", {}, {"train": np.array([0, 1, 2]), "test/ood": np.array([3, 4])},
        store=StoreReference(n_systems=6),
    )  # fmt: skip
    table = _table([10, 11, 12, 13, 14, 15], [1, 1, 2, 3, 3, 4])
    seen = _table([12, 13, 15, 99, 99], [2, 3, 4, 3, 1])
    report = overlap_report(split, table, seen)
    assert report == {
        "n_pretraining": 5,
        "sets": {
            "train": {"n": 3, "same_structure": 1, "same_composition": 3},
            "test/ood": {"n": 2, "same_structure": 1, "same_composition": 2},
        },
    }
    nothing = overlap_report(split, table, _table([0], [0]))
    assert all(
        counts["same_structure"] == counts["same_composition"] == 0
        for counts in nothing["sets"].values()
    )


def test_near_duplicates_need_descriptors_of_both() -> None:
    split = Split("s", "file", {}, {"train": np.arange(3)}, store=StoreReference(n_systems=3))
    table = _table([10, 20, 30], [1, 2, 3], near=True)
    seen = _table([10, 90], [1, 9], near=True)
    moved = replace(seen, descriptors=np.array([[10.001], [90.0]]), hashes=np.array([77, 78]))
    counts = overlap_report(split, table, moved, near=0.01)["sets"]["train"]
    assert counts == {"n": 3, "same_structure": 0, "same_composition": 1, "near_duplicate": 1}
    with pytest.raises(TetherError, match="a table has no descriptors"):
        overlap_report(split, table, replace(seen, descriptors=None), near=0.01)
    with pytest.raises(TetherError, match="a table has no compositions"):
        overlap_report(split, replace(table, compositions=None), seen)


def test_the_command_says_what_the_backbone_has_seen(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tether.cli.main import app

    frames = [bulk("Si"), bulk("Cu"), bulk("NaCl", "rocksalt", a=5.6), bulk("Al"), bulk("Ag")]
    for value, atoms in enumerate(frames):
        atoms.info["gap"] = float(value)
    write(tmp_path / "own.xyz", frames)
    write(tmp_path / "seen.xyz", [frames[0], bulk("Cu", a=3.7), bulk("Si", cubic=True, a=6.0)])
    for name in ("own", "seen"):
        targets = ["gap:eV"] if name == "own" else None
        prepare([tmp_path / f"{name}.xyz"], tmp_path / f"{name}.arrow", targets=targets)
    out = tmp_path / "split.json"
    arguments = ["split", str(tmp_path / "own.arrow"), "--method", "random", "--set", "train=1.0"]
    arguments += ["--pretraining", str(tmp_path / "seen.arrow"), "--out", str(out)]
    printed = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "among 3 pretraining structures (not their labels) are:" in printed
    assert "of 5 in train: 1 by same structure, 2 by same composition" in printed
    overlap = json.loads(out.read_text())["report"]["overlap"]
    assert overlap["sets"]["train"] == {"n": 5, "same_structure": 1, "same_composition": 2}
    # A file has the descriptors of one store, so that nothing is near in another.
    np.save(tmp_path / "prints.npy", np.eye(5))
    arguments += ["--descriptors", str(tmp_path / "prints.npy")]
    printed = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "near-duplicates of them: not sought, " in printed
    assert json.loads(out.read_text())["report"]["overlap"] == overlap


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
def test_matbench_crystals_are_known_to_a_model_of_mptrj(tmp_path: Path) -> None:
    from tether.data.store import Store
    from tether.split_table import split_table
    from tether.splits.make import make_split
    from tether.splits.rule import Rule

    for name, file in (
        ("own", "matbench/dielectric.npz"),
        ("seen", "forcefield/mptrj-random-1k.xyz.gz"),
    ):
        prepare([DATA / file], tmp_path / f"{name}.arrow")
    rule = Rule("random", fractions={"train": 0.8, "test/id": 0.2})
    tables = [
        split_table(Store.open(tmp_path / f"{name}.arrow"), rule, compositions=True, target=target)
        for name, target in (("own", "target"), ("seen", None))
    ]
    split = make_split(tables[0], rule, near=None, pretraining=tables[1])
    counts = split.report["overlap"]["sets"]
    # A thousand of the 1.6 million frames of MPtrj, and both are the Materials Project's: some
    # compositions are shared, few by chance alone.
    assert 100 < sum(row["same_composition"] for row in counts.values()) < 2000

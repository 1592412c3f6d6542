"""`prepare`: all or nothing; what was left out is written beside the store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from ase import Atoms
from ase.build import molecule
from ase.io import write
from typer.testing import CliRunner

from tether.cli.prepare import prepare_command
from tether.data.chunks import Chunk
from tether.data.prepare import prepare, sample_structures
from tether.data.store import Store
from tether.errors import TetherError
from tether.structures import from_ase
from tether.targets import Target

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the real data in {DATA}")


def frames(n_systems: int, *, seed: int = 0) -> list[Atoms]:
    random = np.random.default_rng(seed)
    names = ["H2O", "CH4", "NH3", "CH3OH"]
    out = []
    for k in range(n_systems):
        atoms = molecule(names[k % 4])
        atoms.rattle(0.05, rng=random)
        atoms.info.update(gap=float(random.normal()), mu=float(k))
        out.append(atoms)
    return out


@pytest.fixture
def two_files(tmp_path: Path) -> list[Path]:
    first, second = frames(6), frames(4, seed=1)
    first[2].positions[1] = first[2].positions[0]
    write(tmp_path / "train.xyz", first)
    write(tmp_path / "test.xyz", second)
    return [tmp_path / "train.xyz", tmp_path / "test.xyz"]


def test_store_and_audit_file(two_files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "data.arrow"
    seen: list[tuple[str, int]] = []
    report = prepare(two_files, out, targets=["gap:eV"], progress=lambda n, k: seen.append((n, k)))
    store = Store.open(out)
    assert store.n_systems == report.n_systems == 9
    assert "train:2" not in store.ids.tolist()
    assert store.sources.tolist() == ["train.xyz"] * 5 + ["test.xyz"] * 4
    assert store.targets == {"gap": Target("gap", unit="eV")}
    expected = [a.info["gap"] for k, a in enumerate(frames(6)) if k != 2]
    np.testing.assert_allclose(store.label("gap")[:5], expected)
    assert store.fingerprint == report.fingerprint
    assert seen == [(str(two_files[0]), 6), (str(two_files[1]), 4)]
    written = json.loads((tmp_path / "new" / "data.arrow.audit.json").read_text())
    assert written == json.loads(json.dumps(report.to_dict()))
    (finding,) = written["audit"]["findings"]
    assert finding["structures"] == [{"id": "train:2", "reason": "two atoms are 0.000 Å apart"}]
    assert sorted(p.name for p in out.parent.iterdir()) == ["data.arrow", "data.arrow.audit.json"]


def test_default_is_every_label(two_files: list[Path], tmp_path: Path) -> None:
    prepare(two_files, tmp_path / "d.arrow")
    assert sorted(Store.open(tmp_path / "d.arrow").targets) == ["gap", "mu"]


def test_unsupported_elements_are_left_out(two_files: list[Path], tmp_path: Path) -> None:
    report = prepare(two_files, tmp_path / "d.arrow", supported_elements=[1, 6, 7])
    assert set(Store.open(tmp_path / "d.arrow").numbers_flat.tolist()) == {1, 6, 7}
    finding = report.audit.finding("unsupported-element")
    assert finding is not None
    assert ("test:0", "it contains O") in finding.structures


def test_dry_run_writes_nothing(two_files: list[Path], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    report = prepare(two_files, None)
    assert (report.store, report.n_systems) == (None, 9)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["gapp"]}, "no input has the label `gapp`; expected one of gap, mu"),
        ({"targets": ["gap", "gap:eV"]}, "target `gap` is asked for twice"),
        ({"targets": ["gap:eV:big"]}, "target 'gap:eV:big'; expected name.*kind of intensive"),
        ({"targets": [Target("gap", n_components=2)]}, "with 2 value.*expected 1 for each system"),
        ({"supported_elements": [2]}, "no structure is left of 10: 10 structures with elements"),
        ({"limit": 0}, "`limit` is 0; expected at least 1"),
    ],
)
def test_errors_write_nothing(
    two_files: list[Path], tmp_path: Path, options: dict[str, object], message: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(TetherError, match=message):
        prepare(two_files, out / "d.arrow", **options)  # type: ignore[arg-type]
    assert list(out.iterdir()) == []


def test_unwanted_label_may_have_any_shape(tmp_path: Path) -> None:
    odd = frames(4)
    for atoms in odd:
        atoms.info["modes"] = np.arange(float(len(atoms)))
    write(tmp_path / "m.xyz", odd)
    with pytest.raises(TetherError, match=r"label `modes` of structure m:1 .* has 5 values"):
        prepare([tmp_path / "m.xyz"], None)
    assert prepare([tmp_path / "m.xyz"], None, targets=["gap:eV"]).n_labelled == {"gap": 4}
    with pytest.raises(TetherError, match="label `gpa`; expected one of gap, modes, mu"):
        prepare([tmp_path / "m.xyz"], None, targets=["gpa"])


def test_target_that_is_nan_everywhere(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "n.npz",
        n_atoms=np.array([1, 1]),
        numbers=np.array([2, 2]),
        positions=np.zeros((2, 3)),
        ids=np.array(["a", "b"]),
        gap=np.full(2, np.nan),
    )
    with pytest.raises(TetherError, match="2 of 2 structures have no finite label `gap`"):
        prepare([tmp_path / "n.npz"], tmp_path / "d.arrow")
    assert not (tmp_path / "d.arrow").exists()


def test_infinite_label_is_reported_and_is_no_label(tmp_path: Path) -> None:
    flawed = frames(6)
    for k, value in enumerate([np.inf, -np.inf, np.nan]):
        flawed[k].info["gap"] = value
    for k, atoms in enumerate(flawed):
        atoms.arrays["q"] = np.full(len(atoms), np.inf if k == 5 else 0.0)
    write(tmp_path / "m.xyz", flawed)
    report = prepare([tmp_path / "m.xyz"], tmp_path / "d.arrow", targets=["gap", "q"])
    found = {f.code: [name for name, _ in f.structures] for f in report.audit.findings}
    assert found == {
        "infinite-label:gap": ["m:0", "m:1"],
        "infinite-label:q": ["m:5"],
        "no-label:gap": ["m:0", "m:1", "m:2"],
        "no-label:q": ["m:5"],
    }
    assert report.n_labelled == {"gap": 3, "q": 5}
    store = Store.open(tmp_path / "d.arrow")
    assert np.isnan(store.label("gap")).tolist() == [True] * 3 + [False] * 3
    assert not store.batch([5]).atom_labels["q"].isinf().any()


def test_files_that_share_their_ids(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "m.xyz", frames(2))
    with pytest.raises(TetherError, match=r"2 ids name more than one .*first: m:0, m:1"):
        prepare([tmp_path / "a" / "m.xyz", tmp_path / "b" / "m.xyz"], tmp_path / "d.arrow")


def test_empty_input_and_no_input(tmp_path: Path) -> None:
    empty = {"n_atoms": np.zeros(0, int), "numbers": np.zeros(0, int)}
    np.savez(tmp_path / "e.npz", **empty, positions=np.zeros((0, 3)))
    with pytest.raises(TetherError, match=r"e\.npz has no structure"):
        prepare([tmp_path / "e.npz"], tmp_path / "d.arrow")
    with pytest.raises(TetherError, match="no input; expected at least one file, or qm9"):
        prepare([], tmp_path / "d.arrow")


def test_only_a_store_is_replaced(two_files: list[Path], tmp_path: Path) -> None:
    precious = tmp_path / "thesis.tex"
    precious.write_text("years of work")
    with pytest.raises(TetherError, match="exists and is no store"):
        prepare(two_files, precious)
    with pytest.raises(TetherError, match="is input and output at once"):
        prepare(two_files, two_files[0])
    assert precious.read_text() == "years of work"
    prepare(two_files, tmp_path / "d.arrow")
    prepare(two_files[1:], tmp_path / "d.arrow")
    assert Store.open(tmp_path / "d.arrow").n_systems == 4


def calculated(path: Path) -> Path:
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = molecule("H2O")
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.ones((3, 3)))
    write(path, atoms)
    return path


def test_units_are_completed_and_never_contradicted(tmp_path: Path) -> None:
    path = calculated(tmp_path / "w.xyz")
    prepare([path], tmp_path / "d.arrow", targets=["energy"])
    energy = Target("energy", unit="eV", kind="extensive")
    assert Store.open(tmp_path / "d.arrow").targets == {"energy": energy}
    with pytest.raises(TetherError, match="`energy` is asked for in Ha, the data are in eV"):
        prepare([path], tmp_path / "d.arrow", targets=["energy:Ha"])


def test_a_stated_unit_settles_an_unknown_one(tmp_path: Path) -> None:
    path = calculated(tmp_path / "w.xyz")
    one = {"n_atoms": np.array([1]), "numbers": np.array([2]), "positions": np.zeros((1, 3))}
    np.savez(tmp_path / "u.npz", **one, energy=np.array([-2.0]))
    both = [path, tmp_path / "u.npz"]
    with pytest.raises(TetherError, match="`energy` of .* is in an unknown unit; expected eV"):
        prepare(both, tmp_path / "d.arrow", targets=["energy"])
    prepare(both, tmp_path / "d.arrow", targets=["energy:eV"])
    assert Store.open(tmp_path / "d.arrow").label("energy").tolist() == [-1.0, -2.0]


def chunks(n_systems: int, size: int) -> list[Chunk]:
    batch = from_ase([Atoms("He")] * n_systems)
    return [
        Chunk(batch.select(range(s, min(s + size, n_systems))), ("f",) * (min(size, n_systems - s)))
        for s in range(0, n_systems, size)
    ]


def drawn(stream: list[Chunk], n_systems: int, seed: int) -> list[str]:
    found = sample_structures(stream, n_systems, seed=seed)
    return [name for chunk in found for name in chunk.batch.ids]


def test_sample_is_uniform_ordered_and_independent_of_chunks() -> None:
    one = drawn(chunks(100, 100), 10, 3)
    assert len(set(one)) == 10
    assert one == sorted(one, key=int)
    assert drawn(chunks(100, 7), 10, 3) == one
    assert drawn(chunks(100, 7), 10, 4) != one
    assert len(drawn(chunks(5, 2), 10, 0)) == 5
    hits = np.zeros(20)
    for seed in range(400):
        hits[[int(name) for name in drawn(chunks(20, 6), 5, seed)]] += 1
    # Binomial(400, 1/4): mean 100, standard deviation 8.7.
    assert np.abs(hits - 100).max() < 4 * 8.7


def runner(arguments: list[str]) -> object:
    app = typer.Typer()
    app.command()(prepare_command)
    return CliRunner().invoke(app, arguments)


def test_command_line(two_files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "d.arrow"
    files = [str(path) for path in two_files]
    result = runner([*files, "-o", str(out), "--target", "gap:eV", "--elements", "H,C,N,O"])
    assert result.exit_code == 0, result.output  # type: ignore[attr-defined]
    assert "9 of 10 structures are in" in result.output  # type: ignore[attr-defined]
    assert "d.arrow.audit.json" in result.output  # type: ignore[attr-defined]
    assert "train:2" in result.output  # type: ignore[attr-defined]
    assert Store.open(out).n_systems == 9


def test_command_line_prints_brackets_as_they_are(tmp_path: Path) -> None:
    odd = frames(2)
    odd[0].positions[1] = odd[0].positions[0]
    odd[0].info["id"], odd[1].info["id"] = "[red]a[/]", "[/b]"
    write(tmp_path / "m.xyz", odd)
    result = runner([str(tmp_path / "m.xyz"), "-o", str(tmp_path / "[/x]" / "d.arrow")])
    assert result.exit_code == 0, result.output  # type: ignore[attr-defined]
    assert "[red]a[/]" in result.output  # type: ignore[attr-defined]
    assert "[/x]/d.arrow" in result.output  # type: ignore[attr-defined]


def test_command_line_writes_shards(two_files: list[Path], tmp_path: Path) -> None:
    files, out = [str(path) for path in two_files], tmp_path / "shards"
    for _ in range(2):  # the second replaces the first
        result = runner([*files, "-o", str(out), "--target", "gap", "--shard-size", "4"])
        assert result.exit_code == 0, result.output  # type: ignore[attr-defined]
    one = prepare(two_files, tmp_path / "one.arrow", targets=["gap"])
    store = Store.open(out)
    assert store.fingerprint == one.fingerprint
    assert sorted(path.name for path in out.iterdir()) == [
        "0000000.arrow", "0000001.arrow", "0000002.arrow", "manifest.json",
    ]  # fmt: skip
    result = runner([*files, "-o", str(out), "--target", "gap"])
    assert "is a folder" in str(result.exception)  # type: ignore[attr-defined]
    result = runner([*files, "-o", str(tmp_path), "--target", "gap", "--shard-size", "4"])
    assert "is a folder" in str(result.exception)  # type: ignore[attr-defined]


def test_bad_input_leaves_no_shards(two_files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "sh.arrow"
    with pytest.raises(TetherError, match="no input has the label `gpa`"):
        prepare(two_files, out, targets=["gpa"], shard_size=2)
    assert not (tmp_path / "sh.arrow.parts").exists()
    assert prepare(two_files, out, targets=["gap"], shard_size=2).n_systems == 9


def test_command_line_json_dry_run_and_errors(two_files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "d.arrow"
    result = runner([str(two_files[0]), "-o", str(out), "--json", "--dry-run", "--limit", "3"])
    report = json.loads(result.stdout)  # type: ignore[attr-defined]
    assert report["store"] is None
    assert report["audit"]["n_systems"] == 3
    assert not out.exists()
    result = runner([str(two_files[0]), "-o", str(out), "--elements", "H,Xx"])
    assert isinstance(result.exception, TetherError)  # type: ignore[attr-defined]
    assert "element 'Xx'" in str(result.exception)  # type: ignore[attr-defined]


@needs_data
def test_published_gap_split_has_copies_with_another_label(tmp_path: Path) -> None:
    """Equal geometries with different gaps: at most one of each pair can be right."""
    parts = [DATA / "qm9_gap" / f"{name}.npz" for name in ("val", "id_test", "ood_test")]
    report = prepare(parts, tmp_path / "d.arrow", targets=["gap:Ha"])
    assert report.n_systems == 5870 + 3050 + 4990
    copies = report.audit.finding("conflicting-label:gap")
    assert copies is not None
    assert 100 < len(copies.structures) < 400
    assert sorted(set(Store.open(tmp_path / "d.arrow").sources.tolist())) == [
        "id_test.npz",
        "ood_test.npz",
        "val.npz",
    ]

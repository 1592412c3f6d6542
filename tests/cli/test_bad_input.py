"""Bad input: one line on standard error with value, expectation and fix; exit code 2; no trace."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from tether.cli.main import main
from tether.data.chunks import Chunk
from tether.data.store import Store, write_store
from tether.splits.split import Split, StoreReference
from tether.structures import from_ase
from tether.targets import Target

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    def call(*arguments: object, trace: Path | None = None) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        lines = err.strip().splitlines()
        assert stop.value.code == 2, err
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        assert "; expected " in lines[0], lines[0]
        assert "; fix: " in lines[0], lines[0]
        assert out == ""
        if trace is not None:
            assert not trace.exists()
        return lines[0]

    return call


def write(
    folder: Path, frames: list[Atoms], labels: dict[str, Any], name: str = "s"
) -> tuple[Path, Path]:
    """A store with a split of it."""
    n = len(frames)
    store = folder / f"{name}.arrow"
    targets = [Target(key, unit="eV") for key in labels]
    batch = from_ase(frames, labels=labels, ids=[f"m-{i}" for i in range(n)])
    fingerprint = write_store(store, [Chunk(batch, ("here",) * n)], targets)
    rows = np.arange(n)
    sets = {"train": rows[: n - 4], "val": rows[n - 4 : n - 2], "test/id": rows[n - 2 :]}
    split = folder / f"{name}.json"
    Split("s", "file", {}, sets, store=StoreReference("s", fingerprint, n)).to_json(split)
    return store, split


def adapt(config: Path, out: Path, *more: object, recipe: str = "full") -> tuple[object, ...]:
    return ("adapt", "--config", config, "--recipe", recipe, "--out", out, *more)


BOTH = pytest.mark.parametrize("verb", ["adapt", "compare"])


def command(
    verb: str, config: Path, out: Path, *more: object, recipe: str = "full"
) -> list[object]:
    chosen = ["--recipe", recipe] if verb == "adapt" else [f"recipes=[{recipe}]"]
    return [verb, "--config", config, "--out", out, *chosen, *more]


def poisoned(folder: Path, molecules: list[Atoms], kind: str) -> tuple[Path, Path]:
    frames = [a.copy() for a in molecules[:12]]
    if kind == "element":
        frames[5].numbers[0] = 102
    elif kind == "overlap":
        frames[7].positions[1] = frames[7].positions[0]
    elif kind == "periodic":
        frames = [bulk("C", "diamond", a=3.5 + 0.01 * i) for i in range(12)]
    return write(folder, frames, {"gap": np.arange(12.0)})


@BOTH
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("element", "backbone `tiny` does not know No, found in structure `m-5`"),
        ("overlap", "atoms 0 and 1 are 0 Å apart in structure `m-7`"),
        ("periodic", "accepts no cell, but structures `m-0`"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_structures_that_the_backbone_cannot_take(
    verb: str, kind: str, message: str, workspace: Any, molecules: list[Atoms], tmp_path: Path,
    refused: Refused,
) -> None:  # fmt: skip
    store, split = poisoned(tmp_path, molecules, kind)
    config = workspace.write_config(tmp_path, store=str(store), split=str(split))
    more = ["backbone.options={}", "backbone.name=so3lr"] if kind == "periodic" else []
    if more:
        pytest.importorskip("so3krates_torch", reason="the extra so3lr is not installed")
    out = tmp_path / "out"
    assert message in refused(*command(verb, config, out, *more), trace=out)


@BOTH
@pytest.mark.parametrize(
    ("recipe", "more", "message"),
    [
        ("full", ["targets=[gapp]"], "has no label 'gapp'; expected one of gap, u0, sparse, empty"),
        ("full", ["targets=[empty]"], "target 'empty' has 0 labels"),
        ("full", ["training.lrr=1"], "unknown key 'lrr' in training"),
        ("full", ["training.lr=fast"], "`lr` is 'fast'; expected a valid number"),
        ("full", ["training.lr"], "override 'training.lr' has no value"),
        ("full", ["head={pooling: [max"], "is not YAML"),
        ("fulll", [], "unknown recipe 'fulll'; expected one of scratch"),
        ("full", ["backbone.name=so3lrr"], "unknown backbone 'so3lrr'"),
        ("full", ["backbone.options.n_layerz=1"], "n_layerz"),
        ("full", ["store=nowhere.arrow"], "nowhere.arrow cannot be opened as a store"),
        ("full", ["split=nowhere.json"], "'nowhere.json' does not exist"),
        ("mft", ["auxiliary=null"], "recipe 'mft' trains the force field, but there are no data"),
        ("mft", ["auxiliary=nowhere.arrow"], "nowhere.arrow cannot be opened as a store"),
        ("full", ["training.max_atoms=3"], "atoms; expected at most max_atoms=3"),
    ],
)
def test_wrong_configuration(
    verb: str, recipe: str, more: list[str], message: str, workspace: Any, tmp_path: Path,
    refused: Refused,
) -> None:  # fmt: skip
    config, out = workspace.write_config(tmp_path), tmp_path / "out"
    assert message in refused(*command(verb, config, out, *more, recipe=recipe), trace=out)


def test_a_misspelt_key_gets_a_suggestion(workspace: Any, tmp_path: Path, refused: Refused) -> None:
    config = workspace.write_config(tmp_path, trainng={"lr": 1.0})
    found = refused(*adapt(config, tmp_path / "out"), trace=tmp_path / "out")
    assert "did you mean 'training'?" in found


@BOTH
@pytest.mark.parametrize("damage", ["truncated", "no store", "no end mark", "empty"])
def test_a_damaged_store(
    verb: str, damage: str, workspace: Any, tmp_path: Path, refused: Refused
) -> None:
    content = workspace.store.read_bytes()
    harm = {
        "truncated": content[: len(content) // 2],
        "no store": b"this is not an Arrow file, whatever its name says" * 20,
        "no end mark": content[:-40],
        "empty": b"",
    }
    store, out = tmp_path / "damaged.arrow", tmp_path / "out"
    store.write_bytes(harm[damage])
    config = workspace.write_config(tmp_path, store=str(store))
    found = refused(*command(verb, config, out), trace=out)
    assert "damaged.arrow cannot be opened as a store" in found


@BOTH
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sets: sets | {"val": []}, "val"),
        (lambda sets: {k: v for k, v in sets.items() if k != "val"}, "has no set 'val'"),
        (lambda sets: sets | {"test/x": sets["train"][:1]}, "test/x"),
        (lambda sets: sets | {"val": [10**6]}, "1000000"),
    ],
    ids=["empty", "missing", "overlapping", "outside"],
)
def test_a_split_that_does_not_fit(
    verb: str, change: Any, message: str, workspace: Any, tmp_path: Path, refused: Refused
) -> None:
    import json

    content = json.loads(workspace.split.read_text())
    content["indices"] = change(content["indices"])
    split, out = tmp_path / "bad.json", tmp_path / "out"
    split.write_text(json.dumps(content))
    config = workspace.write_config(tmp_path, split=str(split))
    assert message in refused(*command(verb, config, out), trace=out)


@BOTH
def test_a_split_of_another_store(
    verb: str, workspace: Any, molecules: list[Atoms], tmp_path: Path, refused: Refused
) -> None:
    _, split = write(tmp_path, molecules[:10], {"gap": np.arange(10.0)})
    config, out = workspace.write_config(tmp_path, split=str(split)), tmp_path / "out"
    assert "was made for a store with" in refused(*command(verb, config, out), trace=out)


@BOTH
def test_validation_without_labels(
    verb: str, workspace: Any, molecules: list[Atoms], tmp_path: Path, refused: Refused
) -> None:
    values = np.arange(12.0)
    values[8:10] = np.nan
    store, split = write(tmp_path, molecules[:12], {"gap": values})
    config = workspace.write_config(tmp_path, store=str(store), split=str(split))
    found = refused(*command(verb, config, tmp_path / "out"), trace=tmp_path / "out")
    assert "target 'gap' has no label among the 2 of set 'val'" in found


def forcefield_store(path: Path, molecules: list[Atoms], forces: Any) -> Path:
    frames = molecules[:12]
    n_atoms = sum(len(a) for a in frames)
    batch = from_ase(
        frames,
        labels={"energy": np.arange(12.0)},
        atom_labels={"forces": np.full((n_atoms, 3), forces)},
    )
    targets = [
        Target("energy", unit="eV", kind="extensive"),
        Target("forces", unit="eV/Å", level="atom", kind="vector", n_components=3),
    ]
    write_store(path, [Chunk(batch, ("here",) * 12)], targets)
    return path


@BOTH
@pytest.mark.parametrize(
    ("forces", "message"),
    [(0.0, "forces are zero; expected forces of off-equilibrium"), (np.nan, "lack 'forces'")],
)
@pytest.mark.parametrize("key", ["auxiliary", "forcefield_test"])
def test_poisoned_force_field_data(
    verb: str, forces: float, message: str, key: str, workspace: Any, molecules: list[Atoms],
    tmp_path: Path, refused: Refused,
) -> None:  # fmt: skip
    bad = forcefield_store(tmp_path / "bad.arrow", molecules, forces)
    config, out = workspace.write_config(tmp_path, **{key: str(bad)}), tmp_path / "out"
    assert message in refused(*command(verb, config, out, recipe="mft"), trace=out)


@BOTH
def test_held_out_data_that_are_trained_on(
    verb: str, workspace: Any, molecules: list[Atoms], tmp_path: Path, refused: Refused
) -> None:
    config = workspace.write_config(tmp_path, forcefield_test=str(workspace.auxiliary))
    found = refused(*command(verb, config, tmp_path / "o", recipe="mft"), trace=tmp_path / "o")
    n = len(molecules)
    assert f"{n} of the {n} structures of `forcefield_test` are in `auxiliary` too" in found


@BOTH
def test_auxiliary_data_without_forces(
    verb: str, workspace: Any, tmp_path: Path, refused: Refused
) -> None:
    config = workspace.write_config(tmp_path, auxiliary=str(workspace.store))
    found = refused(*command(verb, config, tmp_path / "o", recipe="mft"), trace=tmp_path / "o")
    assert "force-field data lack 'forces'" in found


@pytest.fixture(scope="module")
def finished(workspace: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("finished")
    config = workspace.write_config(folder)
    main([str(a) for a in adapt(config, folder / "run", "--json")])
    return config, folder / "run"


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_that_holds_another_run(finished: tuple[Path, Path], refused: Refused) -> None:
    config, run = finished
    before = snapshot(run)
    assert "holds a run with other seed" in refused(*adapt(config, run, "--seed", 1))
    assert "holds a run with other recipe" in refused(*adapt(config, run, recipe="probe"))
    assert "holds a run with other settings" in refused(*adapt(config, run, "training.lr=0.1"))
    assert snapshot(run) == before


@pytest.mark.parametrize("damage", ["truncated", "other content"])
def test_a_damaged_checkpoint(
    damage: str, finished: tuple[Path, Path], tmp_path: Path, refused: Refused
) -> None:
    config, run = finished
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "metrics.json").unlink()  # as if killed before the end
    checkpoint = copy / "state" / "checkpoint.safetensors"
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-9] if damage == "truncated" else b"\0" * len(content))
    before = snapshot(copy)
    assert "checkpoint.safetensors cannot be read" in refused(*adapt(config, copy))
    assert snapshot(copy) == before


def test_out_that_is_a_file(workspace: Any, tmp_path: Path, refused: Refused) -> None:
    config = workspace.write_config(tmp_path)
    (tmp_path / "out").write_text("mine")
    assert "is a file; expected a folder" in refused(*adapt(config, tmp_path / "out"))
    assert "cannot write" in refused(*adapt(config, tmp_path / "out" / "run"))
    assert (tmp_path / "out").read_text() == "mine"


def test_predict(finished: tuple[Path, Path], tmp_path: Path, refused: Refused) -> None:
    _, run = finished
    out = tmp_path / "out.csv"
    overlapping = molecule("CH4")
    overlapping.positions[1] = overlapping.positions[2]
    ase.io.write(tmp_path / "bad.xyz", [molecule("H2O"), overlapping])
    (tmp_path / "junk.xyz").write_text("not a structure\n")
    for source, message in (
        (tmp_path / "bad.xyz", "Å apart"),
        (tmp_path / "none.xyz", "no such file"),
        (tmp_path / "junk.xyz", "junk.xyz"),
    ):
        assert message in refused("predict", run, source, "--out", out, trace=out)
    water = tmp_path / "water.xyz"
    ase.io.write(water, molecule("H2O"))
    found = refused("predict", run, water, "--out", tmp_path / "out.doc")
    assert "cannot write 'out.doc'" in found
    assert "is no finished run" in refused("predict", tmp_path, water, "--out", out, trace=out)


def test_command_lines_that_do_not_exist(refused: Refused, tmp_path: Path) -> None:
    for arguments, message in (
        (["list", "--nope"], "No such option: --nope"),
        (["fit"], "No such command 'fit'"),
        (["adapt", "--recipe"], "--recipe"),
        (["adapt", "--seed", "x"], "--seed x"),
        (["predict"], "Missing argument"),
        (["list", str(tmp_path / "none.arrow")], "none.arrow cannot be opened as a store"),
        (["report", str(tmp_path)], str(tmp_path)),
    ):
        assert message in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_negative_seed(workspace: Any, tmp_path: Path, refused: Refused) -> None:
    config, out = workspace.write_config(tmp_path), tmp_path / "out"
    assert "`seed` is -1" in refused(*adapt(config, out, "--seed", -1), trace=out)


def test_prepare_split_and_label_refuse_too(
    workspace: Any, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out.arrow"
    missing = ("prepare", tmp_path / "none.xyz", "--out", out)
    assert "no such file" in refused(*missing, trace=out)
    split = tmp_path / "out.json"
    for more in (["--target", "gapp"], ["--method", "magic"], ["--ood", "2000000"]):
        refused("split", workspace.store, "--out", split, *more, trace=split)
    for more in (["--with", "dft"], ["--backbone", "none"], ["--widths", "a,b"]):
        refused("label", workspace.store, "--out", out, "--workers", 0, *more, trace=out)
    assert Store.open(workspace.store).n_systems == 36


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--with", "gfn2-xtb", "--backbone", "tiny"], "a backbone was given for labels of"),
        (["--temperature", "500"], "--temperature was given, and nothing reads it with --sampling"),
        (["--sampling", "modes", "--widths", "0.1"], "expected --sampling displace or strain"),
        (["--strain", "0.1"], "fix: leave --strain out"),
        (["--sampling", "input", "--n-per-structure", "2"], "--n-per-structure was given"),
    ],
)
def test_options_of_label_that_nothing_reads(
    more: list[str], message: str, workspace: Any, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out.arrow"
    command = ("label", workspace.store, "--out", out, "--workers", 0)
    assert message in refused(*command, *more, trace=out)


def test_a_negative_tolerance_of_near_duplicates(
    workspace: Any, tmp_path: Path, refused: Refused
) -> None:
    out = tmp_path / "out.json"
    command = ("split", workspace.store, "--target", "gap", "--ood", 8, "--out", out)
    assert "'--near'" in refused(*command, "--near", -1, trace=out)


def test_the_status_of_a_suite_that_is_not_there(tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "typo"
    assert "there is no folder" in refused("bench", "qm9-boom", "--status", "--out", out, trace=out)


def test_the_error_is_one_line_in_a_narrow_terminal_too(tmp_path: Path) -> None:
    name = "a:warning:[bold]" + "long" * 40 + ".arrow"
    done = subprocess.run(
        [sys.executable, "-m", "tether.cli", "list", str(tmp_path / name)],
        capture_output=True,
        text=True,
        env={"COLUMNS": "20", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert name in line
    assert "Traceback" not in line

"""Predictions of a finished run: every format, ids and order kept, all or nothing."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from ase import Atoms

from tether.adapt import adapt
from tether.cli.predict import predict_command
from tether.config import load_config
from tether.data.store import Store
from tether.errors import TetherError
from tether.predict import load_run, predict
from tether.run import Run


@pytest.fixture(scope="module")
def run(workspace: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("predict")
    path = workspace.write_config(folder, targets=["gap", "u0"])
    config = load_config(path).single("full", 0)
    return adapt(
        config.inputs(),
        config.points()[0],
        config.settings(),
        out=folder / "run",
        backbone=config.backbone_choice(),
        head=config.head_choice(),
    )


def expected_of(run: Run) -> dict[str, float]:
    table = pq.read_table(run.predictions).to_pylist()
    return {row["id"]: row["pred"] for row in table if row["target"] == "gap"}


def test_a_store_gives_what_the_run_wrote_itself(run: Run, workspace: Any) -> None:
    found = predict(run.folder, workspace.store)
    assert found.ids == tuple(Store.open(workspace.store).ids)
    assert found.units == {"gap": "eV", "u0": "Ha"}
    by_id = dict(zip(found.ids, found.values["gap"], strict=True))
    for name, value in expected_of(run).items():
        assert by_id[name] == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_structures_themselves_are_predicted(
    run: Run, workspace: Any, molecules: list[Atoms], tmp_path: Path
) -> None:
    file = tmp_path / "some.xyz"
    ase.io.write(file, molecules[:3])
    from_file = predict(str(run.folder), str(file))
    found = predict(run.folder, molecules[:3], out=str(tmp_path / "some.csv"))
    np.testing.assert_allclose(found.values["gap"], from_file.values["gap"], rtol=1e-5)
    assert found.ids == ("0", "1", "2")
    assert len((tmp_path / "some.csv").read_text().splitlines()) == 4
    one = predict(run.folder, molecules[1])
    assert one.values["gap"] == pytest.approx(found.values["gap"][1:2], rel=1e-5)
    with pytest.raises(TetherError, match="no structure given"):
        predict(run.folder, [])


def test_the_example_of_the_readme(
    workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    files = {"qm9.arrow": "store", "split.json": "split", "auxiliary.arrow": "auxiliary"}
    for name, field in files.items():
        assert f'"{name}"' in example
        shutil.copy(getattr(workspace, field), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    body, _, last = example.strip().rpartition("\n")
    assert "property_steps=4000" in body
    assert '"so3lr"' in body
    names: dict[str, Any] = {}
    exec(body.replace("4000", "4").replace("so3lr", "tiny"), names)
    assert eval(last, names).shape == (2,)
    assert Run(Path("run")).is_complete


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".xyz", ".extxyz"])
def test_every_format_keeps_ids_order_and_values(
    suffix: str, run: Run, workspace: Any, tmp_path: Path
) -> None:
    out = tmp_path / f"out{suffix}"
    seen: list[int] = []
    found = predict(run.folder, workspace.store, out=out, progress=seen.append)
    if suffix == ".parquet":
        table = pq.read_table(out)
        assert {k.decode(): v.decode() for k, v in table.schema.metadata.items()} == {
            "unit.gap": "eV",
            "unit.u0": "Ha",
        }
        ids, gap = table["id"].to_pylist(), table["gap"].to_numpy()
    elif suffix == ".csv":
        table = pyarrow.csv.read_csv(out)
        ids, gap = table["id"].to_pylist(), table["gap"].to_numpy()
    else:
        frames = ase.io.read(out, ":", format="extxyz")
        ids = [atoms.info["id"] for atoms in frames]
        gap = np.array([atoms.info["gap_predicted"] for atoms in frames])
        store = Store.open(workspace.store).batch(np.arange(len(frames)))
        np.testing.assert_allclose(
            np.concatenate([a.positions for a in frames]), store.positions, atol=1e-7
        )
    assert tuple(ids) == found.ids
    np.testing.assert_allclose(gap, found.values["gap"], rtol=1e-7)
    assert seen[-1] == len(ids)
    assert list(tmp_path.iterdir()) == [out]


def test_force_labels_of_the_input_do_not_hinder_extxyz(
    run: Run, workspace: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out.extxyz"
    found = predict(run.folder, workspace.auxiliary, out=out)
    frames = ase.io.read(out, ":", format="extxyz")
    assert [a.info["gap_predicted"] for a in frames] == pytest.approx(found.values["gap"].tolist())


def test_any_file_of_structures_in_its_order(
    run: Run, molecules: list[Atoms], workspace: Any, tmp_path: Path
) -> None:
    path = tmp_path / "in.xyz"
    turned = [a.copy() for a in molecules[::-1]]
    ase.io.write(path, turned, format="extxyz")
    found = predict(run.folder, path)
    whole = predict(run.folder, workspace.store)
    np.testing.assert_allclose(found.values["gap"], whole.values["gap"][::-1], rtol=1e-4, atol=1e-4)


def test_labels_of_the_input_are_not_read(run: Run, molecules: list[Atoms], tmp_path: Path) -> None:
    ragged = [a.copy() for a in molecules[:3]]
    for size, atoms in enumerate(ragged, 2):
        atoms.info["modes"] = np.zeros(size)
    ase.io.write(tmp_path / "in.xyz", ragged, format="extxyz")
    assert len(predict(run.folder, tmp_path / "in.xyz").ids) == 3


def test_a_run_is_usable_where_its_training_data_are_not(run: Run, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(run.folder, moved)
    config = (moved / "config.yaml").read_text()
    store = next(line for line in config.splitlines() if line.startswith("store:"))
    (moved / "config.yaml").write_text(config.replace(store, "store: /nowhere/at/all.arrow"))
    assert {name: head.target.unit for name, head in load_run(moved).heads.items()} == {
        "gap": "eV",
        "u0": "Ha",
    }


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms("H2", [[0, 0, 0], [0, 0, 0]]), "atoms 0 and 1 are 0 Å apart"),
        (Atoms("HEs", [[0, 0, 0], [0, 0, 1.5]]), "does not know"),
        (
            Atoms("HI", [[0, 0, 0], [0, 0, 1.6]]),
            "'u0' is extensive.*'in.xyz'.* hold I,",
        ),
    ],
)
def test_a_structure_that_the_backbone_cannot_take_writes_nothing(
    atoms: Atoms, message: str, run: Run, molecules: list[Atoms], tmp_path: Path
) -> None:
    path, out = tmp_path / "in.xyz", tmp_path / "out.csv"
    if "Es" in str(atoms.symbols):
        atoms.numbers[1] = 102
    ase.io.write(path, [*molecules[:3], atoms, *molecules[3:5]], format="extxyz")
    with pytest.raises(TetherError, match=message):
        predict(run.folder, path, out=out)
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_format_and_unfinished_run(run: Run, workspace: Any, tmp_path: Path) -> None:
    with pytest.raises(TetherError, match=r"cannot write 'out.docx'; expected one of .parquet"):
        predict(run.folder, workspace.store, out=tmp_path / "out.docx")
    with pytest.raises(TetherError, match="is no finished run; expected a folder with config.yaml"):
        load_run(tmp_path)


def test_what_can_be_checked_is_checked_before_predicting(
    run: Run, workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty.xyz"
    empty.touch()
    monkeypatch.setattr("tether.model.AdaptedModel.predict", None)
    for source, out, message in (
        (empty, "out.csv", r"empty\.xyz has no structure; expected at least one"),
        (tmp_path / "none.xyz", "out.csv", "no such file"),
        (workspace.store, "out.txt", "cannot write 'out.txt'"),
        (workspace.store, "out.parquet", r"out\.parquet is a folder"),
    ):
        (tmp_path / "out.parquet").mkdir(exist_ok=True)
        with pytest.raises(TetherError, match=message):
            predict(run.folder, source, out=tmp_path / out)
        with pytest.raises(TetherError, match=message):
            predict_command(run.folder, source, out=tmp_path / out, dry_run=True)


def test_damaged_weights_are_refused(run: Run, tmp_path: Path) -> None:
    import shutil

    moved = tmp_path / "moved"
    shutil.copytree(run.folder, moved)
    weights = moved / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(TetherError, match=r"weights.safetensors cannot be read"):
        load_run(moved)


def test_atom_targets_are_written_to_atoms(
    run: Run, workspace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_run(run.folder)
    head = model.heads["gap"]
    head.target = replace(head.target, level="atom")
    monkeypatch.setattr("tether.predict.load_run", lambda _: model)
    with pytest.raises(TetherError, match="'gap' has a value for each atom; expected .xyz"):
        predict(run.folder, workspace.store, out=tmp_path / "out.csv")
    found = predict(run.folder, workspace.store, out=tmp_path / "out.extxyz")
    frames = ase.io.read(tmp_path / "out.extxyz", ":", format="extxyz")
    written = np.concatenate([a.arrays["gap_predicted"] for a in frames])
    np.testing.assert_allclose(written, found.values["gap"], atol=1e-6)


def test_provenance_names_the_targets(run: Run) -> None:
    found = json.loads(run.provenance.read_text())
    assert [t["name"] for t in found["targets"]] == ["gap", "u0"]
    assert found["backbone"]["name"] == "tiny"
    assert found["data"]["store"]

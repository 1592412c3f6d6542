"""Labels of crystals: strained cells, with stress, from file to store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from tether.data.store import Store
from tether.labels.label import label_structures
from tether.labels.pseudo import pseudo_label
from tether.labels.worker import Sampling
from tether.structures import AtomBatch, collate, from_ase
from tether.testing.structures import silicon, sodium_chloride, water
from tether.testing.tiny import TinyBackbone

STRAINED = Sampling(kinds=("strain",), n_per_structure=2, widths=(0.03,))


def crystals() -> AtomBatch:
    return from_ase([silicon(), sodium_chloride(), bulk("Cu")], ids=["Si", "NaCl", "Cu"])


def test_pseudo_labels_of_a_mixed_batch_have_stress_where_there_is_a_volume() -> None:
    slab = Atoms("Si", cell=[3.0, 3.1, 0.0], pbc=[True, True, False])
    frames = [silicon(), water(), slab]
    backbone = TinyBackbone().double()
    labels = pseudo_label(backbone, from_ase(frames))
    assert labels.stress is not None
    assert torch.isnan(labels.stress).all(dim=1).tolist() == [False, True, True]
    graph = backbone.prepare(from_ase(silicon())).differentiable()
    _, _, stress = backbone.energy_forces(graph, backbone(graph))
    assert stress is not None
    torch.testing.assert_close(labels.stress[0].reshape(3, 3), stress[0])
    assert pseudo_label(backbone, from_ase(water())).stress is None


def test_slices_do_not_change_stress() -> None:
    batch = collate([crystals(), from_ase(water(), ids=["H2O"])])
    backbone = TinyBackbone().double()
    whole, sliced = (pseudo_label(backbone, batch, max_atoms=n).stress for n in (1000, 1))
    assert whole is not None
    assert sliced is not None
    torch.testing.assert_close(whole, sliced, equal_nan=True)


def test_a_store_of_strained_crystals_holds_their_stress(tmp_path: Path) -> None:
    backbone = TinyBackbone().double()
    report = label_structures(
        crystals(), backbone=backbone, out=tmp_path / "aux.arrow", sampling=STRAINED, workers=0
    )
    assert (report.n, len(report.failures)) == (6, 0)
    store = Store.open(tmp_path / "aux.arrow")
    assert store.targets["stress"].unit == "eV/Å³"
    batch = store.batch(range(store.n_systems))
    assert batch.ids[:2] == ("Si/strain-0", "Si/strain-1")
    assert not torch.equal(batch.cell[0], batch.cell[1])
    again = pseudo_label(backbone, batch)
    assert again.stress is not None
    np.testing.assert_allclose(batch.labels["stress"], again.stress, atol=1e-12)
    np.testing.assert_allclose(batch.atom_labels["forces"], again.forces, atol=1e-12)


def test_chunks_without_a_crystal_have_no_stress_and_the_store_says_nan(tmp_path: Path) -> None:
    batch = collate([from_ase(water(), ids=["H2O"]), crystals()])
    label_structures(
        batch,
        backbone=TinyBackbone(),
        out=tmp_path / "mixed.arrow",
        sampling=Sampling(n_per_structure=1),
        workers=0,
        chunk_size=1,
    )
    store = Store.open(tmp_path / "mixed.arrow")
    stress = store.batch(range(4)).labels["stress"]
    assert torch.isnan(stress).any(dim=1).tolist() == [True, False, False, False]
    label_structures(
        batch.select([0]),
        backbone=TinyBackbone(),
        out=tmp_path / "molecules.arrow",
        sampling=Sampling(n_per_structure=1),
        workers=0,
    )
    assert "stress" not in Store.open(tmp_path / "molecules.arrow").targets


def test_the_command_strains_crystals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tether.cli.label import label_command
    from tether.data.chunks import Chunk
    from tether.data.store import write_store

    source = tmp_path / "crystals.arrow"
    write_store(source, [Chunk(crystals(), ("here",) * 3)], [])
    label_command(
        source,
        tmp_path / "aux.arrow",
        backbone="tiny",
        sampling=["strain"],
        strain=0.01,
        n_per_structure=1,
        workers=0,
    )
    assert "labelled geometries" in capsys.readouterr().out
    store = Store.open(tmp_path / "aux.arrow")
    strain = np.linalg.solve(crystals().cell.numpy(), store.batch(range(3)).cell.numpy())
    spread = np.abs(strain - np.eye(3)).max()
    assert 0.003 < spread < 0.05

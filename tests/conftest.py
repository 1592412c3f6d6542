"""A small workspace that many tests share: 36 molecules, labels, a split, force-field data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import molecule
from ase.collections import g2

from tether.adapt import AdaptInputs
from tether.data.chunks import Chunk
from tether.data.store import write_store
from tether.labels.pseudo import pseudo_label
from tether.splits.split import Split, StoreReference
from tether.structures import from_ase
from tether.targets import Target
from tether.testing.tiny import TinyBackbone
from tether.training.settings import TrainingSettings

#: Contribution of each element to the exactly linear label.
ATOMIC = {1: -0.5, 6: -38.0, 7: -54.5, 8: -75.0}


@dataclass(frozen=True)
class Workspace:
    """Paths of the shared data, read-only for tests."""

    folder: Path
    store: Path
    split: Path
    auxiliary: Path
    held_out: Path

    def inputs(self, *targets: str) -> AdaptInputs:
        return AdaptInputs(
            self.store, self.split, targets or ("gap",), self.auxiliary, self.held_out
        )

    def config(self, **changes: Any) -> dict[str, Any]:
        content = {
            "store": str(self.store),
            "split": str(self.split),
            "targets": ["gap"],
            "auxiliary": str(self.auxiliary),
            "forcefield_test": str(self.held_out),
            "backbone": {"name": "tiny", "options": {"n_features": 16}},
            "head": {"n_hidden": 16},
            "training": {
                "property_steps": 12,
                "batch_size": 8,
                "forcefield_batch_size": 4,
                "validate_every": 4,
                "lr": 0.003,
            },
            "workers": 1,
        }
        return {**content, **changes}

    def write_config(self, folder: Path, **changes: Any) -> Path:
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.config(**changes)))
        return path


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def molecules() -> list[Atoms]:
    frames = [molecule(name) for name in g2.names]
    organic = [a for a in frames if len(a) > 2 and set(a.numbers.tolist()) <= set(ATOMIC)]
    for atoms in organic:
        atoms.info.clear()
    return organic[:36]


@pytest.fixture(scope="session")
def workspace(molecules: list[Atoms], tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("workspace")
    n = len(molecules)
    rng = np.random.default_rng(0)
    gap = np.array([len(a) * 0.3 + (a.numbers == 8).sum() for a in molecules])
    gap = gap + 0.1 * rng.normal(size=n)
    u0 = np.array([sum(ATOMIC[z] for z in a.numbers.tolist()) for a in molecules])
    sparse = np.where(np.arange(n) % 2 == 0, rng.normal(size=n), np.nan)
    batch = from_ase(
        molecules,
        labels={"gap": gap, "u0": u0, "sparse": sparse, "empty": np.full(n, np.nan)},
        ids=[f"m-{row}" for row in range(n)],
    )
    targets = [
        Target("gap", unit="eV"),
        Target("u0", unit="Ha", kind="extensive"),
        Target("sparse", unit="D"),
        Target("empty"),
    ]
    store = folder / "molecules.arrow"
    fingerprint = write_store(store, [Chunk(batch, ("here",) * n)], targets)
    order = rng.permutation(n)
    sets = {"train": order[:20], "val": order[20:26], "test/id": order[26:31]}
    split = Split(
        "small",
        "file",
        {},
        {**sets, "test/ood": order[31:]},
        store=StoreReference(str(store), fingerprint, n),
    )
    split.to_json(folder / "split.json")
    for name, seed in (("auxiliary", 1), ("held_out", 2)):
        _write_forcefield(folder / f"{name}.arrow", molecules, seed)
    return Workspace(
        folder,
        store,
        folder / "split.json",
        folder / "auxiliary.arrow",
        folder / "held_out.arrow",
    )


def _write_forcefield(path: Path, molecules: list[Atoms], seed: int) -> None:
    """Rattled molecules, labelled by another tiny network: forces that can be learnt."""
    rng = np.random.default_rng(seed)
    frames = [atoms.copy() for atoms in molecules]
    for atoms in frames:
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
    batch = from_ase(frames)
    energy, forces, _ = pseudo_label(TinyBackbone(seed=9), batch)
    labelled = from_ase(
        frames, labels={"energy": energy.numpy()}, atom_labels={"forces": forces.numpy()}
    )
    targets = [
        Target("energy", unit="eV", kind="extensive"),
        Target("forces", unit="eV/Å", level="atom", kind="vector", n_components=3),
    ]
    write_store(path, [Chunk(labelled, ("here",) * len(frames))], targets)


@pytest.fixture
def settings() -> TrainingSettings:
    return TrainingSettings(
        property_steps=6, batch_size=8, forcefield_batch_size=4, validate_every=3, lr=3e-3
    )


@pytest.fixture
def strict_json() -> Any:
    """A JSON reader that refuses NaN and Infinity, which JSON has not."""

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    return lambda text: json.loads(text, parse_constant=refuse)


@pytest.fixture
def n_forward(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Structures of each forward pass of the backbone."""
    seen: list[int] = []
    forward = TinyBackbone.forward

    def counted(self: TinyBackbone, graph: Any) -> Any:
        seen.append(graph.n_systems)
        return forward(self, graph)

    monkeypatch.setattr(TinyBackbone, "forward", counted)
    return seen

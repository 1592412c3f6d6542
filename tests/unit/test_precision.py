"""Steps in bfloat16: narrow products, forces right to a per cent, and nothing left switched on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from tether.backbones.load import load_backbone
from tether.structures import from_ase
from tether.testing.tiny import TinyBackbone
from tether.training.precision import precision


def rattled(molecules: list[Atoms]) -> list[Atoms]:
    rng = np.random.default_rng(0)
    frames = [atoms.copy() for atoms in molecules[:12]]
    for atoms in frames:
        atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
    return frames


@pytest.mark.parametrize("name", ["tiny", "so3lr"])
def test_forces_in_bfloat16_are_right_to_a_per_cent(name: str, molecules: list[Atoms]) -> None:
    if name == "so3lr":
        pytest.importorskip("so3krates_torch")
    backbone: Any = load_backbone(name)
    graph = backbone.prepare(from_ase(rattled(molecules)))

    def forces() -> torch.Tensor:
        leaf = graph.differentiable()
        found: torch.Tensor = backbone.energy_forces(leaf, backbone(leaf), create_graph=True)[1]
        return found

    right = forces()
    with precision("bf16-mixed"):
        narrow = forces()
    assert narrow.dtype == torch.float32
    off = float(((narrow - right).norm() / right.norm()).detach())
    assert 1e-5 < off < 0.02  # narrow indeed
    narrow.square().sum().backward()  # type: ignore[no-untyped-call]
    moved = [p.grad for p in backbone.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in moved)
    torch.testing.assert_close(forces(), right, rtol=0, atol=0)


def test_only_the_block_is_narrow() -> None:
    layer = torch.nn.Linear(8, 8)
    value = torch.randn(4, 8)
    outside = layer(value)
    with precision("bf16-mixed"):
        inside = layer(value)
    assert inside.dtype == value.dtype
    assert not torch.equal(inside, outside)
    assert torch.equal(layer(value), outside)
    with precision("32-true"):
        assert torch.equal(layer(value), outside)


def test_tf32_is_switched_on_inside_the_block_alone() -> None:
    matmul = torch.backends.cuda.matmul
    assert not matmul.allow_tf32
    with precision("tf32"):
        assert matmul.allow_tf32
    assert not matmul.allow_tf32
    assert TinyBackbone().dtype == torch.float32

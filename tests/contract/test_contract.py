"""`validate_backbone` itself: arguments, report, and that it leaves everything as it was."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tether.errors import TetherError
from tether.structures import collate, from_ase
from tether.testing import CHECK_NAMES, TinyBackbone, validate_backbone
from tether.testing.broken import BrokenBackbone
from tether.testing.structures import dimer, isolated_atom, silicon, small_structures, water

BACKBONE = TinyBackbone(seed=3).double()


class FeaturesOnly(nn.Module):
    """A backbone without a potential."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TinyBackbone()
        self.spec = self.inner.spec
        self.prepare = self.inner.prepare
        self.blocks = self.inner.blocks

    def __deepcopy__(self, memo: dict) -> FeaturesOnly:
        # Bound methods would otherwise stay with the original.
        other = FeaturesOnly()
        other.load_state_dict(self.state_dict())
        return other

    def forward(self, graph: object) -> object:
        return self.inner(graph)


def test_without_a_potential_its_checks_are_reported_as_skipped() -> None:
    report = validate_backbone(FeaturesOnly(), structures=[water(), silicon()])
    assert report.skipped == (
        "cell refused",
        "molecule refused",
        "forces are not zero",
        "forces",
        "stress",
        "gradients from forces",
    )
    assert "skipped forces: the backbone has no energy_forces" in str(report)


def test_the_message_lists_every_failure() -> None:
    broken = BrokenBackbone(spec={"n_features": 33}, blocks=lambda inner: inner.blocks()[::-1])
    with pytest.raises(AssertionError, match="`tiny` fails 2 of 37 checks") as caught:
        validate_backbone(broken, structures=[water()])
    assert "shapes: 2 (tolerance 0), node has shape (3, 32)" in str(caught.value)
    assert "blocks are in order: 1 (tolerance 0), layer 0 acts on layer 0" in str(caught.value)


def test_skip_is_reported_and_unknown_names_are_refused() -> None:
    broken = BrokenBackbone(spec={"n_features": 33})
    report = validate_backbone(broken, structures=[water()], skip=["shapes"])
    assert "skipped shapes: by request" in str(report)
    with pytest.raises(TetherError, match=r"`skip` names \['shape'\]; expected names among"):
        validate_backbone(broken, skip=["shape"])


@pytest.mark.parametrize(
    "unused",
    [["inner.interactions.0.sender.weight"], ["*.0.sender.*"], lambda name: "sender" in name],
)
def test_unused_parameters_can_be_declared(unused: object) -> None:
    broken = BrokenBackbone()
    broken.inner.interactions[0].sender.weight.requires_grad_(False)
    with pytest.raises(AssertionError, match=r"sender.weight in layer 0 \(requires_grad=False\)"):
        validate_backbone(broken, structures=[water()])
    assert validate_backbone(broken, structures=[water()], unused=unused).failed == ()


def test_a_pattern_that_names_another_parameter_excuses_nothing() -> None:
    broken = BrokenBackbone()
    broken.inner.interactions[0].sender.weight.requires_grad_(False)
    with pytest.raises(AssertionError, match="gradients from features"):
        validate_backbone(broken, structures=[water()], unused=["*.1.sender.*"])


def test_the_original_backbone_and_the_process_are_untouched() -> None:
    backbone = TinyBackbone().train()
    before = copy.deepcopy(backbone.state_dict())
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    python_state = random.getstate()
    validate_backbone(backbone, structures=[water()])
    assert backbone.training
    assert backbone.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert python_state == random.getstate()
    assert torch.is_grad_enabled()


def test_it_runs_inside_no_grad() -> None:
    with torch.no_grad():
        assert validate_backbone(TinyBackbone(), structures=[water()]).failed == ()


def test_periodic_structures_only_put_clusters_into_a_cell() -> None:
    def prepare(inner: TinyBackbone, batch: object) -> object:
        if not bool(batch.pbc.all()):
            raise RuntimeError("crystals only")
        return inner.prepare(batch)

    crystals_only = BrokenBackbone(prepare=prepare)
    assert validate_backbone(crystals_only, structures=[silicon()]).failed == ()
    with pytest.raises(AssertionError, match="RuntimeError: crystals only"):
        validate_backbone(crystals_only, structures=[silicon(), water()])


def test_refuses_what_it_cannot_check() -> None:
    with pytest.raises(TetherError, match="Linear lacks spec, prepare, blocks"):
        validate_backbone(nn.Linear(2, 2))
    with pytest.raises(TetherError, match="0 structures for backbone `tiny`"):
        validate_backbone(TinyBackbone(elements=(79,)))
    with pytest.raises(TetherError, match="one with a single atom"):
        validate_backbone(TinyBackbone(), structures=[isolated_atom()])


def test_every_check_is_in_the_report_once() -> None:
    report = validate_backbone(TinyBackbone(), structures=[water()])
    assert tuple(check.name for check in report.checks) == CHECK_NAMES
    assert len(set(CHECK_NAMES)) == len(CHECK_NAMES)
    for check in report.checks:
        assert (check.deviation is None) == (check.status == "skipped")


def test_fixed_structures_are_distorted_and_the_same_every_time() -> None:
    for first, second in zip(small_structures(), small_structures(), strict=True):
        assert np.array_equal(first.positions, second.positions)
    skewed = small_structures()[-1].cell.array
    assert np.abs(skewed).min() > 0.1
    assert dimer(1.1).get_distance(0, 1) == pytest.approx(1.1)
    for atoms in small_structures():
        graph = BACKBONE.prepare(from_ase(atoms)).differentiable()
        forces = BACKBONE.energy_forces(graph, BACKBONE(graph))[1]
        assert (forces.abs().max(dim=1).values > 1e-3).all(), atoms


@st.composite
def molecules(draw: st.DrawFn) -> Atoms:
    """Atoms on a jittered grid, so that none overlap; some are out of reach of all others."""
    n_atoms = draw(st.integers(1, 6))
    sites = draw(
        st.lists(
            st.tuples(*[st.integers(0, 4)] * 3), min_size=n_atoms, max_size=n_atoms, unique=True
        )
    )
    spacing = draw(st.floats(0.9, 3.5))
    jitter = np.random.default_rng(draw(st.integers(0, 2**16))).uniform(-0.2, 0.2, (n_atoms, 3))
    numbers = draw(st.lists(st.integers(1, 100), min_size=n_atoms, max_size=n_atoms))
    return Atoms(numbers=numbers, positions=np.array(sites) * spacing + jitter)


@settings(max_examples=40, deadline=None)
@given(st.lists(molecules(), min_size=1, max_size=4))
def test_batched_equals_single_for_random_molecules(frames: list[Atoms]) -> None:
    def evaluate(batch: object) -> tuple[torch.Tensor, ...]:
        graph = BACKBONE.prepare(batch).differentiable()
        features = BACKBONE(graph)
        energy, forces, _ = BACKBONE.energy_forces(graph, features)
        return features.node.detach(), energy, forces

    batches = [from_ase(atoms) for atoms in frames]
    alone = [evaluate(batch) for batch in batches]
    together = evaluate(collate(batches))
    for at, value in enumerate(together):
        expected = torch.cat([outputs[at] for outputs in alone])
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)

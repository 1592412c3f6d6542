"""Every check of the contract has a broken backbone that fails it, and fails nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from ase.build import molecule

from tether.features import Features
from tether.testing.broken import BROKEN, BrokenBackbone, Fault
from tether.testing.contract import CHECK_NAMES, validate_backbone
from tether.testing.structures import rattled, skewed_silicon, sodium_chloride, water

if TYPE_CHECKING:
    from tether.graph import Graph
    from tether.testing.tiny import TinyBackbone


def structures_for(backbone: BrokenBackbone) -> list:
    """Two molecules, and a crystal where the backbone accepts it; few atoms, for speed."""
    # Distorted hydrogen peroxide has no mirror plane: handedness shows.
    molecules = [water(), rattled(molecule("H2O2"))]
    if not backbone.spec.molecules:
        return [sodium_chloride(), skewed_silicon()]
    return [*molecules, sodium_chloride()] if backbone.spec.periodic else molecules


def test_every_check_has_a_broken_backbone() -> None:
    assert {fault.check for fault in BROKEN} == set(CHECK_NAMES)
    assert len({fault.name for fault in BROKEN}) == len(BROKEN)


def test_the_sound_backbone_passes_on_the_same_structures() -> None:
    sound = BrokenBackbone()
    report = validate_backbone(sound, structures=structures_for(sound))
    assert report.failed == ()


@pytest.mark.parametrize("fault", BROKEN, ids=lambda fault: fault.name)
def test_fails_exactly_its_check(fault: Fault) -> None:
    backbone = fault.build()
    report = validate_backbone(
        backbone, structures=structures_for(backbone), raise_on_failure=False
    )
    assert report.failed == (fault.check,), str(report)
    (result,) = [check for check in report.checks if check.name == fault.check]
    # Failed by what it measured, and not because something raised on the way.
    assert result.deviation is not None, result.detail


def test_default_dtype_is_put_back() -> None:
    (fault,) = [fault for fault in BROKEN if fault.check == "process settings"]
    validate_backbone(fault.build(), structures=[water()], raise_on_failure=False)
    assert torch.get_default_dtype() == torch.float32


def test_an_energy_that_ignores_positions_fails_although_it_is_conservative() -> None:
    def energy_forces(
        inner: TinyBackbone, graph: Graph, features: Features, create_graph: bool
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        constant = inner.embedding(graph.batch.numbers)
        return inner.energy_forces(
            graph, Features(node=constant + 0.0 * features.node), create_graph=create_graph
        )

    report = validate_backbone(
        BrokenBackbone(energy_forces=energy_forces), structures=[water()], raise_on_failure=False
    )
    assert report.failed == ("forces are not zero", "gradients from forces")


def test_a_check_that_raises_has_failed_and_the_others_still_run() -> None:
    def forward(inner: TinyBackbone, graph: Graph) -> Features:
        if graph.n_systems > 1:
            raise RuntimeError("one at a time")
        return inner(graph)

    report = validate_backbone(
        BrokenBackbone(forward=forward), structures=[water()], raise_on_failure=False
    )
    assert set(report.failed) == {"graph selection", "isolated atom"}
    assert "RuntimeError: one at a time" in str(report)


def test_nan_features_fail_and_do_not_pass_as_small() -> None:
    def forward(inner: TinyBackbone, graph: Graph) -> Features:
        features = inner(graph)
        node = features.node * float("nan")
        return Features(node=node, layers=(*features.layers[:-1], node))

    report = validate_backbone(
        BrokenBackbone(forward=forward), structures=[water()], raise_on_failure=False
    )
    assert {
        "geometry matters",
        "batched equals single",
        "rotation",
        "isolated atom",
        "smooth at the cutoff",
        "smooth derivative at the cutoff",
        "forces are not zero",
        "forces",
    } <= set(report.failed)

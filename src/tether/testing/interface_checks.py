"""Checks of what is promised around the numbers: shapes, refusals, nothing changed on the way."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from tether.errors import TetherError
from tether.structures import collate
from tether.testing import tolerances
from tether.testing.probe import Measured

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from tether.graph import Graph
    from tether.structures import AtomBatch
    from tether.testing.probe import Probe

__all__ = [
    "check_cell_refused",
    "check_electrons",
    "check_inputs_untouched",
    "check_last_layer",
    "check_molecule_refused",
    "check_non_finite_refused",
    "check_overlap_refused",
    "check_process_settings",
    "check_random_state",
    "check_shapes",
    "check_unknown_element_refused",
]


def _violations(found: Iterable[str]) -> Measured:
    listed = list(found)
    return Measured(len(listed), tolerances.EXACT.float64, "; ".join(listed))


def _run_all(probe: Probe) -> None:
    probe.outputs(collate(probe.structures))


def check_process_settings(probe: Probe) -> Measured:
    """Default dtype, grad mode and thread count are as before; this check runs first."""

    def settings() -> dict[str, object]:
        return {
            "default dtype": torch.get_default_dtype(),
            "grad mode": torch.is_grad_enabled(),
            "number of threads": torch.get_num_threads(),
            "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        }

    before = settings()
    _run_all(probe)
    after = settings()
    return _violations(
        f"{name}: {before[name]} became {after[name]}"
        for name in before
        if before[name] != after[name]
    )


def check_random_state(probe: Probe) -> Measured:
    """No global random generator is advanced: a run must not depend on how often it looks."""

    def states() -> dict[str, object]:
        numpy_state = np.random.get_state(legacy=False)
        assert isinstance(numpy_state, dict)
        return {
            "torch": torch.get_rng_state().numpy().tobytes(),
            "numpy": (numpy_state["state"]["key"].tobytes(), numpy_state["state"]["pos"]),
            "random": random.getstate(),
        }

    before = states()
    _run_all(probe)
    after = states()
    return _violations(
        f"{name} generator advanced" for name in before if before[name] != after[name]
    )


def check_inputs_untouched(probe: Probe) -> Measured:
    """`prepare` leaves the batch as it was, and a forward pass the graph, which is cached."""
    batch = collate(probe.structures)
    given = batch.select(range(batch.n_systems))
    graph = probe.backbone.prepare(given)
    changed = [f"prepare changed `{name}`" for name in _differing(batch, given)]
    before = graph.to(dtype=next(probe.backbone.parameters()).dtype)
    before = before.select(range(graph.n_systems))
    kept = before.select(range(graph.n_systems))
    probe.outputs_of(kept)
    with torch.no_grad():
        probe.backbone(kept)
    changed += [f"forward changed `{name}`" for name in _differing(before.batch, kept.batch)]
    changed += [f"forward changed {name}" for name in _differing_edges(before, kept)]
    return _violations(changed)


def _differing(before: AtomBatch, after: AtomBatch) -> list[str]:
    names = ("numbers", "positions", "ptr", "cell", "pbc", "charge", "spin")
    return [n for n in names if not torch.equal(getattr(before, n), getattr(after, n))]


def _differing_edges(before: Graph, after: Graph) -> list[str]:
    pairs = [
        (name, kind, getattr(before, kind)[name], getattr(after, kind)[name])
        for kind in ("edges", "angles")
        for name in getattr(before, kind)
    ]
    return [
        f"{kind} `{name}`"
        for name, kind, old, new in pairs
        if not all(torch.equal(getattr(old, f.name), getattr(new, f.name)) for f in fields(old))
    ]


def check_shapes(probe: Probe) -> Measured:
    """Features, energies, forces and stress have the shapes that spec and protocol state."""
    return _violations(
        f"{name} has shape {found}, expected {wanted}"
        for batch in (collate(probe.structures), *probe.structures)
        for name, found, wanted in _shapes(probe, batch)
        if found != wanted
    )


def _shapes(probe: Probe, batch: AtomBatch) -> list[tuple[str, object, object]]:
    spec, n_atoms = probe.backbone.spec, batch.n_atoms
    graph = probe.prepare(batch).differentiable()
    features = probe.backbone(graph)

    def shape(value: Tensor | None) -> object:
        return None if value is None else tuple(value.shape)

    rows: list[tuple[str, object, object]] = [
        ("node", shape(features.node), (n_atoms, spec.n_features)),
        ("number of layers", len(features.layers), spec.n_layers),
        ("atoms of layers", {len(v) for v in features.layers}, {n_atoms}),
    ]
    if features.edge is not None:
        n_edges = len(features.edge)
        rows += [
            ("edge_idx", shape(features.edge_idx), (2, n_edges)),
            ("edge_distance", shape(features.edge_distance), (n_edges,)),
            ("edge_vector", shape(features.edge_vector), (n_edges, 3)),
        ]
    if probe.has_potential:
        energy, forces, stress = probe.backbone.energy_forces(graph, features)
        periodic = batch.is_periodic
        rows += [
            ("energy", shape(energy), (batch.n_systems,)),
            ("forces", shape(forces), (n_atoms, 3)),
            ("stress", shape(stress), (batch.n_systems, 3, 3) if periodic else None),
        ]
    return rows


def check_last_layer(probe: Probe) -> Measured:
    """``layers[-1]`` is `node` itself, the same tensor."""
    features = probe.features(probe.structures[0])
    same = bool(features.layers) and features.layers[-1] is features.node
    return _violations([] if same else ["layers[-1] is another tensor than node"])


def _refused(probe: Probe, batch: AtomBatch, what: str) -> Measured:
    try:
        probe.backbone.prepare(batch)
    except TetherError:
        return _violations([])
    except Exception as error:
        return _violations([f"{what} raised {type(error).__name__} instead of TetherError"])
    return _violations([f"{what} was accepted"])


def check_unknown_element_refused(probe: Probe) -> Measured:
    """`prepare` raises `TetherError` for an element outside ``spec.elements``."""
    batch = probe.structures[0]
    foreign = [z for z in range(1, 119) if z not in probe.backbone.spec.elements]
    numbers = batch.numbers.clone()
    numbers[0] = foreign[-1]
    return _refused(probe, replace(batch, numbers=numbers), f"element Z={foreign[-1]}")


def check_cell_refused(probe: Probe) -> Measured:
    """A backbone with ``periodic=False`` raises `TetherError` for a periodic structure."""
    cell = 12.0 * torch.eye(3, dtype=torch.float64)[None]
    boxed = replace(probe.structures[0], cell=cell, pbc=torch.ones(1, 3, dtype=torch.bool))
    return _refused(probe, boxed, "a periodic structure")


def check_molecule_refused(probe: Probe) -> Measured:
    """A backbone with ``molecules=False`` raises `TetherError` for a structure without a cell."""
    batch = probe.structures[0]
    bare = replace(batch, cell=torch.zeros_like(batch.cell), pbc=torch.zeros_like(batch.pbc))
    return _refused(probe, bare, "a molecule")


def check_electrons(probe: Probe) -> Measured:
    """A charge or unpaired electrons change the features, or raise `TetherError`."""
    batch, spec = probe.structures[0], probe.backbone.spec
    neutral, found = probe.features(batch).node, []
    for name, heard, changed in (
        ("charge", spec.charge, replace(batch, charge=torch.ones_like(batch.charge))),
        ("spin", spec.spin, replace(batch, spin=torch.ones_like(batch.spin))),
    ):
        if not heard:
            found += [_refused(probe, changed, f"a {name} of 1").detail]
        elif torch.equal(probe.features(changed).node, neutral):
            found += [f"a {name} of 1 changes nothing"]
    return _violations(filter(None, found))


def check_overlap_refused(probe: Probe) -> Measured:
    """Two atoms at one place raise `TetherError` instead of giving NaN."""
    batch = probe.structures[0]
    positions = batch.positions.clone()
    positions[1] = positions[0]
    return _refused(probe, replace(batch, positions=positions), "two atoms at one place")


def check_non_finite_refused(probe: Probe) -> Measured:
    """A position that is not a number raises `TetherError` before any neighbour list is built."""
    batch = probe.structures[0]
    positions = batch.positions.clone()
    positions[0, 1] = float("nan")
    return _refused(probe, replace(batch, positions=positions), "a position of NaN")

"""Checks that need no derivative of weights: invariances, batching, limits of the cutoff."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from tether.structures import collate
from tether.testing import tolerances
from tether.testing.probe import Measured, Outputs, compare, relative, worst

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tether.structures import AtomBatch
    from tether.testing.probe import Probe

__all__ = [
    "check_batching",
    "check_cell_choice",
    "check_cutoff_stated",
    "check_deterministic",
    "check_geometry_matters",
    "check_isolated_atom",
    "check_lattice_translation",
    "check_permutation",
    "check_reflection",
    "check_rotation",
    "check_select",
    "check_single_precision",
    "check_smooth_derivative",
    "check_smooth_edges",
    "check_smooth_value",
    "check_supercell",
    "check_translation",
]


def _name(batch: AtomBatch) -> str:
    return f"structure `{batch.ids[0]}`"


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)


def _moved(batch: AtomBatch, displacement: Tensor) -> AtomBatch:
    return replace(batch, positions=batch.positions + displacement)


def check_batching(probe: Probe) -> Measured:
    """All structures in one batch give what each gives alone."""
    alone = [probe.outputs(batch) for batch in probe.structures]
    together = probe.outputs(collate(probe.structures))
    return worst(compare(together, _concatenated(alone)), tolerances.SYMMETRY)


def _concatenated(parts: list[Outputs]) -> Outputs:
    def cat(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        return None if any(v is None for v in values) else torch.cat(values)

    return Outputs(
        node=torch.cat([part.node for part in parts]),
        layers=(),
        edge=cat("edge"),
        energy=cat("energy"),
        forces=cat("forces"),
        virial=cat("virial"),
    )


def check_select(probe: Probe) -> Measured:
    """``prepare(batch).select(idx)`` is ``prepare(batch.select(idx))``, repeats included."""
    batch = collate(probe.structures)
    idx = [batch.n_systems - 1, 0, batch.n_systems // 2, 0]
    selected = probe.outputs_of(probe.prepare(batch).select(idx))
    return worst(compare(selected, probe.outputs(batch.select(idx))), tolerances.SYMMETRY)


def check_permutation(probe: Probe) -> Measured:
    """Renumbering the atoms renumbers features and forces, and nothing else."""
    found: dict[tuple[str, ...], float] = {}
    for batch in probe.structures:
        # Not a random permutation: of two atoms, it could be the identity.
        order = torch.arange(batch.n_atoms).flip(0).roll(batch.n_atoms // 3)
        permuted = replace(
            batch, numbers=batch.numbers[order], positions=batch.positions[order], atom_labels={}
        )
        plain = probe.outputs(batch)
        expected = replace(
            plain,
            node=plain.node[order],
            forces=None if plain.forces is None else plain.forces[order],
        )
        for what, value in compare(probe.outputs(permuted), expected).items():
            found[what, _name(batch)] = value
    return worst(found, tolerances.SYMMETRY)


def check_rotation(probe: Probe) -> Measured:
    """Features and energy stay, forces and virial turn with the structure."""
    matrix, _ = torch.linalg.qr(torch.randn(3, 3, generator=_generator(), dtype=torch.float64))
    return _orthogonal(probe, matrix * torch.sign(torch.linalg.det(matrix)))


def check_reflection(probe: Probe) -> Measured:
    """The same for inversion: a molecule and its mirror image have the same properties."""
    return _orthogonal(probe, -torch.eye(3, dtype=torch.float64))


def _orthogonal(probe: Probe, matrix: Tensor) -> Measured:
    found: dict[tuple[str, ...], float] = {}
    for batch in probe.structures:
        plain = probe.outputs(batch)
        turned = replace(batch, positions=batch.positions @ matrix.T, cell=batch.cell @ matrix.T)
        expected = replace(
            plain,
            forces=None if plain.forces is None else plain.forces @ matrix.T,
            virial=None if plain.virial is None else matrix @ plain.virial @ matrix.T,
        )
        for what, value in compare(probe.outputs(turned), expected).items():
            found[what, _name(batch)] = value
    return worst(found, tolerances.SYMMETRY)


def check_translation(probe: Probe) -> Measured:
    """A rigid shift changes nothing."""
    shift = torch.tensor([1.7, -0.9, 3.1], dtype=torch.float64)
    found: dict[tuple[str, ...], float] = {}
    for batch in probe.structures:
        shifted = probe.outputs(_moved(batch, shift))
        for what, value in compare(shifted, probe.outputs(batch)).items():
            found[what, _name(batch)] = value
    return worst(found, tolerances.SYMMETRY)


def check_lattice_translation(probe: Probe) -> Measured:
    """Each atom moved by its own lattice vector: the same crystal, written differently."""
    found: dict[tuple[str, ...], float] = {}
    for batch in probe.periodic_structures:
        steps = torch.randint(-2, 3, (batch.n_atoms, 3), generator=_generator()).double()
        # A structure of one atom must move too, and no draw may leave all atoms in step.
        steps[0] = torch.tensor([2.0, -1.0, 1.0])
        moved = _moved(batch, (steps * batch.pbc[0]) @ batch.cell[0])
        for what, value in compare(probe.outputs(moved), probe.outputs(batch)).items():
            found[what, _name(batch)] = value
    return worst(found, tolerances.SYMMETRY)


def check_cell_choice(probe: Probe) -> Measured:
    """Another cell of the same lattice, skewed and left-handed: the same crystal again."""
    found: dict[tuple[str, ...], float] = {}
    for batch in probe.periodic_structures:
        first, *others = torch.nonzero(batch.pbc[0]).flatten().tolist()
        change = torch.eye(3, dtype=torch.float64)
        if others:
            # a' = b, b' = a + 2 b: integers with determinant -1.
            change[[first, others[0]]] = change[[others[0], first]]
            change[others[0], others[0]] = 2.0
        else:
            change[first, first] = -1.0
        chosen = replace(batch, cell=change @ batch.cell)
        for what, value in compare(probe.outputs(chosen), probe.outputs(batch)).items():
            found[what, _name(batch)] = value
    return worst(found, tolerances.SYMMETRY)


def check_supercell(probe: Probe) -> Measured:
    """Two cells side by side have twice the energy and virial, and every feature and force twice.

    This is where an energy per atom in the place of a total shows, and an atom that meets its own
    image.
    """
    found: dict[tuple[str, ...], float] = {}
    for batch in probe.periodic_structures:
        axis = int(torch.nonzero(batch.pbc[0])[0])
        cell = batch.cell.clone()
        cell[0, axis] *= 2.0
        double = replace(
            batch,
            numbers=batch.numbers.repeat(2),
            positions=torch.cat([batch.positions, batch.positions + batch.cell[0, axis]]),
            ptr=2 * batch.ptr,
            cell=cell,
            atom_labels={},
        )
        plain = probe.outputs(batch)
        forces, edge, virial = plain.forces, plain.edge, plain.virial
        expected = replace(
            plain,
            node=plain.node.repeat(2, 1),
            edge=None if edge is None else 2 * edge,
            energy=None if plain.energy is None else 2 * plain.energy,
            forces=None if forces is None else forces.repeat(2, 1),
            virial=None if virial is None else 2 * virial,
        )
        for what, value in compare(probe.outputs(double), expected).items():
            found[what, _name(batch)] = value
    return worst(found, tolerances.SYMMETRY)


def check_isolated_atom(probe: Probe) -> Measured:
    """An atom without neighbours gives finite numbers, alone and beside others in a batch."""
    elements = sorted({z for batch in probe.structures for z in batch.numbers.tolist()})
    atoms = [probe.cluster([z], [[0.0, 0.0, 0.0]]) for z in elements]
    count, where = 0, []
    for name, batch in (
        *((f"Z={z} alone", atom) for z, atom in zip(elements, atoms, strict=True)),
        ("in a batch", collate([*atoms, probe.structures[0]])),
    ):
        outputs = probe.outputs(batch)
        for what in ("node", "edge", "energy", "forces", "virial"):
            value = getattr(outputs, what)
            n_bad = 0 if value is None else int((~torch.isfinite(value)).sum())
            count += n_bad
            if n_bad:
                where.append(f"{what}, {name}")
    return Measured(count, tolerances.EXACT.float64, "; ".join(where[:5]))


def check_geometry_matters(probe: Probe) -> Measured:
    """Guard of the other checks: features that ignore positions would pass them all."""
    found = {}
    for batch in probe.structures:
        noise = torch.randn(batch.positions.shape, generator=_generator(), dtype=torch.float64)
        distorted = probe.features(_moved(batch, 0.1 * noise)).node
        found[_name(batch)] = relative(distorted, probe.features(batch).node)
    # numpy's argmin and maximum, unlike min and max, do not lose NaN.
    name = list(found)[int(np.argmin(list(found.values())))]
    # As a deviation, "how far below the least change", so that smaller is better as elsewhere.
    short = float(np.maximum(0.0, tolerances.GEOMETRY_MATTERS.float64 - found[name]))
    return Measured(
        short, tolerances.EXACT.float64, f"features change by {found[name]:.1e} in {name}"
    )


def check_cutoff_stated(probe: Probe) -> Measured:
    """A pair enters the graph at ``spec.cutoff``: otherwise smoothness is tested elsewhere."""
    cutoff, step = probe.backbone.spec.cutoff, 1e-3
    inside, outside = (
        {name: len(e.idx_i) for name, e in probe.prepare(probe.crossing(d)).edges.items()}
        for d in (cutoff - step, cutoff + step)
    )
    enters = any(inside[name] > outside.get(name, 0) for name in inside)
    return Measured(
        0 if enters else 1,
        tolerances.EXACT.float64,
        f"edges {inside} just inside and {outside} just outside {cutoff} Å",
    )


def check_smooth_value(probe: Probe) -> Measured:
    """Features and energy do not jump when a pair crosses the cutoff, or another of the graph's."""

    def values(distance: float) -> dict[str, Tensor]:
        outputs = probe.outputs(probe.crossing(distance))
        named = {"node features": outputs.node, "energy": outputs.energy}
        return {name: value for name, value in named.items() if value is not None}

    return _jump(probe, values)


def check_smooth_edges(probe: Probe) -> Measured:
    """Edge features fade out towards the cutoff, so that sums over edges do not jump."""

    def values(distance: float) -> dict[str, Tensor]:
        edge = probe.outputs(probe.crossing(distance)).edge
        assert edge is not None
        return {"sum of edge features": edge}

    return _jump(probe, values)


def check_smooth_derivative(probe: Probe) -> Measured:
    """Neither do their derivatives: forces, and the gradient of the features."""

    def values(distance: float) -> dict[str, Tensor]:
        batch = probe.crossing(distance)
        graph = probe.prepare(batch).differentiable()
        assert graph.leaves is not None
        node = probe.backbone(graph).node
        weights = torch.randn(node.shape, generator=_generator(), dtype=torch.float64)
        (gradient,) = torch.autograd.grad((node * weights).sum(), graph.leaves[0])
        named = {"gradient of node features": gradient}
        forces = probe.outputs(batch).forces
        return named if forces is None else {**named, "forces": forces}

    return _jump(probe, values)


def _jump(probe: Probe, values: Callable[[float], dict[str, Tensor]]) -> Measured:
    found: dict[tuple[str, ...], float] = {}
    for distance in probe.transitions:
        near = values(0.7 * distance)
        inside = values(distance - tolerances.CUTOFF_STEP)
        outside = values(distance + tolerances.CUTOFF_STEP)
        for name in near:
            jump = float((inside[name] - outside[name]).abs().max())
            # Beside what the pair does well inside; an effect of rounding size only is no effect.
            effect = float((near[name] - outside[name]).abs().max())
            noise = 1e-12 * max(float(outside[name].abs().max()), 1e-300)
            ratio = jump / max(effect, noise) if jump > noise else 0.0 * jump
            found[name, f"at {distance:.3f} Å"] = ratio
    return worst(found, tolerances.CUTOFF_JUMP)


def check_deterministic(probe: Probe) -> Measured:
    """Two calls give the same bits."""
    batch = collate(probe.structures)
    first, second = probe.outputs(batch), probe.outputs(batch)
    differing = [
        name
        for name in ("node", "edge", "energy", "forces", "virial")
        if (value := getattr(first, name)) is not None
        and not np.array_equal(value.numpy(), getattr(second, name).numpy(), equal_nan=True)
    ]
    return Measured(len(differing), tolerances.EXACT.float64, ", ".join(differing))


def check_single_precision(probe: Probe) -> Measured:
    """In float32, as it will be trained, the backbone computes the same model."""
    single = replace(probe, backbone=copy.deepcopy(probe.backbone).float())
    found: dict[tuple[str, ...], float] = {}
    for batch in probe.structures:
        for what, value in compare(single.outputs(batch), probe.outputs(batch)).items():
            found[what, _name(batch)] = value
    measured = worst(found, tolerances.SINGLE_PRECISION)
    return replace(measured, tolerance=tolerances.SINGLE_PRECISION.float32)

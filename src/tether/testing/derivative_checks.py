"""Checks of derivatives: forces and stress against energies, and gradients that reach weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import combinations_with_replacement, pairwise, product
from typing import TYPE_CHECKING

import numpy as np
import torch

from tether.structures import collate
from tether.testing import tolerances
from tether.testing.probe import Measured, relative, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from tether.structures import AtomBatch
    from tether.testing.probe import Probe

__all__ = [
    "check_blocks_complete",
    "check_blocks_distinct",
    "check_blocks_order",
    "check_detached",
    "check_feature_gradients",
    "check_force_gradients",
    "check_forces",
    "check_forces_not_zero",
    "check_stress",
]


def _slope(energy: Callable[[float], float], step: float) -> float:
    """Derivative at 0 by central differences of fourth order.

    Of second order, truncation in a deep network with stiff bonds would be 1e-5 of the force, and
    a tolerance above it would hide small errors.
    """
    near, far = energy(step) - energy(-step), energy(2 * step) - energy(-2 * step)
    return (8 * near - far) / (12 * step)


def check_forces(probe: Probe) -> Measured:
    """Every force component is minus the central difference of the energy."""
    found: dict[tuple[str, ...], float] = {}
    for batch in probe.structures:
        forces = probe.outputs(batch).forces
        assert forces is not None
        numeric = torch.zeros_like(forces)
        # One structure at a time: in one batch, a defect of batching would show up here.
        for atom, axis in product(range(batch.n_atoms), range(3)):
            direction = torch.zeros_like(batch.positions)
            direction[atom, axis] = 1.0
            along = partial(_energy_along, probe, batch, direction)
            numeric[atom, axis] = -_slope(along, tolerances.FORCE_STEP)
        error = (numeric - forces).abs()
        worst_atom = int(error.max(dim=1).values.argmax())
        where = (f"structure `{batch.ids[0]}`", f"atom {worst_atom}")
        found[where] = relative(numeric, forces, floor=1.0)
    return worst(found, tolerances.FORCE_DERIVATIVE)


def _energy_along(probe: Probe, batch: AtomBatch, direction: Tensor, step: float) -> float:
    return probe.energy(replace(batch, positions=batch.positions + step * direction))


def check_stress(probe: Probe) -> Measured:
    """Every stress component is the central difference of the energy under strain, over volume."""
    found: dict[tuple[str, ...], float] = {}
    for batch in probe.periodic_structures:
        virial = probe.outputs(batch).virial
        assert virial is not None
        numeric = torch.zeros(3, 3, dtype=virial.dtype)
        for a, b in combinations_with_replacement(range(3), 2):
            strain = torch.zeros(3, 3, dtype=torch.float64)
            strain[a, b] += 0.5
            strain[b, a] += 0.5
            along = partial(_energy_strained, probe, batch, strain)
            numeric[a, b] = numeric[b, a] = _slope(along, tolerances.STRAIN_STEP)
        found[(f"structure `{batch.ids[0]}`",)] = relative(numeric, virial[0], floor=1.0)
    return worst(found, tolerances.STRESS_DERIVATIVE)


def _energy_strained(probe: Probe, batch: AtomBatch, strain: Tensor, step: float) -> float:
    return probe.energy(
        replace(
            batch,
            positions=batch.positions + step * batch.positions @ strain,
            cell=batch.cell + step * batch.cell @ strain,
        )
    )


def check_forces_not_zero(probe: Probe) -> Measured:
    """Guard of the other checks: zero forces are equivariant, smooth and conservative."""
    forces = [probe.outputs(batch).forces for batch in probe.structures]
    # numpy, because max() of Python may lose NaN.
    largest = float(np.max([float(f.abs().max()) for f in forces if f is not None]))
    short = float(np.maximum(0.0, tolerances.FORCES_NOT_ZERO.float64 - largest))
    return Measured(short, tolerances.EXACT.float64, f"largest force is {largest:.1e} eV/Å")


def check_detached(probe: Probe) -> Measured:
    """Without `create_graph`, forces and stress hold no graph; nor do features in `no_grad`."""
    batch = collate(probe.structures)
    attached = []
    if probe.has_potential:
        graph = probe.prepare(batch).differentiable()
        _, forces, stress = probe.backbone.energy_forces(graph, probe.backbone(graph))
        named = {"forces": forces, "stress": stress}
        attached += [n for n, v in named.items() if v is not None and v.requires_grad]
    features = probe.features(batch)
    edges = (features.edge, features.edge_distance, features.edge_vector)
    tensors = [features.node, *features.layers, *edges]
    if any(v is not None and v.requires_grad for v in tensors):
        attached.append("features in no_grad")
    return Measured(len(attached), tolerances.EXACT.float64, ", ".join(attached))


def _projection(node: Tensor, seed: int = 21) -> Tensor:
    """A scalar in which no gradient vanishes by a normalisation layer or a symmetry."""
    generator = torch.Generator().manual_seed(seed)
    shape = (node.shape[1], 8)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64).to(node.dtype)
    projected: Tensor = node @ weights / shape[0] ** 0.5
    return projected.tanh().square().sum()


def _names(probe: Probe) -> dict[int, str]:
    return {id(p): name for name, p in probe.backbone.named_parameters()}


def _gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[float]:
    """Largest gradient entry of each parameter; 0 where there is none."""
    moving = [p for p in parameters if p.requires_grad]
    if not loss.requires_grad or not moving:
        return [0.0] * len(parameters)
    gradients = torch.autograd.grad(loss, moving, allow_unused=True, retain_graph=True)
    size = {
        id(p): 0.0 if g is None else float(g.abs().max())
        for p, g in zip(moving, gradients, strict=True)
    }
    return [size.get(id(p), 0.0) for p in parameters]


def check_feature_gradients(probe: Probe) -> Measured:
    """A loss on node features moves every parameter of `blocks`, but those declared unused."""
    names = _names(probe)
    loss = _projection(probe.backbone(probe.prepare(collate(probe.structures))).node)
    still = []
    for block, parameters in probe.backbone.blocks():
        for parameter, size in zip(parameters, _gradients(loss, parameters), strict=True):
            name = names.get(id(parameter), "a parameter of no module")
            if size == 0.0 and not probe.is_unused(name):
                reason = "" if parameter.requires_grad else " (requires_grad=False)"
                still.append(f"{name} in {block}{reason}")
    return Measured(len(still), tolerances.EXACT.float64, ", ".join(still))


def check_force_gradients(probe: Probe) -> Measured:
    """A loss on forces, with `create_graph`, moves something in every block."""
    names = _names(probe)
    graph = probe.prepare(collate(probe.structures)).differentiable()
    _, forces, _ = probe.backbone.energy_forces(graph, probe.backbone(graph), create_graph=True)
    loss = forces.square().sum()
    still = [
        name
        for name, parameters in probe.backbone.blocks()
        if not any(_gradients(loss, parameters))
        and not all(probe.is_unused(names.get(id(p), "")) for p in parameters)
    ]
    return Measured(len(still), tolerances.EXACT.float64, ", ".join(still))


def check_blocks_distinct(probe: Probe) -> Measured:
    """`blocks` lists each parameter once, under distinct names, and only the backbone's own."""
    names, blocks = _names(probe), probe.backbone.blocks()
    counts = Counter(id(p) for _, parameters in blocks for p in parameters)
    found = [f"{names.get(key, '?')} is listed {n} times" for key, n in counts.items() if n > 1]
    found += [
        f"a parameter of {block} is not the backbone's"
        for block, parameters in blocks
        for p in parameters
        if id(p) not in names
    ]
    titles = Counter(block for block, _ in blocks)
    found += [f"{n} blocks are called `{block}`" for block, n in titles.items() if n > 1]
    found += [f"block `{block}` is empty" for block, parameters in blocks if not parameters]
    found += [] if blocks else ["there is no block"]
    return Measured(len(found), tolerances.EXACT.float64, "; ".join(found))


def check_blocks_complete(probe: Probe) -> Measured:
    """Features depend on no parameter outside `blocks`: freezing all blocks freezes them."""
    listed = {id(p) for _, parameters in probe.backbone.blocks() for p in parameters}
    outside = {n: p for n, p in probe.backbone.named_parameters() if id(p) not in listed}
    loss = _projection(probe.backbone(probe.prepare(collate(probe.structures))).node)
    sizes = _gradients(loss, list(outside.values()))
    missing = [name for name, size in zip(outside, sizes, strict=True) if size != 0.0]
    return Measured(len(missing), tolerances.EXACT.float64, ", ".join(missing))


def check_blocks_order(probe: Probe) -> Measured:
    """Blocks go from input to output: no block acts on an earlier layer than the one before it."""
    layers = probe.backbone(probe.prepare(collate(probe.structures))).layers
    losses = [_projection(layer) for layer in layers]
    reached: list[tuple[str, int]] = []
    for block, parameters in probe.backbone.blocks():
        acts = [at for at, loss in enumerate(losses) if any(_gradients(loss, parameters))]
        if acts:
            reached.append((block, acts[0]))
    wrong = [
        f"{later} acts on layer {at}, {earlier} only from layer {first} on"
        for (earlier, first), (later, at) in pairwise(reached)
        if at < first
    ]
    return Measured(len(wrong), tolerances.EXACT.float64, "; ".join(wrong))

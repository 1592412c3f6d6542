"""Deliberately broken backbones: each fails exactly the check that is named beside it.

They are the proof that `validate_backbone` can fail. Every one is a `TinyBackbone` with one member
replaced; most add to the node features a small term with one defect, so that everything else,
forces included, stays consistent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tether.testing import faults
from tether.testing.tiny import TinyBackbone

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from tether.features import Features
    from tether.graph import Graph
    from tether.structures import AtomBatch
    from tether.testing.faults import Blocks, PotentialOutput

__all__ = ["BROKEN", "BrokenBackbone", "Fault"]


class BrokenBackbone(nn.Module):
    """A `TinyBackbone` with members replaced.

    Parameters
    ----------
    inner : TinyBackbone, optional
        The sound backbone; default: one with the default size.
    prepare, forward, blocks, energy_forces : callable, optional
        Replacements; each gets `inner` and then the arguments of the member.
    spec : mapping, optional
        Fields of the spec to replace.
    """

    def __init__(
        self,
        inner: TinyBackbone | None = None,
        *,
        prepare: Callable[[TinyBackbone, AtomBatch], Graph] | None = None,
        forward: Callable[[TinyBackbone, Graph], Features] | None = None,
        blocks: Callable[[TinyBackbone], Blocks] | None = None,
        energy_forces: Callable[[TinyBackbone, Graph, Features, bool], PotentialOutput]
        | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.inner = TinyBackbone() if inner is None else inner
        self.spec = replace(self.inner.spec, **(spec or {}))
        self._prepare, self._forward = prepare, forward
        self._blocks, self._energy_forces = blocks, energy_forces

    def prepare(self, batch: AtomBatch) -> Graph:
        """As in `Backbone`, unless replaced."""
        return self._prepare(self.inner, batch) if self._prepare else self.inner.prepare(batch)

    def forward(self, graph: Graph) -> Features:
        """As in `Backbone`, unless replaced."""
        if self._forward:
            return self._forward(self.inner, graph)
        features: Features = self.inner(graph)
        return features

    def blocks(self) -> Blocks:
        """As in `Backbone`, unless replaced."""
        return self._blocks(self.inner) if self._blocks else self.inner.blocks()

    def energy_forces(
        self, graph: Graph, features: Features, *, create_graph: bool = False
    ) -> PotentialOutput:
        """As in `Potential`, unless replaced."""
        if self._energy_forces:
            return self._energy_forces(self.inner, graph, features, create_graph)
        return self.inner.energy_forces(graph, features, create_graph=create_graph)


@dataclass(frozen=True)
class Fault:
    """One defect.

    Attributes
    ----------
    name : str
        What is wrong.
    check : str
        The one check of `validate_backbone` that fails.
    build : callable
        Makes the broken backbone.
    """

    name: str
    check: str
    build: Callable[[], BrokenBackbone]


def _replaced(
    *,
    prepare: Callable[[TinyBackbone, AtomBatch], Graph] | None = None,
    forward: Callable[[TinyBackbone, Graph], Features] | None = None,
    blocks: Callable[[TinyBackbone], Blocks] | None = None,
    energy_forces: Callable[[TinyBackbone, Graph, Features, bool], PotentialOutput] | None = None,
    spec: Mapping[str, Any] | None = None,
) -> Callable[[], BrokenBackbone]:
    return lambda: BrokenBackbone(
        prepare=prepare, forward=forward, blocks=blocks, energy_forces=energy_forces, spec=spec
    )


def _adding(term: Callable[[Graph], Tensor]) -> Callable[[], BrokenBackbone]:
    """A backbone with a term (n_atoms,) or (n_atoms, 1) added to every node feature."""

    def forward(inner: TinyBackbone, graph: Graph) -> Features:
        features = inner(graph)
        return faults.with_node(features, features.node + term(graph).reshape(-1, 1))

    return _replaced(forward=forward)


def _scaled(
    *, energy: float = 1.0, forces: float = 1.0, stress: float = 1.0
) -> Callable[[], BrokenBackbone]:
    def energy_forces(
        inner: TinyBackbone, graph: Graph, features: Features, create_graph: bool
    ) -> PotentialOutput:
        e, f, s = inner.energy_forces(graph, features, create_graph=create_graph)
        return energy * e, forces * f, None if s is None else stress * s

    return _replaced(energy_forces=energy_forces)


def _forgets_charge(inner: TinyBackbone, batch: AtomBatch) -> Graph:
    return inner.prepare(replace(batch, charge=torch.zeros_like(batch.charge)))


def _frozen_weight() -> BrokenBackbone:
    broken = BrokenBackbone()
    broken.inner.blocks()[1][1][0].requires_grad_(False)  # noqa: FBT003 (torch's signature)
    return broken


#: At least one for every check of `validate_backbone`.
BROKEN: Sequence[Fault] = (
    Fault(
        "sets the default dtype", "process settings", _replaced(prepare=faults.sets_default_dtype)
    ),
    Fault("draws random numbers", "random state", _replaced(forward=faults.draws_random)),
    Fault(
        "centres the batch in place", "inputs untouched", _replaced(prepare=faults.wraps_in_place)
    ),
    Fault("moves the cached graph", "inputs untouched", _replaced(forward=faults.moves_graph)),
    Fault("states another width", "shapes", _replaced(spec={"n_features": 33})),
    Fault("states another depth", "shapes", _replaced(spec={"n_layers": 3})),
    Fault(
        "copies the last layer", "last layer is node", _replaced(forward=faults.copied_last_layer)
    ),
    Fault("any element", "unknown element refused", _replaced(prepare=faults.any_element)),
    Fault(
        "drops the cell",
        "cell refused",
        lambda: BrokenBackbone(TinyBackbone(periodic=False), prepare=faults.drops_cell),
    ),
    Fault(
        "boxes molecules",
        "molecule refused",
        lambda: BrokenBackbone(TinyBackbone(molecules=False), prepare=faults.boxes_molecules),
    ),
    Fault("any charge", "charge and spin heard", _replaced(prepare=_forgets_charge)),
    Fault(
        "hears no charge",
        "charge and spin heard",
        _replaced(prepare=_forgets_charge, spec={"charge": True}),
    ),
    Fault("any overlap", "overlapping atoms refused", _replaced(prepare=faults.any_overlap)),
    Fault("repairs NaN", "non-finite positions refused", _replaced(prepare=faults.repairs_nan)),
    Fault("noise of 1e-14", "deterministic", _replaced(forward=faults.noisy_forward())),
    Fault(
        "features almost constant",
        "geometry matters",
        _replaced(forward=faults.almost_constant, energy_forces=faults.sound_potential),
    ),
    Fault("batch statistics", "batched equals single", _adding(faults.batch_mean)),
    Fault("edges not renumbered", "graph selection", _replaced(prepare=faults.stale_select)),
    Fault("index of the atom", "permutation", _adding(faults.atom_index)),
    Fault("direction of x", "rotation", _adding(faults.direction_of_x)),
    Fault("handedness", "reflection", _adding(faults.handedness)),
    Fault("absolute position", "translation", _adding(faults.absolute_position)),
    Fault("place in the cell", "lattice translation", _adding(faults.place_in_cell)),
    Fault("angle of the cell", "choice of cell", _adding(faults.cell_angle)),
    Fault("energy per atom", "supercell", _replaced(energy_forces=faults.per_atom)),
    Fault("NaN without neighbours", "isolated atom", _adding(faults.nan_without_neighbours)),
    Fault("states another cutoff", "cutoff as stated", _replaced(spec={"cutoff": 3.6})),
    Fault(
        "features with a hard cutoff",
        "smooth at the cutoff",
        _replaced(forward=faults.jumping_features, energy_forces=faults.sound_potential),
    ),
    Fault(
        "energy with a hard cutoff",
        "smooth at the cutoff",
        _replaced(energy_forces=faults.jumping_energy),
    ),
    Fault(
        "features with a hard inner cutoff",
        "smooth at the cutoff",
        _replaced(
            prepare=faults.inner_list,
            forward=faults.inner_jump,
            energy_forces=faults.sound_potential,
        ),
    ),
    Fault("kink at the cutoff", "smooth derivative at the cutoff", _adding(faults.linear_ramp)),
    Fault("edges end abruptly", "smooth edge features", _replaced(forward=faults.sharp_edges)),
    Fault("single rounds to half", "single precision", _replaced(forward=faults.half_precision)),
    Fault(
        "forces almost zero", "forces are not zero", _scaled(energy=1e-9, forces=1e-9, stress=1e-9)
    ),
    Fault("forces scaled by 1.01", "forces", _scaled(forces=1.01)),
    Fault("energy term without forces", "forces", _replaced(energy_forces=faults.missing_path)),
    Fault("sign of the stress", "stress", _scaled(stress=-1.0)),
    Fault("forces keep a graph", "detached outputs", _replaced(energy_forces=faults.attached)),
    Fault("features keep a graph", "detached outputs", _replaced(forward=faults.keeps_graph)),
    Fault("one frozen weight", "gradients from features", _frozen_weight),
    Fault(
        "forces always detached", "gradients from forces", _replaced(energy_forces=faults.detached)
    ),
    Fault("a parameter twice", "blocks are distinct", _replaced(blocks=faults.twice)),
    Fault("a parameter missing", "blocks are complete", _replaced(blocks=faults.incomplete)),
    Fault("blocks reversed", "blocks are in order", _replaced(blocks=faults.reversed_blocks)),
)

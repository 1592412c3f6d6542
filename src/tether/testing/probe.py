"""Running a backbone on known structures, and comparing what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tether.errors import TetherError
from tether.structures import AtomBatch, collate, from_ase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from tether.features import Features
    from tether.graph import Graph
    from tether.testing.tolerances import Tolerance

__all__ = ["Measured", "Outputs", "Probe", "compare", "relative", "worst"]


@dataclass(frozen=True)
class Measured:
    """What one check found.

    Attributes
    ----------
    deviation : float
        Measured; a count of violations where the check is yes or no. NaN fails.
    tolerance : float
        Largest accepted deviation.
    detail : str
        Where the deviation is, for the person who has to find it.
    """

    deviation: float
    tolerance: float
    detail: str = ""


@dataclass(frozen=True)
class Outputs:
    """Everything a backbone says about a batch, detached.

    Attributes
    ----------
    node : Tensor, shape (n_atoms, n_features)
        Features of the last layer.
    layers : tuple of Tensor
        Features of all layers.
    edge : Tensor or None, shape (n_systems, n_edge_features)
        Edge features summed over each structure, so that the order of edges does not matter and
        an asymmetry between the two atoms shows under permutation.
    energy : Tensor or None, shape (n_systems,)
        eV; None, like all below, for a backbone without a potential.
    forces : Tensor or None, shape (n_atoms, 3)
        eV/Å.
    virial : Tensor or None, shape (n_systems, 3, 3)
        Stress times volume, eV; zero for structures without a cell.
    """

    node: Tensor
    layers: tuple[Tensor, ...]
    edge: Tensor | None
    energy: Tensor | None
    forces: Tensor | None
    virial: Tensor | None


@dataclass(frozen=True)
class Probe:
    """A backbone and the structures to try it on.

    Attributes
    ----------
    backbone : torch.nn.Module
        The copy under test.
    structures : tuple of AtomBatch
        Batches of one, with neighbours within the cutoff.
    is_unused : callable
        Whether a parameter name is declared to receive no gradient.
    """

    backbone: Any
    structures: tuple[AtomBatch, ...]
    is_unused: Callable[[str], bool]

    @property
    def has_potential(self) -> bool:
        """Whether the backbone brings its energy head."""
        return callable(getattr(self.backbone, "energy_forces", None))

    @property
    def periodic_structures(self) -> tuple[AtomBatch, ...]:
        """The structures with a cell."""
        return tuple(s for s in self.structures if s.is_periodic)

    def prepare(self, batch: AtomBatch) -> Graph:
        """Graph of a copy of the batch, in the precision of the weights."""
        graph: Graph = self.backbone.prepare(batch.select(range(batch.n_systems)))
        dtype = next(self.backbone.parameters()).dtype
        return graph if graph.batch.positions.dtype == dtype else graph.to(dtype=dtype)

    def features(self, batch: AtomBatch) -> Features:
        """Features of a batch, without a graph of derivatives."""
        with torch.no_grad():
            features: Features = self.backbone(self.prepare(batch))
        return features

    def energy(self, batch: AtomBatch) -> float:
        """Energy of a batch of one, eV."""
        graph = self.prepare(batch).differentiable()
        energy, _, _ = self.backbone.energy_forces(graph, self.backbone(graph))
        return float(energy.detach()[0])

    def outputs(self, batch: AtomBatch) -> Outputs:
        """Features, energy, forces and virial of a batch."""
        return self.outputs_of(self.prepare(batch))

    def outputs_of(self, graph: Graph) -> Outputs:
        """The same from a prepared graph."""
        if not self.has_potential:
            with torch.no_grad():
                return _outputs(graph, self.backbone(graph))
        graph = graph.differentiable()
        features = self.backbone(graph)
        return _outputs(graph, features, *self.backbone.energy_forces(graph, features))

    def cluster(self, numbers: list[int], positions: list[list[float]]) -> AtomBatch:
        """A molecule; in a cell too large to matter where all structures given are periodic."""
        from ase import Atoms

        boxed = len(self.periodic_structures) == len(self.structures)
        size = np.ptp(np.array(positions), axis=0) + 4 * self.backbone.spec.cutoff + 10
        atoms = Atoms(numbers, positions=positions, cell=size if boxed else None, pbc=boxed)
        return from_ase(atoms, ids=["cluster"])

    def crossing(self, distance: float) -> AtomBatch:
        """Four atoms in a row, B A … C D, with only A–C near the given distance, Å.

        A and C have neighbours on both sides of the cutoff, so that normalising by the number of
        neighbours, which a dimer would not show, is seen.
        """
        present = sorted(set(self.structures[0].numbers.tolist()), reverse=True)
        heavy, light = present[0], present[-1]
        bond = min(1.2, 0.4 * self.backbone.spec.cutoff)
        x = [-bond, 0.0, distance, distance + 1.1 * bond]
        return self.cluster([light, heavy, heavy, light], [[v, 0.0, 0.0] for v in x])

    @cached_property
    def transitions(self) -> tuple[float, ...]:
        """Distances, Å, at which A and C of `crossing` become neighbours; the last is the cutoff.

        A backbone may have neighbour lists of several cutoffs, and angles within the shorter ones.
        They are found by what `prepare` returns, so that none has to be declared.
        """
        cutoff = self.backbone.spec.cutoff
        found = []
        grid = torch.linspace(0.4 * cutoff, 0.99 * cutoff, 33, dtype=torch.float64)
        for change in torch.nonzero(self._neighbours(grid).diff(dim=0).any(dim=1)).flatten():
            low, high = grid[change], grid[change + 1]
            while high - low > 1e-8:
                finer = torch.linspace(float(low), float(high), 33, dtype=torch.float64)
                at = int(torch.nonzero(self._neighbours(finer).diff(dim=0).any(dim=1))[0])
                low, high = finer[at], finer[at + 1]
            found.append(float(0.5 * (low + high)))
        return (*found, cutoff)

    def _neighbours(self, distances: Tensor) -> Tensor:
        """How often A and C are listed at each distance, shape (n_distances, n_lists)."""
        batch = collate([self.crossing(float(d)) for d in distances])
        lists = self.prepare(batch).edges
        columns = []
        for name in sorted(lists):
            i, j = lists[name].idx_i, lists[name].idx_j
            start = batch.ptr[batch.system_idx[i]]
            meets = ((i - start == 1) & (j - start == 2)) | ((i - start == 2) & (j - start == 1))
            columns.append(torch.bincount(batch.system_idx[i[meets]], minlength=batch.n_systems))
        return torch.stack(columns, dim=1)


def _outputs(
    graph: Graph,
    features: Features,
    energy: Tensor | None = None,
    forces: Tensor | None = None,
    stress: Tensor | None = None,
) -> Outputs:
    batch = graph.batch
    edge = None
    if features.edge is not None and features.edge_idx is not None:
        system = batch.system_idx[features.edge_idx[0]]
        edge = features.edge.detach()
        edge = edge.new_zeros(batch.n_systems, edge.shape[1]).index_add(0, system, edge)
    virial = None
    if energy is not None:
        virial = torch.zeros_like(batch.cell)
        if stress is not None:
            # Without a cell there is no stress, whatever stands there in a mixed batch.
            periodic = batch.pbc.any(dim=1)
            volume = torch.linalg.det(batch.cell.detach()).abs()
            virial = torch.where(
                periodic[:, None, None], stress.detach() * volume[:, None, None], virial
            ).detach()
    return Outputs(
        node=features.node.detach(),
        layers=tuple(layer.detach() for layer in features.layers),
        edge=edge,
        energy=None if energy is None else energy.detach(),
        forces=None if forces is None else forces.detach(),
        virial=virial,
    )


def relative(value: Tensor, reference: Tensor, *, floor: float = 0.0) -> float:
    """Largest difference over the largest reference entry.

    Parameters
    ----------
    value, reference : Tensor
        Of one shape.
    floor : float
        Least denominator, in the unit of the values.

    Returns
    -------
    float
        Relative deviation; NaN where a value is NaN.

    Raises
    ------
    TetherError
        When the shapes differ.
    """
    if value.shape != reference.shape:
        raise TetherError(
            f"shapes {tuple(value.shape)} and {tuple(reference.shape)} are compared",
            expected="one shape",
            fix="see which output of the backbone changes its shape",
        )
    if value.numel() == 0:
        return 0.0
    difference = float((value.detach().double() - reference.detach().double()).abs().max())
    scale = max(float(reference.detach().abs().max()), floor, 1e-300)
    return difference / scale


def compare(value: Outputs, reference: Outputs) -> dict[str, float]:
    """Relative deviation of every output; energies, forces, virials at least on a scale of 1.

    Parameters
    ----------
    value, reference : Outputs
        Of the same structures in the same order.

    Returns
    -------
    dict of str to float
        By output name.
    """
    deviations = {"node features": relative(value.node, reference.node)}
    if value.edge is not None and reference.edge is not None:
        deviations["edge features"] = relative(value.edge, reference.edge)
    # A symmetric crystal has forces of zero; against a scale of 1 eV, eV/Å rounding stays rounding.
    for name in ("energy", "forces", "virial"):
        ours, theirs = getattr(value, name), getattr(reference, name)
        if ours is not None and theirs is not None:
            deviations[name] = relative(ours, theirs, floor=1.0)
    return deviations


def worst(
    found: Mapping[str, float] | Mapping[tuple[str, ...], float], tolerance: Tolerance
) -> Measured:
    """The largest of the deviations (or the first NaN), and its name.

    Parameters
    ----------
    found : mapping of str or tuple of str to float
        Deviations by what and where.
    tolerance : Tolerance
        Its double-precision figure applies.

    Returns
    -------
    Measured
        With the name in the detail.
    """
    names = list(found)
    values = np.array([float(v) for v in found.values()])
    # argmax returns the first NaN if there is one.
    at = int(np.argmax(values))
    name = names[at]
    detail = name if isinstance(name, str) else ", ".join(name)
    return Measured(float(values[at]), tolerance.float64, detail)

"""The defects of `tether.testing.broken`: replacements of the members of a `TinyBackbone`.

Each does one thing wrong and everything else right, derivatives included, so that one check alone
can tell.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tether.backbones.checks import check_structures
from tether.graph import Edges, Graph, neighbour_edges
from tether.structures import ragged_indices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from tether.features import Features
    from tether.structures import AtomBatch
    from tether.testing.tiny import TinyBackbone

__all__ = [
    "Blocks",
    "PotentialOutput",
    "absolute_position",
    "almost_constant",
    "any_element",
    "any_overlap",
    "atom_index",
    "attached",
    "batch_mean",
    "boxes_molecules",
    "cell_angle",
    "copied_last_layer",
    "detached",
    "direction_of_x",
    "draws_random",
    "drops_cell",
    "half_precision",
    "handedness",
    "incomplete",
    "inner_jump",
    "inner_list",
    "jumping_energy",
    "jumping_features",
    "keeps_graph",
    "linear_ramp",
    "missing_path",
    "moves_graph",
    "nan_without_neighbours",
    "neighbour_count",
    "noisy_forward",
    "per_atom",
    "place_in_cell",
    "repairs_nan",
    "reversed_blocks",
    "sets_default_dtype",
    "sharp_edges",
    "sound_potential",
    "stale_select",
    "twice",
    "with_node",
    "wraps_in_place",
]

Blocks = list[tuple[str, list[nn.Parameter]]]
PotentialOutput = tuple[Tensor, Tensor, Tensor | None]


def with_node(features: Features, node: Tensor) -> Features:
    """Features with another last layer."""
    return replace(features, node=node, layers=(*features.layers[:-1], node))


def _pair_sum(graph: Graph, value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Sum over the neighbours of each atom of ``value(vector, distance)``, shape (n_edges, …)."""
    edges = graph.edges["pairs"]
    vectors = graph.vectors("pairs")
    both = torch.cat([vectors, -vectors])
    per_edge = value(both, both.norm(dim=-1, keepdim=True))
    receivers = torch.cat([edges.idx_i, edges.idx_j])
    zero = per_edge.new_zeros(graph.batch.n_atoms, per_edge.shape[1])
    return zero.index_add(0, receivers, per_edge)


def _fade(distance: Tensor, cutoff: float = 4.0) -> Tensor:
    return (1.0 - (distance / cutoff) ** 2).clamp(min=0.0) ** 3


# -- terms with one defect -------------------------------------------------------------------------


def batch_mean(graph: Graph) -> Tensor:
    """Zero for one structure alone, like a normalisation by batch statistics."""
    neighbours = _pair_sum(graph, lambda _, d: _fade(d)).squeeze(1)
    system = graph.batch.system_idx
    sums = neighbours.new_zeros(graph.n_systems).index_add(0, system, neighbours)
    means = sums / graph.batch.counts
    return 1e-3 * (means - means.mean()).index_select(0, system)


def atom_index(graph: Graph) -> Tensor:
    """Number of the atom within its molecule; crystals have a check of their own, the supercell."""
    batch = graph.batch
    start = batch.ptr[:-1].index_select(0, batch.system_idx)
    molecule = ~batch.pbc.any(dim=1).index_select(0, batch.system_idx)
    index = (torch.arange(batch.n_atoms) - start) * molecule
    return 1e-3 * index.to(batch.positions.dtype)


def direction_of_x(graph: Graph) -> Tensor:
    """Squared cosine between each pair and the x axis; the same in the mirror image."""
    return _pair_sum(graph, lambda v, d: 1e-3 * _fade(d) * (v[:, :1] / d) ** 2)


def handedness(graph: Graph) -> Tensor:
    """A triple product: unchanged by rotations, of the other sign in the mirror image."""
    first = _pair_sum(graph, lambda v, d: _fade(d) * v)
    second = _pair_sum(graph, lambda v, d: _fade(d) * v / d)
    third = _pair_sum(graph, lambda v, d: _fade(d) * v / d**2)
    product: Tensor = torch.linalg.cross(first, second)
    return 1e-1 * (product * third).sum(1)


def absolute_position(graph: Graph) -> Tensor:
    """Distance from the origin, for molecules only, so that crystals pass their own check."""
    batch = graph.batch
    molecule = ~batch.pbc.any(dim=1).index_select(0, batch.system_idx)
    return 1e-3 * batch.positions.square().sum(1) * molecule


def place_in_cell(graph: Graph) -> Tensor:
    """How far from the others an atom was written, along the third lattice vector of a crystal."""
    batch = graph.batch
    crystal, system = batch.pbc.all(dim=1), batch.system_idx
    cell = torch.where(crystal[:, None, None], batch.cell, torch.eye(3).to(batch.cell))
    inverse = torch.linalg.inv(cell)[:, :, 2].index_select(0, system)
    fraction = (batch.positions * inverse).sum(1)
    mean = fraction.new_zeros(batch.n_systems).index_add(0, system, fraction) / batch.counts
    place: Tensor = (fraction - mean.index_select(0, system)).square() * crystal[system]
    return 1e-3 * place


def cell_angle(graph: Graph) -> Tensor:
    """Cosine of the angle between two lattice vectors, which says how the cell was chosen."""
    batch = graph.batch
    crystal = batch.pbc.all(dim=1)
    a, b, _ = torch.where(crystal[:, None, None], batch.cell, torch.eye(3).to(batch.cell)).unbind(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    of_crystals: Tensor = (cosine * crystal).index_select(0, batch.system_idx)
    return 1e-3 * of_crystals


def nan_without_neighbours(graph: Graph) -> Tensor:
    """0 / number of neighbours: zero, or NaN."""
    degree = _pair_sum(graph, lambda _, d: torch.ones_like(d))
    return 0.0 / degree


def neighbour_count(graph: Graph) -> Tensor:
    """Neighbours within the cutoff: a step."""
    return _pair_sum(graph, lambda _, d: 1e-2 * torch.ones_like(d))


def linear_ramp(graph: Graph) -> Tensor:
    """1 at zero distance and 0 at the cutoff: continuous, with a kink."""
    return _pair_sum(graph, lambda _, d: 1e-1 * (1.0 - d / 4.0).clamp(min=0.0))


# -- other replacements of forward -----------------------------------------------------------------


def noisy_forward() -> Callable[[TinyBackbone, Graph], Features]:
    """Rounding-sized noise that differs from call to call, without a random generator."""
    calls = itertools.count(1)

    def forward(inner: TinyBackbone, graph: Graph) -> Features:
        features = inner(graph)
        return with_node(features, features.node * (1.0 + 1e-14 * (next(calls) % 7)))

    return forward


def half_precision(inner: TinyBackbone, graph: Graph) -> Features:
    """Right in double precision; in single, as under a forgotten autocast, it rounds."""
    features = inner(graph)
    node = features.node
    if node.dtype == torch.float32:
        node = node + (node.bfloat16().float() - node).detach()
    return with_node(features, node)


def draws_random(inner: TinyBackbone, graph: Graph) -> Features:
    """Advances the global generator of torch."""
    torch.rand(1)
    features: Features = inner(graph)
    return features


def copied_last_layer(inner: TinyBackbone, graph: Graph) -> Features:
    """The last layer is equal to `node`, but another tensor."""
    features: Features = inner(graph)
    return replace(features, layers=(*features.layers[:-1], features.node.clone()))


def sharp_edges(inner: TinyBackbone, graph: Graph) -> Features:
    """Edge features that are not zero at the cutoff."""
    features: Features = inner(graph)
    assert features.edge is not None
    return replace(features, edge=features.edge + 1e-2)


def keeps_graph(inner: TinyBackbone, graph: Graph) -> Features:
    """Builds a graph of derivatives even under ``torch.no_grad()``."""
    with torch.enable_grad():
        features: Features = inner(graph)
    return features


def moves_graph(inner: TinyBackbone, graph: Graph) -> Features:
    """Shifts the positions of the graph in place, every time."""
    if graph.leaves is None:
        graph.batch.positions.add_(0.25)
    features: Features = inner(graph)
    return features


def almost_constant(inner: TinyBackbone, graph: Graph) -> Features:
    """Node features that hardly see the geometry."""
    features = inner(graph)
    return with_node(features, inner.embedding(graph.batch.numbers) + 1e-8 * features.node)


def jumping_features(inner: TinyBackbone, graph: Graph) -> Features:
    """Node features with a hard cutoff."""
    features = inner(graph)
    return with_node(features, features.node + neighbour_count(graph))


def inner_jump(inner: TinyBackbone, graph: Graph) -> Features:
    """Node features with a hard cutoff inside the stated one, that of `inner_list`."""
    features, edges = inner(graph), graph.edges["inner"]
    steps = features.node.new_full((len(edges.idx_i), features.node.shape[1]), 1e-2)
    node = features.node.index_add(0, edges.idx_i, steps).index_add(0, edges.idx_j, steps)
    return with_node(features, node)


# -- replacements of prepare -----------------------------------------------------------------------


@dataclass(frozen=True)
class _StaleGraph(Graph):
    """Selects edges but keeps the atom numbers of the whole batch, within bounds."""

    def select(self, systems: Tensor | Sequence[int] | np.ndarray) -> Graph:
        """The structures asked for, with the edges of others."""
        idx = torch.as_tensor(systems, dtype=torch.int64)
        batch, old = self.batch.select(idx), self.edges["pairs"]
        flat, ptr = ragged_indices(old.ptr, idx)
        n_atoms = batch.n_atoms
        # Modulo: out of bounds would be an error, and that is not the silent failure meant here.
        pairs = Edges(old.idx_i[flat] % n_atoms, old.idx_j[flat] % n_atoms, old.shift[flat], ptr)
        if torch.equal(idx, torch.arange(self.n_systems)):
            pairs = old
        return _StaleGraph(batch, {"pairs": pairs})


def stale_select(inner: TinyBackbone, batch: AtomBatch) -> Graph:
    """A graph that selects edges without renumbering their atoms."""
    graph = inner.prepare(batch)
    return _StaleGraph(graph.batch, graph.edges)


def any_element(inner: TinyBackbone, batch: AtomBatch) -> Graph:
    """Treats every element above fermium as fermium."""
    return inner.prepare(replace(batch, numbers=batch.numbers.clamp(max=100)))


def drops_cell(inner: TinyBackbone, batch: AtomBatch) -> Graph:
    """Treats a crystal as a molecule."""
    return inner.prepare(replace(batch, pbc=torch.zeros_like(batch.pbc)))


def any_overlap(inner: TinyBackbone, batch: AtomBatch) -> Graph:
    """Lets two atoms stand at one place."""
    check_structures(batch, inner.spec)
    edges = neighbour_edges(batch, inner.spec.cutoff, full=False)
    return Graph(batch, {"pairs": edges}).to(dtype=inner.dtype)


def boxes_molecules(inner: TinyBackbone, batch: AtomBatch) -> Graph:
    """Puts a molecule into a cell without being told to."""
    molecule = ~batch.pbc.any(dim=1)
    box = torch.where(molecule[:, None, None], 50.0 * torch.eye(3).to(batch.cell), batch.cell)
    return inner.prepare(replace(batch, cell=box, pbc=batch.pbc | molecule[:, None]))


def inner_list(inner: TinyBackbone, batch: AtomBatch) -> Graph:
    """A second neighbour list, shorter than the one whose cutoff is stated."""
    graph = inner.prepare(batch)
    edges = {**graph.edges, "inner": neighbour_edges(batch, 2.2, full=False)}
    return Graph(graph.batch, edges).to(dtype=inner.dtype)


def repairs_nan(inner: TinyBackbone, batch: AtomBatch) -> Graph:
    """Puts something in the place of NaN."""
    return inner.prepare(replace(batch, positions=batch.positions.nan_to_num(nan=50.0)))


def sets_default_dtype(inner: TinyBackbone, batch: AtomBatch) -> Graph:
    """Changes the precision of the whole process."""
    torch.set_default_dtype(torch.float64)
    return inner.prepare(batch)


def wraps_in_place(inner: TinyBackbone, batch: AtomBatch) -> Graph:
    """Centres the positions that it was given."""
    batch.positions.sub_(batch.positions.mean(0))
    return inner.prepare(batch)


# -- replacements of energy_forces -----------------------------------------------------------------


def sound_potential(
    inner: TinyBackbone, graph: Graph, _: Features, create_graph: bool
) -> PotentialOutput:
    """Energy from the sound features, so that a defect of the features stays in the features."""
    return inner.energy_forces(graph, inner(graph), create_graph=create_graph)


def jumping_energy(
    inner: TinyBackbone, graph: Graph, features: Features, create_graph: bool
) -> PotentialOutput:
    """An energy with a hard cutoff; forces cannot show it."""
    energy, forces, stress = inner.energy_forces(graph, features, create_graph=create_graph)
    count = neighbour_count(graph).detach().squeeze(1)
    return energy.index_add(0, graph.batch.system_idx, count), forces, stress


def per_atom(
    inner: TinyBackbone, graph: Graph, features: Features, create_graph: bool
) -> PotentialOutput:
    """Energy per atom in the place of the total, and its derivatives."""
    energy, forces, stress = inner.energy_forces(graph, features, create_graph=create_graph)
    n, system = graph.batch.counts, graph.batch.system_idx
    stress = None if stress is None else stress / n[:, None, None]
    return energy / n, forces / n[system, None], stress


def missing_path(
    inner: TinyBackbone, graph: Graph, features: Features, create_graph: bool
) -> PotentialOutput:
    """A term of the energy, here a pair repulsion, that forces do not see (stress is spared)."""
    energy, forces, stress = inner.energy_forces(graph, features, create_graph=create_graph)
    system = graph.batch.system_idx
    molecule = ~graph.batch.pbc.any(dim=1).index_select(0, system)
    hidden = _pair_sum(graph, lambda _, d: 1e-2 * _fade(d)).squeeze(1).detach() * molecule
    return energy.index_add(0, system, hidden), forces, stress


def attached(inner: TinyBackbone, graph: Graph, features: Features, _: bool) -> PotentialOutput:
    """Keeps the graph of derivatives although nobody asked."""
    return inner.energy_forces(graph, features, create_graph=True)


def detached(
    inner: TinyBackbone, graph: Graph, features: Features, create_graph: bool
) -> PotentialOutput:
    """Forces without a gradient to the weights, asked or not."""
    energy, forces, stress = inner.energy_forces(graph, features, create_graph=create_graph)
    return energy, forces.detach(), stress


# -- replacements of blocks ------------------------------------------------------------------------


def twice(inner: TinyBackbone) -> Blocks:
    """One parameter listed twice."""
    blocks = inner.blocks()
    return [*blocks[:-1], (blocks[-1][0], blocks[-1][1] + blocks[-1][1][:1])]


def incomplete(inner: TinyBackbone) -> Blocks:
    """One parameter left out."""
    blocks = inner.blocks()
    return [*blocks[:-1], (blocks[-1][0], blocks[-1][1][1:])]


def reversed_blocks(inner: TinyBackbone) -> Blocks:
    """Output to input."""
    return inner.blocks()[::-1]

"""`TinyBackbone`: a real but small equivariant network, for tests that must be fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tether.backbones.checks import check_overlaps, check_structures
from tether.backbones.protocol import BackboneSpec
from tether.errors import TetherError
from tether.features import Features
from tether.graph import Graph, neighbour_edges
from tether.heads.derivative import forces_stress

if TYPE_CHECKING:
    from tether.structures import AtomBatch

__all__ = ["TinyBackbone"]

#: Heaviest element with an embedding row (fermium); row 0 is never read.
_MAX_NUMBER = 100


class TinyBackbone(nn.Module):
    """PaiNN-like message passing in plain torch; implements `Backbone` and `Potential`.

    Scalars (n_atoms, n_features) and vectors (n_atoms, 3, n_features) exchange messages over pairs
    listed once; vectors enter the scalars through inner products, so that scalars are invariant
    under rotation and reflection. The weights are random: the potential is smooth and conservative
    and means nothing. After K. Schütt et al., PaiNN, arXiv 2102.03150, simplified.

    Parameters
    ----------
    n_features : int
        Channels of scalars and vectors.
    n_layers : int
        Interaction layers, the length of `Features.layers`.
    n_radial : int
        Radial basis functions.
    cutoff : float
        Å.
    elements : tuple of int
        Accepted atomic numbers, within 1 … 100.
    periodic : bool
        Whether cells are accepted.
    molecules : bool
        Whether structures without a cell are accepted.
    seed : int
        Of the weights; the global generator is neither read nor advanced.

    Raises
    ------
    TetherError
        For an atomic number outside 1 … 100.

    Examples
    --------
    >>> from tether.structures import from_ase
    >>> from tether.testing.structures import water
    >>> backbone = TinyBackbone(seed=0)
    >>> features = backbone(backbone.prepare(from_ase(water())))
    >>> features.node.shape
    torch.Size([3, 32])
    """

    spec: BackboneSpec

    def __init__(
        self,
        *,
        n_features: int = 32,
        n_layers: int = 2,
        n_radial: int = 8,
        cutoff: float = 4.0,
        elements: tuple[int, ...] = tuple(range(1, _MAX_NUMBER + 1)),
        periodic: bool = True,
        molecules: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not elements or min(elements) < 1 or max(elements) > _MAX_NUMBER:
            raise TetherError(
                f"`elements` is {elements}",
                expected=f"atomic numbers within 1 … {_MAX_NUMBER}",
                fix="pass for example elements=(1, 6, 7, 8)",
            )
        self.spec = BackboneSpec(
            name="tiny",
            checkpoint="random",
            sha256="",
            licence="MIT",
            elements=tuple(elements),
            cutoff=cutoff,
            n_features=n_features,
            n_layers=n_layers,
            level_of_theory="none",
            periodic=periodic,
            molecules=molecules,
        )
        generator = torch.Generator().manual_seed(seed)
        self.embedding = _embedding(_MAX_NUMBER + 1, n_features, generator)
        self.interactions = nn.ModuleList(
            _Interaction(n_features, n_radial, first=layer == 0, generator=generator)
            for layer in range(n_layers)
        )
        self.energy_hidden = _linear(n_features, n_features, generator)
        self.energy_out = _linear(n_features, 1, generator)
        # Energy of each element, eV; zero until trained.
        self.reference = _embedding(_MAX_NUMBER + 1, 1, generator)
        nn.init.zeros_(self.reference.weight)
        frequencies = torch.arange(1, n_radial + 1, dtype=torch.float32) * torch.pi / cutoff
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.frequencies: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.embedding.weight.dtype

    def prepare(self, batch: AtomBatch) -> Graph:
        """Neighbour list ``pairs``, each pair once, in the precision of the weights.

        Parameters
        ----------
        batch : AtomBatch
            Structures, on the CPU.

        Returns
        -------
        Graph
            On the CPU.

        Raises
        ------
        TetherError
            For an unknown element, a cell or a molecule where none is accepted, positions that are
            not finite, or two atoms closer than `tether.backbones.checks.OVERLAP_DISTANCE`.
        """
        check_structures(batch, self.spec)
        edges = neighbour_edges(batch, self.spec.cutoff, full=False)
        check_overlaps(batch, edges)
        return Graph(batch, {"pairs": edges}).to(dtype=self.dtype)

    def forward(self, graph: Graph) -> Features:
        """Node features of every layer and symmetric edge features of the last.

        Parameters
        ----------
        graph : Graph
            From `prepare`.

        Returns
        -------
        Features
            In the precision of the weights.
        """
        edges = graph.edges["pairs"]
        vectors = graph.vectors("pairs").to(self.dtype)
        distances = vectors.norm(dim=-1, keepdim=True)
        directions = vectors / distances
        radial = torch.sin(distances * self.frequencies) / distances
        envelope = _envelope(distances / self.spec.cutoff)
        pairs = _Pairs(
            receivers=torch.cat([edges.idx_i, edges.idx_j]),
            senders=torch.cat([edges.idx_j, edges.idx_i]),
            directions=torch.cat([directions, -directions]).unsqueeze(-1),
            radial=radial * envelope,
        )
        scalars = self.embedding(graph.batch.numbers)
        vector_features: Tensor | None = None
        layers: list[Tensor] = []
        for interaction in self.interactions:
            scalars, vector_features = interaction(scalars, vector_features, pairs)
            layers.append(scalars)
        both = scalars.index_select(0, edges.idx_i) + scalars.index_select(0, edges.idx_j)
        return Features(
            node=scalars,
            layers=tuple(layers),
            edge=both * envelope,
            edge_idx=torch.stack([edges.idx_i, edges.idx_j]),
            edge_distance=distances.squeeze(1),
            edge_vector=vectors,
        )

    def blocks(self) -> list[tuple[str, list[nn.Parameter]]]:
        """Embedding, then the interaction layers; the energy head is in none."""
        layers = [
            (f"layer {i}", list(layer.parameters())) for i, layer in enumerate(self.interactions)
        ]
        return [("embedding", list(self.embedding.parameters())), *layers]

    def atom_energies(self, graph: Graph, features: Features) -> Tensor:
        """Energy of each atom, shape (n_atoms,), eV.

        Parameters
        ----------
        graph : Graph
            From `prepare`.
        features : Features
            Of that graph.

        Returns
        -------
        Tensor
            Their sum over a structure is its energy.
        """
        hidden = silu(self.energy_hidden(features.node))
        energies: Tensor = self.energy_out(hidden) + self.reference(graph.batch.numbers)
        return energies.squeeze(1)

    def energy_forces(
        self, graph: Graph, features: Features, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Energy (n_systems,) eV, forces (n_atoms, 3) eV/Å, stress (n_systems, 3, 3) eV/Å³.

        Parameters
        ----------
        graph : Graph
            From `Graph.differentiable`.
        features : Features
            Of that graph.
        create_graph : bool
            Keep energy, forces and stress differentiable; otherwise they are detached.

        Returns
        -------
        energy, forces, stress : Tensor, Tensor, Tensor or None
            Stress is None without a cell.
        """
        atomic = self.atom_energies(graph, features)
        batch = graph.batch
        energy = atomic.new_zeros(batch.n_systems).index_add(0, batch.system_idx, atomic)
        forces, stress = forces_stress(energy, graph, create_graph=create_graph)
        return (energy if create_graph else energy.detach()), forces, stress


@dataclass(frozen=True)
class _Pairs:
    """Both directions of every pair, shape (2 n_pairs, …); `radial` (n_pairs, n_radial) once."""

    receivers: Tensor
    senders: Tensor
    directions: Tensor
    radial: Tensor


class _Interaction(nn.Module):
    """Messages over pairs, then a gated exchange between scalars and vectors of each atom."""

    def __init__(
        self, n_features: int, n_radial: int, *, first: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        # The first layer has no incoming vectors, and so no weights that would never move.
        self.n_messages = 2 if first else 3
        self.sender = _linear(n_features, self.n_messages * n_features, generator)
        self.filter = _linear(n_radial, self.n_messages * n_features, generator, bias=False)
        self.mix_left = _linear(n_features, n_features, generator, bias=False)
        self.mix_right = _linear(n_features, n_features, generator, bias=False)
        self.update_hidden = _linear(2 * n_features, n_features, generator)
        self.update_out = _linear(n_features, 2 * n_features, generator)

    def forward(
        self, scalars: Tensor, vectors: Tensor | None, pairs: _Pairs
    ) -> tuple[Tensor, Tensor]:
        filters = self.filter(pairs.radial)
        filters = torch.cat([filters, filters])
        messages = (silu(self.sender(scalars)).index_select(0, pairs.senders) * filters).chunk(
            self.n_messages, dim=-1
        )
        scalars = scalars.index_add(0, pairs.receivers, messages[0])
        along = messages[1].unsqueeze(1) * pairs.directions
        if vectors is None:
            vectors = scalars.new_zeros(scalars.shape[0], 3, scalars.shape[1])
        else:
            along = along + messages[2].unsqueeze(1) * vectors.index_select(0, pairs.senders)
        vectors = vectors.index_add(0, pairs.receivers, along)
        # Inner products, not norms: the square root has no derivative at zero vectors.
        product = (self.mix_left(vectors) * self.mix_right(vectors)).sum(dim=1)
        # Saturated: products of products of features would explode with depth.
        product = product / torch.sqrt(1.0 + product**2)
        hidden = silu(self.update_hidden(torch.cat([scalars, product], dim=-1)))
        change, gate = self.update_out(hidden).chunk(2, dim=-1)
        return scalars + change + gate * product, vectors


def _envelope(fraction: Tensor) -> Tensor:
    """1 at 0, and 0 with two vanishing derivatives from 1 on: forces are smooth at the cutoff."""
    x = fraction.clamp(max=1.0)
    return 1.0 - x**3 * (10.0 - 15.0 * x + 6.0 * x**2)


def _linear(n_in: int, n_out: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    # From "meta": on another device, the constructor would draw from the global generator.
    layer = nn.Linear(n_in, n_out, bias=bias, dtype=torch.float32, device="meta")
    layer = layer.to_empty(device="cpu")
    bound = (3.0 / n_in) ** 0.5
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    if bias:
        nn.init.uniform_(layer.bias, -0.1, 0.1, generator=generator)
    return layer


def _embedding(n_rows: int, n_features: int, generator: torch.Generator) -> nn.Embedding:
    layer = nn.Embedding(n_rows, n_features, dtype=torch.float32, device="meta")
    layer = layer.to_empty(device="cpu")
    nn.init.normal_(layer.weight, generator=generator)
    return layer

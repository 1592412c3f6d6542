"""CHGNet: crystals with angles, doi 10.1038/s42256-023-00716-3.

The architecture and the weights are those of the package ``chgnet``; the modules and the forward
pass are ours, and agree with the package's to rounding (``tests/contract/test_chgnet.py``). Pairs,
bonds and angles stand once (`chgnet_layer`), a batch is built without a Python loop, and what
CHGNet never reads (its last angle layer) or what no task here asks for (magnetic moments) is left
out. The package itself is opened for its weight files only: importing it takes seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tether.backbones.checks import check_overlaps, check_structures
from tether.backbones.chgnet_layer import (
    AngleUpdate,
    AtomConvolution,
    BondConvolution,
    Topology,
)
from tether.backbones.protocol import BackboneSpec
from tether.features import Features
from tether.graph import Edges, Graph, edge_angles, neighbour_edges
from tether.heads.derivative import forces_stress

if TYPE_CHECKING:
    from tether.structures import AtomBatch

__all__ = ["Chgnet", "ChgnetConfig"]

#: Rows of the embedding: H to Pu.
N_ELEMENTS = 94
#: The training data hold none of Po, At, Rn, Fr, Ra: their rows are as they were initialised.
ELEMENTS = tuple(z for z in range(1, N_ELEMENTS + 1) if not 84 <= z <= 88)
#: Å, of the bonds between which angles are formed; the same in every checkpoint.
BOND_CUTOFF = 3.0
#: The package keeps cosines off ±1, where arccos has no derivative.
_COSINE_FACTOR = 1 - 1e-6


@dataclass(frozen=True)
class ChgnetConfig:
    """Size of a CHGNet; the defaults are version 0.3.0's.

    Attributes
    ----------
    n_features, n_layers : int
        Width of atoms, bonds and angles; atom convolutions.
    n_radial, n_angular : int
        Basis functions of a distance, and of an angle (an odd number).
    cutoff : float
        Å, of the pairs.
    envelope_power : int
        Of the polynomial that takes the basis to zero at a cutoff.
    normalised : bool
        Layer normalisation in the messages and before the energy head.
    out_bias : bool
        Bias behind the sum of messages. It also acts on atoms and bonds that got none.
    n_hidden : int
        Hidden layers of the energy head.
    """

    n_features: int = 64
    n_layers: int = 4
    n_radial: int = 31
    n_angular: int = 31
    cutoff: float = 6.0
    envelope_power: int = 8
    normalised: bool = True
    out_bias: bool = False
    n_hidden: int = 3


class Chgnet(nn.Module):
    """A CHGNet; `Backbone` and `Potential`.

    Parameters
    ----------
    config : ChgnetConfig, optional
        Size of the network.
    spec : BackboneSpec, optional
        What is known about the weights; default: random weights of this size.
    seed : int
        Of the random weights, which are distributed as the package's; the global generator is left
        as it was.
    """

    spec: BackboneSpec

    def __init__(
        self,
        config: ChgnetConfig | None = None,
        *,
        spec: BackboneSpec | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config or ChgnetConfig()
        self.spec = spec or _random_spec(self.config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(self.config)
        self.float()

    def _build(self, config: ChgnetConfig) -> None:
        width, n_radial = config.n_features, config.n_radial
        norm = {"normalised": config.normalised}
        out = {**norm, "out_bias": config.out_bias}
        self.atom_embedding = nn.Embedding(N_ELEMENTS, width)
        self.pair_frequencies = nn.Parameter(math.pi * torch.arange(1, n_radial + 1.0))
        self.bond_frequencies = nn.Parameter(math.pi * torch.arange(1, n_radial + 1.0))
        self.angle_frequencies = nn.Parameter(torch.arange(1.0, (config.n_angular + 1) // 2))
        self.pair_embedding = nn.Linear(n_radial, width, bias=False)
        self.pair_weights = nn.Linear(n_radial, width, bias=False)
        self.bond_weights = nn.Linear(n_radial, width, bias=False)
        self.angle_embedding = nn.Linear(config.n_angular, width, bias=False)
        inner = range(config.n_layers - 1)
        self.atom_layers = nn.ModuleList(
            AtomConvolution(width, **out) for _ in range(config.n_layers)
        )
        self.bond_layers = nn.ModuleList(BondConvolution(width, **out) for _ in inner)
        # One fewer than the package has: nothing reads the angles behind the last bond layer.
        self.angle_layers = nn.ModuleList(AngleUpdate(width, **norm) for _ in inner[1:])
        self.norm = nn.LayerNorm(width) if config.normalised else nn.Identity()
        hidden = [m for _ in range(config.n_hidden) for m in (nn.Linear(width, width), nn.SiLU())]
        self.energy = nn.Sequential(*hidden, nn.Linear(width, 1))
        # Energy of each element, eV: a table that was fitted before, not trained.
        self.register_buffer("reference", torch.zeros(N_ELEMENTS))
        self.reference: Tensor

    def prepare(self, batch: AtomBatch) -> Graph:
        """Neighbour lists ``pairs`` and ``bonds``, each pair once, and the angles of ``bonds``.

        Parameters
        ----------
        batch : AtomBatch
            Crystals or slabs.

        Returns
        -------
        Graph
            On the CPU, in the precision of the weights. The pairs of each structure begin with its
            bonds, in the same order.

        Raises
        ------
        TetherError
            For an unknown element, a molecule, a cell without volume, overlapping atoms or
            positions that are not finite.
        """
        check_structures(batch, self.spec)
        pairs = neighbour_edges(batch, self.config.cutoff, full=False)
        check_overlaps(batch, pairs)
        pairs, bonds = _bonds_first(batch, pairs)
        edges = {"pairs": pairs, "bonds": bonds}
        angles = {"bonds": edge_angles(bonds, batch.n_atoms)}
        return Graph(batch, edges, angles=angles).to(dtype=self.reference.dtype)

    def forward(self, graph: Graph) -> Features:
        """Node features of every layer, and the bond features that the last layer reads.

        Parameters
        ----------
        graph : Graph
            From `prepare`.

        Returns
        -------
        Features
            ``node`` is what the energy head reads, behind the last normalisation; ``edge`` holds
            all pairs, bonds or not.
        """
        at = _topology(graph)
        vectors = graph.vectors("pairs")
        distances = vectors.norm(dim=-1)
        of_bonds = distances.index_select(0, at.bond_pairs)
        basis = self._radial(distances, self.pair_frequencies, self.config.cutoff)
        pairs, pair_weights = self.pair_embedding(basis), self.pair_weights(basis)
        bond_weights = self.bond_weights(self._radial(of_bonds, self.bond_frequencies, BOND_CUTOFF))
        directions = vectors.index_select(0, at.bond_pairs) / of_bonds[:, None]
        angles = self.angle_embedding(self._angular(directions, graph))[None]
        with_bias = self._bond_bias(graph)
        atoms: Tensor = self.atom_embedding(graph.batch.numbers - 1)
        layers: list[Tensor] = []
        for k, bond_layer in enumerate(self.bond_layers):
            atoms = self.atom_layers[k](atoms, pairs, pair_weights, at)
            layers.append(atoms)
            bonds = pairs.index_select(0, at.bond_pairs)
            change = bond_layer(atoms, bonds, angles, bond_weights, at)
            pairs = pairs.index_add(0, at.bond_pairs, change)
            if with_bias is not None:
                pairs = pairs + with_bias * bond_layer.get_parameter("out.bias")
            if k < len(self.angle_layers):
                bonds = pairs.index_select(0, at.bond_pairs)
                angles = self.angle_layers[k](atoms, bonds, angles, at)
        node: Tensor = self.norm(self.atom_layers[-1](atoms, pairs, pair_weights, at))
        return Features(
            node=node,
            layers=(*layers, node),
            edge=pairs,
            edge_idx=torch.stack([at.idx_i, at.idx_j]),
            edge_distance=distances,
            edge_vector=vectors,
        )

    def _radial(self, distances: Tensor, frequencies: Tensor, cutoff: float) -> Tensor:
        """Bessel functions that fade at the cutoff, shape (n, n_radial)."""
        scaled = (distances / cutoff)[:, None]
        p = self.config.envelope_power
        envelope = 1 - scaled**p * (
            (p + 1) * (p + 2) / 2 - p * (p + 2) * scaled + p * (p + 1) / 2 * scaled**2
        )
        # A structure may be strained after its lists were built.
        factor = torch.where(scaled < 1, envelope, 0.0) / distances[:, None]
        basis: Tensor = (2 / cutoff) ** 0.5 * factor * torch.sin(frequencies * scaled)
        return basis

    def _angular(self, directions: Tensor, graph: Graph) -> Tensor:
        """Fourier series of the angles between bonds, shape (n_angles, n_angular)."""
        angles = graph.angles["bonds"]
        # An even end looks along the bond's vector, an odd one against it.
        sign = (1 - 2 * (angles.first % 2)) * (1 - 2 * (angles.second % 2))
        first = directions.index_select(0, angles.first // 2)
        second = directions.index_select(0, angles.second // 2)
        cosine = (first * second).sum(1) * sign.to(directions.dtype)
        phase = torch.outer(torch.acos(cosine * _COSINE_FACTOR), self.angle_frequencies)
        constant = phase.new_full((phase.shape[0], 1), 0.5**0.5)
        series: Tensor = torch.cat([constant, phase.sin(), phase.cos()], dim=1) / math.pi**0.5
        return series

    def _bond_bias(self, graph: Graph) -> Tensor | None:
        """1 for the pairs of structures with an angle, shape (n_pairs, 1), where layers have bias.

        Version 0.2.0 moves every pair by a constant as soon as there is an angle anywhere in the
        batch; here each structure is treated as it would be alone.
        """
        if not self.config.out_bias:
            return None
        angles = graph.angles["bonds"].ptr
        some = (angles[1:] > angles[:-1]).to(self.reference.dtype)
        return some.index_select(0, graph.system_of("pairs"))[:, None]

    def blocks(self) -> list[tuple[str, list[nn.Parameter]]]:
        """Embeddings, then the layers; the energy head is in none."""
        embedding = [
            *self.atom_embedding.parameters(),
            *(self.pair_frequencies, self.bond_frequencies, self.angle_frequencies),
            *self.pair_embedding.parameters(),
            *self.pair_weights.parameters(),
            *self.bond_weights.parameters(),
            *self.angle_embedding.parameters(),
        ]
        columns = (self.atom_layers, self.bond_layers, self.angle_layers)
        layers = [
            (f"layer {k}", [p for column in columns for p in _parameters_at(column, k)])
            for k in range(self.config.n_layers)
        ]
        layers[-1][1].extend(self.norm.parameters())
        return [("embedding", embedding), *layers]

    def energy_forces(
        self, graph: Graph, features: Features, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Energy, forces and stress of the pretrained head.

        Parameters
        ----------
        graph : Graph
            From `Graph.differentiable`.
        features : Features
            Of that graph.
        create_graph : bool
            Keep the results differentiable for training.

        Returns
        -------
        energy : Tensor, shape (n_systems,)
            eV a cell (the package's own figure is eV/atom), in the reference of the spec's level of
            theory: corrected as Materials Project energies are, not raw DFT totals.
        forces : Tensor, shape (n_atoms, 3)
            eV/Å.
        stress : Tensor, shape (n_systems, 3, 3)
            eV/Å³, positive under tension as in ASE (the package's own figure is in GPa).
        """
        batch = graph.batch
        atomic = self.energy(features.node).squeeze(1) + self.reference[batch.numbers - 1]
        energy = atomic.new_zeros(batch.n_systems).index_add(0, batch.system_idx, atomic)
        forces, stress = forces_stress(energy, graph, create_graph=create_graph)
        return (energy if create_graph else energy.detach()), forces, stress


def _random_spec(config: ChgnetConfig) -> BackboneSpec:
    return BackboneSpec(
        name="chgnet",
        checkpoint="random",
        sha256="",
        licence="MIT",
        elements=ELEMENTS,
        cutoff=config.cutoff,
        n_features=config.n_features,
        n_layers=config.n_layers,
        level_of_theory="none",
        periodic=True,
        molecules=False,
    )


def _parameters_at(column: nn.ModuleList, k: int) -> list[nn.Parameter]:
    return list(column[k].parameters()) if k < len(column) else []


def _bonds_first(batch: AtomBatch, pairs: Edges) -> tuple[Edges, Edges]:
    """Pairs sorted so that each structure's bonds come first, and those bonds alone."""
    exact = Graph(batch.to(dtype=torch.float64), {"pairs": pairs})
    is_bond = exact.vectors("pairs").detach().norm(dim=-1) < BOND_CUTOFF
    n_systems, system = batch.n_systems, exact.system_of("pairs")
    order = torch.argsort(2 * system + ~is_bond, stable=True)
    pairs = Edges(pairs.idx_i[order], pairs.idx_j[order], pairs.shift[order], pairs.ptr)
    ptr = torch.zeros(n_systems + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(system[is_bond], minlength=n_systems), 0, out=ptr[1:])
    kept = torch.nonzero(is_bond[order]).flatten()
    return pairs, Edges(pairs.idx_i[kept], pairs.idx_j[kept], pairs.shift[kept], ptr)


def _topology(graph: Graph) -> Topology:
    pairs, bonds, angles = graph.edges["pairs"], graph.edges["bonds"], graph.angles["bonds"]
    counts = bonds.ptr[1:] - bonds.ptr[:-1]
    n_bonds = bonds.idx_i.shape[0]
    offset = torch.repeat_interleave(pairs.ptr[:-1] - bonds.ptr[:-1], counts, output_size=n_bonds)
    ends = torch.stack([bonds.idx_i, bonds.idx_j], dim=1).flatten()
    return Topology(
        idx_i=pairs.idx_i,
        idx_j=pairs.idx_j,
        bond_pairs=offset + torch.arange(n_bonds, device=offset.device),
        first=angles.first // 2,
        second=angles.second // 2,
        centre=ends.index_select(0, angles.first),
    )

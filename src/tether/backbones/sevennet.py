"""SevenNet: an equivariant network for crystals and molecules, doi 10.1021/acs.jctc.4c00190.

The architecture and the weights are those of the package ``sevenn``; the modules and the forward
pass are ours, and agree with the package's to rounding (``tests/contract/test_sevennet.py``).
Pairs stand once (`sevennet_layer`), and every matrix is one: the package's are slices of flat
vectors, which low-rank adaptation would not see. The package itself is opened for its weight files
only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tether.backbones.checks import check_overlaps, check_structures
from tether.backbones.harmonics import MAX_DEGREE, coupling_table, paths, spherical_harmonics
from tether.backbones.protocol import BackboneSpec
from tether.backbones.sevennet_layer import Interaction, PairGeometry, scaled_linear
from tether.errors import TetherError
from tether.features import Features
from tether.graph import Graph, neighbour_edges
from tether.heads.derivative import forces_stress

if TYPE_CHECKING:
    from tether.structures import AtomBatch

__all__ = ["Sevennet", "SevennetConfig"]

#: Rows of the embedding: H to Pu.
N_ELEMENTS = 94
#: The training data hold none of Po, At, Rn, Fr, Ra.
ELEMENTS = tuple(z for z in range(1, N_ELEMENTS + 1) if not 84 <= z <= 88)


@dataclass(frozen=True)
class SevennetConfig:
    """Size of a SevenNet; the defaults are SevenNet-0's.

    Attributes
    ----------
    n_features : tuple of int
        Channels of each degree, from 0 on; at most four.
    n_layers : int
        Interactions; behind the last one there are scalars only.
    n_radial, n_hidden : int
        Basis functions of a distance; width of the two layers that make weights of them.
    cutoff : float
        Å.
    cutoff_on : float
        Å, where the switch to zero at `cutoff` begins; 0 for a polynomial of the whole range.
    average_neighbours : float
        Normalisation of the sums over messages.
    """

    n_features: tuple[int, ...] = (128, 64, 32)
    n_layers: int = 5
    n_radial: int = 8
    n_hidden: int = 64
    cutoff: float = 5.0
    cutoff_on: float = 4.5
    average_neighbours: float = 35.98957443237305

    def __post_init__(self) -> None:
        widths = self.n_features
        if not 1 <= len(widths) <= MAX_DEGREE + 1 or min(widths) < 1 or widths[0] < 2:
            raise TetherError(
                f"`n_features` is {widths}",
                expected=f"positive channels of degree 0, 1, … at most {MAX_DEGREE}, two of 0",
                fix="choose for example n_features=(32, 16, 8)",
            )
        for name in ("n_layers", "n_radial", "n_hidden"):
            if getattr(self, name) < 1:
                raise TetherError(
                    f"`{name}` is {getattr(self, name)}",
                    expected="a positive integer",
                    fix="leave it out for the size of 7net-0",
                )
        if not 0 <= self.cutoff_on < self.cutoff:
            raise TetherError(
                f"`cutoff_on` is {self.cutoff_on}",
                expected=f"a distance below the cutoff, {self.cutoff} Å, or 0",
                fix="set cutoff_on=0 for a polynomial",
            )


class Sevennet(nn.Module):
    """A SevenNet; `Backbone` and `Potential`.

    As the package's, it is invariant under rotation but not under reflection: mirror images differ
    a little (`parity` is off in every published network).

    Parameters
    ----------
    config : SevennetConfig, optional
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
        config: SevennetConfig | None = None,
        *,
        spec: BackboneSpec | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config or SevennetConfig()
        self.spec = spec or _random_spec(self.config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._build(self.config)
        self.float()

    def _build(self, config: SevennetConfig) -> None:
        widths = config.n_features
        n_scalars = widths[0]
        self.element_embedding = nn.Embedding(N_ELEMENTS, n_scalars)
        waves = torch.arange(1, config.n_radial + 1)
        self.frequencies = nn.Parameter(waves * (math.pi / config.cutoff))
        ends = [widths[:1], *[widths] * (config.n_layers - 1), widths[:1]]
        self.layers = nn.ModuleList(
            Interaction(
                n_in,
                n_out,
                degree=len(widths) - 1,
                n_radial=config.n_radial,
                n_hidden=config.n_hidden,
                average_neighbours=config.average_neighbours,
            )
            for n_in, n_out in pairwise(ends)
        )
        # The energy is linear in the node features, through two matrices that were trained as such.
        self.hidden = nn.Parameter(torch.randn(n_scalars // 2, n_scalars))
        self.energy = nn.Parameter(torch.randn(1, n_scalars // 2))
        # eV: what one unit of the energy stands for, and the energy of each element.
        self.register_buffer("scale", torch.ones(N_ELEMENTS))
        self.register_buffer("reference", torch.zeros(N_ELEMENTS))
        self.scale: Tensor
        self.reference: Tensor

    def prepare(self, batch: AtomBatch) -> Graph:
        """Neighbour list ``pairs``, each pair once.

        Parameters
        ----------
        batch : AtomBatch
            Crystals, slabs or molecules.

        Returns
        -------
        Graph
            On the CPU, in the precision of the weights.

        Raises
        ------
        TetherError
            For an unknown element, a cell without volume, overlapping atoms or positions that are
            not finite.
        """
        check_structures(batch, self.spec)
        pairs = neighbour_edges(batch, self.config.cutoff, full=False)
        check_overlaps(batch, pairs)
        return Graph(batch, {"pairs": pairs}).to(dtype=self.reference.dtype)

    def forward(self, graph: Graph) -> Features:
        """Scalars of every layer, and what the two atoms of a pair send each other in the last.

        Parameters
        ----------
        graph : Graph
            From `prepare`.

        Returns
        -------
        Features
            ``edge`` is the last layer's messages, averaged over both directions: they depend on
            the surroundings of the two atoms and fade at the cutoff.
        """
        pairs = graph.edges["pairs"]
        vectors = graph.vectors("pairs")
        distances = vectors.norm(dim=1)
        at = self._geometry(graph, vectors, distances)
        # Of e3nn's linear layer on one-hot elements there remains a row, and the norm.
        embedded = self.element_embedding(graph.batch.numbers - 1)
        atoms = [embedded[:, None] * len(ELEMENTS) ** -0.5]
        layers: list[Tensor] = []
        messages: list[Tensor] = []
        for layer in self.layers:
            atoms, messages = layer(atoms, at)
            layers.append(atoms[0].squeeze(1))
        return Features(
            node=layers[-1],
            layers=tuple(layers),
            edge=_both_ways(torch.cat(messages, dim=2)),
            edge_idx=torch.stack([pairs.idx_i, pairs.idx_j]),
            edge_distance=distances,
            edge_vector=vectors,
        )

    def _geometry(self, graph: Graph, vectors: Tensor, distances: Tensor) -> PairGeometry:
        pairs, highest = graph.edges["pairs"], len(self.config.n_features) - 1
        directions = vectors / distances[:, None]
        # From the receiver to the sender, in both directions of a pair.
        both = torch.stack([directions, -directions], dim=1).flatten(0, 1)
        degrees = [2 * degree + 1 for degree in range(highest + 1)]
        harmonics = spherical_harmonics(both, highest).split(degrees, dim=1)
        mixers = {}
        for path in paths(highest + 1, highest + 1, highest):
            first, third, second = path
            matrices = harmonics[second] @ coupling_table(path, both.dtype, both.device)
            mixers[path] = matrices.view(both.shape[0], 2 * third + 1, 2 * first + 1)
        return PairGeometry(
            receivers=torch.stack([pairs.idx_i, pairs.idx_j], dim=1).flatten(),
            senders=torch.stack([pairs.idx_j, pairs.idx_i], dim=1).flatten(),
            radial=self._radial(distances),
            mixers=mixers,
        )

    def _radial(self, distances: Tensor) -> Tensor:
        """Bessel functions that fade at the cutoff, shape (n_pairs, n_radial)."""
        cutoff, begin = self.config.cutoff, self.config.cutoff_on
        if begin:
            square, end, start = distances**2, cutoff**2, begin**2
            switch = (end - square) ** 2 * (end + 2 * square - 3 * start) / (end - start) ** 3
            envelope = torch.where(distances < begin, 1.0, switch)
        else:
            scaled = distances / cutoff
            envelope = 1 - scaled**6 * (28 - 48 * scaled + 21 * scaled**2)
        # A structure may be strained after its lists were built.
        factor = torch.where(distances < cutoff, envelope, 0.0) * (2 / cutoff) / distances
        basis: Tensor = factor[:, None] * torch.sin(torch.outer(distances, self.frequencies))
        return basis

    def blocks(self) -> list[tuple[str, list[nn.Parameter]]]:
        """Embeddings, then the layers; the energy head is in none."""
        layers = [(f"layer {k}", list(layer.parameters())) for k, layer in enumerate(self.layers)]
        embedding = [*self.element_embedding.parameters(), self.frequencies]
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
            eV, in the reference of the spec's level of theory.
        forces : Tensor, shape (n_atoms, 3)
            eV/Å.
        stress : Tensor or None, shape (n_systems, 3, 3)
            eV/Å³, positive under tension as in ASE; None where no structure has a cell.
        """
        batch = graph.batch
        row = batch.numbers - 1
        units = scaled_linear(scaled_linear(features.node, self.hidden), self.energy).squeeze(1)
        atomic = units * self.scale[row] + self.reference[row]
        energy = atomic.new_zeros(batch.n_systems).index_add(0, batch.system_idx, atomic)
        forces, stress = forces_stress(energy, graph, create_graph=create_graph)
        return (energy if create_graph else energy.detach()), forces, stress


def _both_ways(messages: Tensor) -> Tensor:
    """Mean over the two directions of each pair, shape (n_pairs, channels)."""
    return messages.view(messages.shape[0] // 2, 2, messages.shape[2]).mean(1)


def _random_spec(config: SevennetConfig) -> BackboneSpec:
    return BackboneSpec(
        name="sevennet",
        checkpoint="random",
        sha256="",
        licence="MIT",
        elements=ELEMENTS,
        cutoff=config.cutoff,
        n_features=config.n_features[0],
        n_layers=config.n_layers,
        level_of_theory="none",
        periodic=True,
        mirror=False,
    )

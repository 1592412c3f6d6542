"""The SO3krates architecture with SO3LR's physical terms, on the ``so3krates-torch`` package.

The modules and their initialisation are the package's. The forward pass is ours, and agrees with
the package's to rounding (``tests/contract/test_so3lr.py``): each pair of atoms is listed once,
and what is symmetric in the two atoms (radial basis, filters, physical pair terms) is computed
once. That halves the dominant cost. Source: SO3krates, doi 10.1038/s41467-024-50620-6.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tether.backbones.checks import check_overlaps, check_structures
from tether.backbones.protocol import BackboneSpec
from tether.backbones.so3krates_layer import PairGeometry, transform
from tether.backbones.weights import find_package
from tether.errors import TetherError
from tether.features import Features
from tether.graph import Graph, neighbour_edges
from tether.heads.derivative import forces_stress

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tether.structures import AtomBatch

__all__ = ["So3krates", "So3kratesConfig", "globals_restored", "package_folder"]

#: H C N O F P S Cl: what SO3LR's physical terms were fitted for.
ELEMENTS = (1, 6, 7, 8, 9, 15, 16, 17)
#: Å. The long-range terms are switched off over the last 2 Å before 12 Å, as SO3LR's authors do.
LONG_RANGE_CUTOFF, LONG_RANGE_DAMPING = 12.0, 2.0
#: Least volume of an atom relative to the free one. Dispersion has powers of it whose derivatives
#: are not finite at zero, where training may push it; real atoms have 0.5 to 1.2.
SMALLEST_RATIO = 1e-2


@dataclass(frozen=True)
class So3kratesConfig:
    """Size of a SO3krates network; the defaults are SO3LR's.

    Attributes
    ----------
    n_features : int
        Width of the invariant features; a multiple of 4, `n_heads` and ``len(degrees)``.
    n_layers, n_heads : int
        Transformer layers; attention heads.
    degrees : tuple of int
        Degrees of the spherical harmonics, at most 4.
    n_radial : int
        Radial basis functions.
    cutoff : float
        Å.
    average_neighbours : float
        Normalisation of the messages.
    """

    n_features: int = 128
    n_layers: int = 3
    n_heads: int = 4
    degrees: tuple[int, ...] = (1, 2, 3, 4)
    n_radial: int = 32
    cutoff: float = 4.5
    average_neighbours: float = 13.168995780096482

    def __post_init__(self) -> None:
        for divisor in (4, self.n_heads, len(self.degrees)):
            if self.n_features % divisor:
                raise TetherError(
                    f"`n_features` is {self.n_features}",
                    expected=f"a multiple of {divisor} (of 4, n_heads and len(degrees))",
                    fix="choose for example n_features=32, n_heads=4, degrees=(1, 2, 3, 4)",
                )


class So3krates(nn.Module):
    """A SO3krates network with SO3LR's physical terms; `Backbone` and `Potential`.

    Parameters
    ----------
    config : So3kratesConfig
        Size of the network.
    spec : BackboneSpec, optional
        What is known about the weights; default: random weights of this size.
    seed : int
        Of the random weights; the global generator is left as it was.
    """

    spec: BackboneSpec

    def __init__(
        self,
        config: So3kratesConfig | None = None,
        *,
        spec: BackboneSpec | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config or So3kratesConfig()
        self.spec = spec or _random_spec(self.config)
        self.network = _build_network(self.config, seed)
        parity = [(-1.0) ** degree for degree in self.config.degrees for _ in range(2 * degree + 1)]
        self.register_buffer("parity", torch.tensor(parity), persistent=False)
        self.parity: Tensor

    def prepare(self, batch: AtomBatch) -> Graph:
        """Neighbour lists, each pair once: ``short`` for messages, ``long`` for physical terms.

        Parameters
        ----------
        batch : AtomBatch
            Molecules.

        Returns
        -------
        Graph
            On the CPU, in the precision of the weights.

        Raises
        ------
        TetherError
            For an unknown element, a cell, overlapping atoms or positions that are not finite.
        """
        check_structures(batch, self.spec)
        edges = {
            "short": neighbour_edges(batch, self.spec.cutoff, full=False),
            "long": neighbour_edges(batch, LONG_RANGE_CUTOFF, full=False),
        }
        check_overlaps(batch, edges["long"])
        return Graph(batch, edges).to(dtype=self.parity.dtype)

    def forward(self, graph: Graph) -> Features:
        """Invariant node features of every layer, and symmetric edge features of the last.

        Parameters
        ----------
        graph : Graph
            From `prepare`.

        Returns
        -------
        Features
            ``edge`` is the element-wise attention product, averaged over both directions.
        """
        net, edges = self.network, graph.edges["short"]
        # The package's convention: a vector points to the receiving atom.
        vectors = -graph.vectors("short")
        distances = vectors.norm(dim=-1, keepdim=True)
        harmonics = net.spherical_harmonics(vectors / (distances + 1e-8))
        cutoffs = net.cutoff_fn(distances)
        geometry = PairGeometry(
            receivers=torch.cat([edges.idx_i, edges.idx_j]),
            senders=torch.cat([edges.idx_j, edges.idx_i]),
            idx_i=edges.idx_i,
            idx_j=edges.idx_j,
            radial=net.radial_embedding(distances),
            harmonics=torch.cat([harmonics, harmonics * self.parity]),
            cutoffs=torch.cat([cutoffs, cutoffs]),
        )
        invariant = self._embed(graph.batch)
        euclidean = harmonics.new_zeros(invariant.shape[0], harmonics.shape[1])
        layers: list[Tensor] = []
        edge = invariant.new_zeros(edges.idx_i.shape[0], invariant.shape[1])
        for layer in net.euclidean_transformers:
            invariant, euclidean, edge = transform(layer, invariant, euclidean, geometry)
            layers.append(invariant)
        return Features(
            node=invariant,
            layers=tuple(layers),
            edge=edge,
            edge_idx=torch.stack([edges.idx_i, edges.idx_j]),
            edge_distance=distances.squeeze(1),
            edge_vector=-vectors,
        )

    def _embed(self, batch: AtomBatch) -> Tensor:
        net = self.network
        weight = net.inv_feature_embedding.embedding.weight
        embedded: Tensor = weight.t().index_select(0, batch.numbers - 1)
        # For a neutral closed shell both terms are exactly zero, so they are not computed.
        if batch.is_charged:
            one_hot = nn.functional.one_hot(batch.numbers - 1, net.num_elements).to(weight.dtype)
            segments, n_systems = batch.system_idx, batch.n_systems
            for module, value in (
                (net.charge_embedding, batch.charge),
                (net.spin_embedding, batch.spin),
            ):
                embedded = embedded + module(
                    one_hot, value.to(weight.dtype), segments, num_graphs=n_systems
                )
        scaled: Tensor = embedded / net.embedding_scale
        return scaled

    def blocks(self) -> list[tuple[str, list[nn.Parameter]]]:
        """Embedding, then the transformer layers; the energy head is in none."""
        net = self.network
        embedding = [
            *net.inv_feature_embedding.parameters(),
            *net.charge_embedding.parameters(),
            *net.spin_embedding.parameters(),
        ]
        layers = [
            (f"layer {i}", list(layer.parameters()))
            for i, layer in enumerate(net.euclidean_transformers)
        ]
        return [("embedding", embedding), *layers]

    def energy_forces(
        self, graph: Graph, features: Features, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Energy (eV) and forces (eV/Å) of SO3LR: learned, repulsion, charges, dispersion.

        Parameters
        ----------
        graph : Graph
            From `Graph.differentiable`.
        features : Features
            Of that graph.
        create_graph : bool
            Keep forces differentiable for training.

        Returns
        -------
        energy : Tensor, shape (n_systems,)
            eV; only differences mean anything, SO3LR was trained on forces.
        forces : Tensor, shape (n_atoms, 3)
            eV/Å.
        stress : None
            There is no cell.
        """
        net, batch = self.network, graph.batch
        node, numbers, n_atoms = features.node, batch.numbers, batch.n_atoms
        edges = graph.edges["long"]
        distances = graph.vectors("long").norm(dim=-1)
        pairs = {
            "senders_lr": edges.idx_j,
            "receivers_lr": edges.idx_i,
            "lengths_lr": distances,
            "num_nodes": n_atoms,
            "cutoff_lr": LONG_RANGE_CUTOFF,
        }
        charges = net.partial_charges_output_block(
            inv_features=node,
            atomic_numbers=numbers,
            total_charge=batch.charge.to(node.dtype),
            batch_segments=batch.system_idx,
            num_graphs=batch.n_systems,
        )
        electrostatic = net.electrostatic_potential(
            partial_charges=charges,
            electrostatic_energy_scale=net.electrostatic_energy_scale,
            **pairs,
        )
        ratios = net.hirshfeld_output_block(inv_features=node, atomic_numbers=numbers)
        dispersion = net.dispersion_potential(
            hirshfeld_ratios=ratios.clamp(min=SMALLEST_RATIO),
            atomic_numbers=numbers,
            cutoff_lr_damping=LONG_RANGE_DAMPING,
            dispersion_energy_scale=net.dispersion_energy_scale,
            **pairs,
        )
        atomic = self._atomic_energy(node, numbers) + self._repulsion(graph)
        atomic = atomic + electrostatic.squeeze(1) + dispersion.squeeze(1)
        energy = atomic.new_zeros(batch.n_systems).index_add(0, batch.system_idx, atomic)
        forces, stress = forces_stress(energy, graph, create_graph=create_graph)
        return (energy if create_graph else energy.detach()), forces, stress

    def _atomic_energy(self, node: Tensor, numbers: Tensor) -> Tensor:
        head = self.network.atomic_energy_output_block
        hidden = node
        for layer in head.layers:
            hidden = silu(layer(hidden))
        scale = head.energy_scales.weight[0].index_select(0, numbers - 1)
        shift = head.energy_shifts.index_select(0, numbers - 1)
        energy: Tensor = head.final_layer(hidden).squeeze(1) * scale + shift
        return energy

    def _repulsion(self, graph: Graph) -> Tensor:
        edges = graph.edges["short"]
        distances = graph.vectors("short").norm(dim=-1, keepdim=True)
        energy: Tensor = self.network.zbl_repulsion(
            atomic_numbers=graph.batch.numbers,
            cutoffs=self.network.cutoff_fn(distances),
            senders=edges.idx_j,
            receivers=edges.idx_i,
            lengths=distances,
            num_nodes=graph.batch.n_atoms,
        )
        # The package halves each pair's term because it lists pairs twice; here they stand once.
        return 2 * energy.squeeze(1)


def _random_spec(config: So3kratesConfig) -> BackboneSpec:
    return BackboneSpec(
        name="so3krates",
        checkpoint="random",
        sha256="",
        licence="MIT",
        elements=ELEMENTS,
        cutoff=config.cutoff,
        n_features=config.n_features,
        n_layers=config.n_layers,
        level_of_theory="none",
        periodic=False,
        charge=True,
        spin=True,
    )


@contextmanager
def globals_restored() -> Iterator[None]:
    """The package sets the default dtype and prints options for the whole process; undo that."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_printoptions(profile="default")


def package_folder() -> Path:
    """Folder of the installed ``so3krates_torch``, found without importing it.

    Returns
    -------
    Path
        The package's folder.

    Raises
    ------
    TetherError
        When it is not installed.
    """
    return find_package("so3krates_torch", distribution="so3krates-torch 0.2", extra="so3lr")


def _build_network(config: So3kratesConfig, seed: int) -> Any:
    package_folder()
    with globals_restored():
        from so3krates_torch.modules.models import SO3LR

        torch.manual_seed(seed)
        network = SO3LR(
            r_max=config.cutoff,
            num_radial_basis_fn=config.n_radial,
            degrees=list(config.degrees),
            num_features=config.n_features,
            num_heads=config.n_heads,
            num_layers=config.n_layers,
            avg_num_neighbors=config.average_neighbours,
            energy_regression_dim=config.n_features,
            message_normalization="avg_num_neighbors",
            radial_basis_fn="bernstein",
            cutoff_fn="phys",
            energy_learn_atomic_type_shifts=True,
            energy_learn_atomic_type_scales=True,
            layer_normalization_1=True,
            layer_normalization_2=True,
            residual_mlp_1=True,
            use_charge_embed=True,
            use_spin_embed=True,
            r_max_lr=LONG_RANGE_CUTOFF,
            dispersion_energy_cutoff_lr_damping=LONG_RANGE_DAMPING,
            neighborlist_format_lr="ordered_sparse",
            seed=seed,
        )
    network.requires_grad_()
    return network

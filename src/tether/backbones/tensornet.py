"""TensorNet, arXiv 2306.06482: Cartesian tensors, on the ``torchmd-net`` package.

The modules and their initialisation are the package's. The forward pass is ours, and agrees with
the package's to rounding (``tests/contract/test_tensornet.py``): it takes neighbours from `Graph`,
crystals of any cell included, lists each pair once, computes what is symmetric in its two atoms
once, and needs no kernel to be compiled. No weights are published with the package: this is the
task-specific model that a pretrained one is compared with, and one to pretrain.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tether.backbones.checks import check_overlaps, check_structures
from tether.backbones.protocol import BackboneSpec
from tether.backbones.tensornet_layer import (
    PART,
    PairGeometry,
    embed,
    interact,
    pair_coordinates,
    part_norms,
    tensor_basis,
)
from tether.backbones.weights import find_package
from tether.errors import TetherError
from tether.features import Features
from tether.graph import Graph, neighbour_edges
from tether.heads.derivative import forces_stress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tether.structures import AtomBatch

__all__ = ["Tensornet", "TensornetConfig"]

#: H to Fm have a row of the embedding; row 0 is never read.
ELEMENTS = tuple(range(1, 101))


@dataclass(frozen=True)
class TensornetConfig:
    """Size of a TensorNet; the defaults give 200,000 parameters.

    Attributes
    ----------
    n_features : int
        Channels of each atom's tensor, and width of the features.
    n_layers : int
        Interaction layers.
    n_radial : int
        Radial basis functions.
    cutoff : float
        Å.
    """

    n_features: int = 64
    n_layers: int = 2
    n_radial: int = 32
    cutoff: float = 5.0

    def __post_init__(self) -> None:
        for name, least in (("n_features", 2), ("n_layers", 1), ("n_radial", 2)):
            if getattr(self, name) < least:
                raise TetherError(
                    f"`{name}` is {getattr(self, name)}",
                    expected=f"{least} or more",
                    fix=f"set backbone.options.{name}={getattr(TensornetConfig, name)}",
                )
        if not self.cutoff > 0.0:
            raise TetherError(
                f"`cutoff` is {self.cutoff}",
                expected="a positive distance in Å",
                fix="set backbone.options.cutoff=5.0",
            )


class Tensornet(nn.Module):
    """A TensorNet with random weights; `Backbone` and `Potential`.

    Charges enter as the package has them, as a factor of the products of tensors; spins are not
    known to the architecture.

    Parameters
    ----------
    config : TensornetConfig, optional
        Size of the network.
    spec : BackboneSpec, optional
        What is known about the weights; default: random weights of this size.
    seed : int
        Of the random weights; the global generator is left as it was.
    """

    spec: BackboneSpec

    def __init__(
        self,
        config: TensornetConfig | None = None,
        *,
        spec: BackboneSpec | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config or TensornetConfig()
        self.spec = spec or _random_spec(self.config)
        self.network, self.energy = _build(self.config, seed)
        # Energy of each element, eV; zero until trained.
        self.register_buffer("reference", torch.zeros(len(ELEMENTS) + 1))
        self.register_buffer("part", torch.tensor(PART), persistent=False)
        self.reference: Tensor
        self.part: Tensor

    def prepare(self, batch: AtomBatch) -> Graph:
        """Neighbour list ``pairs``, each pair once.

        Parameters
        ----------
        batch : AtomBatch
            Molecules or crystals.

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
        pairs = neighbour_edges(batch, self.spec.cutoff, full=False)
        check_overlaps(batch, pairs)
        return Graph(batch, {"pairs": pairs}).to(dtype=self.reference.dtype)

    def forward(self, graph: Graph) -> Features:
        """Node features of every layer, and symmetric edge features of the last.

        Parameters
        ----------
        graph : Graph
            From `prepare`.

        Returns
        -------
        Features
            ``layers`` are the squared norms of each atom's scalar, vector and tensor part
            (3 ``n_features``), but for the last, which is ``node``. ``edge`` is the scalar part of
            the messages, averaged over both directions.
        """
        net, edges, batch = self.network, graph.edges["pairs"], graph.batch
        # The package's convention: a vector points to the receiving atom.
        vectors = -graph.vectors("pairs")
        distances = vectors.norm(dim=-1)
        basis = tensor_basis(vectors.dtype, vectors.device)
        geometry = PairGeometry(
            receivers=torch.cat([edges.idx_i, edges.idx_j]),
            senders=torch.cat([edges.idx_j, edges.idx_i]),
            radial=net.distance_expansion(distances),
            cutoffs=net.tensor_embedding.cutoff(distances)[:, None],
            coordinates=pair_coordinates(vectors / distances[:, None], basis),
            own_radial=net.distance_expansion(distances.new_zeros(1)),
            part=self.part,
            basis=basis,
        )
        charge = None
        if batch.is_charged:
            charge = batch.charge.to(distances.dtype).index_select(0, batch.system_idx)
        parts = embed(net.tensor_embedding, batch.numbers, geometry)
        layers: list[Tensor] = []
        edge = parts.new_zeros(distances.shape[0], parts.shape[2])
        for layer in net.layers:
            parts, edge = interact(layer, parts, geometry, charge)
            layers.append(part_norms(parts))
        node: Tensor = net.act(net.linear(net.out_norm(layers.pop())))
        return Features(
            node=node,
            layers=(*layers, node),
            edge=edge,
            edge_idx=torch.stack([edges.idx_i, edges.idx_j]),
            edge_distance=distances,
            edge_vector=-vectors,
        )

    def blocks(self) -> list[tuple[str, list[nn.Parameter]]]:
        """Embedding, then the layers, the last with what reads it; the energy head is in none."""
        net = self.network
        layers = [(f"layer {k}", list(layer.parameters())) for k, layer in enumerate(net.layers)]
        layers[-1][1].extend([*net.out_norm.parameters(), *net.linear.parameters()])
        return [("embedding", list(net.tensor_embedding.parameters())), *layers]

    def energy_forces(
        self, graph: Graph, features: Features, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Energy, forces and stress; they mean nothing before the head is trained.

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
            eV.
        forces : Tensor, shape (n_atoms, 3)
            eV/Å.
        stress : Tensor or None, shape (n_systems, 3, 3)
            eV/Å³, positive under tension; None without a cell.
        """
        batch = graph.batch
        atomic = self.energy(features.node).squeeze(1) + self.reference[batch.numbers]
        energy = atomic.new_zeros(batch.n_systems).index_add(0, batch.system_idx, atomic)
        forces, stress = forces_stress(energy, graph, create_graph=create_graph)
        return (energy if create_graph else energy.detach()), forces, stress


def _random_spec(config: TensornetConfig) -> BackboneSpec:
    return BackboneSpec(
        name="tensornet",
        checkpoint="random",
        sha256="",
        licence="MIT",
        elements=ELEMENTS,
        cutoff=config.cutoff,
        n_features=config.n_features,
        n_layers=config.n_layers,
        level_of_theory="none",
        periodic=True,
        charge=True,
    )


def _build(config: TensornetConfig, seed: int) -> tuple[Any, nn.Module]:
    """The package's representation and energy head."""
    find_package("torchmdnet", distribution="torchmd-net 3.1", extra="tensornet")
    with torch.random.fork_rng(devices=[]), _quiet_warp():
        from torchmdnet.models.output_modules import Scalar
        from torchmdnet.models.tensornet import TensorNet

        torch.manual_seed(seed)
        network = TensorNet(
            hidden_channels=config.n_features,
            num_layers=config.n_layers,
            num_rbf=config.n_radial,
            cutoff_upper=config.cutoff,
            max_z=len(ELEMENTS) + 1,
        )
        head = Scalar(config.n_features).output_network
    return network, head


@contextmanager
def _quiet_warp() -> Iterator[None]:
    """The package starts warp, whose kernels are not used here; it would announce itself."""
    import warp

    before = warp.config.log_level
    warp.config.log_level = warp.LOG_ERROR
    try:
        yield
    finally:
        warp.config.log_level = before

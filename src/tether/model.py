"""`AdaptedModel`: one backbone, and one head for each target."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from tether.backbones.protocol import Potential
from tether.data.pieces import pieces
from tether.errors import TetherError
from tether.extract import fingerprints
from tether.features import Features
from tether.graph import Graph

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping

    import numpy as np

    from tether.backbones.protocol import Backbone
    from tether.heads.denoising import DenoisingHead
    from tether.heads.energy import EnergyHead
    from tether.heads.pair import PairHead
    from tether.heads.readout import PropertyHead
    from tether.structures import AtomBatch

__all__ = ["AdaptedModel"]


class AdaptedModel(nn.Module):
    """A backbone with property heads; the pretrained potential stays inside the backbone.

    Parameters
    ----------
    backbone : Backbone
        Also a ``torch.nn.Module``.
    heads : iterable of PropertyHead
        One a target.
    denoising : DenoisingHead or PairHead, optional
        Of an auxiliary task; predictions do not read it.
    potentials : mapping of str to EnergyHead, optional
        Energy heads beside the backbone's own, in pretraining; predictions do not read them.
    keep_pretrained : bool
        Keep a frozen copy of the backbone as it is now, for heads that read its features, too.

    Raises
    ------
    TetherError
        For a target that occurs twice, or a name that torch cannot hold.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Iterable[PropertyHead],
        denoising: DenoisingHead | PairHead | None = None,
        potentials: Mapping[str, EnergyHead] | None = None,
        *,
        keep_pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        # A ModuleDict, so that torch finds the heads' weights; the cast says what is in it.
        self.heads = cast("MutableMapping[str, PropertyHead]", nn.ModuleDict())
        for head in heads:
            name = head.target.name
            if not name or "." in name or hasattr(self.heads, name) or name in self.heads:
                raise TetherError(
                    f"target name {name!r}",
                    expected="a name without a dot, given once, no method of torch's ModuleDict",
                    fix="rename the label when the store is prepared",
                )
            self.heads[name] = head
        self.denoising = denoising
        self.potentials = nn.ModuleDict(potentials or {})
        self.pretrained: nn.Module | None = None
        if keep_pretrained:
            self.pretrained = deepcopy(self._backbone_module()).requires_grad_(requires_grad=False)

    @property
    def device(self) -> torch.device:
        """Where its weights are; graphs are moved there a batch at a time."""
        return next(self.parameters()).device

    @property
    def is_potential(self) -> bool:
        """Whether the backbone has a pretrained energy head."""
        return isinstance(self.backbone, Potential)

    def block_parameters(self) -> list[nn.Parameter]:
        """Parameters of the representation: what all tasks share."""
        return [parameter for _, block in self.backbone.blocks() for parameter in block]

    def potential_parameters(self) -> list[nn.Parameter]:
        """Parameters of the backbone outside the representation: its energy head."""
        shared = {id(parameter) for parameter in self.block_parameters()}
        return [p for p in self._backbone_module().parameters() if id(p) not in shared]

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters of all heads but the backbone's own energy head."""
        heads: list[nn.Module] = [*self.heads.values(), *self.potentials.values()]
        if self.denoising is not None:
            heads.append(self.denoising)
        return [parameter for head in heads for parameter in head.parameters()]

    @torch.no_grad()
    def with_features(self, graph: Graph, *, batch_size: int = 64) -> Graph:
        """The structures with the node features of what stays as it is, computed once.

        Parameters
        ----------
        graph : Graph
            Prepared structures.
        batch_size : int
            Structures at a time.

        Returns
        -------
        Graph
            Heads read it as before. With those of the pretrained copy it keeps its edges; with
            those of the backbone itself it has none, so that no backbone can be run on it.
        """
        frozen = self.pretrained or self._backbone_module()
        parts = [frozen(piece).node.cpu() for piece in self._pieces(graph, batch_size)]
        if self.pretrained is not None:
            return replace(graph, features=torch.cat(parts))
        return Graph(graph.batch, {}, features=torch.cat(parts))

    def features(self, graph: Graph) -> Features:
        """Backbone features of a prepared graph; those that it has, where it has some."""
        if graph.features is not None and self.pretrained is None:
            return Features(node=graph.features)
        features: Features = self._backbone_module()(graph)
        return features

    def forward(self, graph: Graph) -> dict[str, Tensor]:
        """Standardised prediction of every head, by target name."""
        features = self.features(graph)
        if self.pretrained is not None:
            features = replace(features, pretrained=self._pretrained_nodes(graph))
        return {name: head(features, graph.batch) for name, head in self.heads.items()}

    def energy_forces(
        self, graph: Graph, *, create_graph: bool = False, head: str | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Energy, forces and stress of the pretrained head on the present features.

        Parameters
        ----------
        graph : Graph
            Prepared; made differentiable here.
        create_graph : bool
            Keep forces differentiable, for training.
        head : str, optional
            One of `potentials`; default: the backbone's own.

        Returns
        -------
        energy, forces, stress
            See `Potential.energy_forces`.

        Raises
        ------
        TetherError
            When the backbone has no potential.
        """
        if head is not None:
            leaf = graph.differentiable()
            outputs: tuple[Tensor, Tensor, Tensor | None] = self.potentials[head](
                leaf, self.features(leaf), create_graph=create_graph
            )
            return outputs
        if not isinstance(self.backbone, Potential):
            raise TetherError(
                f"backbone {self.backbone.spec.name!r} has no energy head",
                expected="a potential",
                fix="choose a recipe without a force-field task, or another backbone",
            )
        leaf = graph.differentiable()
        return self.backbone.energy_forces(leaf, self.features(leaf), create_graph=create_graph)

    @torch.no_grad()
    def predict(self, graph: Graph, *, batch_size: int = 64) -> dict[str, np.ndarray]:
        """Predictions in the unit of each target; keeps no autograd graph.

        Parameters
        ----------
        graph : Graph
            Prepared structures.
        batch_size : int
            Structures at a time.

        Returns
        -------
        dict of str to ndarray, shape (n_systems,) or (n_systems, k); atoms for atom targets
        """
        parts: dict[str, list[Tensor]] = {name: [] for name in self.heads}
        for piece in self._pieces(graph, batch_size):
            for name, output in self(piece).items():
                parts[name].append(self.heads[name].physical(output, piece.batch).cpu())
        return {name: _squeeze(torch.cat(values)) for name, values in parts.items()}

    def fingerprint(self, batch: AtomBatch, *, batch_size: int = 64) -> np.ndarray:
        """Mean node features of each structure, shape (n_systems, n_features)."""
        return fingerprints(self.backbone, pieces(batch, batch_size))

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer once, by name: what a checkpoint holds."""
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors in; every one of this model must be there, none may be left over.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            From `tensors`, as read from a file.

        Raises
        ------
        TetherError
            For a missing, unknown or wrongly shaped tensor.
        """
        own = self.tensors()
        if own.keys() != tensors.keys():
            wrong = sorted(own.keys() ^ tensors.keys())
            raise TetherError(
                f"{len(wrong)} tensors do not match, the first is {wrong[0]!r}",
                expected="the weights of this backbone and these targets",
                fix="load the run with the config that made it",
            )
        with torch.no_grad():
            for name, tensor in own.items():
                if tensor.shape != tensors[name].shape:
                    raise TetherError(
                        f"tensor {name!r} has shape {tuple(tensors[name].shape)}",
                        expected=f"{tuple(tensor.shape)}",
                        fix="load the run with the config that made it",
                    )
                tensor.copy_(tensors[name])

    @torch.no_grad()
    def _pretrained_nodes(self, graph: Graph) -> Tensor:
        assert self.pretrained is not None
        known = graph.features
        nodes: Tensor = self.pretrained(graph).node if known is None else known
        return nodes

    def _pieces(self, graph: Graph, batch_size: int) -> Iterable[Graph]:
        for start in range(0, graph.n_systems, batch_size):
            rows = torch.arange(start, min(start + batch_size, graph.n_systems))
            yield graph.select(rows).to(self.device)

    def _backbone_module(self) -> nn.Module:
        module: object = self.backbone
        if not isinstance(module, nn.Module):
            raise TypeError(f"{type(module).__name__} is not a torch.nn.Module")
        return module


def _squeeze(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.numpy()
    return array[:, 0] if array.shape[1] == 1 else array

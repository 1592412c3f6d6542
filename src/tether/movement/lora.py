"""LoRA: the backbone stays frozen under low-rank updates, which are merged when it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tether.errors import TetherError
from tether.movement.groups import ParameterGroup

if TYPE_CHECKING:
    from tether.model import AdaptedModel

__all__ = ["Lora", "merge", "merged_tensors"]


class LowRank(nn.Module):
    """``W + up @ down``, for the matrix in the last two dimensions; `up` is zero at first.

    Parameters
    ----------
    weight : Tensor, shape (…, n_out, n_in)
        W.
    rank : int
        At most; a smaller matrix has the rank that it can have.
    generator : torch.Generator
        Of `down`.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        *stack, n_out, n_in = weight.shape
        rank = min(rank, n_out, n_in)
        bound = (3.0 / n_in) ** 0.5  # a variance of 1/n_in
        down = torch.empty(*stack, rank, n_in).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(*stack, n_out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight."""
        return weight + self.up @ self.down


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation (E. Hu et al., arXiv 2106.09685) of every matrix of the representation.

    Matrices are those of linear layers, embeddings and attention, one a head where they are
    stacked; biases and normalisations stay frozen. The update is not scaled (α = r in the
    paper). The potential's own head moves in full, as it does with the other movements.

    Attributes
    ----------
    rank : int
        Of each update, r.
    seed : int
        Of the initial updates, whose product is zero.
    """

    rank: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise TetherError(
                f"`rank` is {self.rank}", expected="a positive integer", fix="set rank=8"
            )

    def apply(self, model: AdaptedModel) -> list[ParameterGroup]:
        """Groups of the updates by block, of the potential and of the heads."""
        potential = model.potential_parameters()
        owners = {
            id(parameter): (module, name)
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False)
        }
        generator = torch.Generator().manual_seed(self.seed)
        groups = []
        for block, parameters in model.backbone.blocks():
            updates: list[nn.Parameter] = []
            for parameter in parameters:
                parameter.requires_grad_(False)  # noqa: FBT003 (torch's signature)
                if parameter.ndim >= 2:
                    module, name = owners[id(parameter)]
                    update = LowRank(parameter.detach(), self.rank, generator)
                    parametrize.register_parametrization(module, name, update)
                    updates += [update.up, update.down]
            groups.append(ParameterGroup(block, updates))
        return [
            *groups,
            ParameterGroup("potential", potential),
            ParameterGroup("heads", model.head_parameters()),
        ]


def merged_tensors(model: AdaptedModel) -> dict[str, Tensor]:
    """What `AdaptedModel.tensors` would be after `merge`: the names of a model without LoRA.

    Parameters
    ----------
    model : AdaptedModel
        With or without updates.

    Returns
    -------
    dict of str to Tensor
        By name.
    """
    tensors = {}
    for name, tensor in model.tensors().items():
        owner, updated, rest = name.partition(".parametrizations.")
        weight, _, part = rest.partition(".")
        if not updated:
            tensors[name] = tensor
        elif part == "original":
            tensors[f"{owner}.{weight}"] = getattr(model.get_submodule(owner), weight)
    return tensors


def merge(model: AdaptedModel) -> None:
    """Add the updates to the weights for good; nothing happens to a model without any.

    Parameters
    ----------
    model : AdaptedModel
        Changed in place.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            assert isinstance(module.parametrizations, nn.ModuleDict)
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)

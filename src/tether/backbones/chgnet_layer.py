"""CHGNet's layers over pairs and angles listed once; the weights are the package's.

Every message of CHGNet is a gated perceptron of concatenated features (of two atoms and a bond, or
of two bonds, an angle and an atom). Its first linear layer is a sum over those parts, so each part
is multiplied once, where it lives, and only the products are gathered: a bond is multiplied once
and not for each of its angles. Core and gate stand in one tensor. Source: arXiv 2302.14231.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["AngleUpdate", "AtomConvolution", "BondConvolution", "Topology"]


@dataclass(frozen=True)
class Topology:
    """Who meets whom, in a batch.

    Attributes
    ----------
    idx_i, idx_j : Tensor, shape (n_pairs,)
        Atoms of each pair within the atom cutoff.
    bond_pairs : Tensor, shape (n_bonds,)
        The pairs that are bonds: within the bond cutoff.
    first, second : Tensor, shape (n_angles,)
        Bonds of each angle, numbered over the bonds.
    centre : Tensor, shape (n_angles,)
        Atom of each angle.
    """

    idx_i: Tensor
    idx_j: Tensor
    bond_pairs: Tensor
    first: Tensor
    second: Tensor
    centre: Tensor


class _GatedPerceptron(nn.Module):
    """``silu(core) * sigmoid(gate)`` of a sum of linear parts, twice `width` wide.

    Parameters
    ----------
    n_parts : int
        Features that the package concatenates, each `width` wide.
    width : int
        Of input parts and output.
    hidden : bool
        Whether there is a second linear layer.
    normalised : bool
        Whether core and gate go through a layer normalisation.
    """

    def __init__(self, n_parts: int, width: int, *, hidden: bool, normalised: bool) -> None:
        super().__init__()
        self.width = width
        self.parts = nn.Parameter(torch.empty(n_parts, width, 2 * width))
        self.bias = nn.Parameter(torch.empty(2 * width))
        self.hidden = nn.Parameter(torch.empty(2, width, width)) if hidden else None
        # Of core and gate in one dimension: what is no matrix neither decays nor has a rank.
        self.hidden_bias = nn.Parameter(torch.empty(2 * width)) if hidden else None
        self.scale = nn.Parameter(torch.ones(2 * width)) if normalised else None
        self.shift = nn.Parameter(torch.zeros(2 * width)) if normalised else None
        # The distribution of torch's linear layers, which the package leaves as it is.
        for tensor, n_in in (
            (self.parts, n_parts * width),
            (self.bias, n_parts * width),
            (self.hidden, width),
            (self.hidden_bias, width),
        ):
            if tensor is not None:
                nn.init.uniform_(tensor, -(n_in**-0.5), n_in**-0.5)

    def forward(self, total: Tensor) -> Tensor:
        """From the sum of products, shape (…, 2 width), to the message, shape (…, width)."""
        halves: Sequence[Tensor] = (total + self.bias).split(self.width, dim=-1)
        if self.hidden is not None and self.hidden_bias is not None:
            halves = [
                silu(half) @ weight + bias
                for half, weight, bias in zip(
                    halves, self.hidden, self.hidden_bias.view(2, -1), strict=True
                )
            ]
        if self.scale is not None and self.shift is not None:
            halves = [
                layer_norm(half, (self.width,), scale, shift)
                for half, scale, shift in zip(
                    halves, self.scale.view(2, -1), self.shift.view(2, -1), strict=True
                )
            ]
        core, gate = halves
        return silu(core) * torch.sigmoid(gate)


class AtomConvolution(nn.Module):
    """Messages over pairs, to both atoms."""

    def __init__(self, width: int, *, normalised: bool, out_bias: bool) -> None:
        super().__init__()
        self.message = _GatedPerceptron(3, width, hidden=True, normalised=normalised)
        self.out = nn.Linear(width, width, bias=out_bias)

    def forward(self, atoms: Tensor, pairs: Tensor, weights: Tensor, at: Topology) -> Tensor:
        """Updated atoms.

        Parameters
        ----------
        atoms : Tensor, shape (n_atoms, width)
            Features.
        pairs, weights : Tensor, shape (n_pairs, width)
            Features, and the factors that fade with the distance.
        at : Topology
            Of the batch.

        Returns
        -------
        Tensor, shape (n_atoms, width)
        """
        centre, pair, neighbour = self.message.parts
        centres, neighbours = atoms @ centre, atoms @ neighbour
        total = torch.stack(
            [
                centres.index_select(0, at.idx_i) + neighbours.index_select(0, at.idx_j),
                centres.index_select(0, at.idx_j) + neighbours.index_select(0, at.idx_i),
            ]
        )
        messages = self.message(total + pairs @ pair) * weights
        gathered = torch.zeros_like(atoms).index_add(
            0, torch.cat([at.idx_i, at.idx_j]), messages.flatten(0, 1)
        )
        updated: Tensor = atoms + self.out(gathered)
        return updated


class BondConvolution(nn.Module):
    """Messages over angles, to both bonds."""

    def __init__(self, width: int, *, normalised: bool, out_bias: bool) -> None:
        super().__init__()
        self.message = _GatedPerceptron(4, width, hidden=True, normalised=normalised)
        self.out = nn.Linear(width, width, bias=out_bias)

    def forward(
        self, atoms: Tensor, bonds: Tensor, angles: Tensor, weights: Tensor, at: Topology
    ) -> Tensor:
        """Change of the bonds, without the bias of the package's older checkpoint.

        Parameters
        ----------
        atoms : Tensor, shape (n_atoms, width)
            Features.
        bonds : Tensor, shape (n_bonds, width)
            Features.
        angles : Tensor, shape (2 or 1, n_angles, width)
            Features in the direction first ← second and back; one where both are the same.
        weights : Tensor, shape (n_bonds, width)
            Factors that fade with the distance.
        at : Topology
            Of the batch.

        Returns
        -------
        Tensor, shape (n_bonds, width)
        """
        messages = self.message(_angle_total(self.message, atoms, bonds, angles, at))
        faded = messages * weights.index_select(0, at.first) * weights.index_select(0, at.second)
        gathered = torch.zeros_like(bonds).index_add(
            0, torch.cat([at.first, at.second]), faded.flatten(0, 1)
        )
        change: Tensor = gathered @ self.out.weight.t()
        return change


class AngleUpdate(nn.Module):
    """Angles from their two bonds and their atom."""

    def __init__(self, width: int, *, normalised: bool) -> None:
        super().__init__()
        self.message = _GatedPerceptron(4, width, hidden=False, normalised=normalised)

    def forward(self, atoms: Tensor, bonds: Tensor, angles: Tensor, at: Topology) -> Tensor:
        """Updated angles; see `BondConvolution.forward`.

        Parameters
        ----------
        atoms, bonds, angles : Tensor
            Features.
        at : Topology
            Of the batch.

        Returns
        -------
        Tensor, shape (2, n_angles, width)
            In the direction first ← second and back.
        """
        updated: Tensor = angles + self.message(
            _angle_total(self.message, atoms, bonds, angles, at)
        )
        return updated


def _angle_total(
    message: _GatedPerceptron, atoms: Tensor, bonds: Tensor, angles: Tensor, at: Topology
) -> Tensor:
    """Sum of the linear parts of a message over angles, shape (2, n_angles, 2 width)."""
    receiver, sender, angle, centre = message.parts
    receivers, senders = bonds @ receiver, bonds @ sender
    total = torch.stack(
        [
            receivers.index_select(0, at.first) + senders.index_select(0, at.second),
            receivers.index_select(0, at.second) + senders.index_select(0, at.first),
        ]
    )
    shared = (atoms @ centre).index_select(0, at.centre)
    summed: Tensor = total + (angles @ angle + shared)
    return summed

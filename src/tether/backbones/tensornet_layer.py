"""TensorNet's layers over pairs listed once; the weights are ``torchmd-net``'s.

A 3×3 matrix is the sum of a multiple of the identity, an antisymmetric and a symmetric traceless
one: 1 + 3 + 5 numbers. Features are kept as these nine coordinates in an orthonormal basis, where
norms are sums of squares and the parts are slices; only the two matrix products leave it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

__all__ = [
    "PART",
    "PairGeometry",
    "embed",
    "interact",
    "pair_coordinates",
    "part_norms",
    "tensor_basis",
]

#: Part of each of the nine coordinates: scalar, vector, tensor.
PART = (0, 1, 1, 1, 2, 2, 2, 2, 2)


@cache
def tensor_basis(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Orthonormal basis of the 3×3 matrices, one part after the other.

    Parameters
    ----------
    dtype : torch.dtype
        Of the result. No buffer of a network: it would be rounded with the weights.
    device : torch.device
        Where it is needed.

    Returns
    -------
    Tensor, shape (9, 9)
        Row p is the flattened matrix of coordinate p; its transpose is its inverse.
    """
    x, y, z = torch.eye(3, dtype=torch.float64)

    def pair(first: Tensor, second: Tensor, sign: float) -> Tensor:
        return torch.outer(first, second) + sign * torch.outer(second, first)

    def square(first: Tensor) -> Tensor:
        return torch.outer(first, first)

    rows = [
        torch.eye(3, dtype=torch.float64),
        *(pair(z, y, -1.0), pair(x, z, -1.0), pair(y, x, -1.0)),
        *(pair(x, y, 1.0), pair(y, z, 1.0), pair(z, x, 1.0)),
        square(x) - square(y),
        square(x) + square(y) - 2.0 * square(z),
    ]
    basis = torch.stack([row.flatten() / row.norm() for row in rows])
    return basis.to(device, dtype)


@dataclass(frozen=True)
class PairGeometry:
    """What all layers share: pairs listed once, both directions stacked, and an atom with itself.

    Attributes
    ----------
    receivers, senders : Tensor, shape (2 n_pairs,)
        Atoms of each directed edge: first i ← j, then j ← i.
    radial : Tensor, shape (n_pairs, n_radial)
        Radial basis.
    cutoffs : Tensor, shape (n_pairs, 1)
        Smooth cutoff.
    coordinates : Tensor, shape (2 n_pairs, 9)
        Of identity, cross product with the unit vector to the receiver, and its outer product
        with itself.
    own_radial : Tensor, shape (1, n_radial)
        Radial basis at distance zero: TensorNet gives each atom an edge to itself.
    part : Tensor, shape (9,)
        Part of each coordinate.
    basis : Tensor, shape (9, 9)
        From `tensor_basis`.
    """

    receivers: Tensor
    senders: Tensor
    radial: Tensor
    cutoffs: Tensor
    coordinates: Tensor
    own_radial: Tensor
    part: Tensor
    basis: Tensor


def pair_coordinates(directions: Tensor, basis: Tensor) -> Tensor:
    """Coordinates of what unit vectors contribute to the three parts, in both directions.

    Parameters
    ----------
    directions : Tensor, shape (n_pairs, 3)
        Unit vectors.
    basis : Tensor, shape (9, 9)
        From `tensor_basis`.

    Returns
    -------
    Tensor, shape (2 n_pairs, 9)
        Of the identity, the matrix of the cross product, and the traceless outer product; of the
        vectors, then of their opposites.
    """
    x, y, z = directions.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1) @ basis[1:4].t()
    outer = (directions[:, :, None] * directions[:, None, :]).flatten(1) @ basis[4:].t()
    scalar = torch.full_like(x, 3**0.5)[:, None]
    there, back = (torch.cat([scalar, sign * cross, outer], dim=1) for sign in (1.0, -1.0))
    return torch.cat([there, back])


def part_norms(parts: Tensor) -> Tensor:
    """Squared norms of the three parts.

    Parameters
    ----------
    parts : Tensor, shape (n_atoms, 9, n_features)
        Coordinates.

    Returns
    -------
    Tensor, shape (n_atoms, 3 * n_features)
        Invariant under rotation and reflection.
    """
    square = parts**2
    return torch.cat([square[:, 0], square[:, 1:4].sum(1), square[:, 4:].sum(1)], dim=-1)


def embed(module: Any, numbers: Tensor, geometry: PairGeometry) -> Tensor:
    """Tensor of each atom from its neighbours (Eqs. 9-11 of the TensorNet paper).

    Parameters
    ----------
    module : torchmdnet TensorEmbedding
        Owner of the weights.
    numbers : Tensor, shape (n_atoms,)
        Atomic numbers.
    geometry : PairGeometry
        Of the batch.

    Returns
    -------
    Tensor, shape (n_atoms, 9, n_features)
        Coordinates.
    """
    species = module.emb(numbers)
    width = species.shape[1]
    # A linear layer of two atoms' embeddings is a sum of one of each.
    weight = module.emb2.weight
    as_receiver = species @ weight[:, :width].t() + module.emb2.bias
    as_sender = species @ weight[:, width:].t()
    pairs = as_receiver.index_select(0, geometry.receivers) + as_sender.index_select(
        0, geometry.senders
    )
    filters = _stacked(module, geometry.radial) * geometry.cutoffs[:, :, None]
    messages = _both_ways(pairs, filters)
    message = messages.index_select(1, geometry.part) * geometry.coordinates[:, :, None]
    # Of an edge to itself only the scalar part is not zero.
    own = 3**0.5 * (as_receiver + as_sender) * _stacked(module, geometry.own_radial)[:, 0]
    parts = torch.cat([own[:, None], own.new_zeros(own.shape[0], 8, width)], dim=1)
    parts = parts.index_add(0, geometry.receivers, message)
    norm = module.init_norm((parts**2).sum(1))
    for layer in module.linears_scalar:
        norm = silu(layer(norm))
    gates = norm.view(-1, 3, width).index_select(1, geometry.part)
    embedded: Tensor = _mixed(module.linears_tensor[:3], parts) * gates
    return embedded


def interact(
    module: Any, parts: Tensor, geometry: PairGeometry, charge: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One interaction layer (Eqs. 12-15 of the TensorNet paper).

    Parameters
    ----------
    module : torchmdnet Interaction
        Owner of the weights.
    parts : Tensor, shape (n_atoms, 9, n_features)
        Coordinates of each atom's tensor.
    geometry : PairGeometry
        Of the batch.
    charge : Tensor or None, shape (n_atoms,)
        Total charge of each atom's structure, e; None where all are neutral.

    Returns
    -------
    parts : Tensor, shape (n_atoms, 9, n_features)
        Updated.
    edge : Tensor, shape (n_pairs, n_features)
        Scalar part of the messages, averaged over both directions.
    """
    width, basis = parts.shape[2], geometry.basis
    parts = parts / ((parts**2).sum(1, keepdim=True) + 1)
    sent = _mixed(module.linears_tensor[:3], parts)
    filters = _filters(module, geometry.radial, width) * geometry.cutoffs[:, :, None]
    message = _both_ways(
        sent.index_select(0, geometry.senders), filters.index_select(1, geometry.part)
    )
    own = _filters(module, geometry.own_radial, width).index_select(1, geometry.part)
    received = (own * sent).index_add(0, geometry.receivers, message)
    left, right = _matrices(sent, basis), _matrices(received, basis)
    product = _coordinates(_product(left, right) + _product(right, left), basis)
    scale = 1.0 if charge is None else (1 + 0.1 * charge)[:, None, None]
    product = product * scale
    change = _mixed(module.linears_tensor[3:], product / ((product**2).sum(1, keepdim=True) + 1))
    matrices = _matrices(change, basis)
    square = _coordinates(_product(matrices, matrices), basis)
    edge = message[:, 0].view(2, -1, width).mean(0)
    return parts + change + scale * square, edge


def _stacked(module: Any, radial: Tensor) -> Tensor:
    """Filters of the three parts, shape (n, 3, n_features)."""
    projections = (module.distance_proj1, module.distance_proj2, module.distance_proj3)
    return torch.stack([projection(radial) for projection in projections], dim=1)


def _filters(module: Any, radial: Tensor, width: int) -> Tensor:
    """The same of an interaction layer, by its perceptron."""
    for layer in module.linears_scalar:
        radial = silu(layer(radial))
    return radial.view(-1, 3, width)


def _both_ways(directed: Tensor, filters: Tensor) -> Tensor:
    """Directed edges, shape (2 n_pairs, …), times what is the same in both directions."""
    if directed.ndim == 2:
        directed = directed[:, None]
    stacked = directed.view(2, filters.shape[0], *directed.shape[1:]) * filters
    return stacked.flatten(0, 1)


def _mixed(layers: Any, parts: Tensor) -> Tensor:
    """Each part's channels mixed by its own linear layer."""
    scalar, vector, tensor = layers
    mixed = [scalar(parts[:, :1]), vector(parts[:, 1:4]), tensor(parts[:, 4:])]
    return torch.cat(mixed, dim=1)


def _matrices(parts: Tensor, basis: Tensor) -> Tensor:
    """Coordinates to matrices, shape (n_atoms, 3, 3, n_features)."""
    return (basis.t() @ parts).view(-1, 3, 3, parts.shape[2])


def _coordinates(matrices: Tensor, basis: Tensor) -> Tensor:
    return basis @ matrices.flatten(1, 2)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix products, channel by channel, as three sums over contiguous channels."""
    terms = [left[:, :, k, None] * right[:, k, None] for k in range(3)]
    return terms[0] + terms[1] + terms[2]

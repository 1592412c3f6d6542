"""A SO3krates transformer layer over pairs listed once; the weights are ``so3krates-torch``'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

__all__ = ["PairGeometry", "transform"]


@dataclass(frozen=True)
class PairGeometry:
    """What all layers share: pairs listed once, and both directions stacked.

    Attributes
    ----------
    receivers, senders : Tensor, shape (2 n_edges,)
        Atoms of each directed edge: first i ← j, then j ← i.
    idx_i, idx_j : Tensor, shape (n_edges,)
        Atoms of each pair.
    radial : Tensor, shape (n_edges, n_radial)
        Radial basis.
    harmonics : Tensor, shape (2 n_edges, n_harmonics)
        Spherical harmonics of the vector to the receiver.
    cutoffs : Tensor, shape (2 n_edges, 1)
        Smooth cutoff.
    """

    receivers: Tensor
    senders: Tensor
    idx_i: Tensor
    idx_j: Tensor
    radial: Tensor
    harmonics: Tensor
    cutoffs: Tensor


def _filter(net: Any, radial: Tensor, invariants: Tensor) -> Tensor:
    """Eq. 20 of the SO3krates paper; symmetric in the two atoms."""
    first_radial, last_radial = net.mlp_rbf[0], net.mlp_rbf[2][0]
    first_euclidean, last_euclidean = net.mlp_ev[0], net.mlp_ev[2][0]
    of_radial: Tensor = last_radial(silu(first_radial(radial)))
    of_invariants: Tensor = last_euclidean(silu(first_euclidean(invariants)))
    return of_radial + of_invariants


def _per_head(features: Tensor, weight: Tensor) -> Tensor:
    n_heads, width, _ = weight.shape
    out = torch.einsum("nhd,hde->nhe", features.view(-1, n_heads, width), weight)
    return out.reshape(-1, n_heads * width)


def _attention(query: Tensor, key: Tensor, filters: Tensor, geometry: PairGeometry) -> Tensor:
    """Element-wise products of query, key and filter, shape (2, n_edges, n_features)."""
    product = query.index_select(0, geometry.receivers) * key.index_select(0, geometry.senders)
    return product.view(2, geometry.idx_i.shape[0], query.shape[1]) * filters


def transform(
    layer: Any, invariant: Tensor, euclidean: Tensor, geometry: PairGeometry
) -> tuple[Tensor, Tensor, Tensor]:
    """One Euclidean transformer layer (Eqs. 15-27 of the SO3krates paper), over pairs listed once.

    Parameters
    ----------
    layer : so3krates_torch EuclideanTransformer
        Owner of the weights.
    invariant : Tensor, shape (n_atoms, n_features)
        Invariant features.
    euclidean : Tensor, shape (n_atoms, n_harmonics)
        Equivariant features.
    geometry : PairGeometry
        Of the batch.

    Returns
    -------
    invariant, euclidean : Tensor
        Updated features.
    edge : Tensor, shape (n_edges, n_features)
        Attention products, averaged over both directions.
    """
    block = layer.euclidean_attention_block
    n_edges = geometry.idx_i.shape[0]
    difference = euclidean.index_select(0, geometry.idx_j) - euclidean.index_select(
        0, geometry.idx_i
    )
    invariants = block.so3_conv_invariants(difference)
    product = _attention(
        _per_head(invariant, block.W_q_inv),
        _per_head(invariant, block.W_k_inv),
        _filter(block.filter_net_inv, geometry.radial, invariants),
        geometry,
    )
    n_heads = block.inv_heads
    width = block.inv_head_dim
    weight = product.view(2 * n_edges, n_heads, width).sum(-1) / block.att_norm_inv
    weight = weight * geometry.cutoffs
    value = _per_head(invariant, block.W_v_inv).index_select(0, geometry.senders)
    message = weight.unsqueeze(-1) * value.view(2 * n_edges, n_heads, width)
    updated = invariant.index_add(0, geometry.receivers, message.view(2 * n_edges, n_heads * width))

    product_euclidean = _attention(
        _per_head(invariant, block.W_q_ev),
        _per_head(invariant, block.W_k_ev),
        _filter(block.filter_net_ev, geometry.radial, invariants),
        geometry,
    )
    heads = product_euclidean.view(2 * n_edges, block.ev_heads, block.ev_head_dim)
    weight = heads.sum(-1) / block.att_norm_ev
    weight = torch.repeat_interleave(
        weight * geometry.cutoffs,
        block.degree_repeats,
        dim=-1,
        output_size=euclidean.shape[1],
    )
    updated_euclidean = euclidean.index_add(0, geometry.receivers, weight * geometry.harmonics)

    updated = layer.layer_norm_inv_1(updated)
    updated = updated + layer.mlp_1[3](silu(layer.mlp_1[1](silu(updated))))
    delta, delta_euclidean = layer.interaction_block(updated, updated_euclidean)
    node = layer.layer_norm_inv_2(updated + delta)
    # Faded with the cutoff, as the message is: an edge that leaves the list must not jump.
    edge = product.mean(0) * geometry.cutoffs[:n_edges]
    return node, updated_euclidean + delta_euclidean, edge

"""Features of chosen atoms and edges, and fingerprints of structures, streamed from a backbone.

Memory holds one batch and what was asked for, never the features of a data set. Nothing here looks
inside a backbone: `Features` has all that is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

    from tether.backbones.protocol import Backbone
    from tether.features import Features
    from tether.structures import AtomBatch

__all__ = ["BATCH_SIZE", "EdgeList", "Extracted", "edge_list", "extract", "fingerprints"]

#: Structures in a batch, as in `AdaptedModel.predict`.
BATCH_SIZE = 64


@dataclass(frozen=True)
class Extracted:
    """Features of the chosen points.

    Attributes
    ----------
    layers : tuple of ndarray, each of shape (n_atoms, n_features of that layer), float32
        Input to output; the last one is what heads read.
    edges : ndarray or None, shape (n_edges, n_edge_features), float32
        Of the last layer; None where the backbone has no edge features.
    """

    layers: tuple[NDArray[np.float32], ...]
    edges: NDArray[np.float32] | None


@dataclass(frozen=True)
class EdgeList:
    """The edges that a backbone has on a stream of structures, in the order of its features.

    Attributes
    ----------
    idx : ndarray, shape (2, n_edges), int64
        Atoms of each edge, numbered over the whole stream.
    distance : ndarray, shape (n_edges,), float32
        Å.
    """

    idx: NDArray[np.int64]
    distance: NDArray[np.float32]


def extract(
    backbone: Backbone,
    batches: Iterable[AtomBatch],
    *,
    atoms: NDArray[np.int64],
    edges: NDArray[np.int64] | None = None,
) -> Extracted:
    """Features of chosen atoms in every layer, and of chosen edges.

    Parameters
    ----------
    backbone : Backbone
        With the weights to look at.
    batches : iterable of AtomBatch
        The structures.
    atoms : ndarray, shape (n_atoms,)
        Numbers of the atoms over the whole stream, ascending, each once.
    edges : ndarray, shape (n_edges,), optional
        Places in `edge_list` of the same stream, ascending, each once.

    Returns
    -------
    Extracted
        Rows in the order of `atoms` and `edges`.

    Raises
    ------
    TetherError
        For numbers that are not ascending, or beyond the stream, and for edges of a backbone that
        has none.
    """
    _check_ascending("atoms", atoms)
    wanted = np.zeros(0, dtype=np.int64) if edges is None else edges
    _check_ascending("edges", wanted)
    layers: list[list[Tensor]] = []
    edge_parts: list[Tensor] = []
    n_atoms = n_edges = 0
    for features in _forward(backbone, batches):
        found = features.layers or (features.node,)
        layers = layers or [[] for _ in found]
        here = _inside(atoms, n_atoms, len(features.node))
        for parts, layer in zip(layers, found, strict=True):
            parts.append(layer[here].float())
        n_atoms += len(features.node)
        if edges is not None:
            if features.edge is None:
                raise _no_edges(backbone)
            edge_parts.append(features.edge[_inside(wanted, n_edges, len(features.edge))].float())
            n_edges += len(features.edge)
    for name, numbers, n in (("atoms", atoms, n_atoms), ("edges", wanted, n_edges)):
        if numbers.size and int(numbers[-1]) >= n:
            raise TetherError(
                f"`{name}` goes up to {int(numbers[-1])}",
                expected=f"numbers below {n}, which is how many the structures have",
                fix="number them over the same structures",
            )
    return Extracted(
        tuple(torch.cat(parts).numpy() for parts in layers),
        torch.cat(edge_parts).numpy() if edge_parts else None,
    )


def edge_list(backbone: Backbone, batches: Iterable[AtomBatch]) -> EdgeList | None:
    """Which edges the features of a backbone have.

    Parameters
    ----------
    backbone : Backbone
        Its weights do not matter.
    batches : iterable of AtomBatch
        The structures.

    Returns
    -------
    EdgeList or None
        None where the backbone has no edge features.
    """
    idx, distance, n_atoms = [], [], 0
    for features in _forward(backbone, batches):
        if features.edge is None or features.edge_idx is None or features.edge_distance is None:
            return None
        idx.append(features.edge_idx + n_atoms)
        distance.append(features.edge_distance.float())
        n_atoms += len(features.node)
    if not idx:
        return None
    return EdgeList(torch.cat(idx, dim=1).numpy(), torch.cat(distance).numpy())


def fingerprints(backbone: Backbone, batches: Iterable[AtomBatch]) -> NDArray[np.floating]:
    """Mean node features of each structure.

    Parameters
    ----------
    backbone : Backbone
        With the weights to look at.
    batches : iterable of AtomBatch
        The structures; at least one.

    Returns
    -------
    ndarray, shape (n_systems, n_features)
        In the order of the stream, in the precision of the backbone.

    Raises
    ------
    TetherError
        When there is no structure.
    """
    parts = []
    for batch, features in _with_batch(backbone, batches):
        total = features.node.new_zeros(batch.n_systems, features.node.shape[1])
        total.index_add_(0, batch.system_idx, features.node)
        parts.append(total / batch.counts.unsqueeze(1))
    if not parts:
        raise TetherError(
            "no structure to take a fingerprint of", expected="at least one", fix="check the split"
        )
    prints: NDArray[np.floating] = torch.cat(parts).numpy()
    return prints


def _forward(backbone: Backbone, batches: Iterable[AtomBatch]) -> Iterator[Features]:
    return (features for _, features in _with_batch(backbone, batches))


def _with_batch(
    backbone: Backbone, batches: Iterable[AtomBatch]
) -> Iterator[tuple[AtomBatch, Features]]:
    for batch in batches:
        # Around the call, not the loop: a generator must not leave gradients off for its caller.
        with torch.no_grad():
            features = backbone.forward(backbone.prepare(batch).to(_device_of(backbone)))
        yield batch, features.to("cpu")


def _device_of(backbone: Backbone) -> torch.device:
    block = next(block for _, block in backbone.blocks() if block)
    return block[0].device


def _inside(numbers: NDArray[np.int64], start: int, n: int) -> Tensor:
    """Those of the ascending numbers that lie in [start, start + n), counted from start."""
    first, last = np.searchsorted(numbers, [start, start + n])
    return torch.from_numpy(numbers[first:last] - start)


def _check_ascending(name: str, numbers: NDArray[np.int64]) -> None:
    if numbers.size and (int(numbers[0]) < 0 or bool((np.diff(numbers) <= 0).any())):
        raise TetherError(
            f"`{name}` is not ascending", expected="numbers from 0 up, each once", fix="sort them"
        )


def _no_edges(backbone: Backbone) -> TetherError:
    return TetherError(
        f"backbone {backbone.spec.name!r} has no edge features",
        expected="a backbone that fills `Features.edge`",
        fix="measure atoms only",
    )

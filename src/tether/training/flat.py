"""`flatten`: a graph as a list of tensors, which is what a compiled function takes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from tether.graph import Angles, Edges, Graph
from tether.structures import AtomBatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch
    from torch import Tensor

__all__ = ["Like", "flatten", "unflatten"]


@dataclass(frozen=True)
class Like:
    """What a graph is but for its tensors: two that are equal are computed by the same operations.

    Attributes
    ----------
    labels, atom_labels, edges, angles : tuple of str
        Names, in order.
    complete : frozenset of str
        Targets that nothing lacks: all or none.
    is_periodic, is_charged : bool
        Of any structure.
    has_features : bool
        Whether it brings node features.
    dtype : torch.dtype
        Of the geometry.
    """

    labels: tuple[str, ...]
    atom_labels: tuple[str, ...]
    edges: tuple[str, ...]
    angles: tuple[str, ...]
    complete: frozenset[str]
    is_periodic: bool
    is_charged: bool
    has_features: bool
    dtype: torch.dtype


_GEOMETRY = ("numbers", "positions", "ptr", "cell", "pbc", "charge", "spin", "system_idx")


def flatten(graph: Graph, targets: Iterable[str]) -> tuple[list[Tensor], Like]:
    """A graph as a list of tensors and what is needed to build it again.

    Parameters
    ----------
    graph : Graph
        Without leaves.
    targets : iterable of str
        Labels whose completeness matters. Where one of them lacks a value, all are treated so: a
        kind for each combination would be compiled for minutes each.

    Returns
    -------
    tensors : list of Tensor
        In a fixed order.
    like : Like
        The rest; identifiers are left out.
    """
    batch, wanted = graph.batch, frozenset(targets)
    tensors = [getattr(batch, name) for name in _GEOMETRY]
    tensors += [*batch.labels.values(), *batch.atom_labels.values()]
    for lists in (graph.edges, graph.angles):
        tensors += [getattr(one, f.name) for one in lists.values() for f in fields(one)]
    if graph.features is not None:
        tensors.append(graph.features)
    like = Like(
        tuple(batch.labels),
        tuple(batch.atom_labels),
        tuple(graph.edges),
        tuple(graph.angles),
        wanted if wanted <= batch.complete else frozenset(),
        batch.is_periodic,
        batch.is_charged,
        graph.features is not None,
        batch.positions.dtype,
    )
    return tensors, like


def unflatten(tensors: Sequence[Tensor], like: Like) -> Graph:
    """Undo `flatten`.

    Parameters
    ----------
    tensors : sequence of Tensor
        As `flatten` gives them.
    like : Like
        The rest.

    Returns
    -------
    Graph
        It asks its tensors for nothing that `like` knows.
    """
    left = iter(tensors)
    geometry = {name: next(left) for name in _GEOMETRY}
    system_idx = geometry.pop("system_idx")
    labels = {name: next(left) for name in like.labels}
    atom_labels = {name: next(left) for name in like.atom_labels}
    edges = {name: Edges(*(next(left) for _ in fields(Edges))) for name in like.edges}
    angles = {name: Angles(*(next(left) for _ in fields(Angles))) for name in like.angles}
    batch = AtomBatch(**geometry, labels=labels, atom_labels=atom_labels)  # type: ignore[arg-type]
    told = batch.told(
        system_idx=system_idx,
        is_periodic=like.is_periodic,
        is_charged=like.is_charged,
        complete=like.complete,
    )
    features = next(left) if like.has_features else None
    return Graph(told, edges, angles=angles, features=features)

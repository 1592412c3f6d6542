"""`Graph`: a batch with the neighbour lists that one backbone was trained with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from tether.errors import TetherError
from tether.structures import AtomBatch, ragged_indices

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = [
    "Angles",
    "Edges",
    "Graph",
    "edge_angles",
    "has_flat_cell",
    "named",
    "neighbour_edges",
    "refuse_flat_cells",
]

#: Å. Lattice vectors that span less than this in one of their dimensions count as dependent.
_LEAST_EXTENT = 1e-3

#: Structures named in an error before "and n more".
_N_NAMED = 5


@dataclass(frozen=True)
class Edges:
    """A neighbour list of a whole batch, sorted by structure.

    Attributes
    ----------
    idx_i, idx_j : Tensor, shape (n_edges,), int64
        Atoms of the edge, numbered over the batch. The edge vector is
        ``positions[idx_j] - positions[idx_i] + shift @ cell``.
    shift : Tensor, shape (n_edges, 3), float
        Lattice translations of atom j, integers; zero without a cell.
    ptr : Tensor, shape (n_systems + 1,), int64
        Offsets of the edges of each structure.
    """

    idx_i: Tensor
    idx_j: Tensor
    shift: Tensor
    ptr: Tensor

    def select(self, systems: Tensor, old_ptr: Tensor, new_ptr: Tensor) -> Edges:
        """Edges of the given structures, renumbered from old to new atom offsets."""
        flat, ptr = ragged_indices(self.ptr, systems)
        move = torch.repeat_interleave(new_ptr[:-1] - old_ptr[systems], ptr[1:] - ptr[:-1])
        return Edges(self.idx_i[flat] + move, self.idx_j[flat] + move, self.shift[flat], ptr)


@dataclass(frozen=True)
class Angles:
    """Pairs of edges that meet at an atom, each pair once: the edges of a line graph.

    An edge stands once but has two ends, and in a crystal an atom may be bonded to its own image,
    so that "edge e at atom i" does not say which end. Ends are therefore numbered: ``2 e`` is edge
    ``e`` seen from its atom i, ``2 e + 1`` the same edge seen from its atom j. They count edges,
    not atoms, which is why `Graph.select` renumbers them apart from `Edges`.

    Attributes
    ----------
    first, second : Tensor, shape (n_angles,), int64
        Ends of two edges at the same atom, ``first < second``, numbered over the batch.
    ptr : Tensor, shape (n_systems + 1,), int64
        Offsets of the angles of each structure.
    """

    first: Tensor
    second: Tensor
    ptr: Tensor

    def select(self, systems: Tensor, old_ptr: Tensor, new_ptr: Tensor) -> Angles:
        """Angles of the given structures, renumbered from old to new edge offsets."""
        flat, ptr = ragged_indices(self.ptr, systems)
        move = 2 * torch.repeat_interleave(new_ptr[:-1] - old_ptr[systems], ptr[1:] - ptr[:-1])
        return Angles(self.first[flat] + move, self.second[flat] + move, ptr)


@dataclass(frozen=True)
class Graph:
    """Structures and the neighbour lists of one backbone; built once, then only sliced.

    Attributes
    ----------
    batch : AtomBatch
        The structures.
    edges : mapping of str to Edges
        Neighbour lists by name; which ones there are is the backbone's affair.
    angles : mapping of str to Angles
        Angles between the edges of the neighbour list of that name, for backbones with three-body
        messages.
    leaves : tuple of Tensor or None
        After `differentiable`: the positions (n_atoms, 3) and the strain (n_systems, 3, 3) that
        forces and stress are derivatives with respect to.
    features : Tensor or None, shape (n_atoms, n_features)
        Node features of a backbone that does not change, the model's own or the pretrained one
        beside it, see `AdaptedModel.with_features`.
    """

    batch: AtomBatch
    edges: Mapping[str, Edges]
    leaves: tuple[Tensor, Tensor] | None = None
    angles: Mapping[str, Angles] = field(default_factory=dict)
    features: Tensor | None = None

    @property
    def n_systems(self) -> int:
        """Number of structures."""
        return self.batch.n_systems

    def select(self, systems: Tensor | Sequence[int] | np.ndarray) -> Graph:
        """The given structures with their edges, without building anything again.

        Parameters
        ----------
        systems : array of int
            Indices of structures; order kept, repeats allowed.

        Returns
        -------
        Graph
            A smaller (or larger) graph.
        """
        idx = torch.as_tensor(systems, dtype=torch.int64)
        batch = self.batch.select(idx)
        edges = {
            name: value.select(idx, self.batch.ptr, batch.ptr) for name, value in self.edges.items()
        }
        angles = {
            name: value.select(idx, self.edges[name].ptr, edges[name].ptr)
            for name, value in self.angles.items()
        }
        features = self.features
        if features is not None:
            features = features[ragged_indices(self.batch.ptr, idx)[0]]
        return Graph(batch, edges, angles=angles, features=features)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Graph:
        """Move to a device; `dtype` applies to floating tensors, positions included."""
        if dtype is None and (device is None or torch.device(device) == self.batch.ptr.device):
            return self
        edges = {
            name: Edges(
                e.idx_i.to(device), e.idx_j.to(device), e.shift.to(device, dtype), e.ptr.to(device)
            )
            for name, e in self.edges.items()
        }
        angles = {
            name: Angles(a.first.to(device), a.second.to(device), a.ptr.to(device))
            for name, a in self.angles.items()
        }
        features = None if self.features is None else self.features.to(device, dtype)
        return Graph(self.batch.to(device, dtype), edges, angles=angles, features=features)

    def differentiable(self) -> Graph:
        """The same graph, ready for forces and stress by derivative.

        Returns
        -------
        Graph
            Positions and cells depend on the two `leaves`, a fresh copy of the positions and a
            zero strain; there are no features, which would not.
        """
        positions = self.batch.positions.detach().clone().requires_grad_()
        strain = torch.zeros_like(self.batch.cell).requires_grad_()
        if not self.batch.is_periodic:
            # Without a cell the strain is not computed: stress has no meaning there.
            return replace(
                self,
                batch=self.batch.with_geometry(positions),
                leaves=(positions, strain),
                features=None,
            )
        symmetric = 0.5 * (strain + strain.transpose(1, 2))
        per_atom = symmetric.index_select(0, self.batch.system_idx)
        strained = positions + torch.einsum("ni,nij->nj", positions, per_atom)
        cell = self.batch.cell + self.batch.cell @ symmetric
        return replace(
            self,
            batch=self.batch.with_geometry(strained, cell),
            leaves=(positions, strain),
            features=None,
        )

    def vectors(self, name: str) -> Tensor:
        """Edge vectors from atom i to atom j, shape (n_edges, 3), Å.

        Parameters
        ----------
        name : str
            Which neighbour list.

        Returns
        -------
        Tensor
            Differentiable in the positions and the strain.
        """
        edges, batch = self.edges[name], self.batch
        vectors = batch.positions.index_select(0, edges.idx_j) - batch.positions.index_select(
            0, edges.idx_i
        )
        if not batch.is_periodic:
            return vectors
        cells = batch.cell.index_select(0, self.system_of(name))
        return vectors + torch.einsum("ei,eij->ej", edges.shift.to(vectors.dtype), cells)

    def system_of(self, name: str) -> Tensor:
        """Structure of each edge, shape (n_edges,), sorted.

        Parameters
        ----------
        name : str
            Which neighbour list.

        Returns
        -------
        Tensor
        """
        return self.batch.system_idx.index_select(0, self.edges[name].idx_i)


def neighbour_edges(batch: AtomBatch, cutoff: float, *, full: bool) -> Edges:
    """Neighbour list of every structure of a batch, by vesin.

    Parameters
    ----------
    batch : AtomBatch
        Structures on the CPU.
    cutoff : float
        Å.
    full : bool
        Whether each pair is listed twice (i-j and j-i) or once.

    Returns
    -------
    Edges
        Sorted by structure, then by atom i.

    Raises
    ------
    TetherError
        When the periodic lattice vectors of a structure are linearly dependent: vesin would divide
        by zero, which ends the process.
    """
    from vesin import NeighborList

    refuse_flat_cells(batch)

    # One thread: a structure is too small to share, and a run's result must not depend on it.
    lister = NeighborList(cutoff=cutoff, full_list=full, sorted=True, n_threads=1)
    positions = batch.positions.detach().numpy().astype(np.float64)
    cells = batch.cell.detach().numpy().astype(np.float64)
    pbc, ptr = batch.pbc.numpy(), batch.ptr.numpy()
    none = np.zeros(0, dtype=np.int64)
    parts_i, parts_j, parts_s, counts = [none], [none], [np.zeros((0, 3))], []
    for s in range(batch.n_systems):
        i, j, shift = lister.compute(
            positions[ptr[s] : ptr[s + 1]], cells[s], pbc[s].tolist(), "ijS"
        )
        parts_i.append(i.astype(np.int64) + ptr[s])
        parts_j.append(j.astype(np.int64) + ptr[s])
        parts_s.append(shift)
        counts.append(len(i))
    return Edges(
        idx_i=torch.from_numpy(np.concatenate(parts_i)),
        idx_j=torch.from_numpy(np.concatenate(parts_j)),
        shift=torch.from_numpy(np.concatenate(parts_s).astype(np.int16)),
        ptr=torch.from_numpy(np.concatenate([[0], np.cumsum(counts)])),
    )


def has_flat_cell(batch: AtomBatch) -> Tensor:
    """Whether the periodic lattice vectors of a structure are linearly dependent.

    Parameters
    ----------
    batch : AtomBatch
        Structures. Directions that are not periodic may lack a vector.

    Returns
    -------
    Tensor, shape (n_systems,), bool
        True: no neighbour list can be made of it. So it is for a cell that is not finite.
    """
    cell = batch.cell.detach().double()
    finite = torch.isfinite(cell).flatten(1).all(1)
    # Lattice vectors in no direction but the periodic ones; LAPACK refuses what is not finite.
    vectors = torch.where(batch.pbc[..., None] & finite[:, None, None], cell, 0.0)
    extents = torch.linalg.svdvals(vectors)
    n_extents = (extents > _LEAST_EXTENT).sum(1)
    return torch.lt(n_extents, batch.pbc.sum(1)) | ~finite


def refuse_flat_cells(batch: AtomBatch) -> None:
    """Refuse structures whose periodic lattice vectors are linearly dependent.

    Parameters
    ----------
    batch : AtomBatch
        Structures.

    Raises
    ------
    TetherError
        It names them.
    """
    flat = has_flat_cell(batch) if batch.is_periodic else None
    if flat is not None and bool(flat.any()):
        raise TetherError(
            f"the periodic lattice vectors are linearly dependent in {named(batch, flat)}",
            expected="a cell with an extent along each periodic direction",
            fix="write the cell, or set pbc=False",
        )


def named(batch: AtomBatch, mask: Tensor) -> str:
    """Some structures in words, for an error message.

    Parameters
    ----------
    batch : AtomBatch
        Structures.
    mask : Tensor, shape (n_systems,), bool
        Which of them are meant.

    Returns
    -------
    str
        The first of them by their ids.
    """
    systems = torch.nonzero(mask).flatten().tolist()
    names = [f"`{batch.ids[s]}`" if batch.ids else f"number {s}" for s in systems[:_N_NAMED]]
    more = f" and {len(systems) - _N_NAMED} more" if len(systems) > _N_NAMED else ""
    return f"structure{'s' if len(systems) > 1 else ''} {', '.join(names)}{more}"


def edge_angles(edges: Edges, n_atoms: int) -> Angles:
    """Every pair of edge ends that meet at an atom.

    Parameters
    ----------
    edges : Edges
        Neighbour list with each pair of atoms once (``full=False``).
    n_atoms : int
        Atoms of the batch.

    Returns
    -------
    Angles
        ``n (n - 1) / 2`` for an atom with n edge ends; an edge from an atom to its own image has
        both ends there, and so an angle of 180° with itself.
    """
    atoms = torch.stack([edges.idx_i, edges.idx_j], dim=1).flatten()  # of ends 0, 1, 2, …
    counts = torch.bincount(atoms, minlength=n_atoms)
    start = torch.cumsum(counts, 0) - counts
    by_atom = torch.argsort(atoms, stable=True)
    rank = torch.empty_like(atoms)
    rank[by_atom] = torch.arange(len(atoms)) - start[atoms[by_atom]]
    # The partners of an end are those behind it at its atom: each pair once, sorted by `first`.
    n_partners = counts[atoms] - rank - 1
    first = torch.repeat_interleave(n_partners)
    ptr = torch.zeros(len(atoms) + 1, dtype=torch.int64)
    torch.cumsum(n_partners, 0, out=ptr[1:])
    offset = torch.arange(len(first)) - ptr[first]
    second = by_atom[start[atoms[first]] + rank[first] + 1 + offset]
    return Angles(first, second, ptr[2 * edges.ptr])

"""Checks of geometries, vectorised over structures of equal size: shortest pairs, duplicates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tether.graph import neighbour_edges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tether.structures import AtomBatch

__all__ = ["geometry_hashes", "shortest_distances"]

# Pairs of a group of structures that are held at once: 16 MB for each array of doubles.
_MAX_PAIRS = 2**21
# Beyond this size all pairs are too many; coordinates are compared instead.
_MAX_ALL_PAIRS_ATOMS = 2_000
# About 1e-3 Å and 1e-4 of a cell, but no round number: decimal coordinates would lie on the
# edges between bins, where rounding errors decide.
_BINS_PER_ANGSTROM = 1013.7
_BINS_PER_CELL = 10_007.3


def shortest_distances(batch: AtomBatch, threshold: float) -> NDArray[np.float64]:
    """Shortest distance between two atoms (or periodic images) of each structure.

    Parameters
    ----------
    batch : AtomBatch
        Structures with finite positions and cells that are not flat.
    threshold : float
        Å. Distances from here on may be returned as inf.

    Returns
    -------
    array, shape (n_systems,)
        Å; exact below the threshold.
    """
    shortest = np.full(batch.n_systems, np.inf)
    periodic = batch.pbc.any(dim=1).numpy()
    by_list = np.flatnonzero(periodic | (batch.counts.numpy() > _MAX_ALL_PAIRS_ATOMS))
    if len(by_list):
        part = batch.select(torch.from_numpy(by_list))
        edges = neighbour_edges(part, threshold, full=False)
        shift = torch.einsum(
            "ei,eij->ej", edges.shift.double(), part.cell.double()[part.system_idx[edges.idx_i]]
        )
        vectors = part.positions.double()[edges.idx_j] - part.positions.double()[edges.idx_i]
        distances = (vectors + shift).norm(dim=1).numpy()
        system = by_list[part.system_idx[edges.idx_i].numpy()]
        np.minimum.at(shortest, system, distances)
    for rows, _, positions in _groups(batch, ~periodic, pairwise=True):
        if positions.shape[1] > 1:
            shortest[rows] = _pair_distances(positions).min(axis=1)
    return shortest


def geometry_hashes(batch: AtomBatch) -> NDArray[np.uint64]:
    """A number for each structure, equal for copies.

    Molecules are compared by the sorted distances between their atoms, pair of elements by pair
    of elements: copies that are moved, turned, mirrored or in another order of atoms are equal.
    Periodic structures are compared by elements, cell shape and fractional coordinates relative
    to the first atom (molecules of more than 2,000 atoms by their coordinates relative to it):
    moved copies are equal, others not. Charge and spin count.

    Parameters
    ----------
    batch : AtomBatch
        Structures with finite positions and cells that are not flat.

    Returns
    -------
    array of uint64, shape (n_systems,)
        Different structures collide with probability 5e-20 a pair.
    """
    hashes = np.zeros(batch.n_systems, dtype=np.uint64)
    periodic = batch.pbc.any(dim=1).numpy()
    for rows, numbers, positions in _groups(batch, ~periodic, pairwise=True):
        i, j = np.triu_indices(positions.shape[1], 1)
        low = np.minimum(numbers[:, i], numbers[:, j])
        high = np.maximum(numbers[:, i], numbers[:, j])
        bins = np.rint(_pair_distances(positions) * _BINS_PER_ANGSTROM).astype(np.int64)
        pairs = np.sort(((low * 256 + high) << 40) + bins, axis=1)
        hashes[rows] = _row_hash(np.hstack([np.sort(numbers, axis=1), pairs]))
    large = ~periodic & (batch.counts.numpy() > _MAX_ALL_PAIRS_ATOMS)
    for rows, numbers, positions in _groups(batch, large, pairwise=False):
        moved = np.rint((positions - positions[:, :1]) * _BINS_PER_ANGSTROM).astype(np.int64)
        hashes[rows] = _row_hash(np.hstack([numbers, moved.reshape(len(rows), -1)]))
    for rows, numbers, positions in _groups(batch, periodic, pairwise=False):
        cell = _completed(batch.cell.double().numpy()[rows], batch.pbc.numpy()[rows])
        fractional = np.einsum("sni,sij->snj", positions - positions[:, :1], np.linalg.inv(cell))
        pbc = batch.pbc.numpy()[rows][:, None, :]
        wrapped = np.where(pbc, fractional - np.floor(fractional), fractional)
        bins = np.rint(wrapped * _BINS_PER_CELL)
        bins = np.where(pbc & (bins >= np.floor(_BINS_PER_CELL)), 0, bins).astype(np.int64)
        metric = np.rint(np.einsum("sik,sjk->sij", cell, cell) * 97.3).astype(np.int64)
        flat = [numbers, bins.reshape(len(rows), -1), metric.reshape(len(rows), 9)]
        hashes[rows] = _row_hash(np.hstack(flat))
    state = torch.stack([batch.charge, batch.spin], dim=1).double().numpy()
    state = np.hstack([np.rint(state * 1e3), batch.pbc.numpy()]).astype(np.int64)
    extra = np.hstack([hashes.view(np.int64)[:, None], batch.counts.numpy()[:, None], state])
    return _row_hash(extra)


def _groups(
    batch: AtomBatch, which: NDArray[np.bool_], *, pairwise: bool
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]]:
    """Structures of equal size: their rows, numbers (m, n) and positions (m, n, 3)."""
    counts, ptr = batch.counts.numpy(), batch.ptr.numpy()
    numbers, positions = batch.numbers.numpy(), batch.positions.double().numpy()
    usable = which & (counts > 0)
    if pairwise:
        usable &= counts <= _MAX_ALL_PAIRS_ATOMS
    for n_atoms in np.unique(counts[usable]).tolist():
        rows = np.flatnonzero(usable & (counts == n_atoms))
        cost = n_atoms * (n_atoms - 1) // 2 if pairwise else 3 * n_atoms
        step = max(1, _MAX_PAIRS // max(1, cost))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            atoms = ptr[some][:, None] + np.arange(n_atoms)
            yield some, numbers[atoms], positions[atoms]


def _pair_distances(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances of all pairs, (m, n, 3) to (m, n (n - 1) / 2)."""
    i, j = np.triu_indices(positions.shape[1], 1)
    vectors = positions[:, i] - positions[:, j]
    return np.asarray(np.sqrt(np.einsum("mpk,mpk->mp", vectors, vectors)), dtype=np.float64)


def _completed(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Cells whose other than periodic vectors are replaced where they add no dimension."""
    singular = np.linalg.svd(cell, compute_uv=False)[:, 2] < 1e-6
    missing = singular[:, None] & ~pbc
    filled = np.where(missing[..., None], 0.0, cell)
    for row in np.flatnonzero(singular):
        # The last right singular vectors span what the periodic lattice vectors do not.
        filled[row, missing[row]] = np.linalg.svd(filled[row])[2][3 - missing[row].sum() :]
    return filled


def _row_hash(rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """64-bit hash of each row: mixed values (splitmix64) times odd random weights, summed."""
    weights = np.random.default_rng(0).integers(0, 2**63, rows.shape[1], dtype=np.uint64)
    mixed = rows.view(np.uint64) if rows.flags.c_contiguous else rows.astype(np.uint64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    odd = weights * np.uint64(2) + np.uint64(1)
    return np.asarray((mixed * odd).sum(axis=1, dtype=np.uint64))

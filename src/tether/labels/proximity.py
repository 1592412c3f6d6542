"""How close the two closest atoms of a structure are, in units of their covalent radii."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from ase.data import covalent_radii

from tether.graph import neighbour_edges

if TYPE_CHECKING:
    from torch import Tensor

    from tether.structures import AtomBatch

__all__ = ["closest_ratio", "radii"]


def radii(numbers: Tensor) -> Tensor:
    """Covalent radius of each atom (Cordero et al. 2008, as in `ase.data`).

    Parameters
    ----------
    numbers : Tensor, shape (n_atoms,), int64
        Atomic numbers.

    Returns
    -------
    Tensor, shape (n_atoms,), double
        Å.
    """
    return torch.as_tensor(np.asarray(covalent_radii), dtype=torch.float64)[numbers]


def closest_ratio(batch: AtomBatch, *, within: float = 0.6) -> Tensor:
    """Smallest distance over sum of covalent radii, periodic images included.

    Parameters
    ----------
    batch : AtomBatch
        Structures on the CPU.
    within : float
        Pairs beyond this ratio are not looked for; it bounds the work.

    Returns
    -------
    Tensor, shape (n_systems,), double
        The ratio; `within` where no pair is closer, 0 where a position is not finite.
    """
    radius = radii(batch.numbers)
    cutoff = max(float(2.0 * within * radius.max()), 1e-3) if batch.n_atoms else 1.0
    result = torch.full((batch.n_systems,), within, dtype=torch.float64)
    finite = torch.isfinite(batch.positions).all(dim=1)
    bad = torch.unique(batch.system_idx[~finite])
    result[bad] = 0.0
    good = torch.ones(batch.n_systems, dtype=torch.bool)
    good[bad] = False
    chosen = good.nonzero().flatten()
    if not len(chosen):
        return result
    part = batch.select(chosen).to(dtype=torch.float64)
    edges = neighbour_edges(part, cutoff, full=False)
    vectors = part.positions[edges.idx_j] - part.positions[edges.idx_i]
    counts = edges.ptr[1:] - edges.ptr[:-1]
    system = torch.repeat_interleave(torch.arange(part.n_systems), counts)
    shift = edges.shift.to(torch.float64)
    vectors = vectors + torch.einsum("ei,eij->ej", shift, part.cell[system])
    radius = radii(part.numbers)
    ratio = vectors.norm(dim=1) / (radius[edges.idx_i] + radius[edges.idx_j])
    lowest = torch.full((part.n_systems,), within, dtype=torch.float64)
    lowest.scatter_reduce_(0, system, ratio, reduce="amin")
    result[chosen] = lowest
    return result

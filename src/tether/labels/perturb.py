"""Off-equilibrium geometries from a user's own structures: noise, strain, model modes.

Each geometry has its own random stream, keyed by (seed, kind, id of the structure, number of the
geometry, attempt). It therefore depends on nothing else: not on the rest of the batch, its order,
or how the work is spread over processes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from tether.errors import TetherError
from tether.graph import named, neighbour_edges
from tether.labels.modes import PairList, mode_displacements
from tether.labels.proximity import closest_ratio
from tether.labels.samples import (
    MIN_RATIO,
    Samples,
    check_temperature,
    random_stream,
    too_close,
    without_labels,
)
from tether.structures import AtomBatch, ragged_indices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["check_strain", "displace", "normal_mode_like", "strained", "unchanged"]

ATTEMPTS = 10
_PAIR_CUTOFF = 6.0  # Å, of the springs between non-bonded atoms


def _draw(
    batch: AtomBatch,
    kind: str,
    n_per_structure: int,
    seed: int,
    noise: Callable[[np.random.Generator, int, int], NDArray[np.float64]],
    *,
    strain: float = 0.0,
) -> Samples:
    """Displace every structure n times; `noise(generator, system, k)` is (n_atoms, 3) in Å.

    With `strain`, cell and positions are first deformed by a random symmetric strain of that width.
    """
    system = np.repeat(np.arange(batch.n_systems), n_per_structure)
    number = np.tile(np.arange(n_per_structure), batch.n_systems)
    names = tuple(
        f"{batch.ids[s]}/{kind}-{k}" for s, k in zip(system.tolist(), number.tolist(), strict=True)
    )
    target = replace(batch.select(torch.from_numpy(system)), ids=names)
    positions, cell = target.positions.clone(), target.cell.clone()
    pending = torch.arange(len(system))
    ratio = torch.empty(0, dtype=torch.float64)
    for attempt in range(ATTEMPTS):
        flat, _ = ragged_indices(target.ptr, pending)
        moves, deformations = [], []
        # As a numpy index: a torch tensor of one element would make the result a scalar.
        left = pending.numpy()
        for s, k in zip(system[left].tolist(), number[left].tolist(), strict=True):
            generator = random_stream(seed, kind, batch.ids[s], k, attempt)
            moves.append(noise(generator, s, k))
            half = generator.standard_normal((3, 3)) if strain else np.zeros((3, 3))
            deformations.append(np.eye(3) + 0.5 * strain * (half + half.T))
        if moves:
            deformation = torch.from_numpy(np.stack(deformations))
            cell[pending] = target.cell[pending] @ deformation
            per_atom = deformation.repeat_interleave(target.counts[pending], dim=0)
            positions[flat] = torch.einsum("ni,nij->nj", target.positions[flat], per_atom)
            positions[flat] += torch.from_numpy(np.concatenate(moves))
        ratio = closest_ratio(replace(target, positions=positions, cell=cell).select(pending))
        pending, ratio = pending[ratio < MIN_RATIO], ratio[ratio < MIN_RATIO]
        if not len(pending):
            break
    kept = torch.ones(len(system), dtype=torch.bool)
    kept[pending] = False
    rejected = tuple(
        too_close(names[p], r, ATTEMPTS)
        for p, r in zip(pending.tolist(), ratio.tolist(), strict=True)
    )
    moved = replace(target, positions=positions, cell=cell)
    return Samples(moved.select(kept.nonzero().flatten()), rejected)


def unchanged(batch: AtomBatch) -> Samples:
    """The structures as they are, under the same guard and without labels.

    Parameters
    ----------
    batch : AtomBatch
        Structures.

    Returns
    -------
    Samples
        Ids end in ``"/input-0"``.
    """
    bare = without_labels(batch, 1)
    bare = replace(bare, ids=tuple(f"{name}/input-0" for name in bare.ids))
    ratio = closest_ratio(bare)
    rejected = tuple(
        too_close(bare.ids[s], float(ratio[s]), 1)
        for s in (ratio < MIN_RATIO).nonzero().flatten().tolist()
    )
    return Samples(bare.select((ratio >= MIN_RATIO).nonzero().flatten()), rejected)


def displace(
    batch: AtomBatch,
    *,
    widths: Sequence[float] = (0.02, 0.05, 0.1),
    n_per_structure: int,
    seed: int,
) -> Samples:
    """Add isotropic Gaussian noise to the positions.

    Parameters
    ----------
    batch : AtomBatch
        Structures; labels are dropped.
    widths : sequence of float
        Standard deviations in Å, taken in turn: geometry k has ``widths[k % len(widths)]``.
    n_per_structure : int
        Geometries of each structure.
    seed : int
        Of the random streams.

    Returns
    -------
    Samples
        Double precision; kind "displace".

    Raises
    ------
    TetherError
        For a width that is not positive, or no width.
    """
    bare = without_labels(batch, n_per_structure)
    return _draw(bare, "displace", n_per_structure, seed, _gaussian(bare, widths))


def check_strain(batch: AtomBatch, strain: float) -> None:
    """Refuse what cannot be strained.

    Parameters
    ----------
    batch : AtomBatch
        Structures.
    strain : float
        Standard deviation of the components.

    Raises
    ------
    TetherError
        For a strain outside 0 … 0.3, or a structure without a cell.
    """
    if not 0 < strain <= 0.3:
        raise TetherError(
            f"`strain` is {strain}", expected="a number above 0, at most 0.3", fix="set strain=0.02"
        )
    molecules = ~batch.pbc.any(dim=1)
    if bool(molecules.any()):
        raise TetherError(
            f"there is no cell in {named(batch, molecules)}",
            expected="crystals, which can be strained",
            fix="leave the molecules out, or set --sampling displace",
        )


def strained(
    batch: AtomBatch,
    *,
    strain: float = 0.02,
    widths: Sequence[float] = (0.02, 0.05, 0.1),
    n_per_structure: int,
    seed: int,
) -> Samples:
    """Deform each cell by a random symmetric strain, and add noise to the positions.

    Parameters
    ----------
    batch : AtomBatch
        Crystals; labels are dropped.
    strain : float
        Standard deviation of the normal components of the strain; shears have 1/√2 of it.
    widths : sequence of float
        Å, as in `displace`.
    n_per_structure : int
        Geometries of each structure.
    seed : int
        Of the random streams.

    Returns
    -------
    Samples
        Double precision; kind "strain".

    Raises
    ------
    TetherError
        For a strain outside 0 … 0.3, a width that is not positive, or a structure without a cell.
    """
    bare = without_labels(batch, n_per_structure)
    check_strain(bare, strain)
    noise = _gaussian(bare, widths)
    return _draw(bare, "strain", n_per_structure, seed, noise, strain=strain)


def _gaussian(
    batch: AtomBatch, widths: Sequence[float]
) -> Callable[[np.random.Generator, int, int], NDArray[np.float64]]:
    if not len(widths) or min(widths) <= 0:
        raise TetherError(
            f"`widths` is {tuple(widths)}",
            expected="positive standard deviations in Å",
            fix="set widths=(0.02, 0.05, 0.1)",
        )
    counts = batch.counts.tolist()

    def noise(generator: np.random.Generator, system: int, k: int) -> NDArray[np.float64]:
        return widths[k % len(widths)] * generator.standard_normal((counts[system], 3))

    return noise


def normal_mode_like(
    batch: AtomBatch, *, temperature: float, n_per_structure: int, seed: int
) -> Samples:
    """Displace along the modes of a model Hessian, at thermal amplitude (see `labels.modes`).

    Parameters
    ----------
    batch : AtomBatch
        Structures near a minimum; labels are dropped.
    temperature : float
        K; 300 to 1000 is useful for training.
    n_per_structure : int
        Geometries of each structure.
    seed : int
        Of the random streams.

    Returns
    -------
    Samples
        Double precision; kind "modes".
    """
    bare = without_labels(batch, n_per_structure)
    check_temperature(temperature)
    edges = neighbour_edges(bare, _PAIR_CUTOFF, full=True)
    shift = edges.shift.double()
    ptr, edge_ptr = bare.ptr.tolist(), edges.ptr.tolist()
    matrices = []
    for s in range(bare.n_systems):
        part = slice(edge_ptr[s], edge_ptr[s + 1])
        i, j = edges.idx_i[part], edges.idx_j[part]
        vectors = bare.positions[j] - bare.positions[i] + shift[part] @ bare.cell[s]
        pairs = PairList((i - ptr[s]).numpy(), (j - ptr[s]).numpy(), vectors.numpy())
        matrices.append(
            mode_displacements(
                bare.numbers[ptr[s] : ptr[s + 1]].numpy(),
                bare.positions[ptr[s] : ptr[s + 1]].numpy(),
                pairs,
                periodic=bool(bare.pbc[s].any()),
                temperature=temperature,
            )
        )

    def noise(generator: np.random.Generator, system: int, _k: int) -> NDArray[np.float64]:
        matrix = matrices[system]
        return (matrix @ generator.standard_normal(matrix.shape[1])).reshape(-1, 3)

    return _draw(bare, "modes", n_per_structure, seed, noise)

"""Off-equilibrium geometries from a user's own structures: noise, strain, model modes, dynamics.

Each geometry has its own random stream, keyed by (seed, kind, id of the structure, number of the
geometry, attempt). It therefore depends on nothing else: not on the rest of the batch, its order,
or how the work is spread over processes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from tether.errors import TetherError
from tether.graph import neighbour_edges
from tether.labels.failure import Failure
from tether.labels.modes import PairList, mode_displacements
from tether.labels.proximity import closest_ratio
from tether.structures import AtomBatch, collate, ragged_indices, to_ase

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from numpy.typing import NDArray

__all__ = ["MIN_RATIO", "Samples", "displace", "normal_mode_like", "short_md", "strained", "unchanged"]

MIN_RATIO = 0.4  # closer than this times the sum of covalent radii: redrawn
ATTEMPTS = 10
_PAIR_CUTOFF = 6.0  # Å, of the springs between non-bonded atoms


@dataclass(frozen=True)
class Samples:
    """Geometries, and the ones that could not be made.

    Attributes
    ----------
    batch : AtomBatch
        Without labels; ids are ``"<id>/<kind>-<k>"``. Sorted by structure, then by k.
    rejected : tuple of Failure
        Geometries whose atoms stayed too close, or whose dynamics failed.
    """

    batch: AtomBatch
    rejected: tuple[Failure, ...]


def _generator(seed: int, *key: object) -> np.random.Generator:
    text = "/".join(str(part) for part in (seed, *key))
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _check(batch: AtomBatch, n_per_structure: int) -> AtomBatch:
    if n_per_structure < 1:
        raise TetherError(
            f"`n_per_structure` is {n_per_structure}",
            expected="a positive number of geometries",
            fix="set n_per_structure=1 or more",
        )
    ids = batch.ids or tuple(str(i) for i in range(batch.n_systems))
    bare = replace(batch, labels={}, atom_labels={}, ids=ids)
    return bare.to(dtype=torch.float64)


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise TetherError(
            f"`temperature` is {temperature}",
            expected="a positive temperature in K",
            fix="set temperature=300",
        )


def _too_close(name: str, ratio: float, attempts: int) -> Failure:
    reason = (
        f"atoms closer than {MIN_RATIO} of the sum of their covalent radii "
        f"({ratio:.3f}) in {attempts} draws"
    )
    return Failure(name, reason, ratio)


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
            generator = _generator(seed, kind, batch.ids[s], k, attempt)
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
        _too_close(names[p], r, ATTEMPTS)
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
    bare = _check(batch, 1)
    bare = replace(bare, ids=tuple(f"{name}/input-0" for name in bare.ids))
    ratio = closest_ratio(bare)
    rejected = tuple(
        _too_close(bare.ids[s], float(ratio[s]), 1)
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
    bare = _check(batch, n_per_structure)
    return _draw(bare, "displace", n_per_structure, seed, _gaussian(bare, widths))


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
    if not 0 < strain <= 0.3:
        raise TetherError(
            f"`strain` is {strain}", expected="a number above 0, at most 0.3", fix="set strain=0.02"
        )
    bare = _check(batch, n_per_structure)
    molecules = torch.nonzero(~bare.pbc.any(dim=1)).flatten().tolist()
    if molecules:
        raise TetherError(
            f"{len(molecules)} structures have no cell, the first is `{bare.ids[molecules[0]]}`",
            expected="crystals, which can be strained",
            fix="leave the molecules out, or set --sampling displace",
        )
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
    bare = _check(batch, n_per_structure)
    _check_temperature(temperature)
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


def _trajectory(
    atoms: Atoms,
    generator: np.random.Generator,
    *,
    temperature: float,
    steps: int,
    every: int,
    time_step: float,
    friction: float,
) -> list[NDArray[np.float64]]:
    from ase import units
    from ase.md.langevin import Langevin

    thermal = np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None]
    atoms.set_momenta(thermal * generator.standard_normal((len(atoms), 3)))  # type: ignore[no-untyped-call]
    dynamics = Langevin(
        atoms,
        timestep=time_step * units.fs,
        temperature_K=temperature,
        friction=friction / units.fs,
        fixcm=False,  # the drift of the whole changes no label; ASE's fixcm is not canonical
        rng=generator,
    )
    frames = []
    for _ in range(steps // every):
        dynamics.run(every)  # type: ignore[no-untyped-call]
        frames.append(atoms.positions.copy())
    return frames


def short_md(
    batch: AtomBatch,
    calculator: Callable[[], Calculator],
    *,
    temperature: float = 300.0,
    steps: int = 200,
    every: int = 50,
    time_step: float = 0.5,
    friction: float = 0.02,
    seed: int,
) -> Samples:
    """Snapshots of short Langevin dynamics from each structure.

    Parameters
    ----------
    batch : AtomBatch
        Starting structures; labels are dropped.
    calculator : callable returning an ASE calculator
        `labels.xtb.xtb_calculator`, or a `functools.partial` of `potential_calculator`.
    temperature : float
        K, of the thermostat and of the first velocities.
    steps, every : int
        Length of the run, and a snapshot each `every` steps; ``steps // every`` in all.
    time_step : float
        fs.
    friction : float
        1/fs.
    seed : int
        Of the random streams.

    Returns
    -------
    Samples
        Kind "md". A run that fails or brings atoms too close is started again from other
        velocities; after three runs its snapshots are reported as rejected.
    """
    if every < 1 or steps < every:
        raise TetherError(
            f"`steps` is {steps} with `every` {every}",
            expected="steps >= every >= 1",
            fix="set steps to a multiple of every",
        )
    bare = _check(batch, 1)
    _check_temperature(temperature)
    settings = {"temperature": temperature, "time_step": time_step, "friction": friction}
    n_frames, parts, rejected = steps // every, [], []
    for s, start in enumerate(to_ase(bare)):
        names = tuple(f"{bare.ids[s]}/md-{k}" for k in range(n_frames))
        tiled = replace(bare.select([s] * n_frames), ids=names)
        reason, value = "", None
        for attempt in range(3):
            atoms = start.copy()  # type: ignore[no-untyped-call]
            atoms.calc = calculator()
            generator = _generator(seed, "md", bare.ids[s], attempt)
            try:
                frames = _trajectory(atoms, generator, steps=steps, every=every, **settings)
            except Exception as error:  # noqa: BLE001
                # Whatever a calculator raises is this structure's failure.
                reason, value = f"dynamics failed: {error}", None
                continue
            moved = replace(tiled, positions=torch.from_numpy(np.concatenate(frames)))
            ratio = float(closest_ratio(moved).min())
            if ratio >= MIN_RATIO:
                parts.append(moved)
                break
            reason, value = _too_close("", ratio, 3).reason, ratio
        else:
            rejected += [Failure(name, reason, value) for name in names]
    return Samples(collate(parts) if parts else bare.select([]), tuple(rejected))

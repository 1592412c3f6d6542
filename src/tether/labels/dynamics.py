"""Off-equilibrium geometries from short dynamics."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from tether.errors import TetherError
from tether.labels.failure import Failure
from tether.labels.proximity import closest_ratio
from tether.labels.samples import (
    MIN_RATIO,
    Samples,
    check_temperature,
    random_stream,
    too_close,
    without_labels,
)
from tether.structures import collate, to_ase

if TYPE_CHECKING:
    from collections.abc import Callable

    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from numpy.typing import NDArray

    from tether.structures import AtomBatch

__all__ = ["short_md"]


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
    bare = without_labels(batch, 1)
    check_temperature(temperature)
    settings = {"temperature": temperature, "time_step": time_step, "friction": friction}
    n_frames, parts, rejected = steps // every, [], []
    for s, start in enumerate(to_ase(bare)):
        names = tuple(f"{bare.ids[s]}/md-{k}" for k in range(n_frames))
        tiled = replace(bare.select([s] * n_frames), ids=names)
        reason, value = "", None
        for attempt in range(3):
            atoms = start.copy()  # type: ignore[no-untyped-call]
            atoms.calc = calculator()
            generator = random_stream(seed, "md", bare.ids[s], attempt)
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
            reason, value = too_close("", ratio, 3).reason, ratio
        else:
            rejected += [Failure(name, reason, value) for name in names]
    return Samples(collate(parts) if parts else bare.select([]), tuple(rejected))

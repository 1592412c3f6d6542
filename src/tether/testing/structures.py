"""Small fixed structures for tests: distorted, so that no force vanishes by symmetry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

__all__ = [
    "benzene",
    "beta_brass",
    "dimer",
    "ethanol",
    "isolated_atom",
    "rattled",
    "silicon",
    "skewed_silicon",
    "small_structures",
    "sodium_chloride",
    "water",
]


def rattled(atoms: Atoms, *, amplitude: float = 0.05, seed: int = 0) -> Atoms:
    """A copy with normally distributed displacements.

    Parameters
    ----------
    atoms : ase.Atoms
        Left as it is.
    amplitude : float
        Standard deviation of each coordinate, Å.
    seed : int
        Of the displacements.

    Returns
    -------
    ase.Atoms
        The distorted copy.
    """
    copy: Atoms = atoms.copy()  # type: ignore[no-untyped-call]
    noise = np.random.default_rng(seed).normal(scale=amplitude, size=copy.positions.shape)
    copy.positions += noise
    return copy


def water() -> Atoms:
    """H2O, distorted.

    Returns
    -------
    ase.Atoms
        3 atoms.
    """
    return rattled(_molecule("H2O"), seed=1)


def ethanol() -> Atoms:
    """CH3CH2OH, distorted.

    Returns
    -------
    ase.Atoms
        9 atoms.
    """
    return rattled(_molecule("CH3CH2OH"), seed=2)


def benzene() -> Atoms:
    """C6H6, distorted.

    Returns
    -------
    ase.Atoms
        12 atoms.
    """
    return rattled(_molecule("C6H6"), seed=3)


def isolated_atom(number: int = 8) -> Atoms:
    """One atom without neighbours and without a cell.

    Parameters
    ----------
    number : int
        Atomic number.

    Returns
    -------
    ase.Atoms
        1 atom at the origin.
    """
    from ase import Atoms as AseAtoms

    return AseAtoms(numbers=[number], positions=[[0.0, 0.0, 0.0]])


def dimer(distance: float, *, numbers: tuple[int, int] = (8, 1)) -> Atoms:
    """Two atoms along x.

    Parameters
    ----------
    distance : float
        Å.
    numbers : tuple of int
        Atomic numbers.

    Returns
    -------
    ase.Atoms
        2 atoms, the first at the origin.
    """
    from ase import Atoms as AseAtoms

    return AseAtoms(numbers=list(numbers), positions=[[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])


def silicon() -> Atoms:
    """Primitive diamond cell of Si, distorted.

    Returns
    -------
    ase.Atoms
        2 atoms; every neighbour beyond the first shell is a periodic image.
    """
    from ase.build import bulk

    return rattled(bulk("Si"), seed=4)


def sodium_chloride() -> Atoms:
    """Primitive rock-salt cell of NaCl, distorted.

    Returns
    -------
    ase.Atoms
        2 atoms.
    """
    from ase.build import bulk

    return rattled(bulk("NaCl", "rocksalt", a=5.64), seed=5)


def beta_brass() -> Atoms:
    """Primitive cell of CuZn, distorted; each atom's own images are among its nearest neighbours.

    Returns
    -------
    ase.Atoms
        2 atoms, 2.5 Å apart, and 2.95 Å from their images.
    """
    from ase.build import bulk

    return rattled(bulk("CuZn", "cesiumchloride", a=2.95), seed=7)


def skewed_silicon() -> Atoms:
    """Cubic cell of Si, sheared and distorted, so that no lattice vector is along an axis.

    Returns
    -------
    ase.Atoms
        8 atoms.
    """
    from ase.build import bulk

    atoms = bulk("Si", cubic=True)
    shear = np.array([[1.0, 0.15, -0.08], [0.05, 0.97, 0.2], [-0.1, 0.04, 1.04]])
    atoms.positions = atoms.positions @ shear
    atoms.cell[:] = atoms.cell.array @ shear
    return rattled(atoms, seed=6)


def small_structures() -> list[Atoms]:
    """All fixed structures of this module that have neighbours.

    Returns
    -------
    list of ase.Atoms
        Three molecules and four crystals, 38 atoms.
    """
    molecules = [water(), ethanol(), benzene()]
    return [*molecules, silicon(), sodium_chloride(), beta_brass(), skewed_silicon()]


def _molecule(name: str) -> Atoms:
    from ase.build import molecule

    atoms: Atoms = molecule(name)  # type: ignore[no-untyped-call]
    return atoms

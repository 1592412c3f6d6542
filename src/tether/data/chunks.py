"""`Chunk`: what every reader yields, and the targets that readers know the units of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from tether.structures import AtomBatch
from tether.targets import Target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["CHUNK_SIZE", "ENERGY", "FORCES", "STRESS", "Chunk", "batch_from_arrays", "stem"]

CHUNK_SIZE = 4096

ENERGY = Target("energy", unit="eV", kind="extensive")
FORCES = Target("forces", unit="eV/Å", level="atom", kind="vector", n_components=3)
STRESS = Target("stress", unit="eV/Å³", n_components=9)


@dataclass(frozen=True)
class Chunk:
    """Some structures of a file, in the order of the file.

    Attributes
    ----------
    batch : AtomBatch
        The structures, with labels and ids.
    sources : tuple of str, length n_systems
        Name of the file of each structure, so that published splits that come as one file a set
        can be rebuilt.
    targets : mapping of str to Target
        Level, kind, size and (where the reader knows it) unit of every label of the batch.
    """

    batch: AtomBatch
    sources: tuple[str, ...]
    targets: Mapping[str, Target] = field(default_factory=dict)

    def select(self, systems: NDArray[np.int64]) -> Chunk:
        """The given structures, in that order.

        Parameters
        ----------
        systems : array of int
            Indices of structures.

        Returns
        -------
        Chunk
            A smaller chunk.
        """
        sources = tuple(self.sources[i] for i in systems.tolist())
        return Chunk(self.batch.select(torch.from_numpy(systems)), sources, self.targets)


def stem(path: Path) -> str:
    """File name without its suffixes: ``data.xyz.gz`` gives ``data``.

    Parameters
    ----------
    path : Path
        A file.

    Returns
    -------
    str
        The prefix of the ids of its structures.
    """
    name = path.name.removesuffix(".gz").removesuffix(".bz2").removesuffix(".xz")
    return name.rsplit(".", 1)[0] or name


def batch_from_arrays(
    counts: NDArray[np.integer],
    numbers: NDArray[np.generic],
    positions: NDArray[np.generic],
    *,
    ids: Sequence[str],
    cell: NDArray[np.generic] | None = None,
    pbc: NDArray[np.generic] | None = None,
    charge: NDArray[np.generic] | None = None,
    spin: NDArray[np.generic] | None = None,
    labels: Mapping[str, NDArray[np.generic]] | None = None,
    atom_labels: Mapping[str, NDArray[np.generic]] | None = None,
) -> AtomBatch:
    """A batch from flat arrays, in double precision.

    Parameters
    ----------
    counts : array, shape (n_systems,)
        Atoms of each structure.
    numbers, positions : array, shape (n_atoms,) and (n_atoms, 3)
        Atomic numbers; positions in Å.
    ids : sequence of str, length n_systems
        Names.
    cell : array, shape (n_systems, 3, 3), optional
        Lattice vectors as rows, Å; default none.
    pbc : array, shape (n_systems, 3), optional
        Periodic directions; default: all of them where there is a cell, else none.
    charge, spin : array, shape (n_systems,), optional
        Total charge in e, unpaired electrons; default 0.
    labels, atom_labels : mapping of str to array, optional
        With a leading axis of n_systems or n_atoms.

    Returns
    -------
    AtomBatch
        On the CPU, sharing no memory with read-only input.
    """
    n_systems = len(counts)
    ptr = np.zeros(n_systems + 1, dtype=np.int64)
    np.cumsum(counts, out=ptr[1:])
    if cell is None:
        cell = np.zeros((n_systems, 3, 3))
    if pbc is None:
        pbc = np.repeat(np.any(cell != 0, axis=(1, 2))[:, None], 3, axis=1)
    zeros = np.zeros(n_systems)

    def double(array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.array(array, dtype=np.float64))

    return AtomBatch(
        numbers=torch.from_numpy(np.array(numbers, dtype=np.int64)),
        positions=double(positions).reshape(-1, 3),
        ptr=torch.from_numpy(ptr),
        cell=double(cell),
        pbc=torch.from_numpy(np.array(pbc, dtype=bool)),
        charge=double(zeros if charge is None else charge),
        spin=double(zeros if spin is None else spin),
        labels={name: double(value) for name, value in (labels or {}).items()},
        atom_labels={name: double(value) for name, value in (atom_labels or {}).items()},
        ids=tuple(ids),
    )

"""Space groups of crystals, by spglib."""

from __future__ import annotations

import itertools
import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.errors import TetherError
from tether.packages import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

__all__ = ["check_crystals", "space_groups"]


def check_crystals(cell: ArrayLike, pbc: ArrayLike, ids: Sequence[str] | None = None) -> None:
    """Refuse structures that are not periodic in three directions.

    Parameters
    ----------
    cell : array, shape (n_systems, 3, 3)
        Lattice vectors as rows, Å.
    pbc : array, shape (n_systems, 3), bool
        Whether a structure is periodic along each of them: a molecule in a box is not.
    ids : sequence of str, optional
        Names for the error; default the numbers of the rows.

    Raises
    ------
    TetherError
        For a structure with an open direction, or a cell of no volume.
    """
    volume = np.abs(np.linalg.det(np.asarray(cell, dtype=np.float64).reshape(-1, 3, 3)))
    wrong = np.flatnonzero((volume < 1e-6) | ~np.asarray(pbc, dtype=bool).reshape(-1, 3).all(1))
    if len(wrong):
        name = repr(str(ids[wrong[0]])) if ids is not None else str(wrong[0])
        raise TetherError(
            f"{len(wrong)} of {len(volume)} structures are not periodic in three directions, or "
            f"have a cell of no volume; the first is {name}",
            expected="crystals",
            fix="use method scaffold or size for molecules",
        )


def space_groups(
    numbers: ArrayLike,
    positions: ArrayLike,
    ptr: ArrayLike,
    cell: ArrayLike,
    pbc: ArrayLike,
    *,
    tolerance: float = 0.1,
) -> list[str]:
    """Number of the space group of each structure.

    Parameters
    ----------
    numbers : array, shape (n_atoms,)
        Atomic numbers.
    positions : array, shape (n_atoms, 3)
        Å.
    ptr : array, shape (n_systems + 1,)
        Offsets: the atoms of system s are ``ptr[s]:ptr[s + 1]``.
    cell : array, shape (n_systems, 3, 3)
        Lattice vectors as rows, Å.
    pbc : array, shape (n_systems, 3), bool
        All true, see `check_crystals`.
    tolerance : float
        How far from a symmetric position an atom may be, Å. 0.1 as the Materials Project and
        MatFold have it: relaxed structures are symmetric to about that.

    Returns
    -------
    list of str, length n_systems
        "1" to "230"; "" where spglib finds no symmetry, as for overlapping atoms.

    Raises
    ------
    TetherError
        Without spglib, or for a structure that is not periodic in three directions.
    """
    require("spglib", "method space-group", extra="splits")
    # Its C part prints each tolerance that it tries in vain before it finds one that serves.
    os.environ.setdefault("SPGLIB_WARNING", "OFF")
    z, x = np.asarray(numbers, dtype=np.int64), np.asarray(positions, dtype=np.float64)
    offsets = np.asarray(ptr, dtype=np.int64)
    lattice = np.asarray(cell, dtype=np.float64).reshape(-1, 3, 3)
    check_crystals(lattice, pbc)
    atoms = [slice(a, b) for a, b in itertools.pairwise(offsets)]
    return [
        _number(one, x[these], z[these], tolerance)
        for one, these in zip(lattice, atoms, strict=True)
    ]


def _number(lattice: Any, positions: Any, numbers: Any, tolerance: float) -> str:
    import spglib

    crystal: Any = (lattice, np.linalg.solve(lattice.T, positions.T).T, numbers)
    with warnings.catch_warnings():
        # Versions below 3 warn that failures will become exceptions; both are handled.
        warnings.simplefilter("ignore")
        try:
            found = spglib.get_symmetry_dataset(crystal, symprec=tolerance)
        except Exception:  # noqa: BLE001 - spglib's error types changed between its versions
            found = None
    return "" if found is None else str(found.number)

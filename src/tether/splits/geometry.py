"""Descriptors of the geometry: SOAP, in which all atoms are alike, averaged over a structure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tether.packages import require

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["geometry_descriptors"]

_MAX_ANGULAR, _MAX_RADIAL = 4, 5
# Structures whose atoms' spectra are in memory at once.
_CHUNK = 500


def geometry_descriptors(
    positions: ArrayLike,
    ptr: ArrayLike,
    cell: ArrayLike,
    pbc: ArrayLike,
    *,
    cutoff: float = 6.0,
) -> NDArray[np.float64]:
    """Mean SOAP power spectrum of the atoms of each structure, blind to their elements.

    It says where atoms are and not which, so that with `composition_descriptors` beside it either
    can be the axis along which a model has to extrapolate.

    Parameters
    ----------
    positions : array, shape (n_atoms, 3)
        Å.
    ptr : array, shape (n_systems + 1,)
        Offsets: the atoms of system s are ``ptr[s]:ptr[s + 1]``; none is empty.
    cell : array, shape (n_systems, 3, 3)
        Lattice vectors as rows, Å.
    pbc : array, shape (n_systems, 3), bool
        Periodic directions.
    cutoff : float
        Å.

    Returns
    -------
    array, shape (n_systems, 105)
        Six radial functions in pairs, angular momentum 0 to 4.

    Raises
    ------
    TetherError
        Without featomic.

    References
    ----------
    Bartók, Kondor and Csányi, Phys. Rev. B 87, 184115 (2013); featomic computes it.
    """
    require("featomic", "the structure descriptor", extra="splits")
    from featomic import SoapPowerSpectrum

    x, offsets = np.asarray(positions, dtype=np.float64), np.asarray(ptr, dtype=np.int64)
    lattice, periodic = np.asarray(cell).reshape(-1, 3, 3), np.asarray(pbc).reshape(-1, 3)
    calculator = SoapPowerSpectrum(
        cutoff={"radius": cutoff, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
        density={"type": "Gaussian", "width": 0.5},
        basis={
            "type": "TensorProduct",
            "max_angular": _MAX_ANGULAR,
            "radial": {"type": "Gto", "max_radial": _MAX_RADIAL},
        },
    )
    parts = [np.zeros((0, _n_features()))]
    for start in range(0, len(offsets) - 1, _CHUNK):
        stop = min(start + _CHUNK, len(offsets) - 1)
        frames = [
            _frame(x[offsets[s] : offsets[s + 1]], lattice[s], periodic[s], vacuum=cutoff)
            for s in range(start, stop)
        ]
        block = calculator.compute(frames).block(0)
        # The spectrum is symmetric in the two radial functions.
        kept = block.properties["n_1"] <= block.properties["n_2"]
        sums = np.add.reduceat(block.values[:, kept], offsets[start:stop] - offsets[start])
        parts.append(sums / np.diff(offsets[start : stop + 1])[:, None])
    found = np.concatenate(parts)
    # What symmetry forbids comes out as 1e-33, which standardising would blow up to a feature.
    found[np.abs(found) < 1e-12 * np.abs(found).max(axis=1, keepdims=True)] = 0.0
    return found


def _frame(
    positions: NDArray[np.float64],
    lattice: NDArray[np.float64],
    periodic: NDArray[np.bool_],
    *,
    vacuum: float,
) -> Any:
    from ase import Atoms

    numbers = np.ones(len(positions), dtype=np.int64)
    atoms = Atoms(numbers=numbers, positions=positions, cell=lattice, pbc=periodic)
    if periodic.any() and not periodic.all():
        # featomic knows all directions or none; images beyond the cutoff are as good as none.
        open_axes = tuple(np.flatnonzero(~periodic))
        atoms.center(vacuum=vacuum, axis=open_axes)  # type: ignore[no-untyped-call]
        atoms.pbc = True
    return atoms


def _n_features() -> int:
    n_radial = _MAX_RADIAL + 1
    return (_MAX_ANGULAR + 1) * n_radial * (n_radial + 1) // 2

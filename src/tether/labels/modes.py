r"""Thermal displacements from a cheap model Hessian, without any quantum chemistry.

The potential is harmonic in the internal coordinates :math:`q` of the structure as given,

.. math:: E = \tfrac12 \sum_q k_q (q - q_0)^2, \qquad H = \sum_q k_q \nabla q\, \nabla q^T ,

with the force constants of Lindh's model Hessian (R. Lindh et al., Chem. Phys. Lett. 241, 423,
1995) for bonded atoms: 0.45, 0.15 and 0.005 atomic units for stretches, bends and torsions, each
times :math:`\rho = \exp[\alpha (r_\mathrm{ref}^2 - r^2)]` of the bonds in it, so that long
bonds and those of heavy atoms are softer (a Cu-Cu pair has 1.7 eV/Å², a C-H bond 47); here ρ is
at most 1 in bends and torsions, which puts the bend of water at 1600 cm⁻¹. Atoms with three
neighbours in their plane resist leaving it, and non-bonded pairs are held by springs about as
stiff as a van der Waals minimum. In mass-weighted coordinates, rigid translation (and, without a
cell, rotation) taken out, mode :math:`m` of eigenvalue :math:`\lambda_m = \omega_m^2` has the
classical variance :math:`k_B T / \lambda_m`: soft torsions and bends move much, bond lengths
little, as in a thermal ensemble and unlike isotropic noise.

Checked with GFN2-xTB on twelve QM9 molecules: the root mean square force at 300 K is 0.81 eV/Å,
against 0.78 in xTB dynamics (30 to 60 fs) and 0.97, 2.4 and 4.5 for noise of 0.02, 0.05 and 0.1 Å.

What it is not: anharmonic, quantum (no zero-point motion), or aware of bond orders. Displacements
are straight lines, so that large torsions also lengthen bonds, to second order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
from ase import units
from ase.data import atomic_masses, covalent_radii

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Index = NDArray[np.int64]

__all__ = ["BOND_RATIO", "PairList", "mode_displacements", "model_hessian", "wavenumbers"]

BOND_RATIO = 1.2  # bonded: closer than this times the sum of covalent radii
_STRETCH = 0.45 * units.Hartree / units.Bohr**2  # eV/Å²
_BEND = 0.15 * units.Hartree  # eV/rad²
_TORSION = 0.005 * units.Hartree  # eV/rad²
# Lindh's exponents (1/bohr²) and reference distances (bohr) by row of the periodic table.
_ALPHA = np.array([[1.0, 0.3949, 0.3949], [0.3949, 0.28, 0.28], [0.3949, 0.28, 0.28]])
_REFERENCE = np.array([[1.35, 2.10, 2.53], [2.10, 2.87, 3.40], [2.53, 3.40, 3.40]])
_OUT_OF_PLANE = 10.0  # eV/Å²; puts the C-H wag of benzene near 900 cm⁻¹
_FAR, _FAR_MAX = 0.05, 0.1  # eV/Å² at 3 Å, and never more
_LINEAR = 0.2  # sine below which an angle counts as straight
_MAX_BENDS, _MAX_TORSIONS = 6, 4  # coordination above which close packing replaces the angles
_FLOOR = 100.0  # cm⁻¹: no mode is softer, or a free fragment would drift by ångströms


@dataclass(frozen=True)
class PairList:
    """Directed pairs of one structure, sorted by atom i, each pair in both directions.

    Attributes
    ----------
    idx_i, idx_j : array, shape (n_pairs,), int64
        Atoms.
    vectors : array, shape (n_pairs, 3)
        From i to (the image of) j, Å.
    """

    idx_i: Index
    idx_j: Index
    vectors: Array

    def select(self, mask: NDArray[np.bool_]) -> PairList:
        """The pairs where `mask` is true."""
        return PairList(self.idx_i[mask], self.idx_j[mask], self.vectors[mask])


# A set of coordinates: atoms (n_q, n_places), gradients (n_q, n_places, 3), constants (n_q,).
_Coordinates = tuple["Index", "Array", "Array"]


def _unit(vectors: Array) -> tuple[Array, Array]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, 1e-12), length


def _stretches(pairs: PairList, constants: Array) -> _Coordinates:
    direction, _ = _unit(pairs.vectors)
    # Each pair is listed twice, so that each direction takes half of the constant.
    return (
        np.stack([pairs.idx_i, pairs.idx_j], axis=1),
        np.stack([-direction, direction], axis=1),
        0.5 * constants,
    )


def _strength(numbers: Index, bonds: PairList) -> Array:
    row = np.searchsorted([3, 11], numbers, side="right")
    i, j = row[bonds.idx_i], row[bonds.idx_j]
    squared = np.sum(bonds.vectors**2, axis=1) / units.Bohr**2
    return np.asarray(np.exp(_ALPHA[i, j] * (_REFERENCE[i, j] ** 2 - squared)))


def _bends(bonds: PairList, rho: Array, degree: Index, start: Index) -> list[_Coordinates]:
    edge = np.flatnonzero(degree[bonds.idx_i] <= _MAX_BENDS)
    later = start[bonds.idx_i[edge]] + degree[bonds.idx_i[edge]] - edge - 1
    first = np.repeat(edge, later)
    second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(later) - later, later)
    (u1, r1), (u2, r2) = _unit(bonds.vectors[first]), _unit(bonds.vectors[second])
    cosine = np.sum(u1 * u2, axis=1, keepdims=True)
    sine = np.sqrt(np.maximum(1.0 - cosine**2, 0.0))
    atoms = np.stack([bonds.idx_j[first], bonds.idx_i[first], bonds.idx_j[second]], axis=1)
    constant = _BEND * rho[first] * rho[second]
    bent = sine[:, 0] > _LINEAR
    end1 = ((cosine * u1 - u2) / (r1 * np.maximum(sine, _LINEAR)))[bent]
    end2 = ((cosine * u2 - u1) / (r2 * np.maximum(sine, _LINEAR)))[bent]
    gradient = np.stack([end1, -end1 - end2, end2], axis=1)
    result = [(atoms[bent], gradient, constant[bent])]
    # The angle has no gradient at 180°; there it bends in two perpendicular planes.
    straight = (~bent) & (cosine[:, 0] < 0)
    axis = u1[straight]
    helper = np.eye(3)[np.argmin(np.abs(axis), axis=1)]
    across = _unit(np.cross(axis, helper))[0]
    for normal in (across, np.cross(axis, across)):
        end1, end2 = normal / r1[straight], normal / r2[straight]
        gradient = np.stack([end1, -end1 - end2, end2], axis=1)
        result.append((atoms[straight], gradient, constant[straight]))
    return result


def _torsions(bonds: PairList, rho: Array, degree: Index, start: Index) -> _Coordinates:
    # Atoms k-i-j-l around the directed bond i-j, each bond in both directions (half constant).
    low = (degree <= _MAX_TORSIONS).astype(np.int64)
    edge = np.flatnonzero(low[bonds.idx_i] & low[bonds.idx_j])
    n_l = degree[bonds.idx_j[edge]]
    counts = degree[bonds.idx_i[edge]] * n_l
    middle, n_l = np.repeat(edge, counts), np.repeat(n_l, counts)
    place = np.arange(len(middle)) - np.repeat(np.cumsum(counts) - counts, counts)
    side_k = start[bonds.idx_i[middle]] + place // np.maximum(n_l, 1)
    side_l = start[bonds.idx_j[middle]] + place % np.maximum(n_l, 1)
    b1, b2, b3 = -bonds.vectors[side_k], bonds.vectors[middle], bonds.vectors[side_l]
    n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
    r1, r2, r3 = (np.linalg.norm(b, axis=1) for b in (b1, b2, b3))
    # This also removes k = j and l = i, whose planes have no normal.
    keep = (np.linalg.norm(n1, axis=1) > _LINEAR * r1 * r2) & (
        np.linalg.norm(n2, axis=1) > _LINEAR * r2 * r3
    )
    b1, b2, b3, n1, n2, r2 = (a[keep] for a in (b1, b2, b3, n1, n2, r2))
    # Blondel & Karplus, J. Comput. Chem. 17, 1132 (1996).
    end_k = -(r2 / np.sum(n1**2, axis=1))[:, None] * n1
    end_l = (r2 / np.sum(n2**2, axis=1))[:, None] * n2
    along1 = (np.sum(b1 * b2, axis=1) / r2**2)[:, None]
    along3 = (np.sum(b3 * b2, axis=1) / r2**2)[:, None]
    at_i = -(along1 + 1.0) * end_k + along3 * end_l
    at_j = along1 * end_k - (along3 + 1.0) * end_l
    columns = (bonds.idx_j[side_k], bonds.idx_i[middle], bonds.idx_j[middle], bonds.idx_j[side_l])
    atoms = np.stack([c[keep] for c in columns], axis=1)
    gradient = np.stack([end_k, at_i, at_j, end_l], axis=1)
    strength = (rho[side_k] * rho[middle] * rho[side_l])[keep]
    return atoms, gradient, 0.5 * _TORSION * strength


def _out_of_plane(bonds: PairList, degree: Index, start: Index) -> _Coordinates:
    centre = np.flatnonzero(degree == 3)
    edges = start[centre][:, None] + np.arange(3)
    a, b, c = (bonds.vectors[edges[:, m]] for m in range(3))
    normal, area = _unit(np.cross(b - a, c - a))
    height = np.abs(np.sum(a * normal, axis=1))
    weights = np.stack(
        [np.sum(np.cross(p, q) * normal, axis=1) for p, q in ((b, c), (c, a), (a, b))], axis=1
    )
    # Barycentric weights of the centre make the coordinate blind to rotations; that holds only
    # where the centre lies in the plane (a pyramid is held by its angles).
    keep = (height < 0.1) & (area[:, 0] > 0.1)
    weights = weights[keep] / area[keep]
    gradient = np.concatenate(
        [normal[keep, None, :], -weights[:, :, None] * normal[keep, None, :]], axis=1
    )
    atoms = np.concatenate([centre[keep, None], bonds.idx_j[edges[keep]]], axis=1)
    return atoms, gradient, np.full(len(atoms), _OUT_OF_PLANE)


def model_hessian(numbers: Index, pairs: PairList) -> Array:
    """Second derivatives of the model energy at the geometry given.

    Parameters
    ----------
    numbers : array, shape (n_atoms,), int64
        Atomic numbers.
    pairs : PairList
        All pairs within some ångströms, periodic images included.

    Returns
    -------
    array, shape (3 n_atoms, 3 n_atoms)
        eV/Å²; at the zone centre where the structure is periodic.
    """
    n_atoms = len(numbers)
    radius = np.asarray(covalent_radii)[numbers]
    distance = np.linalg.norm(pairs.vectors, axis=1)
    bonded = distance < BOND_RATIO * (radius[pairs.idx_i] + radius[pairs.idx_j])
    bonds = pairs.select(bonded)
    degree = np.bincount(bonds.idx_i, minlength=n_atoms).astype(np.int64)
    start = np.cumsum(degree) - degree
    far = np.minimum(_FAR * (3.0 / distance[~bonded]) ** 6, _FAR_MAX)
    rho = _strength(numbers, bonds)
    parts = [
        _stretches(bonds, _STRETCH * rho),
        _stretches(pairs.select(~bonded), far),
        *_bends(bonds, np.minimum(rho, 1.0), degree, start),
        _torsions(bonds, np.minimum(rho, 1.0), degree, start),
        _out_of_plane(bonds, degree, start),
    ]
    rows, columns, values, offset = [], [], [], 0
    for atoms, gradient, constant in parts:
        row = np.arange(len(atoms)) + offset
        rows.append(np.broadcast_to(row[:, None, None], gradient.shape).ravel())
        columns.append((3 * atoms[:, :, None] + np.arange(3)).ravel())
        values.append((gradient * np.sqrt(constant)[:, None, None]).ravel())
        offset += len(atoms)
    b_matrix = scipy.sparse.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(offset, 3 * n_atoms),
    )
    return np.asarray((b_matrix.T @ b_matrix).toarray())


def _rigid(masses: Array, positions: Array, *, rotations: bool) -> Array:
    # Orthonormal mass-weighted translations and rotations; a line has only two rotations.
    root = np.sqrt(masses)
    centred = positions - np.average(positions, axis=0, weights=masses)
    moves = [np.tile(axis, (len(masses), 1)) for axis in np.eye(3)]
    if rotations:
        moves += [np.cross(axis, centred) for axis in np.eye(3)]
    weighted = np.stack([(root[:, None] * move).ravel() for move in moves], axis=1)
    left, singular, _ = np.linalg.svd(weighted, full_matrices=True)
    return left[:, int(np.sum(singular > 1e-6 * singular[0])) :]


def _eigenmodes(
    numbers: Index, positions: Array, pairs: PairList, *, periodic: bool
) -> tuple[Array, Array, Array]:
    masses = np.asarray(atomic_masses)[numbers]
    root = np.repeat(np.sqrt(masses), 3)
    inner = _rigid(masses, positions, rotations=not periodic)
    weighted = model_hessian(numbers, pairs) / root[:, None] / root[None, :]
    eigenvalue, vector = np.linalg.eigh(inner.T @ weighted @ inner)
    return eigenvalue, inner @ vector, root


def _eigenvalue(wavenumber: float) -> float:
    hbar = units._hbar * units.J * units.s  # noqa: SLF001 (ase's only name for it)
    return float((wavenumber * units.invcm / hbar) ** 2)


def wavenumbers(numbers: Index, positions: Array, pairs: PairList, *, periodic: bool) -> Array:
    """Harmonic wavenumbers of the model, rigid motion taken out.

    Parameters
    ----------
    numbers, positions, pairs
        As in `mode_displacements`.
    periodic : bool
        Whether the structure has a cell; then its rotation is not taken out.

    Returns
    -------
    array, shape (n_modes,)
        cm⁻¹, ascending, before the floor of 100 cm⁻¹.
    """
    eigenvalue, _, _ = _eigenmodes(numbers, positions, pairs, periodic=periodic)
    return np.sqrt(np.maximum(eigenvalue, 0.0) / _eigenvalue(1.0))


def mode_displacements(
    numbers: Index, positions: Array, pairs: PairList, *, periodic: bool, temperature: float
) -> Array:
    """Matrix that turns independent unit normals into thermal displacements.

    Parameters
    ----------
    numbers : array, shape (n_atoms,), int64
        Atomic numbers.
    positions : array, shape (n_atoms, 3)
        Å.
    pairs : PairList
        All pairs within some ångströms.
    periodic : bool
        Whether the structure has a cell.
    temperature : float
        K.

    Returns
    -------
    array, shape (3 n_atoms, n_modes)
        Å; column m is mode m times its standard deviation at `temperature`.
    """
    eigenvalue, vector, root = _eigenmodes(numbers, positions, pairs, periodic=periodic)
    spread = np.sqrt(units.kB * temperature / np.maximum(eigenvalue, _eigenvalue(_FLOOR)))
    return np.asarray(vector / root[:, None] * spread[None, :])

"""Functional groups of sampled atoms, through bonds that are perceived from the geometry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tether.bonds import perceived_molecule
from tether.collapse.groups import functional_groups

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tether.data.store import Store

__all__ = ["UNKNOWN", "atom_groups", "frequent"]

#: Group of an atom whose bonds are not known.
UNKNOWN = ""
#: Atoms below which a group counts as unknown: its purity is one of 10 nearest neighbours.
MIN_IN_GROUP = 12
# Perception searches for bond orders, which takes long in what is no small molecule.
_MAX_ATOMS = 100


def atom_groups(
    store: Store, rows: NDArray[np.int64], atom_idx: NDArray[np.int64]
) -> NDArray[np.str_]:
    """Functional group of atoms of a store.

    Parameters
    ----------
    store : Store
        Structures.
    rows : ndarray, shape (n_atoms,)
        Each atom's structure, as a row of the store.
    atom_idx : ndarray, shape (n_atoms,)
        Each atom's number inside the structure.

    Returns
    -------
    ndarray of str, shape (n_atoms,)
        A name of `tether.collapse.groups`; `UNKNOWN` in periodic structures, in those of more than
        100 atoms, and where no bond orders fit the geometry.
    """
    once, place = np.unique(rows, return_inverse=True)
    if not len(once):
        return np.zeros(0, dtype=np.str_)
    batch = store.batch(once)
    ptr = batch.ptr.numpy()
    numbers, positions = batch.numbers.numpy(), batch.positions.numpy()
    charges, periodic = batch.charge.numpy(), np.any(batch.pbc.numpy(), axis=1).tolist()
    names = np.full(len(numbers), UNKNOWN, dtype=object)
    known, molecules = [], []
    for system in range(batch.n_systems):
        atoms = slice(ptr[system], ptr[system + 1])
        if periodic[system] or ptr[system + 1] - ptr[system] > _MAX_ATOMS:
            continue
        charge = round(float(charges[system]))
        molecule = perceived_molecule(numbers[atoms], positions[atoms], charge=charge)
        if molecule is not None:
            known.append(atoms)
            molecules.append(molecule)
    for atoms, groups in zip(known, functional_groups(molecules), strict=True):
        names[atoms] = groups
    found: NDArray[np.str_] = names[ptr[place] + atom_idx].astype(np.str_)
    return found


def frequent(groups: NDArray[np.str_], *, least: int = MIN_IN_GROUP) -> NDArray[np.str_]:
    """Leave out groups of a few atoms, which say nothing.

    Parameters
    ----------
    groups : ndarray of str, shape (n_atoms,)
        Group of each atom.
    least : int
        Atoms that a group needs.

    Returns
    -------
    ndarray of str, shape (n_atoms,)
        The same, with `UNKNOWN` for rare groups.

    Examples
    --------
    >>> frequent(np.array(["ether", "amide", "ether"]), least=2).tolist()
    ['ether', '', 'ether']
    """
    names, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    kept: NDArray[np.str_] = np.where(counts >= least, names, UNKNOWN)[place]
    return kept

"""Bonds of a molecule from its geometry, by RDKit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["perceived_molecule"]

# Two atoms are bonded within this multiple of the sum of their covalent radii. RDKit's own 1.3
# bonds the atoms across small cages and so fails for 5 % of QM9; it is the second try.
_REACH = (1.15, 1.3)
# Bond orders are searched for; the molecules of QM9 need fewer than a hundred trials.
_MAX_TRIALS = 100_000


def perceived_molecule(
    numbers: NDArray[np.integer], positions: NDArray[np.floating], *, charge: int = 0
) -> Any:
    """Bonds and their orders from a geometry.

    Parameters
    ----------
    numbers : ndarray, shape (n_atoms,)
        Atomic numbers, hydrogens included.
    positions : ndarray, shape (n_atoms, 3)
        Å.
    charge : int
        Total charge, e.

    Returns
    -------
    rdkit.Chem.Mol or None
        Atoms in the order given, aromaticity set; None where no bond orders fit.

    References
    ----------
    Kim and Kim, Bull. Korean Chem. Soc. 36, 1769 (2015).
    """
    from rdkit import Chem
    from rdkit.Chem import rdDetermineBonds
    from rdkit.rdBase import BlockLogs

    # Fifteen times faster than with hydrogens first, since open valences are found at once.
    order = np.argsort(-numbers, kind="stable")
    conformer = Chem.Conformer(len(numbers))
    conformer.SetPositions(np.ascontiguousarray(positions[order], dtype=np.float64))
    for reach in _REACH:
        molecule = Chem.RWMol()
        for number in numbers[order].tolist():
            molecule.AddAtom(Chem.Atom(number))
        molecule.AddConformer(conformer)
        with BlockLogs():
            try:
                rdDetermineBonds.DetermineBonds(
                    molecule,
                    charge=charge,
                    useVdw=True,
                    covFactor=reach,
                    embedChiral=False,
                    maxIterations=_MAX_TRIALS,
                )
                Chem.SanitizeMol(molecule)
            except (ValueError, RuntimeError):  # its own errors derive from ValueError
                continue
        return Chem.RenumberAtoms(molecule, np.argsort(order).tolist())
    return None

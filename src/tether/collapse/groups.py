"""Functional groups of atoms in molecules whose bonds are known, by RDKit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tether.errors import TetherError
from tether.packages import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["FUNCTIONAL_GROUPS", "functional_groups"]

#: Group → SMARTS, the most specific first: an atom is of the first group that claims it. Carbon
#: belongs to groups that it is part of (C=O), not to those that it bears (OH).
FUNCTIONAL_GROUPS = {
    "carboxylic acid": "[CX3](=O)[OX2H1]",
    "carboxylate": "[CX3](=O)[OX1-]",
    "imide": "[CX3](=O)[NX3][CX3](=O)",
    "urea": "[NX3][CX3](=O)[NX3]",
    "carbamate": "[NX3][CX3](=O)[OX2]",
    "amide": "[CX3](=O)[NX3]",
    "carbonate": "[OX2][CX3](=O)[OX2]",
    "ester": "[CX3;$(C[#6])](=O)[OX2;$(O[#6])]",
    "formate": "[CX3H1](=O)[OX2;$(O[#6])]",
    "aldehyde": "[CX3;H1,H2]=[OX1]",
    "ketone": "[CX3;$(C([#6])[#6])]=[OX1]",
    "nitro": "[$([NX3](=O)=O),$([NX3+](=O)[O-])](~O)~O",
    "nitrile": "[CX2]#[NX1]",
    "amidine": "[NX3][CX3]=[NX2]",
    "oxime": "[CX3]=[NX2][OX2H1]",
    "imine": "[CX3]=[NX2]",
    "epoxide": "[OX2r3]1[#6r3][#6r3]1",
    "aziridine": "[NX3r3]1[#6r3][#6r3]1",
    "phenol": "[OX2H1;$(Oc)]",
    "alcohol": "[OX2H1;$(O[CX4])]",
    "ether": "[OX2;$(O([#6])[#6])]",
    "ammonium": "[NX4+]",
    "amine": "[NX3;!$(N=*);!$(N#*)]",
    "fluoride": "[FX1;$(F[#6])]",
    "aromatic": "a",
    "alkyne": "[CX2]#[CX2]",
    "alkene": "[CX3]=[CX3]",
    "alkane": "[CX4]",
}


def functional_groups(molecules: Sequence[Any]) -> list[NDArray[np.str_]]:
    """Name of the functional group of each atom.

    Hydrogens have the group of the atom that they are bonded to.

    Parameters
    ----------
    molecules : sequence of str or rdkit.Chem.Mol
        SMILES, to which hydrogens are added behind the heavy atoms, or molecules, whose atoms keep
        their order.

    Returns
    -------
    list of ndarray of str, shape (n_atoms,)
        One array a molecule; a key of `FUNCTIONAL_GROUPS`, or "other".

    Raises
    ------
    TetherError
        For SMILES that RDKit cannot read, or when RDKit is not installed.

    Examples
    --------
    >>> functional_groups(["CO"])[0].tolist()
    ['alkane', 'alcohol', 'alkane', 'alkane', 'alkane', 'alcohol']
    """
    require("rdkit", "finding functional groups", extra="collapse", package="RDKit")
    from rdkit import Chem
    from rdkit.rdBase import BlockLogs

    patterns = [(name, Chem.MolFromSmarts(smarts)) for name, smarts in FUNCTIONAL_GROUPS.items()]
    found = []
    for molecule in molecules:
        if isinstance(molecule, str):
            with BlockLogs():
                parsed = Chem.MolFromSmiles(molecule)
            if parsed is None:
                raise TetherError(
                    f"RDKit cannot read the SMILES {molecule!r}",
                    expected="a valid SMILES",
                    fix="check the string, or leave the molecule out",
                )
            found.append(_groups_of(Chem.AddHs(parsed), patterns))
        else:
            found.append(_groups_of(molecule, patterns))
    return found


def _groups_of(molecule: Any, patterns: Sequence[tuple[str, Any]]) -> NDArray[np.str_]:
    names = [""] * molecule.GetNumAtoms()
    for name, pattern in patterns:
        for match in molecule.GetSubstructMatches(pattern):
            for atom in match:
                names[atom] = names[atom] or name
    for atom in molecule.GetAtoms():
        # A pattern's own atoms are heavy; a hydrogen asks its neighbour.
        if atom.GetAtomicNum() == 1 and atom.GetDegree() == 1:
            names[atom.GetIdx()] = names[atom.GetNeighbors()[0].GetIdx()]
    return np.array([name or "other" for name in names], dtype=np.str_)

"""Structures → matrix: descriptors that were there before learned 3D features.

Every structure gets its composition and its geometry; a molecule whose bonds can be perceived also
gets Morgan fingerprints and descriptors of the molecular graph. What a structure has not is NaN,
so that crystals and molecules without an assignable bond order keep their row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols

from tether.bonds import perceived_molecule
from tether.packages import require
from tether.splits.composition import PROPERTIES, STATISTICS, composition_descriptors
from tether.splits.elements import element_pairs
from tether.splits.geometry import geometry_descriptors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tether.structures import AtomBatch

__all__ = ["GRAPH_DESCRIPTORS", "check_packages", "column_names", "fingerprint_matrix"]

#: Descriptors of a whole molecule, by RDKit's names: size, polarity, shape of the graph.
GRAPH_DESCRIPTORS = (
    "exactmw", "NumHeavyAtoms", "NumHeteroatoms", "NumRotatableBonds", "NumHBD", "NumHBA",
    "NumRings", "NumAromaticRings", "NumHeterocycles", "NumSpiroAtoms", "NumBridgeheadAtoms",
    "FractionCSP3", "labuteASA", "tpsa", "CrippenClogP", "CrippenMR", "hallKierAlpha",
    "kappa1", "kappa2", "kappa3",
)  # fmt: skip
_SIZE = ("n_atoms", "gyration_1", "gyration_2", "gyration_3", "volume_per_atom")
_RADIUS, _N_BITS = 2, 2048
#: Of the elements of `composition_descriptors`.
_LAST_ELEMENT = 103
_N_SOAP = 105


def check_packages() -> None:
    """Refuse to start without the packages that compute the descriptors.

    Raises
    ------
    TetherError
        For the first that is missing.
    """
    for module in ("rdkit", "pymatgen", "featomic"):
        require(module, "the fingerprint of a structure", extra="splits")


def column_names() -> tuple[str, ...]:
    """Names of the columns of `fingerprint_matrix`.

    Returns
    -------
    tuple of str
        In order.
    """
    symbols = chemical_symbols[1 : _LAST_ELEMENT + 1]
    return (
        *(f"share {symbol}" for symbol in symbols),
        *(f"count {symbol}" for symbol in symbols),
        *(f"{name} {statistic}" for name in PROPERTIES for statistic in STATISTICS),
        *(f"soap {k}" for k in range(_N_SOAP)),
        *_SIZE,
        *GRAPH_DESCRIPTORS,
        *(f"morgan {k}" for k in range(_N_BITS)),
    )


def fingerprint_matrix(batch: AtomBatch) -> NDArray[np.float32]:
    """Descriptors of each structure; what a structure has not is NaN.

    Parameters
    ----------
    batch : AtomBatch
        Molecules or crystals.

    Returns
    -------
    array, shape (n_systems, n_columns)
        In the order of `column_names`: shares of the elements, their counts (molecules only: a
        cell may hold any number of formula units), Magpie's statistics of the composition, the mean
        SOAP spectrum, size (squared radii of gyration along the principal axes, Å²; volume per
        atom of a crystal, Å³), and for molecules with perceived bonds `GRAPH_DESCRIPTORS` and the
        counts of Morgan environments of radius 2, folded to 2,048.

    Raises
    ------
    TetherError
        Without RDKit, pymatgen or featomic.

    References
    ----------
    Rogers and Hahn, J. Chem. Inf. Model. 50, 742 (2010), Morgan fingerprints; Ward et al., npj
    Comput. Mater. 2, 16028 (2016), the composition; Bartók et al., Phys. Rev. B 87, 184115 (2013).
    """
    check_packages()
    numbers, ptr = batch.numbers.numpy(), batch.ptr.numpy()
    positions, pbc = batch.positions.double().numpy(), batch.pbc.numpy()
    shares, counts = _elements(batch)
    counts[pbc.any(axis=1)] = np.nan
    blocks = (
        shares,
        counts,
        composition_descriptors(numbers, ptr),
        geometry_descriptors(positions, ptr, batch.cell.numpy(), pbc),
        _size(batch),
        _graphs(batch),
    )
    return np.concatenate([block.astype(np.float32) for block in blocks], axis=1)


def _elements(batch: AtomBatch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share and count of each element, shape (n_systems, 103)."""
    system, element, count = element_pairs(batch.numbers.numpy(), batch.ptr.numpy())
    counts = np.zeros((batch.n_systems, _LAST_ELEMENT))
    counts[system, element - 1] = count
    return counts / batch.counts.numpy()[:, None], counts


def _size(batch: AtomBatch) -> NDArray[np.float64]:
    """Extent of a molecule, density of a crystal, shape (n_systems, 5)."""
    starts, n_atoms = batch.ptr.numpy()[:-1], batch.counts.numpy()
    x = batch.positions.double().numpy()
    centred = x - np.repeat(np.add.reduceat(x, starts) / n_atoms[:, None], n_atoms, axis=0)
    outer = centred[:, :, None] * centred[:, None, :]
    gyration = np.linalg.eigvalsh(np.add.reduceat(outer, starts) / n_atoms[:, None, None])
    volume = np.abs(np.linalg.det(batch.cell.double().numpy())) / n_atoms
    molecules, crystals = ~batch.pbc.numpy().any(axis=1), batch.pbc.numpy().all(axis=1)
    found = np.full((batch.n_systems, len(_SIZE)), np.nan)
    found[molecules, 0], found[molecules, 1:4] = n_atoms[molecules], gyration[molecules]
    found[crystals, 4] = volume[crystals]
    return found


def _graphs(batch: AtomBatch) -> NDArray[np.float64]:
    """Descriptors and environments of the molecular graph, shape (n_systems, 20 + 2,048)."""
    from rdkit.Chem import RemoveHs, rdFingerprintGenerator, rdMolDescriptors

    morgan = rdFingerprintGenerator.GetMorganGenerator(radius=_RADIUS, fpSize=_N_BITS)
    descriptors = rdMolDescriptors.Properties(list(GRAPH_DESCRIPTORS))
    n_descriptors = len(GRAPH_DESCRIPTORS)
    found = np.full((batch.n_systems, n_descriptors + _N_BITS), np.nan)
    for s in np.flatnonzero(~batch.pbc.numpy().any(axis=1)).tolist():
        perceived = _perceived(batch, s)
        if perceived is None:
            continue
        molecule = RemoveHs(perceived)
        found[s, :n_descriptors] = list(descriptors.ComputeProperties(molecule))
        found[s, n_descriptors:] = morgan.GetCountFingerprintAsNumPy(molecule)
    return found


def _perceived(batch: AtomBatch, s: int) -> Any:
    start, stop = batch.ptr[s : s + 2].tolist()
    numbers, positions = batch.numbers[start:stop].numpy(), batch.positions[start:stop]
    charge = round(float(batch.charge[s]))
    return perceived_molecule(numbers, positions.double().numpy(), charge=charge)

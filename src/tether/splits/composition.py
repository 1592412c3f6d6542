"""Descriptors of the composition: statistics of the elements' properties (Magpie)."""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from tether.errors import TetherError
from tether.packages import require
from tether.splits.elements import element_pairs

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["PROPERTIES", "STATISTICS", "composition_descriptors", "element_properties"]

#: Properties of an element: 18 of Magpie's 22, without the four of the elemental solid (volume,
#: gap, moment and space group). Valence shells are those outside the noble-gas core; "unfilled" is
#: what a shell that holds an electron still lacks. Radius in Å, mass in u, melting point in K.
PROPERTIES = (
    "number",
    "mendeleev_number",
    "mass",
    "melting_point",
    "group",
    "period",
    "covalent_radius",
    "electronegativity",
    *(f"n_{shell}_valence" for shell in "spdf"),
    "n_valence",
    *(f"n_{shell}_unfilled" for shell in "spdf"),
    "n_unfilled",
)
#: What is taken of each property over the atoms of a structure.
STATISTICS = ("min", "max", "range", "mean", "mean_deviation", "mode")

_CAPACITY = {"s": 2, "p": 6, "d": 10, "f": 14}
_LAST = 103


def composition_descriptors(numbers: ArrayLike, ptr: ArrayLike) -> NDArray[np.float64]:
    r"""Magpie's statistics of element properties over the atoms of each structure.

    With :math:`x_e` the atomic fraction and :math:`p_e` the property of element e: the least and
    the largest p, their difference, the mean :math:`\bar p = \sum_e x_e p_e`, the mean absolute
    deviation :math:`\sum_e x_e |p_e - \bar p|` and the mode, which is p of the most frequent
    element, the least of them where several are equally frequent.

    The properties are pymatgen's and ASE's, not Magpie's own tables: matminer, which has those,
    demands pandas below 3 and pymongo. Mass, group, period, covalent radius and the valence shells
    are the same numbers; the scale of the Mendeleev numbers is another one.

    Parameters
    ----------
    numbers : array, shape (n_atoms,)
        Atomic numbers, at most 103.
    ptr : array, shape (n_systems + 1,)
        Offsets: the atoms of system s are ``ptr[s]:ptr[s + 1]``; none is empty.

    Returns
    -------
    array, shape (n_systems, 18 * 6)
        The six `STATISTICS` of the first of the `PROPERTIES`, then of the second, …

    Raises
    ------
    TetherError
        Without pymatgen, and for elements beyond 103, whose properties are not known.

    References
    ----------
    Ward, Agrawal, Choudhary and Wolverton, npj Comput. Mater. 2, 16028 (2016).
    """
    system, element, count = element_pairs(numbers, ptr)
    if element.max(initial=0) > _LAST:
        heavy = element > _LAST
        symbols = ", ".join(chemical_symbols[z] for z in np.unique(element[heavy]).tolist())
        raise TetherError(
            f"{len(np.unique(system[heavy]))} structure(s) hold {symbols}",
            expected=f"elements up to {chemical_symbols[_LAST]}, whose properties are known",
            fix="use other descriptors, such as --descriptors structure, or take them out",
        )
    starts = np.flatnonzero(np.diff(system, prepend=-1))
    n_atoms = np.diff(np.asarray(ptr)).astype(np.int64)
    share = (count / n_atoms[system])[:, None]
    values = element_properties()[element]
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    mean = np.add.reduceat(share * values, starts)
    deviation = np.add.reduceat(share * np.abs(values - mean[system]), starts)
    most = np.maximum.reduceat(count, starts)[system] == count
    mode = np.minimum.reduceat(np.where(most[:, None], values, np.inf), starts)
    statistics = np.stack([low, high, high - low, mean, deviation, mode], axis=2)
    return statistics.reshape(len(n_atoms), -1)


@cache
def element_properties() -> NDArray[np.float64]:
    """Properties of the elements by atomic number.

    Returns
    -------
    array, shape (104, 18)
        Row z is element z; row 0 is zero. Noble gases without electronegativity have 0, and so has
        helium's melting point: it stays liquid.

    Raises
    ------
    TetherError
        Without pymatgen.
    """
    require("pymatgen", "the composition descriptor", extra="splits")
    table = np.zeros((_LAST + 1, len(PROPERTIES)))
    for z in range(1, _LAST + 1):
        table[z] = _properties_of(z)
    table.setflags(write=False)
    return table


def _properties_of(z: int) -> list[float]:
    from pymatgen.core.periodic_table import Element

    element = Element(chemical_symbols[z])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns of every value that it has not
        electronegativity = float(np.nan_to_num(element.X))
        melting_point = float(element.melting_point or 0.0)
    valence = dict.fromkeys("spdf", 0)
    # "[Ar].3d6.4s2": what follows the core.
    for shell in str(element.electronic_structure).split("."):
        if not shell.startswith("["):
            valence[shell[1]] += int(shell[2:])
    unfilled = {name: _CAPACITY[name] - n if n else 0 for name, n in valence.items()}
    return [
        z,
        element.mendeleev_no,
        float(element.atomic_mass),
        melting_point,
        element.group,
        element.row,
        covalent_radii[z],
        electronegativity,
        *valence.values(),
        sum(valence.values()),
        *unfilled.values(),
        sum(unfilled.values()),
    ]

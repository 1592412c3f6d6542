"""Labels from the composition: element, group, period, chemical system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from ase.data import chemical_symbols

from tether.errors import TetherError
from tether.packages import require
from tether.splits.labels import Labels, label_each

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["ElementKind", "element_labels", "element_pairs"]

ElementKind = Literal["element", "group", "period", "chemical-system"]


def element_labels(numbers: ArrayLike, ptr: ArrayLike, kind: ElementKind) -> Labels:
    """Elements of each structure, or what follows from them.

    Parameters
    ----------
    numbers : array, shape (n_atoms,)
        Atomic numbers.
    ptr : array, shape (n_systems + 1,)
        Offsets: the atoms of system s are ``ptr[s]:ptr[s + 1]``.
    kind : {"element", "group", "period", "chemical-system"}
        Symbols ("Fe"); groups ("1" to "18"; lanthanides and actinides are in 3) and periods ("1" to
        "7"; the lanthanides are in 6) of the periodic table, as pymatgen has them; or the one
        chemical system of a structure, its symbols in alphabetic order ("Fe-O").

    Returns
    -------
    Labels
        Several a structure, but for chemical systems.

    Raises
    ------
    TetherError
        For an unknown kind, or without pymatgen where it is needed.

    Examples
    --------
    >>> element_labels([8, 26, 26, 8, 1, 1], [0, 3, 6], "chemical-system").names
    ('Fe-O', 'H-O')
    """
    if kind not in get_args(ElementKind):
        raise TetherError(
            f"`kind` is {kind!r}",
            expected=f"one of {', '.join(get_args(ElementKind))}",
            fix="kind=element",
        )
    system, element, _ = element_pairs(numbers, ptr)
    n_systems = len(np.asarray(ptr)) - 1
    if kind == "chemical-system":
        symbols: list[list[str]] = [[] for _ in range(n_systems)]
        for row, z in zip(system.tolist(), element.tolist(), strict=True):
            symbols[row].append(chemical_symbols[z])
        return label_each(kind, ["-".join(sorted(found)) for found in symbols])
    present = np.unique(element)
    name_of = {int(z): _name(int(z), kind) for z in present}
    names = tuple(sorted(set(name_of.values()), key=lambda name: (len(name), name)))
    code = np.zeros(len(chemical_symbols), dtype=np.int64)
    code[present] = [names.index(name_of[int(z)]) for z in present]
    # Two elements of one group give one pair.
    pairs = np.unique(np.stack([system, code[element]], axis=1), axis=0)
    return Labels(kind, names, pairs[:, 0], pairs[:, 1], n_systems)


def element_pairs(
    numbers: ArrayLike, ptr: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """List the elements of each structure once, with how many atoms it has of each.

    Parameters
    ----------
    numbers : array, shape (n_atoms,)
        Atomic numbers.
    ptr : array, shape (n_systems + 1,)
        Offsets.

    Returns
    -------
    system, element, count : array, shape (n_pairs,), int64
        Sorted by structure, then by atomic number.
    """
    z, offsets = np.asarray(numbers, dtype=np.int64), np.asarray(ptr, dtype=np.int64)
    system = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    base = len(chemical_symbols)
    keys, count = np.unique(system * base + z, return_counts=True)
    return keys // base, keys % base, count.astype(np.int64)


def _name(z: int, kind: ElementKind) -> str:
    if kind == "element":
        return str(chemical_symbols[z])
    require("pymatgen", f"method {kind}", extra="splits")
    from pymatgen.core.periodic_table import Element

    element = Element.from_Z(z)
    return str(element.group if kind == "group" else element.row)

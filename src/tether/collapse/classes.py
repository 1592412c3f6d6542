"""Chemical classes of atoms and edges, and balanced samples of them.

Two atoms are bonded when they are nearer than 1.15 times the sum of their covalent radii (Cordero
et al., Dalton Trans. 2832 (2008), as in ``ase.data``): the paper's rule. The same rule serves
crystals, with periodic neighbours from vesin: one rule for all, without parameters to fit, in a
library that tether needs anyway. It counts contacts between metal atoms as bonds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from ase.data import atomic_numbers, chemical_symbols, covalent_radii

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "BOND_FACTOR",
    "PAPER_CLASSES",
    "atom_classes",
    "balanced_sample",
    "coordination",
    "edge_classes",
]

#: The ten atom classes of the paper (arXiv 2601.08486): element and number of neighbours.
PAPER_CLASSES = ("C4", "C3", "C2", "H", "F", "O2", "O1", "N3", "N2", "N1")
#: Bonded: nearer than this many sums of covalent radii.
BOND_FACTOR = 1.15
#: Distance regimes of edges besides "bonded", in Å: from, up to but without.
REGIMES = ((3.0, 4.0), (5.0, 6.0))

# Elements of one bond, which the paper names without it.
_MONOVALENT = ("H", "F")
# Larger structures, and periodic ones, go to vesin; the rest is one sum over all pairs.
_ALL_PAIRS = 200
# Pairs held at once: about 200 MB with their vectors.
_CHUNK = 2_000_000


def atom_classes(
    numbers: ArrayLike,
    positions: ArrayLike,
    ptr: ArrayLike,
    cell: ArrayLike | None = None,
    pbc: ArrayLike | None = None,
    *,
    method: str = "covalent",
) -> NDArray[np.str_]:
    """Element and coordination number of each atom.

    Parameters
    ----------
    numbers : array, shape (n_atoms,)
        Atomic numbers.
    positions : array, shape (n_atoms, 3)
        Å.
    ptr : array, shape (n_systems + 1,)
        Offsets of the structures.
    cell : array, shape (n_systems, 3, 3), optional
        Lattice vectors as rows, Å.
    pbc : array, shape (n_systems, 3), optional
        Periodic directions.
    method : {"covalent"}
        Rule for bonds; see the top of this module.

    Returns
    -------
    ndarray of str, shape (n_atoms,)
        Such as "C4"; hydrogen and fluorine with their one neighbour are "H" and "F".

    Raises
    ------
    TetherError
        See `coordination`; also for another `method`.

    Examples
    --------
    >>> atom_classes([8, 1, 1], [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [0, 3]).tolist()
    ['O2', 'H', 'H']
    """
    if method != "covalent":
        raise TetherError(f"`method` is {method!r}", expected="covalent", fix="leave it out")
    counts = coordination(numbers, positions, ptr, cell, pbc)
    symbols = np.array(chemical_symbols)[np.asarray(numbers)]
    names = np.char.add(symbols, counts.astype(np.str_))
    bare = (counts == 1) & np.isin(symbols, _MONOVALENT)
    return np.where(bare, symbols, names)


def coordination(
    numbers: ArrayLike,
    positions: ArrayLike,
    ptr: ArrayLike,
    cell: ArrayLike | None = None,
    pbc: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Number of atoms that each atom is bonded to, periodic images among them.

    Parameters
    ----------
    numbers, positions, ptr, cell, pbc
        See `atom_classes`.

    Returns
    -------
    ndarray, shape (n_atoms,)
        Bonds.

    Raises
    ------
    TetherError
        For shapes that do not fit, positions that are not finite, unknown elements, or periodic
        structures without a cell.
    """
    z, offsets = (np.asarray(a, dtype=np.int64) for a in (numbers, ptr))
    x = np.asarray(positions, dtype=np.float64)
    _check(z, x, offsets)
    radii, counts = covalent_radii[z], np.zeros(len(z), dtype=np.int64)
    n_systems = len(offsets) - 1
    periodic = np.zeros((n_systems, 3), bool) if pbc is None else np.asarray(pbc, dtype=bool)
    if periodic.any() and cell is None:
        raise TetherError("`pbc` is set and `cell` is not", expected="both", fix="pass the cells")
    sizes = np.diff(offsets)
    listed = periodic.any(axis=1) | (sizes > _ALL_PAIRS)
    for s in np.flatnonzero(listed).tolist():
        here = slice(offsets[s], offsets[s + 1])
        box = np.zeros((3, 3)) if cell is None else np.asarray(cell, np.float64)[s]
        counts[here] = _listed(x[here], radii[here], box, periodic[s])
    small = np.flatnonzero(~listed)
    part = np.cumsum(sizes[small] ** 2) // _CHUNK
    for number in np.unique(part):
        chosen = small[part == number]
        i, j = _all_pairs(offsets[chosen], sizes[chosen])
        apart = np.linalg.norm(x[i] - x[j], axis=1)
        bonded = (apart < BOND_FACTOR * (radii[i] + radii[j])) & (i != j)
        counts += np.bincount(i[bonded], minlength=len(z))
    return counts


def edge_classes(
    numbers: ArrayLike,
    edge_idx: ArrayLike,
    distance: ArrayLike,
    *,
    pairs: Sequence[tuple[str, str]] = (("C", "O"), ("C", "H")),
) -> NDArray[np.str_]:
    """Element pair and distance regime of each edge, the paper's six classes by default.

    Parameters
    ----------
    numbers : array, shape (n_atoms,)
        Atomic numbers.
    edge_idx : array, shape (2, n_edges)
        The two atoms of each edge; either order.
    distance : array, shape (n_edges,)
        Å.
    pairs : sequence of (str, str)
        Pairs of elements.

    Returns
    -------
    ndarray of str, shape (n_edges,)
        "C–O bonded", "C–O 3–4 Å", "C–O 5–6 Å", and so on; "" for all other edges.

    Raises
    ------
    TetherError
        For shapes that do not fit, distances that are not finite, or an unknown element.

    Examples
    --------
    >>> edge_classes([6, 8], [[0, 1], [1, 0]], [1.43, 3.5]).tolist()
    ['C–O bonded', 'C–O 3–4 Å']
    """
    z, d = np.asarray(numbers), np.asarray(distance, dtype=np.float64)
    idx = np.asarray(edge_idx, dtype=np.int64)
    if idx.shape != (2, len(d)) or not np.isfinite(d).all():
        raise TetherError(
            f"`edge_idx` has shape {idx.shape} and `distance` {d.shape}, "
            f"{int(np.isfinite(d).sum())} of them finite",
            expected="(2, n_edges) and (n_edges,), all finite",
            fix="pass the edges of one backbone",
        )
    first, second = z[idx[0]], z[idx[1]]
    bonded = d < BOND_FACTOR * (covalent_radii[first] + covalent_radii[second])
    regimes = [("bonded", bonded)]
    regimes += [(f"{a:g}–{b:g} Å", (a <= d) & (d < b) & ~bonded) for a, b in REGIMES]
    names, codes = [""], np.zeros(len(d), dtype=np.int64)
    for one, other in pairs:
        a, b = _number(one), _number(other)
        right = ((first == a) & (second == b)) | ((first == b) & (second == a))
        for words, here in regimes:
            codes[right & here] = len(names)
            names.append(f"{one}–{other} {words}")
    return np.array(names)[codes]


def balanced_sample(
    classes: ArrayLike, *, per_class: int, seed: int, keep: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """At most so many points of each class, drawn without repeats.

    Which points are drawn of a class depends on that class and the seed only.

    Parameters
    ----------
    classes : array of str, shape (n,)
        Class of each point.
    per_class : int
        Points of each class; of a smaller class, all.
    seed : int
        Of the draw.
    keep : sequence of str, optional
        Classes to sample; all but "" by default.

    Returns
    -------
    ndarray, shape (n_sampled,)
        Points, ascending.

    Raises
    ------
    TetherError
        When `per_class` is not positive, or no point is of a wanted class.

    Examples
    --------
    >>> balanced_sample(["a", "a", "b", "a"], per_class=1, seed=0, keep=["b"]).tolist()
    [2]
    """
    array = np.asarray(classes)
    if per_class < 1:
        raise TetherError(
            f"`per_class` is {per_class}", expected="a positive integer", fix="per_class=200"
        )
    names = [n for n in np.unique(array).tolist() if n] if keep is None else sorted(set(keep))
    drawn = []
    for name in names:
        points = np.flatnonzero(array == name)
        generator = np.random.default_rng([seed, *str(name).encode()])
        drawn.append(generator.permutation(points)[:per_class])
    chosen = np.sort(np.concatenate([np.zeros(0, np.int64), *drawn]))
    if not len(chosen):
        raise TetherError(
            f"no point is of the classes {names}",
            expected="at least one",
            fix="look at other structures, or at other classes",
        )
    return chosen


def _check(z: NDArray[np.int64], x: NDArray[np.float64], offsets: NDArray[np.int64]) -> None:
    if x.shape != (len(z), 3) or offsets.ndim != 1 or not len(offsets) or offsets[-1] != len(z):
        raise TetherError(
            f"`positions` has shape {x.shape}, `ptr` ends at {offsets[-1:].tolist()}",
            expected=f"({len(z)}, 3) and {len(z)} for {len(z)} atoms",
            fix="pass numbers, positions and ptr of one batch",
        )
    if not np.isfinite(x).all():
        raise TetherError(
            f"{int((~np.isfinite(x)).any(axis=1).sum())} atoms have positions that are not finite",
            expected="finite positions",
            fix="audit the data with `tether prepare`",
        )
    if len(z) and not 1 <= z.min() <= z.max() < len(covalent_radii):
        raise TetherError(
            f"atomic numbers from {z.min()} to {z.max()}",
            expected=f"1 to {len(covalent_radii) - 1}",
            fix="check the column of atomic numbers",
        )


def _number(symbol: str) -> int:
    if symbol not in atomic_numbers:
        raise TetherError(f"unknown element {symbol!r}", expected="a symbol", fix="such as 'C'")
    return int(atomic_numbers[symbol])


def _all_pairs(
    starts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All ordered pairs of atoms within each structure, an atom with itself among them."""
    n_pairs = sizes**2
    start, size = np.repeat(starts, n_pairs), np.repeat(sizes, n_pairs)
    place = np.arange(len(size)) - np.repeat(np.cumsum(n_pairs) - n_pairs, n_pairs)
    return start + place // size, start + place % size


def _listed(
    x: NDArray[np.float64],
    radii: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
) -> NDArray[np.int64]:
    from vesin import NeighborList

    lister = NeighborList(cutoff=float(2 * BOND_FACTOR * radii.max()), full_list=True, n_threads=1)
    i, j, apart = lister.compute(x, cell, pbc.tolist(), "ijd")
    bonded = apart < BOND_FACTOR * (radii[i] + radii[j])
    return np.bincount(i[bonded].astype(np.int64), minlength=len(x))

"""Structures from `.npz` files: flat arrays, or the layout of rMD17."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np
from ase import units

from tether.data.chunks import ENERGY, FORCES, Chunk, batch_from_arrays, stem
from tether.errors import TetherError
from tether.targets import Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]

__all__ = ["read_npz"]

_STRUCTURE = {"n_atoms", "numbers", "positions", "cell", "pbc", "charge", "spin", "id", "ids"}


def read_npz(
    path: Path, *, wanted: Mapping[str, Target] | None, chunk_size: int
) -> Iterator[Chunk]:
    """Structures of an `.npz` file.

    Two layouts are known. *Flat*: ``n_atoms`` (n_systems,), ``numbers`` (n_atoms,),
    ``positions`` (n_atoms, 3) in Å, optional ``cell`` (n_systems, 3, 3), ``pbc``, ``charge``,
    ``spin``, ``ids``; every other numeric array of length n_systems or n_atoms is a label (where
    the two lengths agree, a label of the structure). *rMD17*: ``nuclear_charges``, ``coords`` in
    Å, ``energies`` in kcal/mol and ``forces`` in kcal/mol/Å, which become `energy` in eV and
    `forces` in eV/Å; its ``old_*`` arrays are the labels of the unrevised MD17 and are not read.

    Parameters
    ----------
    path : Path
        The file.
    wanted : mapping of str to Target, or None
        Labels to read; None means all.
    chunk_size : int
        Structures in a chunk.

    Yields
    ------
    Chunk
        The structures in order.

    Raises
    ------
    TetherError
        When the file is unreadable or has another layout.
    """
    arrays = _load(path)
    if {"nuclear_charges", "coords"} <= arrays.keys():
        arrays, targets = _from_rmd17(arrays)
    elif {"n_atoms", "numbers", "positions"} <= arrays.keys():
        _check_counts(path, arrays["n_atoms"])
        targets = _flat_targets(path, arrays, wanted)
    else:
        raise TetherError(
            f"{path} has the arrays {', '.join(sorted(arrays)) or '(none)'}",
            expected="n_atoms, numbers, positions (or rMD17's nuclear_charges, coords)",
            fix="rename its arrays, or convert it to extended XYZ",
        )
    _check_lengths(path, arrays)
    if wanted is not None:
        targets = {name: target for name, target in targets.items() if name in wanted}
    counts = arrays["n_atoms"].astype(np.int64)
    ptr = np.concatenate([[0], np.cumsum(counts)])
    ids = _ids(path, arrays, len(counts))
    for start in range(0, len(counts), chunk_size):
        stop = min(start + chunk_size, len(counts))
        rows, atoms = slice(start, stop), slice(int(ptr[start]), int(ptr[stop]))
        optional = {k: arrays[k][rows] for k in ("cell", "pbc", "charge", "spin") if k in arrays}
        batch = batch_from_arrays(
            counts[rows],
            arrays["numbers"][atoms],
            arrays["positions"][atoms],
            ids=ids[rows],
            labels={n: arrays[n][rows] for n, t in targets.items() if t.level == "system"},
            atom_labels={n: arrays[n][atoms] for n, t in targets.items() if t.level == "atom"},
            **optional,
        )
        yield Chunk(batch, (path.name,) * batch.n_systems, targets)


def _load(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise TetherError(
            f"{path} cannot be read: {error}",
            expected="an .npz file of plain arrays (no pickles)",
            fix="write it again with numpy.savez",
        ) from error


def _from_rmd17(arrays: Arrays) -> tuple[Arrays, dict[str, Target]]:
    """Flat arrays in eV from an rMD17 file; the units are those of the rMD17 description."""
    kcal = units.kcal / units.mol
    n_systems, n_atoms = arrays["coords"].shape[:2]
    flat: Arrays = {
        "n_atoms": np.full(n_systems, n_atoms),
        "numbers": np.tile(arrays["nuclear_charges"], n_systems),
        "positions": arrays["coords"].reshape(-1, 3),
    }
    targets = {}
    if "energies" in arrays:
        flat["energy"] = arrays["energies"].astype(np.float64).reshape(-1) * kcal
        targets["energy"] = ENERGY
    if "forces" in arrays:
        flat["forces"] = arrays["forces"].astype(np.float64).reshape(-1, 3) * kcal
        targets["forces"] = FORCES
    return flat, targets


def _flat_targets(
    path: Path, arrays: Arrays, wanted: Mapping[str, Target] | None
) -> dict[str, Target]:
    n_systems, n_atoms = arrays["n_atoms"].size, arrays["numbers"].size
    targets = {}
    for name, array in arrays.items():
        if name in _STRUCTURE or array.dtype.kind not in "biuf":
            continue
        if wanted is not None and name not in wanted:
            continue
        length = array.shape[0] if array.ndim else -1
        if length not in (n_systems, n_atoms):
            raise TetherError(
                f"array `{name}` of {path} has shape {array.shape}",
                expected=f"a leading axis of {n_systems} structures or {n_atoms} atoms",
                fix="remove it from the file or give it one value for each structure",
            )
        arrays[name] = array if array.ndim == 1 else array.reshape(length, -1)
        size = 1 if array.ndim == 1 else arrays[name].shape[1]
        level = "system" if length == n_systems else "atom"
        targets[name] = Target(name, level=level, n_components=size)  # type: ignore[arg-type]
    return targets


def _check_counts(path: Path, counts: NDArray[np.generic]) -> None:
    """Refuse what does not say how many atoms each structure has."""
    problem = ""
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        problem = f"has shape {counts.shape} and type {counts.dtype}"
    elif counts.astype(np.int64).min(initial=0) < 0:
        problem = f"holds {counts.astype(np.int64).min()}"
    if problem:
        raise TetherError(
            f"array `n_atoms` of {path} {problem}",
            expected="the number of atoms of each structure, (n_systems,)",
            fix="check how the file was written",
        )


def _check_lengths(path: Path, arrays: Arrays) -> None:
    n_systems, n_atoms = len(arrays["n_atoms"]), int(arrays["n_atoms"].sum())
    shapes: dict[str, tuple[int, ...]] = {
        "numbers": (n_atoms,),
        "positions": (n_atoms, 3),
        "cell": (n_systems, 3, 3),
        "pbc": (n_systems, 3),
        "charge": (n_systems,),
        "spin": (n_systems,),
    }
    for name, shape in shapes.items():
        if name in arrays and arrays[name].size != int(np.prod(shape)):
            raise TetherError(
                f"array `{name}` of {path} has shape {arrays[name].shape}",
                expected=f"{shape}, as `n_atoms` says",
                fix="check how the file was written",
            )
        if name in arrays and arrays[name].dtype.kind not in ("biuf" if name == "pbc" else "iuf"):
            raise TetherError(
                f"array `{name}` of {path} has type {arrays[name].dtype}",
                expected="numbers",
                fix="check how the file was written",
            )
        if name in arrays:
            arrays[name] = arrays[name].reshape(shape)


def _ids(path: Path, arrays: Arrays, n_systems: int) -> list[str]:
    for name in ("ids", "id"):
        if name in arrays and arrays[name].shape == (n_systems,):
            return [str(value) for value in arrays[name].tolist()]
    return [f"{stem(path)}:{row}" for row in range(n_systems)]

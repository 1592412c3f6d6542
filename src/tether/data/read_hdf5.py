"""Structures from HDF5 files with a group a molecule: the layouts of SPICE and of ANI-1x."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units

from tether.data.chunks import ENERGY, FORCES, Chunk, batch_from_arrays, stem
from tether.errors import TetherError
from tether.packages import require
from tether.structures import collate
from tether.targets import Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tether.structures import AtomBatch

__all__ = ["read_hdf5"]

_DIPOLE = Target("dipole", unit="e·Å", kind="vector", n_components=3)
_CHARGE = re.compile(r"\[[^\]]*?([+-]+)(\d*)(?::\d+)?\]")


@dataclass(frozen=True)
class _Layout:
    """Dataset of the positions, its unit in Å; datasets of labels, their unit in the target's."""

    positions: str
    length: float
    labels: dict[str, tuple[Target, float]]


_LAYOUTS = (
    _Layout(  # SPICE: Hartree and Bohr, gradients
        "conformations",
        units.Bohr,
        {
            "dft_total_energy": (ENERGY, units.Hartree),
            "dft_total_gradient": (FORCES, -units.Hartree / units.Bohr),
            "formation_energy": (
                Target("formation_energy", unit="eV", kind="extensive"),
                units.Hartree,
            ),
            "scf_dipole": (_DIPOLE, units.Bohr),
        },
    ),
    _Layout(  # ANI-1x: Hartree and Å, forces; NaN where a method was not run
        "coordinates",
        1.0,
        {
            "wb97x_dz.energy": (ENERGY, units.Hartree),
            "wb97x_dz.forces": (FORCES, units.Hartree),
            "wb97x_dz.dipole": (_DIPOLE, 1.0),
            "ccsd(t)_cbs.energy": (
                Target("energy_ccsd", unit="eV", kind="extensive"),
                units.Hartree,
            ),
        },
    ),
)


def read_hdf5(
    path: Path, *, wanted: Mapping[str, Target] | None, chunk_size: int
) -> Iterator[Chunk]:
    """Structures of an HDF5 file, a slice of a molecule at a time.

    Two layouts are known, both with a group a molecule and ``atomic_numbers`` (n_atoms,) in it.
    *SPICE*: ``conformations`` (n_conformations, n_atoms, 3) in Bohr; ``dft_total_energy``,
    ``dft_total_gradient``, ``formation_energy``, ``scf_dipole`` in atomic units become `energy`,
    `forces`, `formation_energy`, `dipole`; the charge is that of ``smiles``. *ANI-1x*:
    ``coordinates`` in Å; ``wb97x_dz.energy``, ``.forces``, ``.dipole`` (Hartree, Hartree/Å, e·Å)
    become `energy`, `forces`, `dipole`, and ``ccsd(t)_cbs.energy`` `energy_ccsd`; NaN stays.

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
        In the order of the file; ids are ``<file stem>:<group>:<row>``.

    Raises
    ------
    TetherError
        When h5py is missing, or the file is unreadable or has another layout.
    """
    require("h5py", "reading HDF5", extra="hdf5")
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield from _chunks(path, file, wanted, chunk_size)
    # What h5py says of truncated files, other members and datasets of another shape.
    except (OSError, KeyError, ValueError, IndexError, RuntimeError, AttributeError) as error:
        if isinstance(error, TetherError):
            raise
        raise TetherError(
            f"{path} cannot be read: {error}",
            expected="a complete HDF5 file in the layout of SPICE or ANI-1x",
            fix="download it again",
        ) from error


def _chunks(
    path: Path, file: Mapping[str, Any], wanted: Mapping[str, Target] | None, chunk_size: int
) -> Iterator[Chunk]:
    waiting: list[AtomBatch] = []
    targets: dict[str, Target] = {}
    room = chunk_size
    for name, group in file.items():
        layout = _layout(path, name, group)
        labels = {
            dataset: (target, factor)
            for dataset, (target, factor) in layout.labels.items()
            if dataset in group and (wanted is None or target.name in wanted)
        }
        targets |= {target.name: target for target, _ in labels.values()}
        n_systems, start = len(group[layout.positions]), 0
        while start < n_systems:
            rows = slice(start, min(start + room, n_systems))
            ids = [f"{stem(path)}:{name}:{row}" for row in range(rows.start, rows.stop)]
            waiting.append(_batch(group, layout, labels, rows, ids))
            start, room = rows.stop, room - len(ids)
            if room == 0:
                yield Chunk(collate(waiting), (path.name,) * chunk_size, targets)
                waiting, room = [], chunk_size
    if waiting:
        yield Chunk(collate(waiting), (path.name,) * (chunk_size - room), targets)


def _layout(path: Path, name: str, group: Any) -> _Layout:
    for layout in _LAYOUTS:
        if hasattr(group, "keys") and {"atomic_numbers", layout.positions} <= group.keys():
            return layout
    found = ", ".join(group.keys()) if hasattr(group, "keys") else "no group"
    raise TetherError(
        f"{path} has at {name!r}: {found}",
        expected="atomic_numbers and conformations (SPICE) or coordinates (ANI-1x)",
        fix="convert the file to one of these layouts, or to extended XYZ",
    )


def _batch(
    group: Any,
    layout: _Layout,
    labels: Mapping[str, tuple[Target, float]],
    rows: slice,
    ids: list[str],
) -> AtomBatch:
    numbers = group["atomic_numbers"][()].reshape(-1)
    values: dict[str, dict[str, Any]] = {"system": {}, "atom": {}}
    for dataset, (target, factor) in labels.items():
        value = group[dataset][rows].astype(np.float64) * factor
        n_rows = len(ids) * (len(numbers) if target.level == "atom" else 1)
        if value.size != n_rows * target.n_components:
            raise ValueError(f"{group.name}/{dataset} has shape {group[dataset].shape}")
        flat = value.reshape(-1, 3) if target.n_components == 3 else value.reshape(-1)
        values[target.level][target.name] = flat
    charge = _charge(np.ravel(group["smiles"].asstr()[()])[0]) if "smiles" in group else 0
    return batch_from_arrays(
        np.full(len(ids), len(numbers)),
        np.tile(numbers, len(ids)),
        group[layout.positions][rows].reshape(-1, 3).astype(np.float64) * layout.length,
        ids=ids,
        charge=np.full(len(ids), charge),
        labels=values["system"],
        atom_labels=values["atom"],
    )


def _charge(smiles: str) -> int:
    """Sum of the formal charges of a SMILES, in e: ``[O-:3]``, ``[Ca+2]``, ``[Ca++]``."""
    total = 0
    for signs, digits in _CHARGE.findall(smiles):
        total += (1 if signs[0] == "+" else -1) * (int(digits) if digits else len(signs))
    return total

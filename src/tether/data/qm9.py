"""QM9 from the files of the installed `qm9pack` package, without importing it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from tether.data.chunks import CHUNK_SIZE, Chunk, batch_from_arrays
from tether.errors import TetherError
from tether.targets import Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

__all__ = ["QM9_TARGETS", "qm9_folder", "read_qm9"]

_PROPERTIES = {
    "mu": ("Dipole_debye", Target("mu", unit="D")),
    "alpha": ("Polarizability_bohr3", Target("alpha", unit="bohr³", kind="extensive")),
    "homo": ("HOMO_au", Target("homo", unit="Ha")),
    "lumo": ("LUMO_au", Target("lumo", unit="Ha")),
    "gap": ("HOMO_LUMO_gap_au", Target("gap", unit="Ha")),
    "r2": ("R2_bohr2", Target("r2", unit="bohr²", kind="extensive")),
    "zpve": ("ZPVE_au", Target("zpve", unit="Ha", kind="extensive")),
    "u0": ("InternalEnergy_0K_au", Target("u0", unit="Ha", kind="extensive")),
    "u298": ("InternalEnergy_298K_au", Target("u298", unit="Ha", kind="extensive")),
    "h298": ("Enthalphy_298K_au", Target("h298", unit="Ha", kind="extensive")),
    "g298": ("GibbsFreeEnergy_298K_au", Target("g298", unit="Ha", kind="extensive")),
    "cv": ("Heatcapacity_Cv_cal_mol_K", Target("cv", unit="cal/mol/K", kind="extensive")),
    "a": ("RotA_GHz", Target("a", unit="GHz")),
    "b": ("RotB_GHz", Target("b", unit="GHz")),
    "c": ("RotC_GHz", Target("c", unit="GHz")),
}
QM9_TARGETS: dict[str, Target] = {name: target for name, (_, target) in _PROPERTIES.items()}

# Atomic number by ASCII code; QM9 has these five elements, each of one letter.
_NUMBER = np.zeros(256, dtype=np.int64)
_NUMBER[[ord(symbol) for symbol in "HCNOF"]] = [1, 6, 7, 8, 9]


def qm9_folder() -> Path:
    """Folder of the CSV files of the installed `qm9pack`.

    Importing the package fails with setuptools >= 81, so its files are read by path.

    Returns
    -------
    Path
        The folder with ``qm9_part1.csv`` and the others.

    Raises
    ------
    TetherError
        When `qm9pack` is not installed.
    """
    spec = importlib.util.find_spec("qm9pack")
    if spec is None or not spec.submodule_search_locations:
        raise TetherError(
            "qm9pack is not installed",
            expected="the package that carries QM9",
            fix="pip install tether[qm9]",
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def read_qm9(
    *,
    folder: Path | None = None,
    limit: int | None = None,
    seed: int | None = None,
    wanted: Mapping[str, Target] | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Iterator[Chunk]:
    """Read QM9: 130,831 molecules, B3LYP/6-31G(2df,p) geometries in Å and 15 properties.

    The values are those of the package, in the units of `QM9_TARGETS`. Ids are ``qm9:<Index>``
    with the index of the original publication, 1 to 133,885 (3,054 are left out there).

    Parameters
    ----------
    folder : Path, optional
        Folder of the CSV files; default: of the installed `qm9pack`.
    limit : int, optional
        How many molecules; default all.
    seed : int, optional
        With `limit`: draw them at random with this seed; default: the first ones.
    wanted : mapping of str to Target, optional
        Labels to read; default all.
    chunk_size : int
        Molecules in a chunk.

    Yields
    ------
    Chunk
        Molecules in the order of their index.

    Raises
    ------
    TetherError
        When `qm9pack` is missing or its files are not as expected.
    """
    folder = qm9_folder() if folder is None else folder
    names = [name for name in _PROPERTIES if wanted is None or name in wanted]
    table = _tables(folder, [_PROPERTIES[name][0] for name in names])
    if limit is not None and limit < len(table):
        rows = np.arange(limit)
        if seed is not None:
            rows = np.sort(np.random.default_rng(seed).permutation(len(table))[:limit])
        table = table.take(pa.array(rows))
    targets = {name: QM9_TARGETS[name] for name in names}
    for start in range(0, len(table), chunk_size):
        yield _chunk(table.slice(start, chunk_size).combine_chunks(), targets, folder)


def _tables(folder: Path, columns: list[str]) -> pa.Table:
    include = ["Index", "N_atoms", "Elements", "XYZ_Ang", *columns]
    options = csv.ConvertOptions(include_columns=include)
    try:
        parts = [
            csv.read_csv(folder / f"qm9_part{part}.csv", convert_options=options)
            for part in (1, 2, 3)
        ]
        return pa.concat_tables(parts)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise TetherError(
            f"the QM9 files in {folder} cannot be read: {error}",
            expected="qm9_part1.csv, qm9_part2.csv and qm9_part3.csv of qm9pack 1.0.3",
            fix="pip install --force-reinstall qm9pack==1.0.3",
        ) from error


def _chunk(table: pa.Table, targets: dict[str, Target], folder: Path) -> Chunk:
    counts: NDArray[np.int64] = table["N_atoms"].to_numpy()
    letters = pc.replace_substring_regex(table["Elements"], pattern="[^A-Za-z]", replacement="")
    numbers = _NUMBER[np.frombuffer("".join(letters.to_pylist()).encode(), dtype=np.uint8)]
    plain = pc.replace_substring_regex(table["XYZ_Ang"], pattern=r"[\[\]\s]", replacement="")
    # Arrow's own parser: np.fromstring on text is deprecated, and json refuses "0.".
    values = pc.cast(pc.list_flatten(pc.split_pattern(plain, ",")), pa.float64()).to_numpy()
    if not counts.sum() == len(numbers) == len(values) / 3 or not numbers.all():
        raise TetherError(
            f"QM9 molecules from index {table['Index'][0]} on in {folder} do not add up: "
            f"{int(counts.sum())} atoms, {len(numbers)} elements, {len(values)} coordinates",
            expected="three coordinates and one of H, C, N, O, F for each atom",
            fix="pip install --force-reinstall qm9pack==1.0.3",
        )
    batch = batch_from_arrays(
        counts,
        numbers,
        values.reshape(-1, 3),
        ids=[f"qm9:{index}" for index in table["Index"].to_pylist()],
        labels={name: table[_PROPERTIES[name][0]].to_numpy() for name in targets},
    )
    return Chunk(batch, ("qm9",) * batch.n_systems, targets)

"""GFN2-xTB energies and forces of single structures, by tblite.

Measured on QM9 molecules of 18 atoms: about 9 ms a label with one thread, 20 to 30 times more with
tblite's default threads on a busy two-core machine. Every call therefore runs with one thread;
`labels.label` uses the cores by processes.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase import units

from tether.errors import TetherError
from tether.labels.calculator import FunctionCalculator
from tether.labels.failure import Failure

if TYPE_CHECKING:
    from ase import Atoms
    from numpy.typing import ArrayLike, NDArray

__all__ = ["XtbLabel", "require_tblite", "xtb_calculator", "xtb_label", "xtb_version"]


class XtbLabel(NamedTuple):
    """Energy and forces of one structure.

    Attributes
    ----------
    energy : float
        eV.
    forces : array, shape (n_atoms, 3)
        eV/Å.
    """

    energy: float
    forces: NDArray[np.float64]


def require_tblite() -> Any:
    """Import `tblite.interface`.

    Returns
    -------
    module
        `tblite.interface`.

    Raises
    ------
    TetherError
        When tblite is not installed.
    """
    try:
        from tblite import interface
    except ImportError as error:
        raise TetherError(
            f"GFN2-xTB labels need tblite, which does not import ({error})",
            expected="the package tblite",
            fix="pip install tether[xtb]",
        ) from error
    return interface


def xtb_version() -> str:
    """Version of tblite, for provenance."""
    require_tblite()
    return version("tblite")


@cache
def _threads() -> Any:
    # Finding the thread pools of the process takes a millisecond, so it is done once, after
    # tblite has loaded its own.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _electron_problem(numbers: NDArray[np.int64], charge: float, spin: float) -> str:
    # tblite silently raises the spin of an odd-electron system from 0 to 1 and accepts more
    # unpaired electrons than there are: a wrong label without a word. Refuse instead.
    if charge != round(charge) or spin != round(spin) or spin < 0:
        return f"charge {charge:g} and spin {spin:g} must be whole, and spin not negative"
    # GFN2-xTB keeps the f electrons of La-Lu in the core and leaves three valence electrons.
    lanthanide = (numbers >= 57) & (numbers <= 71)
    electrons = int(np.where(lanthanide, 3, numbers).sum() - charge)
    if spin > electrons or (electrons - round(spin)) % 2:
        return (
            f"{electrons} electrons (charge {charge:g}) cannot have {spin:g} unpaired ones; "
            "set charge and spin of the structure"
        )
    return ""


def xtb_label(
    numbers: ArrayLike,
    positions: ArrayLike,
    *,
    charge: float = 0.0,
    spin: float = 0.0,
    cell: ArrayLike | None = None,
    pbc: ArrayLike | None = None,
    name: str = "",
) -> XtbLabel | Failure:
    """GFN2-xTB energy and forces, on one thread.

    Parameters
    ----------
    numbers : array, shape (n_atoms,)
        Atomic numbers, up to 86.
    positions : array, shape (n_atoms, 3)
        Å.
    charge, spin : float
        Total charge in e; number of unpaired electrons (tblite's ``uhf``).
    cell : array, shape (3, 3), optional
        Lattice vectors as rows, Å.
    pbc : array, shape (3,), optional
        Periodic directions; default none.
    name : str
        Of the structure, for the failure record.

    Returns
    -------
    XtbLabel or Failure
        A failure when the electrons do not fit, the self-consistency does not converge or tblite
        refuses the structure for another reason.

    Raises
    ------
    TetherError
        When tblite is not installed.

    References
    ----------
    C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019).
    """
    interface = require_tblite()
    atomic_numbers = np.asarray(numbers, dtype=np.int64)
    coordinates = np.asarray(positions, dtype=np.float64)
    if not np.isfinite(coordinates).all():
        return Failure(name, "positions are not finite")
    problem = _electron_problem(atomic_numbers, charge, spin)
    if problem:
        return Failure(name, problem)
    periodic: dict[str, Any] = {}
    if pbc is not None and np.any(pbc):
        from ase.geometry import complete_cell

        lattice = complete_cell(np.asarray(cell, dtype=np.float64))  # type: ignore[no-untyped-call]
        periodic = {"lattice": lattice / units.Bohr, "periodic": np.asarray(pbc, dtype=bool)}
    try:
        with _threads().limit(limits=1):
            calculator = interface.Calculator(
                "GFN2-xTB",
                atomic_numbers,
                coordinates / units.Bohr,
                charge=float(charge),
                uhf=int(spin),
                **periodic,
            )
            calculator.set("verbosity", 0)  # else it prints to the standard output
            result = calculator.singlepoint()
            energy = float(result.get("energy")) * units.Hartree
            forces = -np.asarray(result.get("gradient")) * (units.Hartree / units.Bohr)
    except (RuntimeError, ValueError) as error:
        return Failure(name, f"GFN2-xTB: {error}")
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        return Failure(name, "GFN2-xTB: energy or forces are not finite")
    return XtbLabel(energy, forces)


def xtb_calculator() -> FunctionCalculator:
    """GFN2-xTB as an ASE calculator; charge and spin come from ``atoms.info``.

    Returns
    -------
    FunctionCalculator
        Raises ``RuntimeError`` where `xtb_label` returns a failure.
    """
    require_tblite()

    def evaluate(atoms: Atoms) -> tuple[float, NDArray[np.float64]]:
        label = xtb_label(
            atoms.numbers,
            atoms.positions,
            charge=float(atoms.info.get("charge", 0.0)),
            spin=float(atoms.info.get("spin", 0.0)),
            cell=atoms.cell.array,
            pbc=atoms.pbc,
        )
        if isinstance(label, Failure):
            raise RuntimeError(label.reason)  # noqa: TRY004 (a failed calculation, not a type)
        return label.energy, label.forces

    return FunctionCalculator(evaluate)

"""An ASE calculator around a plain function, so that ASE's dynamics can drive any label source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ase.calculators.calculator import Calculator, all_changes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from ase import Atoms
    from numpy.typing import NDArray

__all__ = ["FunctionCalculator"]


class FunctionCalculator(Calculator):
    """Energy and forces of a function.

    ASE has no protocol for calculators, only this base class; hence the inheritance.

    Parameters
    ----------
    evaluate : callable of ase.Atoms
        Returns energy in eV and forces in eV/Å, shape (n_atoms, 3).
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - ASE's own declaration

    def __init__(self, evaluate: Callable[[Atoms], tuple[float, NDArray[np.float64]]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._evaluate = evaluate

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`; called by ASE."""
        super().calculate(atoms, list(properties), list(system_changes))  # type: ignore[no-untyped-call]
        if self.atoms is None:
            raise RuntimeError("no atoms to calculate")
        energy, forces = self._evaluate(self.atoms)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}

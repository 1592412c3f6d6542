"""Pseudo-labels: energies, forces and stress of a pretrained potential itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tether.backbones.protocol import Backbone, Potential
from tether.errors import TetherError
from tether.labels.calculator import FunctionCalculator
from tether.structures import from_ase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ase import Atoms
    from numpy.typing import NDArray

    from tether.features import Features
    from tether.graph import Graph
    from tether.structures import AtomBatch

__all__ = [
    "PseudoLabeller",
    "PseudoLabels",
    "potential_calculator",
    "pseudo_label",
    "require_potential",
]


class PseudoLabeller(Backbone, Potential, Protocol):
    """A backbone with its pretrained energy head; calling it is its forward pass."""

    def __call__(self, graph: Graph) -> Features:
        """Compute features."""
        ...


class PseudoLabels(NamedTuple):
    """Energies and forces of a batch, on the CPU and without an autograd graph.

    Attributes
    ----------
    energy : Tensor, shape (n_systems,), double
        eV.
    forces : Tensor, shape (n_atoms, 3), double
        eV/Å.
    stress : Tensor or None, shape (n_systems, 9), double
        eV/Å³ row by row, positive under tension; NaN for a structure without a volume, None where
        no structure is periodic.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor | None


def _slices(counts: list[int], max_atoms: int) -> Iterator[tuple[int, int]]:
    # Consecutive structures of at most max_atoms atoms; a larger one goes alone.
    start, atoms = 0, 0
    for s, n_atoms in enumerate(counts):
        if s > start and atoms + n_atoms > max_atoms:
            yield start, s
            start, atoms = s, 0
        atoms += n_atoms
    if start < len(counts):
        yield start, len(counts)


def _like_of(backbone: PseudoLabeller) -> Tensor:
    # Device and floating type of the weights; a backbone without weights runs in double.
    if isinstance(backbone, nn.Module):
        for parameter in backbone.parameters():
            if parameter.is_floating_point():
                return parameter
    return torch.zeros((), dtype=torch.float64)


def require_potential(backbone: object) -> None:
    """Refuse a backbone without a pretrained energy head.

    Parameters
    ----------
    backbone : Backbone
        Any backbone.

    Raises
    ------
    TetherError
        When it has no ``energy_forces``.
    """
    if not isinstance(backbone, Potential):
        name = getattr(getattr(backbone, "spec", None), "name", type(backbone).__name__)
        raise TetherError(
            f"backbone {name!r} has no pretrained energy head",
            expected="a backbone with energy_forces()",
            fix="use --with gfn2-xtb, or a backbone that `tether list` shows with a potential",
        )


def pseudo_label(
    backbone: PseudoLabeller,
    batch: AtomBatch,
    *,
    max_atoms: int = 2000,
    progress: Callable[[int], None] | None = None,
) -> PseudoLabels:
    """Energies and forces of a pretrained potential.

    Parameters
    ----------
    backbone : Backbone and Potential
        Run in evaluation mode; its mode is restored afterwards.
    batch : AtomBatch
        Structures on the CPU.
    max_atoms : int
        Atoms of one forward pass; a larger structure goes alone.
    progress : callable of int, optional
        Called after each pass with the number of structures done.

    Returns
    -------
    PseudoLabels
        In the order of the batch.

    Raises
    ------
    TetherError
        When the backbone has no potential, or does not know an element or a cell.
    """
    require_potential(backbone)
    if max_atoms < 1:
        raise TetherError(
            f"`max_atoms` is {max_atoms}", expected="a positive number", fix="set max_atoms=2000"
        )
    energies, all_forces = [torch.empty(0).double()], [torch.empty(0, 3).double()]
    stresses: list[Tensor] = []
    if not batch.n_systems:
        return PseudoLabels(energies[0], all_forces[0], None)
    like = _like_of(backbone)
    was_training = isinstance(backbone, nn.Module) and backbone.training
    if isinstance(backbone, nn.Module):
        backbone.eval()
    try:
        graph = backbone.prepare(batch)
        for start, stop in _slices(batch.counts.tolist(), max_atoms):
            part = graph.select(torch.arange(start, stop)).to(like.device, like.dtype)
            part = part.differentiable()
            with torch.enable_grad():
                energy, forces, stress = backbone.energy_forces(part, backbone(part))
            energies.append(energy.detach().cpu().double())
            all_forces.append(forces.detach().cpu().double())
            stresses.append(_stress_rows(stress, part.batch))
            if progress is not None:
                progress(stop)
    finally:
        if isinstance(backbone, nn.Module):
            backbone.train(was_training)
    rows = torch.cat(stresses)
    known = not bool(rows.isnan().all())
    return PseudoLabels(torch.cat(energies), torch.cat(all_forces), rows if known else None)


def _stress_rows(stress: Tensor | None, batch: AtomBatch) -> Tensor:
    """Stress as 9 numbers, NaN where there is none."""
    none = torch.full((batch.n_systems, 9), float("nan"), dtype=torch.float64)
    if stress is None:
        return none
    rows = stress.detach().cpu().double().reshape(-1, 9)
    has_volume = batch.pbc.all(dim=1).cpu()
    return torch.where(has_volume[:, None], rows, none)


def potential_calculator(backbone: PseudoLabeller) -> FunctionCalculator:
    """A pretrained potential as an ASE calculator.

    Parameters
    ----------
    backbone : Backbone and Potential
        The potential.

    Returns
    -------
    FunctionCalculator
        Energy and forces.
    """
    require_potential(backbone)

    def evaluate(atoms: Atoms) -> tuple[float, NDArray[np.float64]]:
        label = pseudo_label(backbone, from_ase(atoms))
        return float(label.energy[0]), np.asarray(label.forces.numpy())

    return FunctionCalculator(evaluate)

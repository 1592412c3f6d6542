"""Forces and stress as derivatives of an energy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tether.errors import TetherError

if TYPE_CHECKING:
    from torch import Tensor

    from tether.graph import Graph

__all__ = ["forces_stress"]


def forces_stress(
    energy: Tensor, graph: Graph, *, create_graph: bool
) -> tuple[Tensor, Tensor | None]:
    """Negative gradient of the energy, and the virial over the volume.

    Parameters
    ----------
    energy : Tensor, shape (n_systems,)
        eV, computed from `graph`.
    graph : Graph
        From `Graph.differentiable`.
    create_graph : bool
        Keep the result differentiable.

    Returns
    -------
    forces : Tensor, shape (n_atoms, 3)
        eV/Å.
    stress : Tensor or None, shape (n_systems, 3, 3)
        eV/Å³, positive under tension (ASE's sign); None where no structure is periodic, zero for
        a structure without a volume.

    Raises
    ------
    TetherError
        When the graph has no leaves to differentiate.
    """
    if graph.leaves is None:
        raise TetherError(
            "forces were asked of a graph without leaves",
            expected="Graph.differentiable()",
            fix="call graph.differentiable() before the forward pass",
        )
    positions, strain = graph.leaves
    periodic = graph.batch.is_periodic
    wanted = (positions, strain) if periodic else (positions,)
    gradients = torch.autograd.grad(
        energy.sum(), wanted, create_graph=create_graph, allow_unused=True
    )
    # None: no term depends on the positions, as for a lone atom without neighbours.
    forces = torch.zeros_like(positions) if gradients[0] is None else -gradients[0]
    if not periodic:
        return forces, None
    virial = torch.zeros_like(strain) if gradients[1] is None else gradients[1]
    volume = torch.linalg.det(graph.batch.cell.detach()).abs()
    # A molecule or slab beside crystals in a batch has no volume, and so no stress.
    stress = torch.where(volume > 0, 1.0 / volume.clamp_min(1e-12), 0.0)[:, None, None] * virial
    return forces, stress

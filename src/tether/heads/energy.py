"""`EnergyHead`: the energy head of one level of theory, forces by derivative or direct."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tether.heads.derivative import forces_stress

if TYPE_CHECKING:
    from tether.features import Features
    from tether.graph import Graph
    from tether.heads.pair import PairHead

__all__ = ["EnergyHead"]


class EnergyHead(nn.Module):
    """An atom-wise perceptron, summed over each structure; for pretraining on several data sets.

    Levels of theory differ, and so each data set has a head while all share one backbone (JMP,
    arXiv 2310.16802). The output is scaled by the data's forces, and counts energies from the
    per-element reference that the labels were shifted by.

    Parameters
    ----------
    n_features : int
        Width of the node features.
    scale : float
        Root mean square force of the data, eV/Å; an ångström of it is the unit of the energy.
    direct : PairHead, optional
        Predicts the forces; default: they are the negative gradient of the energy.
    seed : int
        Of the initial weights; the global generator is left as it was.
    """

    def __init__(
        self, n_features: int, *, scale: float, direct: PairHead | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # No bias at the end: the reference has a constant for each element.
            self.readout = nn.Sequential(
                nn.Linear(n_features, n_features), nn.SiLU(), nn.Linear(n_features, 1, bias=False)
            )
        self.direct = direct
        self.register_buffer("scale", torch.tensor(scale))
        self.scale: Tensor

    def forward(
        self, graph: Graph, features: Features, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Energy, forces and stress; as `Potential.energy_forces`.

        Parameters
        ----------
        graph : Graph
            From `Graph.differentiable`.
        features : Features
            Of that graph.
        create_graph : bool
            Keep the derivative differentiable, for training.

        Returns
        -------
        energy, forces, stress : Tensor, Tensor, Tensor or None
            (n_systems,) eV, (n_atoms, 3) eV/Å, (n_systems, 3, 3) eV/Å³. Direct forces come with no
            stress.
        """
        batch = graph.batch
        atomic = self.readout(features.node).squeeze(1) * self.scale
        energy = atomic.new_zeros(batch.n_systems).index_add(0, batch.system_idx, atomic)
        stress = None
        if self.direct is None:
            forces, stress = forces_stress(energy, graph, create_graph=create_graph)
        else:
            forces = self.direct(features, batch)[0] * self.scale
        if create_graph:
            return energy, forces, stress
        return energy.detach(), forces.detach(), stress

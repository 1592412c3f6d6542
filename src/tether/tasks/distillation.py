"""Feature distillation: the backbone's features stay near the pretrained ones."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tether.errors import TetherError
from tether.tasks.task import mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tether.graph import Graph
    from tether.model import AdaptedModel
    from tether.tasks.task import Stream

__all__ = ["DistillationTask", "distillation_task"]

#: Batches that the spread of the pretrained features is taken over.
N_BATCHES = 8


@dataclass(frozen=True)
class DistillationTask:
    """Mean squared change of the node features, in units of their pretrained variance.

    1 means features as far from the pretrained ones as their mean is. The pretrained features are
    computed anew for each batch, which costs a forward pass and no memory. A hint of this kind, on
    the features and not on the outputs, is that of A. Romero et al., FitNets, arXiv 1412.6550.

    Attributes
    ----------
    stream : Stream
        Structures; their labels are not read.
    teacher : nn.Module
        The pretrained backbone, frozen.
    variance : float
        Of the teacher's node features: mean over features of the variance over atoms.
    name : str
        In logs.
    """

    stream: Stream
    teacher: nn.Module
    variance: float
    name: str = "distillation"

    def loss(self, model: AdaptedModel, graph: Graph, counts: Tensor | None = None) -> Tensor:
        """Loss of one batch.

        Parameters
        ----------
        model : AdaptedModel
            Its backbone is the student.
        graph : Graph
            A batch.
        counts : Tensor, optional
            Of the batch that this one is a share of, see `counts`.

        Returns
        -------
        Tensor
            Scalar.
        """
        with torch.no_grad():
            wanted = self.teacher.to(model.device)(graph).node
        change: Tensor = model.features(graph).node - wanted
        return mean(change.square(), None if counts is None else counts[0]) / self.variance

    def weights(self, model: AdaptedModel) -> list[nn.Parameter]:
        """The backbone."""
        return model.block_parameters()

    def counts(self, model: AdaptedModel, graph: Graph) -> Tensor:
        """Features of all atoms."""
        return torch.tensor([graph.batch.n_atoms * model.backbone.spec.n_features])


def distillation_task(model: AdaptedModel, stream: Stream) -> DistillationTask:
    """Keep a copy of the backbone as it is now, as the teacher.

    Parameters
    ----------
    model : AdaptedModel
        Not yet trained.
    stream : Stream
        Structures to compare on.

    Returns
    -------
    DistillationTask
        With a loss of zero at first.

    Raises
    ------
    TetherError
        When all features are equal, so that there is no spread to measure a change by.
    """
    teacher = deepcopy(model.backbone)
    assert isinstance(teacher, torch.nn.Module)
    teacher.requires_grad_(requires_grad=False)
    with torch.no_grad():
        nodes = torch.cat([teacher(stream.batch(step)).node for step in range(N_BATCHES)])
    variance = nodes.double().var(dim=0, correction=0).mean().item()
    if not variance > 0.0:
        raise TetherError(
            f"the pretrained features of {len(nodes)} atoms are all equal",
            expected="features that tell atoms apart",
            fix="leave out distillation",
        )
    return DistillationTask(stream, teacher, variance)

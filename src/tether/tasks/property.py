"""The downstream task: labelled properties."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import huber_loss, l1_loss, mse_loss

from tether.tasks.task import mean

if TYPE_CHECKING:
    from torch.nn import Parameter

    from tether.data.loader import GraphStream
    from tether.graph import Graph
    from tether.model import AdaptedModel

__all__ = ["LossName", "PropertyTask"]

LossName = Literal["l1", "mse", "huber"]
#: Standard deviations at which the Huber loss turns linear.
HUBER_DELTA = 1.0


@dataclass(frozen=True)
class PropertyTask:
    """Loss on standardised labels, averaged over targets; missing labels (NaN) do not count.

    Attributes
    ----------
    stream : GraphStream
        Labelled structures.
    loss_name : {"l1", "mse", "huber"}
        On the standardised scale.
    name : str
        In logs.
    """

    stream: GraphStream
    loss_name: LossName = "l1"
    name: str = "property"

    def loss(self, model: AdaptedModel, graph: Graph, counts: Tensor | None = None) -> Tensor:
        """Mean over targets of the mean over labelled entries.

        Parameters
        ----------
        model : AdaptedModel
            With a head for each target.
        graph : Graph
            A batch.
        counts : Tensor, optional
            Of the batch that this one is a share of, see `counts`.

        Returns
        -------
        Tensor
            Scalar; zero, with a gradient of zero, where the batch has no label at all.
        """
        means, counted = [], []
        for place, (name, output) in enumerate(model(graph).items()):
            count = None if counts is None else counts[place]
            label = model.heads[name].standardise(graph.batch).to(output.dtype)
            # The usual batch is fully labelled: then the mask would only cost time.
            if name in graph.batch.complete:
                means.append(mean(_elementwise(self.loss_name, output, label), count))
                counted.append(output.new_ones(()))
                continue
            known = ~torch.isnan(label)
            # A missing label is replaced by the prediction itself: no loss, and no gradient.
            errors = _elementwise(
                self.loss_name, output, torch.where(known, label, output.detach())
            )
            n_known = known.sum() if count is None else count
            means.append(errors.sum() / n_known.clamp(min=1))
            counted.append((n_known > 0).to(output.dtype))
        return torch.stack(means).sum() / torch.stack(counted).sum().clamp(min=1)

    def weights(self, model: AdaptedModel) -> list[Parameter]:
        """Backbone and property heads."""
        return [*model.block_parameters(), *model.head_parameters()]

    def counts(self, model: AdaptedModel, graph: Graph) -> Tensor:
        """Labelled entries of each target."""
        labels = [head.standardise(graph.batch) for head in model.heads.values()]
        return torch.stack([(~torch.isnan(label)).sum() for label in labels])


def _elementwise(name: LossName, output: Tensor, label: Tensor) -> Tensor:
    match name:
        case "l1":
            return l1_loss(output, label, reduction="none")
        case "mse":
            return mse_loss(output, label, reduction="none")
        case "huber":
            return huber_loss(output, label, delta=HUBER_DELTA, reduction="none")

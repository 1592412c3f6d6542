"""SevenNet's interaction over pairs listed once; the weights are the package's.

It is NequIP's (arXiv 2101.03164): features of each degree are mixed linearly, sent to the
neighbours through harmonics of the direction and weights of the distance, summed, mixed again and
gated. The weights of the distance, which cost most, are the same in both directions of a pair, and
what harmonics do to a feature is the same in every layer. Source: doi 10.1021/acs.jctc.4c00190.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from tether.backbones.harmonics import paths

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Interaction", "PairGeometry", "scaled_linear"]

#: Brings SiLU of a normal variable to a mean square of 1. It is e3nn's figure, from a million
#: samples, and not the exact one: the published weights were trained with it.
SILU_NORM = 1.6791767923989418


@dataclass(frozen=True)
class PairGeometry:
    """What all layers share: pairs listed once, the two directions of each one after the other.

    Attributes
    ----------
    receivers, senders : Tensor, shape (2 n_pairs,)
        Atoms of each directed pair: i ← j, j ← i, then those of the next pair.
    radial : Tensor, shape (n_pairs, n_radial)
        Basis of the distances, fading at the cutoff.
    mixers : mapping of path to Tensor, each of shape (2 n_pairs, 2 third + 1, 2 first + 1)
        What a sender's features become in the receiver's message, by `harmonics.paths`.
    """

    receivers: Tensor
    senders: Tensor
    radial: Tensor
    mixers: Mapping[tuple[int, int, int], Tensor]


def scaled_linear(features: Tensor, weight: Tensor) -> Tensor:
    """A linear layer for weights of variance 1, as e3nn holds them.

    Parameters
    ----------
    features : Tensor, shape (…, n_in)
        Input.
    weight : Tensor, shape (n_out, n_in)
        Divided by the root of n_in.

    Returns
    -------
    Tensor, shape (…, n_out)
    """
    return linear(features, weight * weight.shape[1] ** -0.5)


class DegreeLinear(nn.Module):
    """One matrix for the features of each degree; those without input or output have none.

    Parameters
    ----------
    n_in, n_out : sequence of int
        Channels of each degree, from 0 on.
    """

    def __init__(self, n_in: Sequence[int], n_out: Sequence[int]) -> None:
        super().__init__()
        for degree, (columns, rows) in enumerate(zip(n_in, n_out, strict=False)):
            self.register_parameter(f"degree_{degree}", nn.Parameter(torch.randn(rows, columns)))
        self.n_degrees = min(len(n_in), len(n_out))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of each degree, shape (n_atoms, 2 degree + 1, channels)."""
        weights = [getattr(self, f"degree_{degree}") for degree in range(self.n_degrees)]
        return [scaled_linear(x, weight) for x, weight in zip(features, weights, strict=False)]


class RadialNetwork(nn.Module):
    """Weights of the messages from the basis of a distance; zero where the basis is.

    Parameters
    ----------
    n_radial, n_hidden, n_out : int
        Basis functions; width of both hidden layers; weights.
    """

    def __init__(self, n_radial: int, n_hidden: int, n_out: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(n_hidden, n_radial))
        self.second = nn.Parameter(torch.randn(n_hidden, n_hidden))
        self.last = nn.Parameter(torch.randn(n_out, n_hidden))

    def forward(self, basis: Tensor) -> Tensor:
        """From shape (n_pairs, n_radial) to (n_pairs, n_out)."""
        hidden = silu(scaled_linear(basis, self.first))
        hidden = silu(scaled_linear(hidden, SILU_NORM * self.second))
        return scaled_linear(hidden, SILU_NORM * self.last)


class Interaction(nn.Module):
    """One layer.

    Parameters
    ----------
    n_in, n_out : tuple of int
        Channels of each degree, from 0 on.
    degree : int
        Highest degree of the harmonics.
    n_radial, n_hidden : int
        Of the radial network.
    average_neighbours : float
        Sums over messages are divided by it.
    """

    def __init__(
        self,
        n_in: tuple[int, ...],
        n_out: tuple[int, ...],
        *,
        degree: int,
        n_radial: int,
        n_hidden: int,
        average_neighbours: float,
    ) -> None:
        super().__init__()
        self.n_in, self.n_out = n_in, n_out
        self.average_neighbours = average_neighbours
        self.paths = paths(len(n_in), len(n_out), degree)
        # Behind the scalars stands one gate for each channel of a higher degree.
        n_gated = (sum(n_out), *n_out[1:])
        n_received = [0] * len(n_out)
        for first, third, _ in self.paths:
            n_received[third] += n_in[first]
        n_weights = sum(n_in[first] for first, _, _ in self.paths)
        self.connection = DegreeLinear(n_in, n_gated)
        self.inward = DegreeLinear(n_in, n_in)
        self.radial = RadialNetwork(n_radial, n_hidden, n_weights)
        self.outward = DegreeLinear(n_received, n_gated)

    def forward(
        self, atoms: Sequence[Tensor], at: PairGeometry
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Updated atoms.

        Parameters
        ----------
        atoms : sequence of Tensor, each of shape (n_atoms, 2 degree + 1, channels)
            Features of each degree.
        at : PairGeometry
            Of the batch.

        Returns
        -------
        atoms : list of Tensor
            The same with `n_out` channels.
        messages : list of Tensor, each of shape (2 n_pairs, 2 degree + 1, channels)
            By path.
        """
        messages = self._messages(self.inward(atoms), at)
        received: list[list[Tensor]] = [[] for _ in self.n_out]
        for (_, third, _), message in zip(self.paths, messages, strict=True):
            total = message.new_zeros(atoms[0].shape[0], *message.shape[1:])
            received[third].append(total.index_add(0, at.receivers, message))
        updated = self.outward(
            [torch.cat(parts, 2) / self.average_neighbours for parts in received]
        )
        for degree, own in enumerate(self.connection(atoms)):
            updated[degree] = updated[degree] + own
        return self._gate(updated), messages

    def _messages(self, atoms: Sequence[Tensor], at: PairGeometry) -> list[Tensor]:
        sent = [features.index_select(0, at.senders) for features in atoms]
        channels = [self.n_in[first] for first, _, _ in self.paths]
        weights = self.radial(at.radial).split(channels, dim=1)
        messages = []
        for path, weight in zip(self.paths, weights, strict=True):
            first, third, _ = path
            # Where there are fewer components to weigh.
            if first < third:
                messages.append(_mixed(_weighted(sent[first], weight), at.mixers[path]))
            else:
                messages.append(_weighted(_mixed(sent[first], at.mixers[path]), weight))
        return messages

    def _gate(self, features: list[Tensor]) -> list[Tensor]:
        scalars, *gates = (SILU_NORM * silu(features[0])).split(self.n_out, dim=2)
        return [scalars, *(g * x for g, x in zip(gates, features[1:], strict=True))]


def _mixed(features: Tensor, mixers: Tensor) -> Tensor:
    """``mixers @ features``; of one row or column, that is many times faster without a matrix."""
    if mixers.shape[2] == 1:
        return mixers * features
    if mixers.shape[1] == 1:
        return (mixers.mT * features).sum(1, keepdim=True)
    return mixers @ features


def _weighted(features: Tensor, weight: Tensor) -> Tensor:
    """Features of directed pairs times the weights of pairs."""
    # Directions and components in one dimension: the gradient of the weights, which is a sum over
    # it, then runs through memory in order.
    n_pairs, channels = weight.shape
    flat = features.view(n_pairs, 2 * features.shape[1], channels) * weight[:, None]
    return flat.view(features.shape)

"""What a backbone must offer: four members, and one more where it has a pretrained potential."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tether.features import Features
    from tether.graph import Graph
    from tether.structures import AtomBatch

__all__ = ["Backbone", "BackboneSpec", "LevelErrors", "Potential"]


@dataclass(frozen=True)
class LevelErrors:
    """How far a pretrained potential is from its own level of theory, as its authors say.

    Attributes
    ----------
    energy : float
        Mean absolute error, eV an atom.
    force : float
        Mean absolute error of a component, eV/Å.
    stress : float or None
        Mean absolute error of a component, eV/Å³.
    """

    energy: float
    force: float
    stress: float | None = None


@dataclass(frozen=True)
class BackboneSpec:
    """What is known about a backbone, written to the provenance of its runs.

    Attributes
    ----------
    name : str
        Name that `load_backbone` takes.
    checkpoint : str
        Which weights; "random" where there are none.
    sha256 : str
        Of the original weight file; empty for random weights.
    licence : str
        Of the weights.
    elements : tuple of int
        Atomic numbers that it was trained on.
    cutoff : float
        Å, of the message-passing graph.
    n_features : int
        Width of `Features.node`.
    n_layers : int
        Length of `Features.layers`.
    level_of_theory : str
        Of the pretraining labels.
    periodic : bool
        Whether it accepts a cell.
    molecules : bool
        Whether it accepts structures that are periodic in no direction.
    mirror : bool
        Whether a structure and its mirror image have the same features. An architecture that is
        equivariant under rotation alone tells them apart.
    charge, spin : bool
        Whether the total charge, and the number of unpaired electrons, change the features; where
        they do not, or the weights were made from neutral closed shells, others are refused.
    errors : LevelErrors or None
        Of its potential; None where nobody has said.
    """

    name: str
    checkpoint: str
    sha256: str
    licence: str
    elements: tuple[int, ...]
    cutoff: float
    n_features: int
    n_layers: int
    level_of_theory: str
    periodic: bool
    molecules: bool = True
    mirror: bool = True
    charge: bool = False
    spin: bool = False
    errors: LevelErrors | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping, for JSON."""
        return asdict(self)


@runtime_checkable
class Backbone(Protocol):
    """A pretrained network that turns structures into features.

    Every implementation is also a ``torch.nn.Module``, and passes
    `tether.testing.validate_backbone`.
    """

    spec: BackboneSpec

    def prepare(self, batch: AtomBatch) -> Graph:
        """Build exactly the graph that the weights were trained with.

        Raises `TetherError` for an element or a cell that the backbone does not know.
        """
        ...

    def forward(self, graph: Graph) -> Features:
        """Compute features; differentiable in positions and weights."""
        ...

    def blocks(self) -> list[tuple[str, list[nn.Parameter]]]:
        """Parameters of the representation in order from input to output, each exactly once.

        What a potential needs on top (its energy head) is in no block.
        """
        ...


@runtime_checkable
class Potential(Protocol):
    """A backbone whose pretrained energy head came with it."""

    def energy_forces(
        self, graph: Graph, features: Features, *, create_graph: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Energy (n_systems,) eV, forces (n_atoms, 3) eV/Å, stress (n_systems, 3, 3) eV/Å³.

        `graph` is `Graph.differentiable`, and `features` the backbone's output on it, so that the
        property head and the potential share one forward pass. Stress is None without a cell.
        `create_graph` keeps the derivative differentiable, for training on forces; without it the
        results are detached, and the autograd graph of `features` is used up.
        """
        ...

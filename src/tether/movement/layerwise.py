"""Layer-wise learning rates: the deeper the block, the faster it moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from tether.errors import TetherError
from tether.movement.groups import ParameterGroup

if TYPE_CHECKING:
    from tether.model import AdaptedModel

__all__ = ["Layerwise"]

#: JMP's fine-tuning multipliers (arXiv 2310.16802): the embedding, then its six blocks. Not
#: geometric, and not monotonic.
JMP_EMBEDDING = 0.30
JMP_BLOCKS = (0.55, 0.40, 0.30, 0.40, 0.55, 0.625)


@dataclass(frozen=True)
class Layerwise:
    """Multipliers of the base rate by block.

    Attributes
    ----------
    rule : {"geometric", "jmp"}
        ``decay ** (distance from the heads)``, or JMP's table, read at the relative depth of
        each block where a backbone has not six of them.
    decay : float
        Of the geometric rule, in (0, 1].
    """

    rule: Literal["geometric", "jmp"] = "geometric"
    decay: float = 0.6

    def __post_init__(self) -> None:
        if not 0.0 < self.decay <= 1.0:
            raise TetherError(
                f"`decay` is {self.decay}", expected="a number in (0, 1]", fix="set decay=0.6"
            )

    def multipliers(self, n_blocks: int) -> list[float]:
        """Multiplier of each block, input to output; the first one is the embedding.

        Parameters
        ----------
        n_blocks : int
            Blocks of the backbone, embedding included.

        Returns
        -------
        list of float
            Of length `n_blocks`.
        """
        if self.rule == "geometric":
            return [self.decay ** (n_blocks - block) for block in range(n_blocks)]
        depth = np.linspace(0.0, 1.0, max(n_blocks - 1, 1))
        table = np.interp(depth, np.linspace(0.0, 1.0, len(JMP_BLOCKS)), JMP_BLOCKS)
        return [JMP_EMBEDDING, *table.tolist()][:n_blocks]

    def apply(self, model: AdaptedModel) -> list[ParameterGroup]:
        """Groups by block; the potential's head and the property heads move at the base rate."""
        blocks = model.backbone.blocks()
        groups = [
            ParameterGroup(name, parameters, multiplier)
            for (name, parameters), multiplier in zip(
                blocks, self.multipliers(len(blocks)), strict=True
            )
        ]
        return [
            *groups,
            ParameterGroup("potential", model.potential_parameters()),
            ParameterGroup("heads", model.head_parameters()),
        ]

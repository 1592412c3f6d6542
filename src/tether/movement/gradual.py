"""The heads first, on the frozen backbone; the backbone later, at once or block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tether.errors import TetherError
from tether.movement.groups import ParameterGroup

if TYPE_CHECKING:
    from tether.model import AdaptedModel

__all__ = ["Gradual"]


@dataclass(frozen=True)
class Gradual:
    """Unfreeze the backbone after the heads have been trained.

    An untrained head sends gradients into the backbone that say nothing about the property; a head
    fitted to the pretrained features first distorts them less. Until its block starts, a weight
    is frozen bit for bit, and costs no gradient.

    Attributes
    ----------
    rule : {"lp-ft", "gradual"}
        ``lp-ft``: linear probing, then full fine-tuning (A. Kumar et al., arXiv 2202.10054).
        ``gradual``: the block next to the heads first, then one block after the other towards
        the input, at equal distances (J. Howard and S. Ruder, ULMFiT, arXiv 1801.06146).
    by : float
        Share of the property steps after which everything moves, in (0, 1).
    """

    rule: Literal["lp-ft", "gradual"] = "lp-ft"
    by: float = 0.3

    def __post_init__(self) -> None:
        if not 0.0 < self.by < 1.0:
            raise TetherError(
                f"`unfreeze_by` is {self.by}",
                expected="a number between 0 and 1",
                fix="set unfreeze_by=0.3",
            )

    def starts(self, n_blocks: int) -> list[float]:
        """When each block starts to move, input to output, as a share of the property steps.

        Parameters
        ----------
        n_blocks : int
            Blocks of the backbone, embedding included.

        Returns
        -------
        list of float
            Of length `n_blocks`.
        """
        if self.rule == "lp-ft":
            return [self.by] * n_blocks
        return [self.by * (n_blocks - block) / n_blocks for block in range(n_blocks)]

    def apply(self, model: AdaptedModel) -> list[ParameterGroup]:
        """Groups by block; the potential's own head starts with the block next to it."""
        blocks = model.backbone.blocks()
        starts = self.starts(len(blocks))
        groups = [
            ParameterGroup(name, parameters, starts_at=start)
            for (name, parameters), start in zip(blocks, starts, strict=True)
        ]
        return [
            *groups,
            ParameterGroup("potential", model.potential_parameters(), starts_at=starts[-1]),
            ParameterGroup("heads", model.head_parameters()),
        ]

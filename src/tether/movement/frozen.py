"""Only the property heads move: a probe of the pretrained features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tether.movement.groups import ParameterGroup

if TYPE_CHECKING:
    from tether.model import AdaptedModel

__all__ = ["Frozen"]


@dataclass(frozen=True)
class Frozen:
    """The backbone is frozen bit for bit."""

    def apply(self, model: AdaptedModel) -> list[ParameterGroup]:
        """Groups of the heads alone."""
        for parameter in [*model.block_parameters(), *model.potential_parameters()]:
            parameter.requires_grad_(False)  # noqa: FBT003 (torch's signature)
        return [ParameterGroup("heads", model.head_parameters())]

"""Everything moves at one rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tether.movement.groups import ParameterGroup

if TYPE_CHECKING:
    from tether.model import AdaptedModel

__all__ = ["Full"]


@dataclass(frozen=True)
class Full:
    """Full fine-tuning."""

    def apply(self, model: AdaptedModel) -> list[ParameterGroup]:
        """Groups of the backbone, its potential and the heads."""
        return [
            ParameterGroup("backbone", model.block_parameters()),
            ParameterGroup("potential", model.potential_parameters()),
            ParameterGroup("heads", model.head_parameters()),
        ]

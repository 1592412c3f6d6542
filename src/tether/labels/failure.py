"""`Failure`: a structure that got no label, and why. Collected, listed, never dropped."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Failure"]


@dataclass(frozen=True)
class Failure:
    """A structure without a label.

    Attributes
    ----------
    id : str
        Name of the structure or of the geometry made from it.
    reason : str
        Why, in words a user can act on.
    value : float or None
        The number behind the reason where there is one: a distance ratio, a force in eV/Å.
    """

    id: str
    reason: str
    value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping, for JSON."""
        return asdict(self)

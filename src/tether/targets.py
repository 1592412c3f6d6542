"""`Target`: a labelled quantity, with its unit, level and kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from tether.errors import TetherError

__all__ = ["WITHOUT_HEAD", "Kind", "Level", "Target"]

Level = Literal["system", "atom"]
Kind = Literal["intensive", "extensive", "max", "vector", "class"]

#: Kinds that can be kept and that no head can learn yet.
WITHOUT_HEAD = frozenset({"vector", "class"})


@dataclass(frozen=True)
class Target:
    """A labelled quantity.

    Attributes
    ----------
    name : str
        Column of the store.
    unit : str
        Kept from label to prediction; tether never converts a target.
    level : {"system", "atom"}
        Whether a structure or an atom carries the value.
    kind : {"intensive", "extensive", "max", "vector", "class"}
        How atoms combine: mean, sum, maximum, equivariant vector, class label. An extensive
        target also gets a per-element linear reference.
    n_components : int
        Columns of the value; 1 for a scalar.

    Examples
    --------
    >>> Target("gap", unit="Ha").kind
    'intensive'
    """

    name: str
    unit: str = ""
    level: Level = "system"
    kind: Kind = "intensive"
    n_components: int = 1

    def __post_init__(self) -> None:
        for field, options in (("level", get_args(Level)), ("kind", get_args(Kind))):
            value = getattr(self, field)
            if value not in options:
                raise TetherError(
                    f"`{field}` of target {self.name!r} is {value!r}",
                    expected=f"one of {', '.join(options)}",
                    fix=f"set {field}={options[0]}",
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping, for JSON and Arrow metadata."""
        return asdict(self)

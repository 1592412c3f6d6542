"""One measured number with all that is needed to read it: unit, direction, interval, null."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Family", "Measurement", "Worse"]

Family = Literal["drift", "structure", "function"]
Worse = Literal["lower", "higher"]


@dataclass(frozen=True)
class Measurement:
    """A measure of representation collapse, taken once.

    Attributes
    ----------
    name : str
        Stable key, as ``effective_rank``.
    label : str
        The same in words, for tables.
    unit : str
        ``"1"`` for a pure number, ``"dimensions"``, ``"feature spreads"``.
    family : {"drift", "structure", "function"}
        `drift` is a distance to the pretrained model, `structure` a property of one set of
        features, `function` something that the model does.
    collapse_means : {"lower", "higher"}
        The direction that is worse.
    invariant : bool
        Unchanged when the adapted features are rotated, which loses no information.
    needs_ood_labels : bool
        Whether labels of the OOD set went into it. A measure that needs them foretells nothing.
    source : str
        Where the measure was defined.
    layer : int or None
        Layer of the features; None for the last one.
    value : float or None
        Of the adapted model, or between it and the pretrained one; None when not computable.
    low, high : float or None
        95 % interval over structures.
    before : float or None
        The same of the pretrained model; None for a drift, which has no such value.
    null_low, null_high : float or None
        Where the value would lie had nothing been learnt or lost; see `tether.collapse.intervals`.
    n : int
        Points (atoms, edges, structures) that went into `value`.
    missing : str
        Why `value` is None; else empty.
    """

    name: str
    label: str
    unit: str
    family: Family
    collapse_means: Worse
    invariant: bool
    needs_ood_labels: bool
    source: str
    layer: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    before: float | None = None
    null_low: float | None = None
    null_high: float | None = None
    n: int = 0
    missing: str = ""

    def __post_init__(self) -> None:
        if (self.value is None) != bool(self.missing):
            raise TetherError(
                f"measurement {self.name!r} has value {self.value} and `missing` {self.missing!r}",
                expected="either a value or the reason why there is none",
                fix="pass `missing` exactly where `value` is None",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as they stand in ``measures.json``.

        Returns
        -------
        dict of str to JSON value
            One entry a field.
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Measurement:
        """Read what `to_dict` wrote.

        Parameters
        ----------
        record : mapping
            One entry a field.

        Returns
        -------
        Measurement
            The measurement.

        Raises
        ------
        TetherError
            For fields that are unknown or not there.

        Examples
        --------
        >>> m = Measurement(name="cka", label="CKA", unit="1", family="drift",
        ...                 collapse_means="lower", invariant=True, needs_ood_labels=False,
        ...                 source="Kornblith 2019", value=0.5, n=10)
        >>> Measurement.from_dict(m.to_dict()) == m
        True
        """
        wanted = [field.name for field in fields(cls)]
        odd = sorted(set(record) ^ set(wanted))
        if odd:
            raise TetherError(
                f"a measurement has unknown or absent fields {odd}",
                expected=f"exactly {wanted}",
                fix="measure again with this version of tether: `tether collapse FOLDER`",
            )
        return cls(**record)

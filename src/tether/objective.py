"""`Objective`: what a backbone is pretrained for; `PretrainInputs`: on what."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DataSet", "Objective", "ObjectiveName", "PretrainInputs", "batch_shares"]

ObjectiveName = Literal["denoising", "forcefield", "hybrid"]


@dataclass(frozen=True)
class DataSet:
    """Structures of one level of theory.

    Attributes
    ----------
    store : Path
        From `tether prepare` or `tether label`; ``energy`` (eV) and ``forces`` (eV/Å) for the force
        field, nothing for denoising.
    name : str
        In the log, and of its head, whose name has no dot; default: the store's file name.
    weight : float
        Of its losses, beside its share of the batch.
    """

    store: Path
    name: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "store", Path(self.store))
        object.__setattr__(self, "name", self.name or self.store.stem)
        if not (math.isfinite(self.weight) and self.weight > 0.0):
            raise TetherError(
                f"`weight` of data set {self.name!r} is {self.weight}",
                expected="a positive number",
                fix="set weight: 1, or leave the data set out",
            )


@dataclass(frozen=True)
class PretrainInputs:
    """What a pretraining reads.

    Attributes
    ----------
    datasets : tuple of DataSet
        The backbone's own energy head learns the first one's level of theory; each other has a
        head of its own.
    validation : Path or None
        Store at the first one's level; picks the best step. Default: a hundredth of the molecules
        of the first data set, held out, see `tether.corpus.hold_out`.
    test : Path or None
        Store at the same level that picks nothing; its errors are reported.
    """

    datasets: tuple[DataSet, ...]
    validation: Path | None = None
    test: Path | None = None


@dataclass(frozen=True)
class Objective:
    """What is learnt from the data sets.

    Attributes
    ----------
    kind : {"denoising", "forcefield", "hybrid"}
        The place that displaced atoms came from; energies, forces and stress; or both at once.
    scales : tuple of float
        Å, standard deviations of the noise; one is drawn for each structure.
    strain : float
        Standard deviation of the cells' strain, for crystals.
    conditioned : bool
        Whether denoising is told the forces before the noise: for structures off equilibrium.
    denoising_weight : float
        Of denoising in a hybrid; the force field has 1.
    fade_by : float
        Share of the steps over which that weight falls to zero, linearly; 0: it stays.
    temperature : float
        T of the shares that data sets of n structures have in a batch, ``n ** (1 / T)``: 1
        samples all structures alike, and a large T all data sets alike (JMP, arXiv 2310.16802,
        has 2).
    per_structure : bool
        Forces are averaged over each structure first (JMP), not over all atoms.
    forces : {"conservative", "direct"}
        The gradient of the energy, or a head of their own: cheaper, and without a potential to
        keep in fine-tuning.
    """

    kind: ObjectiveName = "forcefield"
    scales: tuple[float, ...] = (0.02, 0.05, 0.1)
    strain: float = 0.02
    conditioned: bool = False
    denoising_weight: float = 0.2
    fade_by: float = 0.0
    temperature: float = 1.0
    per_structure: bool = True
    forces: Literal["conservative", "direct"] = "conservative"

    @property
    def has_forcefield(self) -> bool:
        """Whether energies and forces are learnt."""
        return self.kind != "denoising"

    @property
    def has_denoising(self) -> bool:
        """Whether atoms are put back."""
        return self.kind != "forcefield"

    @property
    def needs_forces(self) -> bool:
        """Whether labels are read: to be learnt, or to tell denoising."""
        return self.has_forcefield or self.conditioned

    def __post_init__(self) -> None:
        positive = {"temperature": self.temperature, "denoising_weight": self.denoising_weight}
        positive |= {f"scales[{k}]": scale for k, scale in enumerate(self.scales)}
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0.0):
                raise _refused(name, value, "a positive number")
        if not self.scales:
            raise _refused("scales", "empty", "one or more widths in Å")
        if not 0.0 <= self.strain < 0.5:
            raise _refused("strain", self.strain, "a number from 0 to 0.5")
        if not 0.0 <= self.fade_by <= 1.0:
            raise _refused("fade_by", self.fade_by, "a share of the steps, 0 to 1")

    def identity(self) -> dict[str, Any]:
        """What tells its runs from others: all fields."""
        return asdict(self)


def batch_shares(sizes: Sequence[int], *, batch_size: int, temperature: float) -> list[int]:
    """Structures of each data set in a batch.

    Parameters
    ----------
    sizes : sequence of int
        Structures of each data set.
    batch_size : int
        Of all together.
    temperature : float
        See `Objective`.

    Returns
    -------
    list of int
        They add up to `batch_size`, and none is zero.

    Raises
    ------
    TetherError
        When there are more data sets than places.

    Examples
    --------
    >>> batch_shares([90_000, 10_000], batch_size=32, temperature=2.0)
    [24, 8]
    """
    if batch_size < len(sizes):
        raise TetherError(
            f"`training.batch_size` is {batch_size} for {len(sizes)} data sets",
            expected="a place for each of them",
            fix=f"set training.batch_size={len(sizes)} or more",
        )
    weights = [size ** (1.0 / temperature) for size in sizes]
    exact = [batch_size * weight / sum(weights) for weight in weights]
    shares = [max(1, int(value)) for value in exact]
    # What is missing goes to, and what is too much comes from, the share that is furthest off.
    while sum(shares) != batch_size:
        step = 1 if sum(shares) < batch_size else -1
        errors = [
            step * (e - s) if s + step > 0 else -math.inf
            for e, s in zip(exact, shares, strict=True)
        ]
        shares[errors.index(max(errors))] += step
    return shares


def _refused(name: str, value: object, expected: str) -> TetherError:
    return TetherError(f"`{name}` of the objective is {value}", expected=expected, fix="correct it")

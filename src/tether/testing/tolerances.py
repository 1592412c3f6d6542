"""How closely numbers must agree, with the reason for each figure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CUTOFF_JUMP",
    "CUTOFF_STEP",
    "EXACT",
    "FORCES_NOT_ZERO",
    "FORCE_DERIVATIVE",
    "FORCE_STEP",
    "GEOMETRY_MATTERS",
    "SINGLE_PRECISION",
    "STRAIN_STEP",
    "STRESS_DERIVATIVE",
    "SYMMETRY",
    "Tolerance",
]


@dataclass(frozen=True)
class Tolerance:
    """Largest accepted deviation in each precision, relative to the largest value compared.

    Attributes
    ----------
    float64, float32 : float
        Accepted deviation when the computation runs in that precision.
    reason : str
        Why this figure and not another.
    """

    float64: float
    float32: float
    reason: str


EXACT = Tolerance(0.0, 0.0, "counts and bitwise comparisons")

SYMMETRY = Tolerance(
    1e-9,
    1e-4,
    "the same sum in another order or in rotated axes differs by rounding: about 1e-16 or 1e-7 "
    "times the square root of the number of terms times the depth, with a margin of 1e3 or more "
    "for total energies that are large beside what varies",
)

FORCE_DERIVATIVE = Tolerance(
    1e-6,
    5e-2,
    "fourth-order central differences with FORCE_STEP: truncation is of order h⁴, below 1e-9 "
    "even for deep random networks, rounding about 1e-16 |E| / h = 1e-9 eV/Å for |E| = 1000 eV; "
    "in float32, rounding alone is 1e-2",
)

STRESS_DERIVATIVE = Tolerance(
    1e-6,
    5e-2,
    "the same with STRAIN_STEP; compared as virials in eV, so that a large cell does "
    "not hide an error",
)

CUTOFF_JUMP = Tolerance(
    1e-4,
    1e-1,
    "change across 2 CUTOFF_STEP beside the change from 0.7 cutoff on: a smooth function gives "
    "about 1e-6, a step of one part in 10,000 of the pair's effect is already a defect",
)

SINGLE_PRECISION = Tolerance(
    1e-3,
    1e-3,
    "a float32 forward pass of a few layers loses 2 to 4 of its 7 digits; losing more means that "
    "large terms cancel, or that the copy in float64 is another model",
)

GEOMETRY_MATTERS = Tolerance(
    1e-6,
    1e-4,
    "least relative change of features under a distortion of 0.1 Å: features that do not respond "
    "pass every invariance check; ten times the largest tolerance of these checks would be enough",
)

FORCES_NOT_ZERO = Tolerance(
    1e-3,
    1e-3,
    "least largest force on distorted structures, eV/Å: zero forces pass every equivariance check",
)

#: Å, displacement of one coordinate for forces by finite differences.
FORCE_STEP = 1e-4
#: Strain component for stress by finite differences.
STRAIN_STEP = 1e-4
#: Å, distance from the cutoff on either side.
CUTOFF_STEP = 1e-6

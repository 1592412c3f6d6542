"""What each measure of feature arrays is called, its unit and direction, and who defined it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from tether.collapse.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tether.collapse.measurement import Family, Worse

__all__ = ["FACTS", "Fact", "Found"]


@dataclass(frozen=True)
class Found:
    """What was measured; NaN = not computable.

    Attributes
    ----------
    value : float
        The measure.
    half_width : float
        Of its 95 % interval.
    before : float
        The pretrained model's.
    null : tuple of float
        Bounds of the null.
    n : int
        Points.
    missing : str
        Why `value` is NaN.
    """

    value: float
    half_width: float = math.nan
    before: float = math.nan
    null: tuple[float, float] = (math.nan, math.nan)
    n: int = 0
    missing: str = ""


@dataclass(frozen=True)
class Fact:
    """What is the same each time that a measure is taken.

    Attributes
    ----------
    name, label, unit, family, collapse_means, invariant, source
        See `Measurement`.
    bounds : tuple of float
        Smallest and largest possible value, at which intervals end.
    """

    name: str
    label: str
    unit: str
    family: Family
    collapse_means: Worse
    invariant: bool
    source: str
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def measured(self, found: Found, *, layer: int | None) -> Measurement:
        """Put what was measured beside the facts.

        Parameters
        ----------
        found : Found
            Numbers.
        layer : int or None
            Layer of the features.

        Returns
        -------
        Measurement
            Without any number where the value is NaN.
        """
        computed = math.isfinite(found.value)
        low, high = found.value - found.half_width, found.value + found.half_width
        return Measurement(
            name=self.name,
            label=self.label,
            unit=self.unit,
            family=self.family,
            collapse_means=self.collapse_means,
            invariant=self.invariant,
            needs_ood_labels=False,
            source=self.source,
            layer=layer,
            value=found.value if computed else None,
            low=self._bounded(low),
            high=self._bounded(high),
            before=_number(found.before),
            null_low=self._bounded(found.null[0]),
            null_high=self._bounded(found.null[1]),
            n=found.n,
            missing="" if computed else found.missing or "not computable",
        )

    def _bounded(self, value: float) -> float | None:
        low, high = self.bounds
        return min(max(value, low), high) if math.isfinite(value) else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


_PAPER = "arXiv 2601.08486"
_POSITIVE = (0.0, math.inf)

#: Name → facts of every measure of `tether.collapse.table`.
FACTS: Mapping[str, Fact] = MappingProxyType(
    {
        fact.name: fact
        for fact in (
            Fact(
                "wasserstein1",
                "1-Wasserstein distance to pretrained, exact",
                "pretrained spreads",
                "drift",
                "higher",
                invariant=False,
                source=f"{_PAPER}; Flamary et al., JMLR 22, 1 (2021)",
                bounds=_POSITIVE,
            ),
            Fact(
                "sliced_wasserstein1",
                "1-Wasserstein distance to pretrained, sliced",
                "pretrained spreads",
                "drift",
                "higher",
                invariant=False,
                source="Bonneel et al., J. Math. Imaging Vis. 51, 22 (2015)",
                bounds=_POSITIVE,
            ),
            Fact(
                "cka",
                "Similarity to pretrained (debiased linear CKA; 0 = unrelated)",
                "1",
                "drift",
                "lower",
                invariant=True,
                source="Kornblith et al., ICML 2019; Nguyen et al., ICLR 2021",
                bounds=(-1.0, 1.0),
            ),
            Fact(
                "effective_rank",
                "Effective rank of the centred features",
                "dimensions",
                "structure",
                "lower",
                invariant=True,
                source="RankMe, Garrido et al., ICML 2023",
                bounds=(1.0, math.inf),
            ),
            Fact(
                "intrinsic_dimension",
                "Intrinsic dimension (TwoNN)",
                "dimensions",
                "structure",
                "lower",
                invariant=True,
                source="Facco et al., Sci. Rep. 7, 12140 (2017)",
                bounds=_POSITIVE,
            ),
            Fact(
                "davies_bouldin",
                "Davies–Bouldin index of the classes, feature space",
                "1",
                "structure",
                "higher",
                invariant=True,
                source="Davies and Bouldin, IEEE TPAMI 1, 224 (1979)",
                bounds=_POSITIVE,
            ),
            Fact(
                "silhouette",
                "Silhouette of the classes",
                "1",
                "structure",
                "lower",
                invariant=True,
                source="Rousseeuw, J. Comput. Appl. Math. 20, 53 (1987)",
                bounds=(-1.0, 1.0),
            ),
            Fact(
                "knn_purity",
                "Class purity of the 10 nearest neighbours, balanced",
                "1",
                "structure",
                "lower",
                invariant=True,
                source="balanced k-nearest-neighbour purity, see tether.collapse.separation",
                bounds=(0.0, 1.0),
            ),
            Fact(
                "linear_probe",
                "Classes read by a linear probe (balanced accuracy)",
                "1",
                "structure",
                "lower",
                invariant=True,
                source="Alain and Bengio, arXiv 1610.01644",
                bounds=(0.0, 1.0),
            ),
            Fact(
                "davies_bouldin_tsne",
                "Davies–Bouldin index on joint t-SNE (range over seeds)",
                "1",
                "structure",
                "higher",
                invariant=False,
                source=_PAPER,
                bounds=_POSITIVE,
            ),
            Fact(
                "davies_bouldin_tsne_ratio",
                "Davies–Bouldin index on joint t-SNE / pretrained (range over seeds)",
                "1",
                "structure",
                "higher",
                invariant=False,
                source=_PAPER,
                bounds=_POSITIVE,
            ),
        )
    }
)

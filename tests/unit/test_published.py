"""Published figures are what was printed, in the units of our own."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from tether.data.qm9 import QM9_TARGETS
from tether.errors import TetherError
from tether.outside.published import Published, published_figures

BOOM = ("homo", "lumo", "gap", "zpve", "r2", "alpha", "mu", "cv")
RECIPES = ("scratch", "full", "probe", "mft")
MATBENCH = ("dielectric", "log_gvrh", "perovskites", "jdft2d")


def one(**wanted: str) -> Published:
    (found,) = (f for f in published_figures() if wanted.items() <= asdict(f).items())
    return found


def dpa(target: str, recipe: str, subset: str) -> float:
    return one(target=target, method=f"DPA-3.1-3M {recipe}", subset=subset).value


def test_every_figure_stands_once() -> None:
    keys = [(f.suite, f.target, f.method, f.subset, f.metric) for f in published_figures()]
    assert len(keys) == len(set(keys))
    found = {key[:4] for key in keys}
    assert found == {
        ("qm9-boom", target, f"DPA-3.1-3M {recipe}", subset)
        for target in BOOM
        for recipe in RECIPES
        for subset in ("test/id", "test/ood")
    } | {
        ("qm9-boom", target, "clip oracle", "test/ood") for target in BOOM if target != "zpve"
    } | {
        ("matbench", target, method, "test/id")
        for target in MATBENCH
        for method in ("coGN", "coNGN", "ALIGNN", "CGCNN", "SchNet", "dummy")
    }  # fmt: skip


def test_qm9_figures_are_in_the_units_of_our_labels() -> None:
    for figure in published_figures(suite="qm9-boom"):
        assert figure.unit == QM9_TARGETS[figure.target].unit, figure
        assert figure.metric == "rmse"
    assert {f.metric for f in published_figures(suite="matbench")} == {"mae"}
    # Of the order of the spread of the property, which a wrong power of ten would not be.
    assert 1e-4 < dpa("zpve", "scratch", "test/id") < 2e-4


@pytest.mark.parametrize(
    ("wanted", "value", "unit"),
    [
        ({"target": "gap", "method": "DPA-3.1-3M mft", "subset": "test/ood"}, 0.01713, "Ha"),
        ({"target": "homo", "method": "DPA-3.1-3M probe", "subset": "test/ood"}, 0.01246, "Ha"),
        ({"target": "zpve", "method": "DPA-3.1-3M full", "subset": "test/id"}, 1.022e-4, "Ha"),
        ({"target": "cv", "method": "DPA-3.1-3M full", "subset": "test/id"}, 0.0967, "cal/mol/K"),
        ({"target": "r2", "method": "clip oracle"}, 181.0, "bohr²"),
        ({"target": "dielectric", "method": "coGN"}, 0.3088, ""),
        ({"target": "log_gvrh", "method": "coNGN"}, 0.067, "log10(GPa)"),
        ({"target": "jdft2d", "method": "SchNet"}, 42.7, "meV/atom"),
        ({"target": "perovskites", "method": "dummy"}, 0.566, "eV"),
    ],
)
def test_spot_values(wanted: dict[str, str], value: float, unit: str) -> None:
    found = one(**wanted)
    assert (found.value, found.unit) == (value, unit)


@pytest.mark.parametrize(
    ("recipe", "reference", "inside", "outside"),
    [
        ("full", "scratch", 17.8, 5.6),
        ("probe", "scratch", -37.0, 7.8),
        ("mft", "scratch", 17.3, 17.1),
        ("mft", "full", -0.6, 12.2),
    ],
)
def test_mean_gains_are_those_that_the_paper_prints(
    recipe: str, reference: str, inside: float, outside: float
) -> None:
    """A slip in any of the 64 figures moves a mean: the transcription is checked by the text."""
    for subset, printed in (("test/id", inside), ("test/ood", outside)):
        ratios = [dpa(t, recipe, subset) / dpa(t, reference, subset) for t in BOOM]
        assert 100 * (1 - np.mean(ratios)) == pytest.approx(printed, abs=0.1)


def test_every_source_has_a_note_and_selections_are_exact() -> None:
    assert all(f.source and f.note for f in published_figures())
    assert {f.target for f in published_figures(target="gap")} == {"gap"}
    assert published_figures(suite="matbench", target="gap") == ()
    with pytest.raises(TetherError, match="'nonsense'; expected one of qm9-boom, matbench;"):
        published_figures(suite="nonsense")

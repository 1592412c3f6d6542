"""`PropertyHead`: pooling, scale and element reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms

from tether.errors import TetherError
from tether.evaluation import check_elements
from tether.features import Features
from tether.heads.readout import PropertyHead, element_counts
from tether.structures import AtomBatch, from_ase
from tether.targets import Target

ATOMIC = {1: -0.5, 6: -38.0, 7: -54.5, 8: -75.0}


def batch_of(molecules: list[Atoms], **labels: Any) -> AtomBatch:
    return from_ase(molecules, labels=labels)


def features_of(batch: AtomBatch) -> Features:
    generator = torch.Generator().manual_seed(1)
    return Features(node=torch.randn(batch.n_atoms, 8, generator=generator))


@pytest.mark.parametrize("pooling", ["sum", "mean", "max"])
def test_pooling_is_what_its_name_says(pooling: Any, molecules: list[Atoms]) -> None:
    batch = batch_of(molecules)
    head = PropertyHead(Target("gap"), 8, pooling=pooling, n_hidden=4)
    features = features_of(batch)
    atomic = head.readout(features.node)[:, 0] - 3.0  # all negative: max must not see a zero
    head.readout[2].bias.data -= 3.0
    reduce = {"sum": torch.sum, "mean": torch.mean, "max": torch.max}[pooling]
    by_hand = [reduce(part) for part in atomic.split(batch.counts.tolist())]
    torch.testing.assert_close(head(features, batch)[:, 0], torch.stack(by_hand))
    assert (head(features, batch) < 0).all()


def dipole_head(mean: float = 0.0, std: float = 1.0) -> PropertyHead:
    head = PropertyHead(Target("mu", "D"), 8, pooling="dipole", n_hidden=4)
    head.mean.fill_(mean)
    head.std.fill_(std)
    return head


def test_a_dipole_is_that_of_neutral_charges(molecules: list[Atoms]) -> None:
    batch, head = batch_of(molecules), dipole_head(mean=1.5, std=0.5)
    features = features_of(batch)
    charges = head.readout(features.node).double()
    wanted = []
    for q, r in zip(
        charges.split(batch.counts.tolist()),
        batch.positions.split(batch.counts.tolist()),
        strict=True,
    ):
        wanted.append(((q - q.mean()) * r.double()).sum(0).norm())
    found = head.physical(head(features, batch), batch)[:, 0]
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-3, atol=2e-3)
    # Wherever the molecule is and however it is turned; a head that only sees the atoms is, too.
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[
        0
    ]
    moved = batch.with_geometry(batch.positions @ turn.to(batch.positions) + 30.0)
    torch.testing.assert_close(head(features, moved), head(features, batch), rtol=1e-3, atol=1e-3)
    # Twice as far apart, twice the moment: this is what a mean over the atoms cannot do.
    wide = batch.with_geometry(2 * batch.positions)
    double = head.physical(head(features, wide), wide)[:, 0]
    torch.testing.assert_close(double, 2 * found, rtol=1e-3, atol=5e-3)
    mean = PropertyHead(Target("mu", "D"), 8, pooling="mean", n_hidden=4)
    assert torch.equal(mean(features, wide), mean(features, batch))


def test_a_dipole_of_zero_has_a_gradient(molecules: list[Atoms]) -> None:
    batch, head = batch_of([Atoms("He")]), dipole_head()
    head(features_of(batch), batch).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in head.parameters() if p.grad is not None)


def test_an_extent_is_about_the_centre_of_nuclear_charge(molecules: list[Atoms]) -> None:
    squares = []
    for atoms in molecules:
        centre = atoms.numbers @ atoms.positions / atoms.numbers.sum()
        squares.append(((atoms.positions - centre) ** 2).sum(1))
    numbers = [atoms.numbers for atoms in molecules]
    # Electrons of an element, and a width of its own that distances do not change.
    far = np.array([(2.0 * z + 1.0) @ r for z, r in zip(numbers, squares, strict=True)])
    near = np.array([(0.5 * z + 3.0).sum() for z in numbers])
    batch = batch_of(molecules, r2=far + near)
    head = PropertyHead(Target("r2", "bohr²", kind="extensive"), 8, pooling="extent", n_hidden=4)
    head.fit_scale(batch)
    # The reference alone explains such labels, at any size: also of a molecule twice as large.
    silent, wide = torch.zeros(batch.n_systems, 1), batch.with_geometry(2 * batch.positions)
    for reached, wanted in ((batch, far + near), (wide, 4 * far + near)):
        torch.testing.assert_close(
            head.physical(silent, reached)[:, 0], torch.as_tensor(wanted), rtol=1e-3, atol=1e-3
        )
    features = features_of(batch)
    outputs = head.readout(features.node).split(batch.counts.tolist())
    for reached, factor in ((batch, 1), (wide, 4)):
        by_hand = [
            (o[:, 0] * torch.as_tensor(factor * r / np.concatenate(squares).mean())).sum()
            + o[:, 1].sum()
            for o, r in zip(outputs, squares, strict=True)
        ]
        found = head(features, reached)[:, 0]
        torch.testing.assert_close(found, torch.stack(by_hand).float(), rtol=1e-4, atol=1e-4)


def test_a_head_that_sees_positions_is_refused_where_it_has_no_meaning() -> None:
    for target, pooling in (
        (Target("x", kind="extensive"), "dipole"),
        (Target("x", level="atom"), "dipole"),
        (Target("x"), "extent"),
    ):
        with pytest.raises(TetherError, match=f"pooling '{pooling}'"):
            PropertyHead(target, 8, pooling=pooling)  # type: ignore[arg-type]
    crystal = batch_of([Atoms("NaCl", [[0, 0, 0], [2.8, 0, 0]], cell=[6, 6, 6], pbc=True)])
    with pytest.raises(TetherError, match="periodic structure"):
        dipole_head()(features_of(crystal), crystal)


def test_the_kind_of_the_target_chooses_the_pooling() -> None:
    kinds = {"intensive": "mean", "extensive": "sum", "max": "max"}
    for kind, pooling in kinds.items():
        assert PropertyHead(Target("x", kind=kind), 8).pooling == pooling  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["intensive", "extensive"])
def test_standardise_and_back(kind: Any, molecules: list[Atoms]) -> None:
    labels = np.random.default_rng(0).normal(1000.0, 7.0, len(molecules))
    batch = batch_of(molecules, gap=labels)
    head = PropertyHead(Target("gap", kind=kind), 8)
    head.fit_scale(batch)
    standard = head.standardise(batch)
    assert standard.dtype == torch.float32
    assert abs(float(standard.mean())) < 1e-4
    assert abs(float(standard.std(correction=0)) - 1.0) < 1e-4
    np.testing.assert_allclose(head.physical(standard, batch)[:, 0], labels, rtol=1e-7)


def test_scale_ignores_missing_labels(molecules: list[Atoms]) -> None:
    labels = np.arange(len(molecules), dtype=float)
    labels[::3] = np.nan
    batch = batch_of(molecules, gap=labels)
    head = PropertyHead(Target("gap"), 8)
    head.fit_scale(batch)
    assert float(head.mean) == pytest.approx(np.nanmean(labels))
    assert float(head.std) == pytest.approx(np.nanstd(labels))
    assert np.isnan(head.standardise(batch)[:, 0].numpy()).tolist() == np.isnan(labels).tolist()


def test_extensive_head_recovers_an_exactly_linear_target(molecules: list[Atoms]) -> None:
    labels = np.array([sum(ATOMIC[z] for z in a.numbers.tolist()) for a in molecules])
    train, test = batch_of(molecules[::2], u0=labels[::2]), batch_of(molecules[1::2])
    for kind, error in (("extensive", 1e-3), ("intensive", np.inf)):
        head = PropertyHead(Target("u0", kind=kind), 8)  # type: ignore[arg-type]
        head.fit_scale(train)
        predicted = head.physical(head(features_of(test), test), test)[:, 0].detach().numpy()
        found = np.abs(predicted - labels[1::2]).max()
        assert found < error
        assert kind == "extensive" or found > 1.0  # an untrained head without reference is far off
    head = PropertyHead(Target("u0", kind="extensive"), 8)
    head.fit_scale(train)
    for number, value in ATOMIC.items():
        assert float(head.reference[number]) == pytest.approx(value, abs=1e-9)


def test_elements_without_a_labelled_training_structure_have_no_reference() -> None:
    water, methane, fluoride = Atoms("H2O"), Atoms("CH4"), Atoms("HF")
    train = batch_of([water, Atoms("H2"), methane], u0=np.array([3.0, 1.0, np.nan]))
    test = batch_of([water, methane, fluoride])
    for kind, unknown in (("extensive", [3, 8 + 1]), ("intensive", [])):
        head = PropertyHead(Target("u0", kind=kind), 8)  # type: ignore[arg-type]
        head.fit_scale(train)
        assert np.flatnonzero(head.lacks_reference(test).numpy()).tolist() == unknown
    head = PropertyHead(Target("u0", kind="extensive"), 8)
    head.fit_scale(train)
    check_elements([head], {"val": train.select(torch.arange(2))})
    # A label of zero is a label: formation energies of elements are.
    elemental = batch_of([Atoms("Fe"), Atoms("He"), Atoms("H2")], u0=np.array([0.0, 3.0, 1.0]))
    whole = PropertyHead(Target("u0", kind="extensive"), 8)
    whole.fit_scale(elemental)
    assert not whole.lacks_reference(elemental).any()
    assert abs(float(whole.physical(torch.zeros(3, 1), elemental)[0])) < 1e-300
    with pytest.raises(TetherError, match=r"'u0' is extensive, and 2 .* of 'test/ood'.* hold C, F"):
        check_elements([head], {"test/ood": test})


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (np.full(36, 2.5), "36 labels of spread 0"),
        (np.full(36, 0.1 + 1e-17), "36 labels of spread"),
        (np.full(36, np.nan), "0 labels of spread 0"),
        (np.r_[np.inf, np.arange(35.0)], "36 labels of spread nan"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_labels_without_spread_are_refused(
    labels: np.ndarray, problem: str, molecules: list[Atoms]
) -> None:
    head = PropertyHead(Target("gap"), 8)
    with pytest.raises(TetherError, match=f"'gap' has {problem}"):
        head.fit_scale(batch_of(molecules[:36], gap=labels[: len(molecules[:36])]))


def test_a_missing_label_is_named_with_those_there_are(molecules: list[Atoms]) -> None:
    head, batch = PropertyHead(Target("gap"), 8), batch_of(molecules, homo=np.zeros(len(molecules)))
    for method in (head.fit_scale, head.standardise):
        with pytest.raises(TetherError, match="no label 'gap'; expected one of homo"):
            method(batch)


@pytest.mark.parametrize("kind", ["vector", "class"])
def test_kinds_without_a_head_are_refused(kind: Any) -> None:
    with pytest.raises(TetherError, match=f"'x' is of kind '{kind}'"):
        PropertyHead(Target("x", kind=kind), 8)


@pytest.mark.parametrize("n_hidden", [0, 16])
def test_every_weight_gets_a_gradient(n_hidden: int, molecules: list[Atoms]) -> None:
    batch = batch_of(molecules)
    head = PropertyHead(Target("gap"), 8, n_hidden=n_hidden)
    head(features_of(batch), batch).square().sum().backward()
    assert [n for n, p in head.named_parameters() if not p.grad.abs().sum() > 0] == []


def test_atom_targets_are_not_pooled(molecules: list[Atoms]) -> None:
    n_atoms = sum(len(a) for a in molecules)
    charges = np.random.default_rng(0).normal(size=n_atoms)
    batch = from_ase(molecules, atom_labels={"charge": charges})
    head = PropertyHead(Target("charge", level="atom"), 8)
    head.fit_scale(batch)
    assert head(features_of(batch), batch).shape == (n_atoms, 1)
    np.testing.assert_allclose(
        head.physical(head.standardise(batch), batch)[:, 0], charges, atol=1e-6
    )


def test_seed_makes_the_weights_and_leaves_the_generator() -> None:
    state = torch.get_rng_state()
    first, again, other = (PropertyHead(Target("x"), 8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.readout[0].weight, again.readout[0].weight)
    assert not torch.equal(first.readout[0].weight, other.readout[0].weight)


def test_element_counts(molecules: list[Atoms]) -> None:
    counts = element_counts(batch_of(molecules))
    for row, atoms in zip(counts, molecules, strict=True):
        assert {z: int(row[z]) for z in np.nonzero(row)[0]} == {
            z: int((atoms.numbers == z).sum()) for z in set(atoms.numbers.tolist())
        }

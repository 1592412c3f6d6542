"""How tasks combine."""

from __future__ import annotations

import math

import pytest
import torch

from tether.balance.constraint import Constraint
from tether.balance.sampled import Sampled
from tether.balance.uncertainty import Uncertainty
from tether.balance.weighted_sum import WeightedSum
from tether.errors import TetherError

NAMES = ["property", "forcefield"]


def losses() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    return weight, {"property": (weight**2).sum(), "forcefield": weight.sum()}


def test_weighted_sum_is_the_gradient_of_the_sum() -> None:
    weight, found = losses()
    balance = WeightedSum({"forcefield": 0.5})
    assert balance.choose(3, NAMES) == NAMES
    balance.backward(found)
    assert weight.grad.tolist() == [4.5, 6.5]


def test_sampled_backward_is_that_of_the_drawn_task() -> None:
    weight, found = losses()
    Sampled({}).backward({"forcefield": found["forcefield"]})
    assert weight.grad.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_sampled_draws_with_its_probability(p: float) -> None:
    balance = Sampled({"property": p, "forcefield": 1.0 - p}, seed=1)
    n = 4000
    drawn = [balance.choose(step, NAMES) for step in range(n)]
    assert all(len(names) == 1 for names in drawn)
    share = sum(names == ["property"] for names in drawn) / n
    assert abs(share - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_sampled_draw_is_a_function_of_seed_and_step() -> None:
    first, again, other = (Sampled({}, seed=seed) for seed in (1, 1, 2))
    forwards = [first.choose(step, NAMES) for step in range(50)]
    backwards = [again.choose(step, NAMES) for step in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert forwards != [other.choose(step, NAMES) for step in range(50)]


def test_draws_of_neighbouring_steps_are_independent() -> None:
    drawn = [Sampled({}, seed=3).choose(step, NAMES)[0] for step in range(2000)]
    for shift in (1, 2, 3):
        same = sum(a == b for a, b in zip(drawn, drawn[shift:], strict=False)) / (2000 - shift)
        assert abs(same - 0.5) < 4 * (0.25 / 2000) ** 0.5


def test_a_certain_task_is_always_drawn_and_probabilities_are_normalised() -> None:
    certain = Sampled({"property": 1.0, "forcefield": 0.0})
    assert {certain.choose(step, NAMES)[0] for step in range(500)} == {"property"}
    alone = Sampled({"property": 0.3})
    assert alone.choose(0, ["property"]) == ["property"]


def descend(balance: Constraint, *, steps: int, pull: float) -> list[tuple[float, float]]:
    """A property that gains ``pull`` for each unit of force-field loss: μ = pull at the optimum."""
    drift = torch.tensor(0.0, requires_grad=True)
    trail = []
    for step in range(steps):
        noise = 1.0 + 0.2 * math.sin(17.0 * step)
        balance.backward({"property": 1.0 - pull * drift, "forcefield": noise * drift.square()})
        with torch.no_grad():
            drift -= 0.02 * drift.grad
            drift.grad = None
        trail.append((float(drift.detach() ** 2), balance.multiplier))
    return trail


@pytest.mark.parametrize(("reference", "bound"), [(0.0, 0.044), (0.02, 0.044), (0.3, 0.33)])
@pytest.mark.parametrize("pull", [0.05, 0.5, 4.0])
def test_a_constraint_ends_at_its_bound_whatever_the_property_pulls(
    reference: float, bound: float, pull: float
) -> None:
    balance = Constraint(reference, tolerance=0.1, floor=0.04)
    assert balance.bound == pytest.approx(bound)
    trail = descend(balance, steps=8000, pull=pull)
    losses = [loss for loss, _ in trail[-500:]]
    assert sum(losses) / 500 == pytest.approx(bound, rel=0.04)
    # At the optimum, the multiplier is the price of force-field loss: pull / (2 sqrt(bound)).
    assert trail[-1][1] == pytest.approx(pull / (2 * bound**0.5), rel=0.15)
    # Damped: no swing is left.
    multipliers = [multiplier for _, multiplier in trail[-500:]]
    assert max(multipliers) < 1.2 * min(multipliers)


def test_a_bound_that_cannot_be_reached_raises_the_multiplier_to_its_limit_and_no_further() -> None:
    balance = Constraint(0.0)
    weight = torch.tensor(1.0, requires_grad=True)
    before = balance.multiplier
    for _ in range(1000):
        balance.backward({"property": weight, "forcefield": weight * 0.0 + 9.0})
    assert before == 1.0
    assert balance.multiplier == pytest.approx(100.0)


def test_a_constraint_that_is_met_gives_way_to_the_property() -> None:
    balance = Constraint(0.5)
    weight = torch.tensor(1.0, requires_grad=True)
    for _ in range(1000):
        balance.backward({"property": weight, "forcefield": weight * 0.0})
    assert balance.multiplier == pytest.approx(0.01)


def test_the_constraint_is_the_gradient_of_the_scaled_lagrangian() -> None:
    weight, found = losses()
    balance = Constraint(0.1)
    assert balance.choose(3, NAMES) == NAMES
    balance.backward(found)  # μ = 1 at first: both count half
    assert weight.grad.tolist() == [2.5, 3.5]


def test_what_a_constraint_learns_is_restored_in_place() -> None:
    first, second = Constraint(0.2), Constraint(0.0)
    descend(first, steps=50, pull=1.0)
    for name, value in second.tensors().items():
        value.copy_(first.tensors()[name])
    assert descend(first, steps=50, pull=1.0) == descend(second, steps=50, pull=1.0)
    assert descend(Constraint(0.2), steps=50, pull=1.0) != descend(first, steps=50, pull=1.0)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"reference": 0.1, "tolerance": -0.1}, "`tolerance` is -0.1"),
        ({"reference": 0.0, "floor": 0.0}, "the pretrained force-field loss is 0.0, the floor 0.0"),
        ({"reference": float("nan")}, "the pretrained force-field loss is nan"),
    ],
)
def test_a_bound_that_makes_no_sense_is_refused(arguments: dict[str, float], problem: str) -> None:
    with pytest.raises(TetherError, match=problem):
        Constraint(**arguments)


def test_uncertainty_weighs_a_task_by_the_inverse_of_its_loss() -> None:
    balance = Uncertainty(NAMES)
    weight = torch.tensor(1.0, requires_grad=True)
    for _ in range(1500):
        weight.grad = None
        balance.backward({"property": 0.1 * weight, "forcefield": 4.0 * weight})
    scales = {name: math.exp(value.item()) for name, value in balance.tensors().items()}
    assert scales == pytest.approx({"property": 0.1, "forcefield": 4.0}, rel=0.01)
    # Each loss over its scale: both count one.
    assert float(weight.grad) == pytest.approx(2.0, rel=0.02)


def test_uncertainty_starts_as_the_plain_sum() -> None:
    weight, found = losses()
    balance = Uncertainty(NAMES)
    assert balance.choose(3, NAMES) == NAMES
    balance.backward(found)
    assert weight.grad.tolist() == [5.0, 7.0]


def test_an_uncertain_scale_survives_a_loss_of_any_size() -> None:
    balance = Uncertainty(["property"])
    weight = torch.tensor(1.0, requires_grad=True)
    balance.backward({"property": 1e6 * weight})
    assert balance.tensors()["property"].item() == pytest.approx(0.02)

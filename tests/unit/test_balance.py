"""How tasks combine."""

from __future__ import annotations

import pytest
import torch

from tether.balance.sampled import Sampled
from tether.balance.weighted_sum import WeightedSum

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

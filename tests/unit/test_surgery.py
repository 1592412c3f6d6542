"""Gradient surgery: conflicts are cut, agreement is left alone, heads are not touched."""

from __future__ import annotations

import sys

import pytest
import torch

from tether.balance.surgery import GradientSurgery, load_pcgrad
from tether.errors import TetherError

#: Gradients of two tasks that conflict, and what is left of each.
LEFT, RIGHT = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 2.0])


def gradient(
    rows: list[torch.Tensor], weights: dict[str, float] | None = None, **options: int
) -> torch.Tensor:
    shared = torch.nn.Parameter(torch.zeros(len(rows[0])))
    balance = GradientSurgery([shared], weights or {}, **options)
    balance.backward({f"task {n}": row @ shared for n, row in enumerate(rows)})
    return shared.grad


def test_what_conflicts_is_projected_out_of_both() -> None:
    # g₁ − (g₁·g₂/‖g₂‖²) g₂ = (0.8, 0.4), and g₂ without g₁ = (0, 2).
    torch.testing.assert_close(gradient([LEFT, RIGHT]), torch.tensor([0.8, 2.4]))
    assert float(gradient([LEFT, RIGHT]) @ LEFT) > 0.0  # the plain sum would be 0
    assert float((LEFT + RIGHT) @ LEFT) == 0.0


def test_without_a_conflict_it_is_the_weighted_sum() -> None:
    found = gradient([LEFT, -RIGHT], {"task 1": 0.5})
    torch.testing.assert_close(found, LEFT - 0.5 * RIGHT)


def test_a_weight_changes_the_result_under_conflict() -> None:
    found = gradient([LEFT, RIGHT], {"task 1": 0.1})
    torch.testing.assert_close(found, torch.tensor([0.8, 0.4 + 0.2]))


def test_weights_of_one_task_keep_their_gradient_and_frozen_ones_get_none() -> None:
    shared = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    head = torch.nn.Parameter(torch.ones(2))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    balance = GradientSurgery([*shared, frozen], {})
    balance.backward(
        {
            "a": LEFT @ shared[0] + LEFT @ head + LEFT @ frozen,
            "b": RIGHT @ shared[0],  # nothing for the second
        }
    )
    torch.testing.assert_close(shared[0].grad, torch.tensor([0.8, 2.4]))
    assert shared[1].grad is None  # a gradient of zero would let AdamW decay it
    assert torch.equal(head.grad, LEFT)
    assert frozen.grad is None


def test_the_order_is_a_function_of_seed_and_step_and_no_other_draw_is_disturbed() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = list(torch.randn(5, 3, generator=generator))  # five in three dimensions: they conflict

    def trail(seed: int, start: int = 0) -> list[torch.Tensor]:
        shared = torch.nn.Parameter(torch.zeros(3))
        balance = GradientSurgery([shared], {}, seed=seed)
        balance.tensors()["step"].fill_(start)
        found = []
        for _ in range(6 - start):
            shared.grad = None
            balance.backward({str(n): row @ shared for n, row in enumerate(rows)})
            found.append(shared.grad.clone())
        return found

    before = torch.random.get_rng_state()
    whole = trail(0)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(123)
    resumed = trail(0, start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], resumed, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(whole, trail(1), strict=True))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(TetherError, match=r"needs the package torchjd.*pip install 'tether\[surg"):
        load_pcgrad()

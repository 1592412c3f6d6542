"""Which weights move, and how fast."""

from __future__ import annotations

import pytest
import torch

from tether.errors import TetherError
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.movement.frozen import Frozen
from tether.movement.full import Full
from tether.movement.gradual import Gradual
from tether.movement.groups import Movement
from tether.movement.layerwise import Layerwise
from tether.movement.lora import Lora
from tether.targets import Target
from tether.testing.tiny import TinyBackbone
from tether.training.schedule import optimiser_of, set_rates
from tether.training.settings import TrainingSettings

MOVEMENTS = [
    Frozen(),
    Full(),
    Layerwise(),
    Layerwise("jmp"),
    Gradual(),
    Gradual("gradual"),
    Lora(),
]


def model(n_layers: int = 3) -> AdaptedModel:
    return AdaptedModel(TinyBackbone(n_layers=n_layers), [PropertyHead(Target("gap"), 32)])


@pytest.mark.parametrize("movement", MOVEMENTS, ids=repr)
def test_groups_hold_exactly_what_may_move_once(movement: Movement) -> None:
    one = model()
    grouped = [id(p) for group in movement.apply(one) for p in group.parameters]
    moving = [id(p) for p in one.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(moving)
    heads = {id(p) for p in one.head_parameters()}
    assert heads <= set(grouped)
    assert (set(grouped) == heads) == isinstance(movement, Frozen)


def test_geometric_multipliers() -> None:
    assert Layerwise("geometric", 0.5).multipliers(4) == [0.0625, 0.125, 0.25, 0.5]
    groups = Layerwise("geometric", 0.5).apply(model(n_layers=3))
    assert [(g.name, g.multiplier) for g in groups] == [
        ("embedding", 0.0625),
        ("layer 0", 0.125),
        ("layer 1", 0.25),
        ("layer 2", 0.5),
        ("potential", 1.0),
        ("heads", 1.0),
    ]


def test_jmp_table_is_that_of_the_paper_for_six_blocks() -> None:
    assert Layerwise("jmp").multipliers(7) == [0.30, 0.55, 0.40, 0.30, 0.40, 0.55, 0.625]


@pytest.mark.parametrize("n_layers", [1, 2, 3, 5, 12])
def test_jmp_table_is_read_at_relative_depth(n_layers: int) -> None:
    found = Layerwise("jmp").multipliers(n_layers + 1)
    assert len(found) == n_layers + 1
    assert found[:2] == [0.30, 0.55]
    assert n_layers == 1 or found[-1] == 0.625
    assert all(0.30 <= value <= 0.625 for value in found)


@pytest.mark.parametrize("rule", ["geometric", "jmp"])
def test_all_groups_start_at_their_multiple_and_end_at_one_rate(rule: str) -> None:
    settings = TrainingSettings(property_steps=100, lr=1e-2, warmup_fraction=0.05)
    groups = Layerwise(rule).apply(model())  # type: ignore[arg-type]
    optimiser = optimiser_of(groups, settings)

    def rates(done: int) -> list[float]:
        set_rates(optimiser, groups, done, settings)
        matrices, others = (optimiser.param_groups[k::2] for k in (0, 1))
        assert [state["lr"] for state in matrices] == [state["lr"] for state in others]
        return [state["lr"] for state in matrices]

    first, peak, last = rates(0), rates(5), rates(100)
    for rate, group in zip(first, groups, strict=True):
        assert rate == pytest.approx(1e-2 * group.multiplier / 5)
    for rate, group in zip(peak, groups, strict=True):
        assert rate == pytest.approx(1e-2 * group.multiplier, rel=0.01)
    assert last == pytest.approx([1e-4] * len(groups))
    assert len({round(rate, 8) for rate in peak}) > 2


@pytest.mark.parametrize("decayed", ["matrices", "all"])
def test_biases_and_constants_do_not_decay(decayed: str) -> None:
    settings = TrainingSettings(weight_decay=0.1, lr=1e-2, decayed=decayed)  # type: ignore[arg-type]
    one = model()
    optimiser = optimiser_of(Full().apply(one), settings)
    before = {name: parameter.detach().clone() for name, parameter in one.named_parameters()}
    for parameter in one.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, parameter in one.named_parameters():
        rate = 1e-3 if decayed == "all" or parameter.ndim > 1 else 0.0
        torch.testing.assert_close(
            parameter.detach(), (1.0 - rate) * before[name], rtol=1e-6, atol=0
        )
    assert any(start.ndim == 1 and start.any() for start in before.values())


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.2])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(TetherError, match=rf"`decay` is {decay}"):
        Layerwise("geometric", decay)


def test_frozen_backbone_gets_no_gradient() -> None:
    one = model()
    Frozen().apply(one)
    assert not any(p.requires_grad for p in one.backbone.parameters())
    assert all(p.requires_grad for p in one.head_parameters())
    assert torch.is_grad_enabled()

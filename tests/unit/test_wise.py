"""WiSE-FT: a on the grid, chosen by ID validation only, and safe to kill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tether.adapt import BackboneChoice, HeadChoice, adapt
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel
from tether.recipe import named_recipe
from tether.run import Run
from tether.serialization import load_tensors, read_json, save_tensors
from tether.targets import Target
from tether.testing.tiny import TinyBackbone
from tether.training import wise
from tether.training.engine import Validation
from tether.training.settings import TrainingSettings
from tether.training.wise import SHARES, backbone_weights, interpolate


def model(seed: int) -> AdaptedModel:
    head = PropertyHead(Target("gap"), 16, n_hidden=8, seed=seed)
    return AdaptedModel(TinyBackbone(n_features=16, seed=seed), [head])


@pytest.fixture
def trained(tmp_path: Path) -> tuple[AdaptedModel, dict[str, torch.Tensor], Run]:
    """A model with other weights than it started from, and its run folder."""
    start = backbone_weights(model(0))
    tuned, run = model(1), Run(tmp_path / "run")
    (run.folder / "state").mkdir(parents=True)
    save_tensors(run.weights, tuned.tensors())
    return tuned, start, run


def prefers(share: float, start: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor]) -> Any:
    """A validation whose error is the distance of one weight from its value at `share`."""
    name = "backbone.interactions.0.mix_left.weight"
    best = torch.lerp(start[name], tuned[name], share)

    def validate(one: AdaptedModel) -> Validation:
        found = dict(one.named_parameters())[name].detach()
        return Validation(float((found - best).norm()), {"at": share})

    return validate


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_that_validates_best_is_kept(
    share: float, trained: tuple[AdaptedModel, dict[str, torch.Tensor], Run]
) -> None:
    one, start, run = trained
    tuned = backbone_weights(one)
    heads = {n: p.detach().clone() for n, p in one.named_parameters() if n.startswith("heads")}
    found = interpolate(one, start, validate=prefers(share, start, tuned), run=run)
    assert found["chosen"] == share
    assert [point["a"] for point in found["curve"]] == list(SHARES)
    assert found["curve"][0]["at"] == share
    kept = load_tensors(run.weights)
    for name, value in tuned.items():
        mixed = (1.0 - share) * start[name] + share * value
        torch.testing.assert_close(kept[name], mixed)
        assert torch.equal(kept[name], dict(one.named_parameters())[name])
        if share in {0.0, 1.0}:
            assert torch.equal(kept[name], mixed)
    assert all(torch.equal(kept[name], value) for name, value in heads.items())


def test_of_equals_the_fine_tuned_weights_win_and_nan_never_does(
    trained: tuple[AdaptedModel, dict[str, torch.Tensor], Run],
) -> None:
    one, start, run = trained
    values = iter([float("nan"), 1.0, *[1.0] * 8, 1.0])
    found = interpolate(one, start, validate=lambda _: Validation(next(values), {}), run=run)
    assert found["chosen"] == 1.0
    assert found["curve"][0]["val_loss"] is None


def test_a_kill_after_the_mixture_was_written_does_not_mix_twice(
    trained: tuple[AdaptedModel, dict[str, torch.Tensor], Run],
) -> None:
    one, start, run = trained
    validate = prefers(0.5, start, backbone_weights(one))
    first = interpolate(one, start, validate=validate, run=run)
    once = run.weights.read_bytes()
    one.load(load_tensors(run.weights))  # what a resumed run does
    assert interpolate(one, start, validate=validate, run=run) == first
    assert run.weights.read_bytes() == once


SMALL: dict[str, Any] = {
    "backbone": BackboneChoice("tiny", {"n_features": 16}),
    "head": HeadChoice(n_hidden=16),
}


@pytest.mark.parametrize("name", ["wise", "mft-wise"])
def test_a_run_is_its_plain_recipe_with_a_mixed_backbone(
    name: str, workspace: Any, settings: TrainingSettings, tmp_path: Path
) -> None:
    plain = {"wise": "full", "mft-wise": "mft"}[name]
    runs = {
        recipe: adapt(
            workspace.inputs(), named_recipe(recipe), settings, out=tmp_path / recipe, **SMALL
        )
        for recipe in (name, plain)
    }
    assert runs[name].finetuned.read_bytes() == runs[plain].weights.read_bytes()
    assert not runs[plain].finetuned.exists()
    found = read_json(runs[name].metrics)["wise"]
    assert "wise" not in read_json(runs[plain].metrics)
    best = min(found["curve"], key=lambda point: point["val_loss"])
    assert found["chosen"] == best["a"]
    rows = read_json(runs[name].metrics)["rows"]
    value = next(r["value"] for r in rows if (r["subset"], r["metric"]) == ("val", "rmse"))
    assert value == pytest.approx(best["val_rmse"]["gap"], rel=1e-5)


def test_a_run_killed_while_it_mixes_ends_in_the_same_bits(
    workspace: Any, settings: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(folder: str) -> Run:
        recipe = named_recipe("wise")
        return adapt(workspace.inputs(), recipe, settings, out=tmp_path / folder, **SMALL)

    whole = start("whole")
    mix: Callable[..., None] = wise._mix
    calls: list[float] = []

    def dies(*arguments: Any) -> None:
        calls.append(arguments[-1])
        if len(calls) in {4, 16}:  # in the middle of the grid, and at the chosen one
            raise KeyboardInterrupt
        mix(*arguments)

    monkeypatch.setattr(wise, "_mix", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            start("cut")
    monkeypatch.undo()
    cut = start("cut")
    assert cut.weights.read_bytes() == whole.weights.read_bytes()
    assert cut.predictions.read_bytes() == whole.predictions.read_bytes()

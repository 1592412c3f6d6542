"""The live watch: it sees collapse, and changes nothing of the training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tether.adapt import adapt
from tether.config import load_config
from tether.data.store import Store
from tether.inputs import BackboneChoice
from tether.run import Run
from tether.serialization import load_tensors
from tether.testing.tiny import TinyBackbone
from tether.training.log import read_log
from tether.watch import MAX_ATOMS, start_watch

NAMES = {"effective_rank", "knn_purity", "cka", "sliced_w1", "n"}
TINY = BackboneChoice("tiny", {"n_features": 16})


def train(workspace: Any, out: Path, recipe: str = "full", **kw: Any) -> Run:
    path = workspace.write_config(out.parent)
    config = load_config(path).single(recipe, 0)
    return adapt(
        config.inputs(),
        config.points()[0],
        config.settings(),
        out=out,
        backbone=config.backbone_choice(),
        head=config.head_choice(),
        **kw,
    )


def validations(run: Run) -> list[dict[str, Any]]:
    return [event for event in read_log(run.log) if event["event"] == "validate"]


def test_a_watched_run_ends_in_the_same_bits(workspace: Any, tmp_path: Path) -> None:
    plain = train(workspace, tmp_path / "plain")
    watched = train(workspace, tmp_path / "watched", watch_collapse=True)
    for file in ("weights", "checkpoint"):
        one, two = (load_tensors(getattr(run, file)) for run in (plain, watched))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one), file
    assert [e["val_loss"] for e in validations(plain)] == [
        e["val_loss"] for e in validations(watched)
    ]
    assert all("collapse" not in event for event in validations(plain))
    assert len(validations(watched)) == 3
    for event in validations(watched):
        assert set(event["collapse"]) == NAMES
    identities = [(run.folder / "state/identity.json").read_text() for run in (plain, watched)]
    assert identities[0] == identities[1]


def test_drift_is_seen_where_weights_move_and_only_there(workspace: Any, tmp_path: Path) -> None:
    still = validations(train(workspace, tmp_path / "probe", "probe", watch_collapse=True))
    moved = validations(train(workspace, tmp_path / "full", watch_collapse=True))
    for event in still:
        assert event["collapse"]["sliced_w1"] == 0.0
        assert event["collapse"]["cka"] == pytest.approx(1.0, abs=1e-9)
    assert [e["collapse"]["sliced_w1"] > 0 for e in moved] == [True] * 3
    assert moved[-1]["collapse"]["sliced_w1"] > moved[0]["collapse"]["sliced_w1"]


def test_a_run_may_be_resumed_with_or_without(workspace: Any, tmp_path: Path) -> None:
    whole = train(workspace, tmp_path / "whole", watch_collapse=True)

    class Killed(Exception):  # noqa: N818
        pass

    def kill(progress: Any) -> None:
        if progress.step == 6:
            raise Killed

    cut = tmp_path / "cut"
    with pytest.raises(Killed):
        train(workspace, cut, watch_collapse=True, report=kill)
    again = train(workspace, cut, watch_collapse=True)
    assert [e["collapse"] for e in validations(again)] == [
        e["collapse"] for e in validations(whole)
    ]
    other = tmp_path / "other"
    with pytest.raises(Killed):
        train(workspace, other, watch_collapse=True, report=kill)
    without = train(workspace, other)
    assert ["collapse" in e for e in validations(without)] == [True, False, False]
    weights = load_tensors(whole.weights)
    for run in (again, without):
        mine = load_tensors(run.weights)
        assert all(torch.equal(mine[name], weights[name]) for name in weights)


def test_drift_is_from_the_pretrained_weights_even_from_scratch(workspace: Any) -> None:
    store = Store.open(workspace.store)
    watch = start_watch(store, np.arange(36), backbone=TINY, seed=0)
    same, other = TinyBackbone(n_features=16, seed=0), TinyBackbone(n_features=16, seed=1)
    assert watch.measure(same)["sliced_w1"] == 0.0
    assert (watch.measure(other)["sliced_w1"] or 0.0) > 0.1


def test_a_collapsed_backbone_has_a_lower_rank(workspace: Any) -> None:
    store = Store.open(workspace.store)
    watch = start_watch(store, np.arange(36), backbone=TINY, seed=0)
    sound, collapsed = (TinyBackbone(n_features=16, seed=0) for _ in range(2))
    with torch.no_grad():
        collapsed.embedding.weight[:] = collapsed.embedding.weight[6]  # all elements alike
    before, after = watch.measure(sound), watch.measure(collapsed)
    assert (after["effective_rank"] or 0) < (before["effective_rank"] or 0)
    assert (after["knn_purity"] or 0) < (before["knn_purity"] or 0)


def test_few_atoms_give_none_not_a_crash(workspace: Any) -> None:
    store = Store.open(workspace.store)
    smallest = np.argsort([len(store.batch([row]).numbers) for row in range(36)])[:1]
    found = start_watch(store, smallest, backbone=TINY, seed=0).measure(
        TinyBackbone(n_features=16, seed=1)
    )
    assert set(found) == NAMES
    assert found["knn_purity"] is None
    assert json.loads(json.dumps(found)) == found


def test_the_sample_is_bounded(workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(workspace.store)
    monkeypatch.setattr("tether.watch.MAX_ATOMS", 40)
    watch = start_watch(store, np.arange(36), backbone=TINY, seed=0)
    assert 20 < len(watch.atoms.chosen) <= 40
    assert MAX_ATOMS == 1000

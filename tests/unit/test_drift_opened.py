"""A run that is opened to be looked at: "before" is what it started from, or nothing."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tether.backbones.checkpoint import save_backbone
from tether.backbones.protocol import Backbone
from tether.config import load_config
from tether.drift.opened import OpenedRun
from tether.errors import TetherError
from tether.inputs import BackboneChoice
from tether.run import Run
from tether.serialization import write_json
from tether.testing.tiny import TinyBackbone

SIZE = {"n_features": 16}
ABOUT = {"elements": [1, 6, 7, 8], "licence": "MIT", "level_of_theory": "none"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "own.safetensors"


def put(file: Path, seed: int) -> str:
    """Weights of this seed, at the path that the run's config names; their digest."""
    backbone = cast("Backbone", TinyBackbone(n_features=16, seed=seed))
    save_backbone(file, backbone, architecture="tiny", options=SIZE, about=ABOUT)
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def opened(workspace: Any, tmp_path: Path, file: Path) -> OpenedRun:
    config = load_config(workspace.write_config(tmp_path, backbone={"name": str(file)}))
    # Neither data nor split are looked at.
    return OpenedRun(Run(tmp_path / "run"), config, cast("Any", None), cast("Any", None))


@pytest.mark.parametrize("kind", ["pretrained", "random"])
def test_other_weights_at_the_path_are_not_before(opened: OpenedRun, file: Path, kind: str) -> None:
    first = put(file, 0)
    content = file.read_bytes()
    choice = BackboneChoice(str(file))
    # What a run writes; one from random weights knows the file by its identity alone.
    spec = replace(opened.pretrained().spec, **({} if kind == "pretrained" else {"sha256": ""}))
    write_json(opened.run.provenance, {"backbone": spec.to_dict()})
    write_json(opened.run.folder / "state" / "identity.json", {"backbone": choice.identity()})
    assert opened.pretrained().spec.sha256 == first
    other = put(file, 1)
    with pytest.raises(
        TetherError, match=f"have sha256 {other[:12]}…; expected {first[:12]}…, as when .*run"
    ):
        opened.pretrained()
    file.write_bytes(content)
    assert opened.pretrained().spec.sha256 == first


@pytest.mark.parametrize(
    "provenance",
    [None, {}, {"backbone": None}, {"backbone": {"name": "x"}}, {"backbone": {"sha256": None}}],
)
def test_a_run_that_knows_no_digest_is_taken_as_it_is(
    opened: OpenedRun, file: Path, provenance: dict[str, Any] | None
) -> None:
    if provenance is not None:
        write_json(opened.run.provenance, provenance)
    assert opened.backbone_sha256 == ""
    assert put(file, 0) == opened.pretrained().spec.sha256


def test_weights_that_were_published_and_now_are_random(workspace: Any, tmp_path: Path) -> None:
    config = load_config(workspace.write_config(tmp_path, backbone={"name": "tiny"}))
    opened = OpenedRun(Run(tmp_path / "run"), config, cast("Any", None), cast("Any", None))
    write_json(opened.run.provenance, {"backbone": {"sha256": "ab" * 32}})
    with pytest.raises(TetherError, match=r"'tiny' have no sha256; expected abababababab…"):
        opened.pretrained()

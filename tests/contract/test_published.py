"""Weights from the files of other packages: only the pinned file is opened, and it runs no code."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tether.backbones import chgnet_weights, sevennet_weights, weights
from tether.backbones.load import load_backbone
from tether.backbones.weights import find_package
from tether.errors import TetherError

if TYPE_CHECKING:
    from tether.backbones.weights import Published

#: Where each package's files hold the weights.
KEYS = {"chgnet": "model", "sevennet": "model_state_dict"}
#: Start of the default file's sha256, and what brings the file.
PINNED = {
    "chgnet": ("d14ab7c0f093", "chgnet==0.4.2"),
    "sevennet": ("7052cb42b7b3", "sevenn==0.13.0"),
}


@pytest.fixture(params=[chgnet_weights, sevennet_weights], ids=list(KEYS))
def published(request: pytest.FixtureRequest) -> Published[Any, Any]:
    found: Published[Any, Any] = request.param.PUBLISHED
    pytest.importorskip(found.module, reason=f"the extra {found.backbone} is not installed")
    return found


def package_copy(
    published: Published[Any, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path]:
    """A folder that looks like the package; the default checkpoint's name and file in it."""
    name, checkpoint = next(iter(published.checkpoints.items()))
    original = find_package(published.module, distribution="it", extra=published.backbone)
    (folder / checkpoint.path).parent.mkdir(parents=True)
    shutil.copy(original / checkpoint.path, folder / checkpoint.path)
    monkeypatch.setattr(weights, "find_package", lambda *_, **__: folder)
    return name, folder / checkpoint.path


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_one_changed_byte_is_another_file_and_it_is_not_opened(
    published: Published[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, file = package_copy(published, tmp_path / "package", monkeypatch)
    published.file(name, cache=tmp_path / "good")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    pinned, _ = PINNED[published.backbone]
    with pytest.raises(TetherError, match=f"has sha256 .*expected {pinned}.*never opened"):
        published.load(name, cache=tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_not_even_the_pinned_file_could_run_code(
    published: Published[Any, Any], tmp_path: Path
) -> None:
    opened = tmp_path / "opened"
    torch.save({KEYS[published.backbone]: Bomb(opened)}, tmp_path / "bomb")
    config = next(iter(published.checkpoints.values())).config
    with (tmp_path / "bomb").open("rb") as file, pytest.raises(pickle.UnpicklingError):
        published.convert(file, config)  # type: ignore[arg-type]
    assert not opened.exists()
    torch.load(tmp_path / "bomb", weights_only=False)  # the bomb is a real one
    assert opened.exists()


def test_a_missing_file_and_a_damaged_cache_are_refused(
    published: Published[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, file = package_copy(published, tmp_path / "package", monkeypatch)
    cached = published.file(name, cache=tmp_path)
    cached.write_bytes(cached.read_bytes()[:1000])
    with pytest.raises(TetherError, match="cannot be read"):
        published.load(name, cache=tmp_path)
    file.unlink()
    _, package = PINNED[published.backbone]
    with pytest.raises(TetherError, match=f"No such file.*fix: pip install '{package}'"):
        published.load(name, cache=tmp_path / "empty")


def test_without_the_package_the_extra_is_named(
    published: Published[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    extra = published.backbone
    distribution = PINNED[extra][1].partition("==")[0]
    with pytest.raises(
        TetherError, match=rf"needs the package {distribution}, .*pip install 'tether\[{extra}\]"
    ):
        load_backbone(extra)

"""Atomic files: the old content or the new one, never a part."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from tether.atomic import atomic_path
from tether.errors import TetherError
from tether.serialization import (
    load_metadata,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half"), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("ne")
        raise RuntimeError("half")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_appears_only_at_the_end_and_is_readable_by_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent  # os.replace is atomic only within a file system
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_folder_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(TetherError, match="is a folder; expected a file name"),
        atomic_path(tmp_path),
    ):
        raise AssertionError
    assert list(tmp_path.parent.glob(f".{tmp_path.name}*")) == []


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TetherError, match=r"cannot write .*; fix: choose another place"):
        write_json(tmp_path / "file" / "a.json", {})


def test_json_round_trip_and_its_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, None, "é"], "b": 0.1})
    assert read_json(path) == {"a": [1, None, "é"], "b": 0.1}
    path.write_text('{"a": ')
    with pytest.raises(TetherError, match=r"a.json is not JSON"):
        read_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TetherError, match=r"a.json is not JSON"):
        read_json(path)
    with pytest.raises(TetherError, match="there is no file"):
        read_json(tmp_path / "b.json")


def test_tensors_round_trip_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "b": torch.tensor([float("inf"), float("nan"), -0.0], dtype=torch.float64),
        "turned": torch.arange(6).reshape(2, 3).t(),
        "scalar": torch.tensor(3),
    }
    path = tmp_path / "a.safetensors"
    save_tensors(path, tensors, metadata={"who": "me"})
    found = load_tensors(path)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True)
    assert load_metadata(path) == {"who": "me"}


def test_the_same_tensors_make_the_same_bytes(tmp_path: Path) -> None:
    tensors = {name: torch.ones(3) for name in "cab"}
    save_tensors(tmp_path / "a", tensors)
    save_tensors(tmp_path / "b", tensors)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_truncated_file_is_refused(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.ones(30)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TetherError, match=r"a.safetensors cannot be read .*truncated or corrupt"):
        load_tensors(path)


def test_another_format_and_no_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"this is no tensor file at all, but it is long enough to have a header")
    with pytest.raises(TetherError, match="cannot be read"):
        load_tensors(path)
    with pytest.raises(TetherError, match="there is no file"):
        load_metadata(tmp_path / "b")

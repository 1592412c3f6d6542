"""The store: what goes in comes out, in any order; broken files are refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.data import store_write
from tether.data.chunks import Chunk
from tether.data.store import Store, write_store
from tether.errors import TetherError
from tether.structures import AtomBatch, from_ase
from tether.targets import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGETS = [
    Target("gap", unit="eV"),
    Target("stress", n_components=9),
    Target("forces", unit="eV/Å", level="atom", kind="vector", n_components=3),
    Target("q", level="atom"),
]


def sample(n_systems: int = 7) -> AtomBatch:
    random = np.random.default_rng(0)
    kinds = [molecule("H2O"), molecule("CH4"), bulk("Cu"), molecule("C6H6")]
    frames = [kinds[k % 4].copy() for k in range(n_systems)]
    for atoms in frames:
        atoms.rattle(0.01, rng=random)
    n_atoms = sum(len(atoms) for atoms in frames)
    gap = random.normal(size=n_systems)
    gap[2] = np.nan
    return from_ase(
        frames,
        labels={"gap": gap, "stress": random.normal(size=(n_systems, 9))},
        atom_labels={"forces": random.normal(size=(n_atoms, 3)), "q": random.normal(size=n_atoms)},
        ids=[f"s{k}" for k in range(n_systems)],
    )


def chunks_of(batch: AtomBatch, size: int) -> list[Chunk]:
    starts = range(0, batch.n_systems, size)
    parts = [batch.select(range(s, min(s + size, batch.n_systems))) for s in starts]
    return [Chunk(p, tuple(f"file{k}" for _ in p.ids)) for k, p in enumerate(parts)]


def assert_same(one: AtomBatch, other: AtomBatch) -> None:
    for name in ("numbers", "positions", "ptr", "cell", "pbc", "charge", "spin"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert getattr(one, name).dtype == getattr(other, name).dtype, name
    assert one.ids == other.ids
    for kind in ("labels", "atom_labels"):
        left, right = getattr(one, kind), getattr(other, kind)
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert torch.equal(value.nan_to_num(9e9), right[name].nan_to_num(9e9)), name


@pytest.fixture
def several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, AtomBatch]:
    monkeypatch.setattr(store_write, "ROWS_PER_BATCH", 3)
    batch = sample()
    write_store(tmp_path / "s.arrow", chunks_of(batch, 2), TARGETS, metadata={"note": "é"})
    return Store.open(tmp_path / "s.arrow"), batch


def test_round_trip_over_several_record_batches(several_parts: tuple[Store, AtomBatch]) -> None:
    store, batch = several_parts
    assert len(store) == store.n_systems == 7
    assert store.n_atoms == batch.n_atoms
    assert store.n_atoms_per_system.tolist() == batch.counts.tolist()
    assert_same(store.batch(np.arange(7)), batch)
    assert store.targets == {target.name: target for target in TARGETS}
    assert store.metadata == {"note": "é"}
    assert store.ids.tolist() == list(batch.ids)
    assert store.sources.tolist() == ["file0"] * 2 + ["file1"] * 2 + ["file2"] * 2 + ["file3"]
    assert store.numbers_flat.tolist() == batch.numbers.tolist()
    np.testing.assert_array_equal(store.label("gap"), batch.labels["gap"].numpy())
    np.testing.assert_array_equal(store.label("forces"), batch.atom_labels["forces"].numpy())
    store.verify()


@given(indices=st.lists(st.integers(0, 6), max_size=20))
@settings(max_examples=50, deadline=None)
def test_any_selection_equals_selecting_in_memory(
    indices: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "hypothesis.arrow"
    batch = sample()
    if not path.exists():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store_write, "ROWS_PER_BATCH", 3)
            write_store(path, chunks_of(batch, 2), TARGETS)
    assert_same(Store.open(path).batch(indices), batch.select(indices))


def test_whole_column_is_a_view_of_the_file(tmp_path: Path) -> None:
    write_store(tmp_path / "s.arrow", chunks_of(sample(), 7), TARGETS)
    column = Store.open(tmp_path / "s.arrow").label("gap")
    assert not column.flags.owndata
    assert not column.flags.writeable


def test_fingerprint_is_of_the_content_not_of_the_grouping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = sample()
    same = write_store(tmp_path / "a.arrow", chunks_of(batch, 7), TARGETS)
    monkeypatch.setattr(store_write, "ROWS_PER_BATCH", 2)
    chunks = [Chunk(c.batch, ("file0",) * c.batch.n_systems) for c in chunks_of(batch, 3)]
    assert write_store(tmp_path / "b.arrow", chunks, TARGETS) == same
    batch.positions[0, 0] += 1e-12
    assert write_store(tmp_path / "c.arrow", chunks_of(batch, 7), TARGETS) != same
    batch.positions[0, 0] -= 1e-12
    other_unit = [Target("gap", unit="Ha"), *TARGETS[1:]]
    assert write_store(tmp_path / "d.arrow", chunks_of(batch, 7), other_unit) != same


def test_composition(several_parts: tuple[Store, AtomBatch]) -> None:
    store, _ = several_parts
    expected = [[2, 0, 0], [4, 1, 0], [0, 0, 1], [6, 6, 0]]
    assert store.composition([1, 6, 29])[:4].tolist() == expected
    full = store.composition()
    assert full.shape == (7, 119)
    assert full.sum(axis=1).tolist() == store.n_atoms_per_system.tolist()


def test_pickled_store_maps_the_same_file(several_parts: tuple[Store, AtomBatch]) -> None:
    store, batch = several_parts
    assert len(pickle.dumps(store)) < 500
    assert_same(pickle.loads(pickle.dumps(store)).batch([3, 1]), batch.select([3, 1]))


def test_missing_labels_are_nan_and_others_are_not_written(tmp_path: Path) -> None:
    batch = sample()
    write_store(tmp_path / "s.arrow", chunks_of(batch, 7), [Target("gap"), Target("other")])
    store = Store.open(tmp_path / "s.arrow")
    assert np.isnan(store.label("other")).all()
    assert list(store.targets) == ["gap", "other"]
    with pytest.raises(TetherError, match=r"has no label 'mu'; expected one of gap, other"):
        store.label("mu")


def test_index_outside(several_parts: tuple[Store, AtomBatch]) -> None:
    store, _ = several_parts
    for index in (7, -1):
        with pytest.raises(TetherError, match=rf"index {index} is outside .*; expected 0 to 6"):
            store.batch([0, index])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target("stress", n_components=6), r"label `stress` of structures s0 to s6 has shape \(7"),
        (Target("q"), r"label `q` of structures s0 to s6 belongs to atoms"),
        (Target("gap", level="atom"), r"label `gap` of structures s0 to s6 belongs to systems"),
    ],
)
def test_label_of_another_form_is_refused(tmp_path: Path, target: Target, message: str) -> None:
    with pytest.raises(TetherError, match=message):
        write_store(tmp_path / "s.arrow", chunks_of(sample(), 7), [target])
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_store(tmp_path: Path) -> None:
    path = tmp_path / "s.arrow"
    old = write_store(path, chunks_of(sample(), 7), TARGETS)

    def broken() -> object:
        yield chunks_of(sample(), 7)[0]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_store(path, broken(), TARGETS)  # type: ignore[arg-type]
    assert [file.name for file in tmp_path.iterdir()] == ["s.arrow"]
    assert Store.open(path).fingerprint == old
    with pytest.raises(TetherError, match="no structure to write"):
        write_store(path, [], TARGETS)
    Store.open(path).verify()


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "s.arrow"
    write_store(path, chunks_of(sample(), 7), TARGETS)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(TetherError, match="cannot be opened as a store") as caught:
        Store.open(path)
    assert "\n" not in str(caught.value)


def test_changed_byte_is_found_by_verify(tmp_path: Path) -> None:
    path = tmp_path / "s.arrow"
    batch = sample()
    write_store(path, chunks_of(batch, 7), TARGETS)
    data = bytearray(path.read_bytes())
    place = bytes(data).index(batch.positions.numpy().tobytes()[:64])
    data[place + 3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(TetherError, match="its content does not match its fingerprint"):
        Store.open(path).verify()


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    text = tmp_path / "t.arrow"
    text.write_text("hello, I am no arrow file at all")
    with pytest.raises(TetherError, match="cannot be opened as a store"):
        Store.open(text)
    with pytest.raises(TetherError, match="cannot be opened as a store"):
        Store.open(tmp_path / "missing.arrow")
    foreign = tmp_path / "foreign.arrow"
    table = pa.table({"a": [1]})
    with pa.ipc.new_file(str(foreign), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(TetherError, match="has store format 'none'; expected format '1'"):
        Store.open(foreign)
    # Without its end mark a store of the right schema is incomplete.
    write_store(tmp_path / "s.arrow", chunks_of(sample(), 7), TARGETS)
    with pa.OSFile(str(tmp_path / "s.arrow")) as source:
        reader = pa.ipc.open_file(source)
        with pa.ipc.new_file(str(foreign), reader.schema) as writer:
            writer.write_batch(reader.get_batch(0))
    with pytest.raises(TetherError, match="its end mark is missing"):
        Store.open(foreign)


def test_impossible_atomic_number(tmp_path: Path) -> None:
    batch = sample()
    batch.numbers[0] = 300
    with pytest.raises(TetherError, match="atomic number 300; expected 0 to 118"):
        write_store(tmp_path / "s.arrow", chunks_of(batch, 7), TARGETS)


class Killed(BaseException):
    """As sudden as a signal: no handler for errors runs."""


def kinds_of(batch: AtomBatch, size: int = 2) -> list[Chunk]:
    return [Chunk(c.batch, ("f",) * c.batch.n_systems) for c in chunks_of(batch, size)]


def stopping(chunks: list[Chunk], after: int) -> Iterator[Chunk]:
    yield from chunks[:after]
    raise Killed


def test_shards_hold_what_one_file_holds(tmp_path: Path) -> None:
    batch, folder = sample(), tmp_path / "s"
    single = write_store(tmp_path / "s.arrow", kinds_of(batch), TARGETS)
    for shard_size in (1, 2, 3, 7, 100):
        sharded = write_store(folder, kinds_of(batch), TARGETS, shard_size=shard_size)
        assert sharded == single
        assert len(list(folder.glob("*.arrow"))) == -(-7 // min(shard_size, 7))
        store = Store.open(folder)
        store.verify()
        assert store.fingerprint == single
        assert_same(store.batch([6, 0, 3, 3]), batch.select([6, 0, 3, 3]))
        assert_same(pickle.loads(pickle.dumps(store)).batch([5]), batch.select([5]))
        assert store.ids.tolist() == list(batch.ids)
        assert store.composition().sum() == batch.n_atoms
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "s.arrow"]
    # A shard is a store of its own.
    assert Store.open(folder / "0000000.arrow").n_systems == 7


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_killed_writer_goes_on_where_it_was(tmp_path: Path, after: int) -> None:
    batch, folder = sample(), tmp_path / "s"
    expected = write_store(tmp_path / "one", kinds_of(batch), TARGETS, shard_size=3)
    with pytest.raises(Killed):
        write_store(folder, stopping(kinds_of(batch), after), TARGETS, shard_size=3)
    assert not folder.exists()
    parts = tmp_path / "s.parts"
    (parts / ".0000001.arrow.x.tmp").touch()  # SIGKILL leaves it, an exception does not
    before = {path.name: path.stat().st_ino for path in parts.glob("*.arrow")}
    assert len(before) == (min(2 * after, 7) - 1) // 3  # a shard is closed when the next begins
    assert write_store(folder, kinds_of(batch), TARGETS, shard_size=3) == expected
    after_ = {path.name: path.stat().st_ino for path in folder.glob("*.arrow")}
    assert before.items() <= after_.items()  # kept, not written again
    Store.open(folder).verify()
    assert sorted(p.name for p in folder.iterdir()) == [
        *(f"000000{k}.arrow" for k in range(3)),
        "manifest.json",
    ]


def test_another_call_does_not_go_on_with_the_shards_of_a_killed_one(tmp_path: Path) -> None:
    batch, folder = sample(), tmp_path / "s"
    with pytest.raises(Killed):
        write_store(folder, stopping(kinds_of(batch), 3), TARGETS, shard_size=3)
    other = batch.select(range(6, -1, -1))
    with pytest.raises(TetherError, match=r"0000000.arrow is of another call.*remove .*s\.parts"):
        write_store(folder, kinds_of(other), TARGETS, shard_size=3)
    for changed in ({"shard_size": 2}, {"shard_size": 3, "metadata": {"limit": 7}}):
        with pytest.raises(TetherError, match="is of another call"):
            write_store(folder, kinds_of(batch), TARGETS, **changed)  # type: ignore[arg-type]
    with pytest.raises(TetherError, match="is of another call"):
        write_store(folder, kinds_of(batch), TARGETS[:1], shard_size=3)
    assert (tmp_path / "s.parts").is_dir()
    # Fewer structures than the killed call had: no shard too many is left.
    two = [Chunk(c.batch, c.sources) for c in kinds_of(batch, 3)[:1]]
    write_store(folder, two, TARGETS, shard_size=3)
    assert len(list(folder.glob("*.arrow"))) == 1


def test_an_old_store_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    batch, folder = sample(), tmp_path / "s"
    old = write_store(folder, kinds_of(batch), TARGETS)  # a file becomes a folder
    with pytest.raises(Killed):
        write_store(folder, stopping(kinds_of(batch), 2), TARGETS[:1], shard_size=2)
    assert Store.open(folder).fingerprint == old
    new = write_store(folder, kinds_of(batch), TARGETS[:1], shard_size=2)
    assert Store.open(folder).fingerprint == new != old
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_at_a_rename_of_folders_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    batch, folder, rename = sample(), tmp_path / "s", Path.rename
    write_store(folder, kinds_of(batch), TARGETS, shard_size=3)
    done: list[Path] = []

    def killed(path: Path, to: Path) -> None:
        done.append(path)
        if len(done) == renames:
            raise Killed
        rename(path, to)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(Killed):
        write_store(folder, kinds_of(batch), TARGETS[:1], shard_size=3)
    monkeypatch.undo()
    # The new store is whole beside the old one, which has its old name or another.
    Store.open(tmp_path / "s.parts").verify()
    Store.open(folder if renames == 1 else tmp_path / "s.replaced").verify()
    new = write_store(folder, kinds_of(batch), TARGETS[:1], shard_size=3)
    assert Store.open(folder).fingerprint == new
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write_store(folder, kinds_of(sample()), TARGETS, shard_size=3)
    first, second = folder / "0000000.arrow", folder / "0000001.arrow"
    data = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(TetherError, match=r"0000001.arrow is not the shard that manifest.json"):
        Store.open(folder)
    second.write_bytes(data[:-20])
    with pytest.raises(TetherError, match="cannot be opened as a store"):
        Store.open(folder)
    second.write_bytes(data)
    Store.open(folder).verify()
    for manifest in ('{"format": "1"}', "[]", '{"format": "1", "shards": [1]}'):
        (folder / "manifest.json").write_text(manifest)
        with pytest.raises(TetherError, match=r"its manifest\.json does not list shards"):
            Store.open(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(TetherError, match=r"it is a folder without manifest\.json"):
        Store.open(folder)
    with pytest.raises(TetherError, match="`shard_size` is 0; expected at least 1"):
        write_store(folder, kinds_of(sample()), TARGETS, shard_size=0)


@pytest.mark.parametrize("size", [2, 7])
def test_structures_that_lack_a_label(tmp_path: Path, size: int) -> None:
    batch = sample()
    forces = batch.atom_labels["forces"]
    forces[int(batch.ptr[4]), 1], forces[-1, 2] = np.nan, np.inf
    batch.labels["stress"][5, 8] = np.nan
    write_store(tmp_path / "s.arrow", chunks_of(batch, size), TARGETS)
    store = Store.open(tmp_path / "s.arrow")
    for name, lacking in (("gap", [2]), ("stress", [5]), ("forces", [4, 6]), ("q", [])):
        assert np.flatnonzero(~store.is_labelled(name)).tolist() == lacking
    with pytest.raises(TetherError, match="has no label 'dipole'"):
        store.is_labelled("dipole")

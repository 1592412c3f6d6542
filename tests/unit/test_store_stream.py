"""`StoreStream`: batches made ahead, the same as those of a graph in memory, and shared by rank."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tether.data.chunks import Chunk, batch_from_arrays
from tether.data.loader import GraphStream, StoreStream
from tether.data.store import Store, write_store
from tether.errors import TetherError
from tether.graph import Graph, neighbour_edges
from tether.targets import Target

if TYPE_CHECKING:
    from pathlib import Path

    from tether.structures import AtomBatch

N = 60


def prepare(batch: AtomBatch) -> Graph:
    return Graph(batch, {"near": neighbour_edges(batch, 2.0, full=True)})


def chunk(n_systems: int, *, seed: int = 0, most: int = 8) -> Chunk:
    random = np.random.default_rng(seed)
    counts = random.integers(1, most + 1, n_systems)
    n_atoms = int(counts.sum())
    batch = batch_from_arrays(
        counts,
        random.integers(1, 9, n_atoms),
        random.normal(size=(n_atoms, 3)),
        ids=[f"s{k}" for k in range(n_systems)],
        labels={"rank": np.arange(n_systems)},
    )
    return Chunk(batch, ("f",) * n_systems)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("stream") / "s"
    write_store(path, [chunk(N)], [Target("rank")], shard_size=17)
    return Store.open(path)


def rows(graph: Graph) -> list[int]:
    return [int(row) for row in graph.batch.labels["rank"]]


@pytest.mark.parametrize("max_atoms", [None, 20])
@pytest.mark.parametrize("n_workers", [1, 3])
def test_batches_are_those_of_a_graph_in_memory(
    store: Store, max_atoms: int | None, n_workers: int
) -> None:
    options = {"batch_size": 7, "max_atoms": max_atoms, "seed": 3}
    whole = GraphStream(prepare(store.batch(range(N))), **options)  # type: ignore[arg-type]
    with StoreStream(store, prepare, n_workers=n_workers, **options) as stream:  # type: ignore[arg-type]
        for step in range(30):
            one, other = stream.batch(step), whole.batch(step)
            assert one.batch.ids == other.batch.ids
            assert torch.equal(one.batch.positions, other.batch.positions)
            assert torch.equal(one.edges["near"].idx_j, other.edges["near"].idx_j)


def test_a_batch_depends_on_seed_and_step_alone(store: Store) -> None:
    def drawn(steps: list[int], **options: int) -> dict[int, list[int]]:
        with StoreStream(store, prepare, batch_size=8, **options) as stream:
            return {step: rows(stream.batch(step)) for step in steps}

    in_order = drawn(list(range(25)), seed=1)
    assert drawn([19, 0, 7, 7, 3, 24, 1], seed=1, n_ahead=0).items() <= in_order.items()
    assert drawn([11, 12, 2, 13], seed=1, n_ahead=9, n_workers=2).items() <= in_order.items()
    assert drawn([0, 1], seed=2)[0] != in_order[0]


def test_only_the_given_rows_are_drawn(store: Store) -> None:
    chosen = np.arange(1, N, 3)
    with StoreStream(store, prepare, batch_size=5, indices=chosen) as stream:
        seen = [row for step in range(4) for row in rows(stream.batch(step))]
    assert sorted(seen) == chosen.tolist()


@pytest.mark.parametrize("n_ranks", [2, 3, 5])
def test_ranks_share_each_batch_of_a_single_rank(store: Store, n_ranks: int) -> None:
    options = {"batch_size": 13, "seed": 4}
    streams = [
        StoreStream(store, prepare, rank=rank, n_ranks=n_ranks, **options)
        for rank in range(n_ranks)
    ]
    with StoreStream(store, prepare, **options) as single:
        for step in range(12):
            shares = [stream.batch(step) for stream in streams]
            parts = [rows(graph) for graph in shares]
            assert sorted(itertools.chain(*parts)) == sorted(rows(single.batch(step)))
            atoms = [graph.batch.n_atoms for graph in shares]
            largest = max(int(graph.batch.counts.max()) for graph in shares)
            assert max(atoms) - min(atoms) <= largest
    for stream in streams:
        stream.close()


def test_a_rank_without_a_structure_has_an_empty_graph(store: Store) -> None:
    chosen = [7, 9]
    streams = [
        StoreStream(store, prepare, batch_size=8, indices=chosen, rank=rank, n_ranks=3)
        for rank in range(3)
    ]
    shares = [stream.batch(0) for stream in streams]
    assert sorted(graph.n_systems for graph in shares) == [0, 1, 1]
    assert sorted(itertools.chain(*map(rows, shares))) == chosen
    for stream in streams:
        stream.close()


def test_batches_are_made_ahead_and_no_more_than_asked(store: Store) -> None:
    made = threading.Semaphore(0)

    def counted(batch: AtomBatch) -> Graph:
        made.release()
        return prepare(batch)

    with StoreStream(store, counted, batch_size=5, n_ahead=3) as stream:
        stream.batch(0)
        assert all(made.acquire(timeout=5) for _ in range(4))  # 0, and 1 to 3
        assert not made.acquire(timeout=0.2)
        began = time.perf_counter()
        stream.batch(1)
        assert time.perf_counter() - began < 1
        assert made.acquire(timeout=5)  # 4


def test_an_error_in_the_background_is_raised_for_its_step(store: Store) -> None:
    with StoreStream(store, prepare, batch_size=10) as stream:
        failing = int(stream.indices(2)[0])

    def sometimes(batch: AtomBatch) -> Graph:
        if failing in batch.labels["rank"]:
            raise TetherError("element 99", expected="H", fix="leave it out")
        return prepare(batch)

    with StoreStream(store, sometimes, batch_size=10) as stream:
        stream.batch(0)
        stream.batch(1)
        with pytest.raises(TetherError, match="element 99"):
            stream.batch(2)
        stream.batch(3)


def test_closing_ends_the_threads(store: Store) -> None:
    def alive() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith("tether-batches")]

    assert alive() == []
    with StoreStream(store, prepare, batch_size=5, n_workers=2) as stream:
        stream.batch(0)
        assert alive()
    assert alive() == []


def test_a_program_ends_with_an_open_stream(store: Store) -> None:
    program = (
        "import sys; from tether.data.loader import StoreStream; from tether.data.store import "
        "Store; from tether.graph import Graph\n"
        "s = StoreStream(Store.open(sys.argv[1]), lambda b: Graph(b, {}), batch_size=5)\n"
        "print(s.batch(0).n_systems)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(store.path)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["5"]
    assert done.stderr == ""


def test_memory_does_not_grow_with_the_store(tmp_path: Path) -> None:
    def drawn(n_systems: int) -> int:
        path = tmp_path / f"{n_systems}"
        write_store(path, [chunk(n_systems, most=2)], [Target("rank")], shard_size=1000)
        opened = Store.open(path)
        tracemalloc.start()
        with StoreStream(opened, prepare, batch_size=20) as stream:
            for step in range(n_systems // 40):
                stream.batch(step)
            peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    drawn(500)  # imports
    # Integers (sizes, order, offsets) may take a few times 8 bytes a structure; an object takes
    # more than that, and a structure in memory more than 100.
    per_structure = (drawn(6000) - drawn(1000)) / 5000
    assert per_structure < 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4, "max_atoms": 5}, r"a structure has 8 atoms; expected at most max_atoms"),
        ({"batch_size": 4, "indices": []}, "0 structures in batches of 4"),
        ({"batch_size": 4, "rank": 2, "n_ranks": 2}, "rank 2 of 2; expected 0 <= rank < n_ranks"),
    ],
)
def test_impossible_streams(store: Store, options: dict[str, int], message: str) -> None:
    with pytest.raises(TetherError, match=message):
        StoreStream(store, prepare, **options)  # type: ignore[arg-type]

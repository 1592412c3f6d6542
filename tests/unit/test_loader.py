"""`GraphStream`: order is a function of seed and step; every structure once an epoch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st

from tether.data.loader import GraphStream
from tether.errors import TetherError
from tether.graph import Graph
from tether.structures import from_ase


def graph_of(sizes: list[int]) -> Graph:
    frames = [Atoms("H" * n, positions=np.arange(3 * n).reshape(n, 3)) for n in sizes]
    labels = {"rank": np.arange(len(sizes), dtype=float)}
    return Graph(from_ase(frames, labels=labels), {})


SIZES = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 2]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    batch_size=st.integers(1, 8),
    max_atoms=st.one_of(st.none(), st.integers(9, 20)),
    seed=st.integers(0, 5),
)
def test_each_epoch_visits_every_structure_once_within_the_budget(
    sizes: list[int], batch_size: int, max_atoms: int | None, seed: int
) -> None:
    stream = GraphStream(graph_of(sizes), batch_size=batch_size, max_atoms=max_atoms, seed=seed)
    step = 0
    for _ in range(3):
        seen: list[int] = []
        while len(seen) < len(sizes):
            rows = stream.indices(step)
            assert 1 <= len(rows) <= batch_size
            assert max_atoms is None or sum(sizes[row] for row in rows) <= max_atoms
            seen += rows.tolist()
            step += 1
        assert sorted(seen) == list(range(len(sizes)))


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    first, second = (GraphStream(graph_of(SIZES), batch_size=4, seed=3) for _ in range(2))
    forwards = [first.indices(step).tolist() for step in range(20)]
    asked_out_of_order = {step: second.indices(step).tolist() for step in (19, 0, 7, 3, 18, 1)}
    assert all(forwards[step] == rows for step, rows in asked_out_of_order.items())


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    stream = GraphStream(graph_of(SIZES), batch_size=11, seed=3)
    other = GraphStream(graph_of(SIZES), batch_size=11, seed=4)
    assert stream.indices(0).tolist() != stream.indices(1).tolist()
    assert stream.indices(0).tolist() != other.indices(0).tolist()


def test_batch_is_the_selection_with_its_labels() -> None:
    stream = GraphStream(graph_of(SIZES), batch_size=4)
    rows = stream.indices(1)
    batch = stream.batch(1).batch
    assert batch.labels["rank"].tolist() == rows.tolist()
    assert batch.counts.tolist() == [SIZES[row] for row in rows]


def test_a_structure_above_the_budget_is_refused() -> None:
    with pytest.raises(TetherError, match=r"a structure has 6 atoms; expected at most max_atoms=5"):
        GraphStream(graph_of(SIZES), batch_size=4, max_atoms=5)


def test_nothing_to_draw_from_is_refused() -> None:
    empty = graph_of(SIZES).select(torch.arange(0))
    with pytest.raises(TetherError, match="0 structures in batches of 4"):
        GraphStream(empty, batch_size=4)
    with pytest.raises(TetherError, match="11 structures in batches of 0"):
        GraphStream(graph_of(SIZES), batch_size=0)

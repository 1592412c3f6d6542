"""Angles: every pair of edge ends at an atom, once, and right after any selection."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.errors import TetherError
from tether.graph import Graph, edge_angles, has_flat_cell, neighbour_edges
from tether.structures import from_ase
from tether.testing.structures import beta_brass, rattled, skewed_silicon, sodium_chloride, water

#: Crystals, one without any neighbour, one atom bonded to itself, and a molecule.
FRAMES = [
    sodium_chloride(),
    Atoms("He", cell=[9] * 3, pbc=True),
    bulk("Cu"),
    beta_brass(),
    skewed_silicon(),
    water(),
]


def graph_of(frames: list[Atoms], cutoff: float = 3.0) -> Graph:
    batch = from_ase(frames)
    edges = neighbour_edges(batch, cutoff, full=False)
    return Graph(batch, {"bonds": edges}, angles={"bonds": edge_angles(edges, batch.n_atoms)})


def cosines(graph: Graph) -> list[Counter[float]]:
    """Cosines of all angles of each structure, rounded."""
    vectors, angles, batch = graph.vectors("bonds"), graph.angles["bonds"], graph.batch
    ends = torch.stack([vectors, -vectors], dim=1).flatten(0, 1)
    ends = ends / ends.norm(dim=1, keepdim=True)
    found = (ends[angles.first] * ends[angles.second]).sum(1).numpy().round(9) + 0.0
    return [
        Counter(found[start:stop].tolist())
        for start, stop in itertools.pairwise(angles.ptr.tolist())
    ] + [Counter()] * (batch.n_systems - len(angles.ptr) + 1)


def brute_force(atoms: Atoms, cutoff: float = 3.0) -> Counter[float]:
    """The same from a full list of ASE, pair by pair in Python."""
    from ase.neighborlist import neighbor_list

    centre, vector = neighbor_list("iD", atoms, cutoff)  # type: ignore[no-untyped-call]
    found: Counter[float] = Counter()
    for atom in range(len(atoms)):
        around = [v / np.linalg.norm(v) for v in vector[centre == atom]]
        found.update(round(float(a @ b), 9) + 0.0 for a, b in itertools.combinations(around, 2))
    return found


def close(ours: Counter[float], theirs: Counter[float]) -> bool:
    """Equal as sorted lists: rounding may tip a last digit."""
    a, b = sorted(ours.elements()), sorted(theirs.elements())
    return len(a) == len(b) and bool(np.allclose(a, b, atol=1e-7))


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        ([[3, 0, 0], [0, 0, 0], [0, 0, 0]], [1, 1, 0]),
        ([[3, 0, 0], [6, 0, 0], [0, 0, 5]], [1, 1, 0]),
        ([[3, 0, 0], [3, 1e-4, 0], [0, 0, 5]], [1, 1, 1]),
        ([[1, 0, 0], [0, 1, 0], [1, 1, 0]], [1, 1, 1]),
        (np.zeros((3, 3)), [1, 0, 0]),
        (np.full((3, 3), np.inf), [1, 1, 1]),
    ],
)
def test_dependent_lattice_vectors_are_refused(cell: list[list[float]], pbc: list[int]) -> None:
    bad = Atoms("CO", [[0, 0, 0], [1.2, 0, 0]], cell=cell, pbc=pbc)
    batch = from_ase([water(), bad], ids=["water", "bad"])
    assert has_flat_cell(batch).tolist() == [False, True]
    with pytest.raises(TetherError, match="vectors are linearly dependent in structure `bad`"):
        neighbour_edges(batch, 2.0, full=False)


def test_open_directions_need_no_lattice_vector() -> None:
    for cell in ([3, 0, 0], [[3, 0, 0], [6, 0, 0], [0, 0, 5]]):
        chain = Atoms("CO", [[0, 0, 0], [1.2, 0, 0]], cell=cell, pbc=[True, False, False])
        assert len(neighbour_edges(from_ase(chain), 2.0, full=False).idx_i) == 2


def test_angles_are_those_of_a_full_neighbour_list() -> None:
    for ours, atoms in zip(cosines(graph_of(FRAMES)), FRAMES, strict=True):
        assert close(ours, brute_force(atoms)), atoms.symbols


def test_each_angle_stands_once_between_two_ends_of_one_atom() -> None:
    graph = graph_of(FRAMES)
    edges, angles = graph.edges["bonds"], graph.angles["bonds"]
    ends = torch.stack([edges.idx_i, edges.idx_j], dim=1).flatten()
    assert torch.equal(ends[angles.first], ends[angles.second])
    assert bool((angles.first < angles.second).all())
    pairs = torch.stack([angles.first, angles.second], dim=1)
    assert len(torch.unique(pairs, dim=0)) == len(pairs)
    assert angles.ptr.tolist()[1:3] == [angles.ptr[1].item()] * 2  # the lone atom has none
    # An atom that is its own nearest neighbour sees the same bond from both ends.
    copper = graph_of([bulk("Cu")]).angles["bonds"]
    assert int((copper.first // 2 == copper.second // 2).sum()) == 6


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, len(FRAMES) - 1), max_size=8))
def test_a_selection_has_the_angles_of_its_structures(chosen: list[int]) -> None:
    whole = graph_of(FRAMES)
    selected = whole.select(chosen)
    assert selected.angles["bonds"].ptr[-1] == len(selected.angles["bonds"].first)
    expected = cosines(whole)
    for ours, s in zip(cosines(selected), chosen, strict=True):
        assert close(ours, expected[s])


def test_edges_that_are_not_renumbered_would_be_seen() -> None:
    whole = graph_of(FRAMES)
    selected = whole.select([3, 0])
    first = whole.angles["bonds"].ptr
    stale = whole.angles["bonds"].first[first[3] : first[4]]
    assert not torch.equal(selected.angles["bonds"].first[: len(stale)], stale)


def test_angles_move_with_the_graph() -> None:
    graph = graph_of([rattled(bulk("Cu"))]).to(dtype=torch.float32)
    assert len(graph.angles["bonds"].first) == 66
    assert graph.differentiable().angles is graph.angles

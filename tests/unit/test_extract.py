"""Extraction: the right rows, in any batch size, and nothing changed by looking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tether.data.pieces import pieces
from tether.data.store import Store
from tether.errors import TetherError
from tether.extract import edge_list, extract, fingerprints
from tether.features import Features
from tether.graph import Graph
from tether.model import AdaptedModel
from tether.structures import AtomBatch
from tether.testing.tiny import TinyBackbone

ROWS = np.arange(12)


@pytest.fixture(scope="module")
def backbone() -> TinyBackbone:
    return TinyBackbone(n_features=16, n_layers=3)


@pytest.fixture(scope="module")
def store(workspace: Any) -> Store:
    return Store.open(workspace.store)


@pytest.fixture(scope="module")
def whole(backbone: TinyBackbone, store: Store) -> Features:
    with torch.no_grad():
        return backbone(backbone.prepare(store.batch(ROWS)))


class WithoutEdges(TinyBackbone):
    """A backbone that offers the least: node features of one layer."""

    def forward(self, graph: Graph) -> Features:
        return Features(super().forward(graph).node)


@pytest.mark.parametrize("size", [1, 5, 64])
def test_rows_are_those_of_one_big_batch(
    size: int, backbone: TinyBackbone, store: Store, whole: Features
) -> None:
    atoms = np.array([0, 3, 4, 17, len(whole.node) - 1])
    assert whole.edge is not None
    edges = np.array([1, 2, 40, len(whole.edge) - 1])
    found = extract(backbone, pieces(store, size, indices=ROWS), atoms=atoms, edges=edges)
    assert len(found.layers) == 3
    for ours, theirs in zip(found.layers, whole.layers, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs[atoms], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.edges, whole.edge[edges], rtol=1e-4, atol=1e-5)
    # The control: the row beside is another one.
    assert np.abs(found.layers[-1][1] - whole.node[4].numpy()).max() > 1e-3


@pytest.mark.parametrize("size", [1, 5, 64])
def test_edges_are_numbered_over_the_stream(
    size: int, backbone: TinyBackbone, store: Store, whole: Features
) -> None:
    found = edge_list(backbone, pieces(store, size, indices=ROWS))
    assert found is not None
    np.testing.assert_array_equal(found.idx, whole.edge_idx)
    positions = store.batch(ROWS).positions.numpy()
    apart = np.linalg.norm(positions[found.idx[0]] - positions[found.idx[1]], axis=1)
    np.testing.assert_allclose(found.distance, apart, rtol=1e-5)


def test_fingerprints_are_those_of_the_model(backbone: TinyBackbone, store: Store) -> None:
    found = fingerprints(backbone, pieces(store, 5, indices=ROWS))
    np.testing.assert_allclose(
        found, AdaptedModel(backbone, []).fingerprint(store.batch(ROWS)), rtol=1e-4, atol=1e-5
    )


def test_looking_twice_gives_the_same_bits_and_keeps_gradients_on(
    backbone: TinyBackbone, store: Store
) -> None:
    atoms = np.arange(20)
    one, two = (extract(backbone, pieces(store, 64, indices=ROWS), atoms=atoms) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one.layers, two.layers, strict=True))
    assert one.edges is None
    assert torch.is_grad_enabled()


def test_only_one_batch_is_held(backbone: TinyBackbone, store: Store) -> None:
    alive: list[int] = []

    def counted() -> Iterator[AtomBatch]:
        import gc
        import weakref

        seen: list[weakref.ref[AtomBatch]] = []
        for batch in pieces(store, 2, indices=ROWS):
            gc.collect()
            alive.append(sum(one() is not None for one in seen))
            seen.append(weakref.ref(batch))
            yield batch
            del batch

    extract(backbone, counted(), atoms=np.array([0, 5]))
    assert len(alive) == 6
    assert max(alive) <= 1


def test_a_backbone_with_node_features_only(store: Store) -> None:
    plain = WithoutEdges(n_features=16)
    assert edge_list(plain, pieces(store, 64, indices=ROWS)) is None
    found = extract(plain, pieces(store, 64, indices=ROWS), atoms=np.arange(3))
    assert [layer.shape for layer in found.layers] == [(3, 16)]
    with pytest.raises(TetherError, match="backbone 'tiny' has no edge features"):
        extract(plain, pieces(store, 64, indices=ROWS), atoms=np.arange(3), edges=np.arange(3))


@pytest.mark.parametrize("atoms", [[3, 2], [1, 1], [-1, 4]])
def test_numbers_out_of_order_are_refused(
    atoms: list[int], backbone: TinyBackbone, store: Store
) -> None:
    with pytest.raises(TetherError, match="`atoms` is not ascending; expected numbers from 0"):
        extract(backbone, pieces(store, 64, indices=ROWS), atoms=np.array(atoms))


def test_numbers_beyond_the_stream_and_an_empty_stream(
    backbone: TinyBackbone, store: Store
) -> None:
    with pytest.raises(TetherError, match="`atoms` goes up to 100000; expected numbers below"):
        extract(backbone, pieces(store, 64, indices=ROWS), atoms=np.array([0, 100000]))
    with pytest.raises(TetherError, match="no structure to take a fingerprint of"):
        fingerprints(backbone, pieces(store, 64, indices=ROWS[:0]))

"""Harmonics against the addition theorem, couplings against the symmetry that defines them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import legval
from scipy.spatial.transform import Rotation

from tether.backbones.harmonics import (
    MAX_DEGREE,
    coupling,
    coupling_table,
    paths,
    spherical_harmonics,
)

TRIPLES = [
    (a, b, c)
    for a in range(MAX_DEGREE + 1)
    for b in range(MAX_DEGREE + 1)
    for c in range(abs(a - b), min(a + b, MAX_DEGREE) + 1)
]


def harmonics(points: np.ndarray, degree: int) -> np.ndarray:
    """Of one degree."""
    values: np.ndarray = spherical_harmonics(torch.from_numpy(points), degree).numpy()
    return values[:, degree**2 :]


@pytest.fixture
def directions() -> np.ndarray:
    vectors = np.random.default_rng(3).normal(size=(2, 40, 3))
    return vectors / np.linalg.norm(vectors, axis=2, keepdims=True)


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
def test_products_of_harmonics_are_legendre_polynomials(
    degree: int, directions: np.ndarray
) -> None:
    # The addition theorem: true of every orthonormal basis of a degree, and of nothing else.
    first, second = (harmonics(points, degree) for points in directions)
    cosine = (directions[0] * directions[1]).sum(1)
    expected = (2 * degree + 1) * legval(cosine, [0] * degree + [1])
    np.testing.assert_allclose((first * second).sum(1), expected, atol=1e-13)


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
def test_harmonics_grow_with_the_power_of_their_degree(degree: int, directions: np.ndarray) -> None:
    at = directions[0]
    np.testing.assert_allclose(harmonics(2 * at, degree), 2**degree * harmonics(at, degree))
    np.testing.assert_allclose(harmonics(-at, degree), (-1) ** degree * harmonics(at, degree))


def test_harmonics_have_a_derivative_at_the_origin() -> None:
    vectors = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(spherical_harmonics(vectors, MAX_DEGREE).sum(), vectors)
    np.testing.assert_allclose(gradient.numpy(), 3**0.5 * np.ones((1, 3)))


@pytest.mark.parametrize("triple", TRIPLES)
def test_couplings_are_invariant(triple: tuple[int, int, int]) -> None:
    tensor = coupling(*triple)
    assert np.linalg.norm(tensor) == pytest.approx(1.0, abs=1e-13)
    points = np.random.default_rng(4).normal(size=(3, 20, 3))

    def contracted(turn: np.ndarray) -> np.ndarray:
        values = [harmonics(p @ turn.T, d) for p, d in zip(points, triple, strict=True)]
        return np.einsum("ijk,ni,nj,nk->n", tensor, *values)

    turned = contracted(Rotation.from_rotvec([0.3, -1.1, 0.8]).as_matrix())
    still = contracted(np.eye(3))
    np.testing.assert_allclose(turned, still, atol=1e-11 * np.abs(still).max())
    # A tensor that is not invariant would show: the same with two entries exchanged.
    if tensor.size > 1:
        spoilt = np.roll(tensor.ravel(), 1).reshape(tensor.shape)
        values = [harmonics(p, d) for p, d in zip(points, triple, strict=True)]
        assert not np.allclose(np.einsum("ijk,ni,nj,nk->n", spoilt, *values), turned)


def test_couplings_are_those_of_e3nn_but_for_their_sign() -> None:
    o3 = pytest.importorskip("e3nn.o3", reason="the extra sevennet is not installed")
    for triple in TRIPLES:
        theirs, ours = o3.wigner_3j(*triple, dtype=torch.float64).numpy(), coupling(*triple)
        sign = np.sign((theirs * ours).sum())
        np.testing.assert_allclose(ours, sign * theirs, atol=1e-12)
        if 0 in triple:  # no coupling tensor of these stands in a file, which could tell the sign
            assert sign == 1
    at = torch.randn(10, 3, dtype=torch.float64)
    theirs = o3.spherical_harmonics([0, 1, 2, 3], at, normalize=False, normalization="component")
    np.testing.assert_allclose(spherical_harmonics(at, 3), theirs, atol=1e-12)


def test_a_cross_product_is_the_coupling_of_three_vectors() -> None:
    first, second = np.random.default_rng(5).normal(size=(2, 3))
    product = 6**0.5 * np.einsum("ijk,i,j->k", coupling(1, 1, 1), first, second)
    np.testing.assert_allclose(np.abs(product), np.abs(np.cross(first, second)), atol=1e-12)


@pytest.mark.parametrize("path", paths(3, 3, 2))
def test_a_path_keeps_the_mean_square(path: tuple[int, int, int]) -> None:
    first, third, second = path
    rng = np.random.default_rng(6)
    points = rng.normal(size=(20_000, 3))
    unit = torch.from_numpy(points / np.linalg.norm(points, axis=1, keepdims=True))
    table = coupling_table(path, torch.float64, torch.device("cpu"))
    matrices = spherical_harmonics(unit, second)[:, second**2 :] @ table
    features = torch.from_numpy(rng.normal(size=(len(points), 2 * first + 1, 1)))
    results = matrices.view(len(points), 2 * third + 1, 2 * first + 1) @ features
    assert float(results.square().mean()) == pytest.approx(1.0, abs=0.05)


def test_a_higher_degree_than_there_are_formulas_is_never_reached() -> None:
    assert len(paths(1, MAX_DEGREE + 1, MAX_DEGREE)) == MAX_DEGREE + 1
    assert max(second for _, _, second in paths(4, 4, 2)) == 2

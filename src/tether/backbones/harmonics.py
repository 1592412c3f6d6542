"""Real spherical harmonics up to degree 3, and the tensors that couple them.

The order of the components and their normalisation are e3nn's (doi 10.5281/zenodo.6459381), whose
weights we read: y is the polar axis, and the squares of a degree's components add up to
``2 degree + 1`` on the unit sphere.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

__all__ = ["MAX_DEGREE", "coupling", "coupling_table", "paths", "spherical_harmonics"]

#: The highest degree with a formula here.
MAX_DEGREE = 3


def spherical_harmonics(vectors: Tensor, degree: int) -> Tensor:
    """Solid harmonics of the degrees 0, 1, … `degree`, one after the other.

    Parameters
    ----------
    vectors : Tensor, shape (n, 3)
        Of any length: a harmonic of degree l grows with its l-th power.
    degree : int
        At most `MAX_DEGREE`.

    Returns
    -------
    Tensor, shape (n, (degree + 1)²)
        Differentiable, also at the origin.

    Examples
    --------
    >>> spherical_harmonics(torch.eye(3), 1).pow(2).sum(1)
    tensor([4., 4., 4.])
    """
    x, y, z = vectors.unbind(1)
    columns = [torch.ones_like(x)]
    if degree >= 1:
        columns += [3**0.5 * axis for axis in (x, y, z)]
    if degree >= 2:
        ring = x * x + z * z
        columns += [
            15**0.5 * x * z,
            15**0.5 * x * y,
            5**0.5 * (y * y - ring / 2),
            15**0.5 * y * z,
            (15 / 4) ** 0.5 * (z * z - x * x),
        ]
    if degree >= 3:
        wide, narrow = 4 * y * y - ring, 2 * y * y - 3 * ring
        columns += [
            (35 / 8) ** 0.5 * x * (3 * z * z - x * x),
            105**0.5 * x * y * z,
            (21 / 8) ** 0.5 * x * wide,
            (7 / 4) ** 0.5 * y * narrow,
            (21 / 8) ** 0.5 * z * wide,
            (105 / 4) ** 0.5 * y * (z * z - x * x),
            (35 / 8) ** 0.5 * z * (z * z - 3 * x * x),
        ]
    return torch.stack(columns, dim=1)


def coupling(first: int, second: int, third: int) -> np.ndarray:
    """The one tensor of three degrees that no rotation changes: Wigner's 3j symbol, in real form.

    Parameters
    ----------
    first, second, third : int
        Degrees, none larger than the sum of the other two.

    Returns
    -------
    ndarray, shape (2 first + 1, 2 second + 1, 2 third + 1), float64
        Of norm 1. Its sign is a convention: here, the first entry that is not zero of the tensor
        of the sorted degrees is positive.

    Examples
    --------
    >>> coupling(1, 1, 0).squeeze(2).round(4)
    array([[0.5774, 0.    , 0.    ],
           [0.    , 0.5774, 0.    ],
           [0.    , 0.    , 0.5774]])
    """
    degrees = (first, second, third)
    order = sorted(range(3), key=degrees.__getitem__)
    low, middle, high = (degrees[at] for at in order)
    tensor: np.ndarray = _invariant(low, middle, high).transpose(np.argsort(order))
    return tensor


@lru_cache
def _invariant(low: int, middle: int, high: int) -> np.ndarray:
    if low == 0:
        diagonal: np.ndarray = np.eye(2 * high + 1)[None] / np.sqrt(2 * high + 1)
        return diagonal
    # Two rotations about different axes generate all: what neither changes is invariant.
    matrices = np.linalg.qr(np.random.default_rng(0).normal(size=(2, 3, 3)))[0]
    matrices *= np.linalg.det(matrices)[:, None, None]
    square = np.zeros(1)
    for matrix in matrices:
        rotation = np.ones((1, 1))
        for degree in (low, middle, high):
            rotation = np.kron(rotation, _representation(degree, matrix))
        change = rotation - np.eye(len(rotation))
        square = square + change.T @ change
    # The one tensor without change; the next eigenvalue is of order 1.
    vector: np.ndarray = eigh(square, subset_by_index=[0, 0])[1][:, 0]
    vector *= np.sign(vector[np.argmax(np.abs(vector) > 1e-6)])
    return vector.reshape(2 * low + 1, 2 * middle + 1, 2 * high + 1)


def _representation(degree: int, matrix: np.ndarray) -> np.ndarray:
    """How the harmonics of a degree mix when space is turned."""
    points = np.random.default_rng(1).normal(size=(30, 3))

    def values(at: np.ndarray) -> np.ndarray:
        harmonics: np.ndarray = spherical_harmonics(torch.from_numpy(at), degree).numpy()
        return harmonics[:, degree**2 :]

    mixed: np.ndarray = np.linalg.lstsq(values(points), values(points @ matrix.T), rcond=None)[0]
    return mixed


def paths(n_first: int, n_third: int, degree: int) -> list[tuple[int, int, int]]:
    """Ways to couple features with harmonics: degrees of the feature, the result, the harmonic.

    Parameters
    ----------
    n_first, n_third : int
        Number of degrees, from 0 on, that features and results have.
    degree : int
        Highest degree of the harmonics.

    Returns
    -------
    list of tuple of int
        In order of the feature, then the result, then the harmonic.

    Examples
    --------
    >>> paths(2, 2, 1)
    [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1, 1)]
    """
    return [
        (first, third, second)
        for first in range(n_first)
        for third in range(n_third)
        for second in range(abs(first - third), min(first + third, degree) + 1)
    ]


@lru_cache
def coupling_table(path: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """From harmonics to the matrices that take features along one of `paths`.

    Parameters
    ----------
    path : tuple of int
        Degrees of the feature, the result and the harmonic.
    dtype, device
        Of the table. It is no buffer: cast to single precision and back, it would be inexact.

    Returns
    -------
    Tensor, shape (2 second + 1, (2 third + 1) × (2 first + 1))
        A result has the mean square of the features, where these and the harmonics are independent.
    """
    first, third, second = path
    tensor = (2 * third + 1) ** 0.5 * coupling(first, second, third).transpose(1, 2, 0)
    return torch.from_numpy(np.ascontiguousarray(tensor)).flatten(1).to(device, dtype)

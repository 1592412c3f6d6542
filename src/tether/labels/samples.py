"""What every way of making geometries shares: the result, the random streams, the guards."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from tether.errors import TetherError
from tether.labels.failure import Failure

if TYPE_CHECKING:
    from tether.structures import AtomBatch

__all__ = [
    "MIN_RATIO",
    "Kind",
    "Samples",
    "check_temperature",
    "random_stream",
    "structure_of",
    "too_close",
    "without_labels",
]

MIN_RATIO = 0.4  # closer than this times the sum of covalent radii: redrawn
Kind = Literal["displace", "strain", "modes", "md", "input"]

_SUFFIX = re.compile(rf"(/({'|'.join(get_args(Kind))})-\d+)+$")


@dataclass(frozen=True)
class Samples:
    """Geometries, and the ones that could not be made.

    Attributes
    ----------
    batch : AtomBatch
        Without labels; ids are ``"<id>/<kind>-<k>"``. Sorted by structure, then by k.
    rejected : tuple of Failure
        Geometries whose atoms stayed too close, or whose dynamics failed.
    """

    batch: AtomBatch
    rejected: tuple[Failure, ...]


def structure_of(name: str) -> str | None:
    """The structure that a geometry was made of.

    Parameters
    ----------
    name : str
        Id of a geometry, of geometries made of geometries, or of anything else.

    Returns
    -------
    str or None
        Id of the first one; None for what was not made here.

    Examples
    --------
    >>> structure_of("qm9:7/displace-2"), structure_of("qm9:7/md-0/modes-12"), structure_of("a/b-1")
    ('qm9:7', 'qm9:7', None)
    """
    found = _SUFFIX.search(name)
    return name[: found.start()] if found else None


def random_stream(seed: int, *key: object) -> np.random.Generator:
    """Generator that depends on the seed and the key, and on nothing that was drawn before.

    Parameters
    ----------
    seed : int
        Of all streams.
    *key : object
        What the stream is for; compared as text.

    Returns
    -------
    Generator
        At its start.
    """
    text = "/".join(str(part) for part in (seed, *key))
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def without_labels(batch: AtomBatch, n_per_structure: int) -> AtomBatch:
    """The structures in double precision, named, without labels.

    Parameters
    ----------
    batch : AtomBatch
        Structures.
    n_per_structure : int
        Geometries that will be made of each.

    Returns
    -------
    AtomBatch
        A running number stands where there was no id.

    Raises
    ------
    TetherError
        When no geometry was asked for.
    """
    if n_per_structure < 1:
        raise TetherError(
            f"`n_per_structure` is {n_per_structure}",
            expected="a positive number of geometries",
            fix="set n_per_structure=1 or more",
        )
    ids = batch.ids or tuple(str(i) for i in range(batch.n_systems))
    bare = replace(batch, labels={}, atom_labels={}, ids=ids)
    return bare.to(dtype=torch.float64)


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive.

    Parameters
    ----------
    temperature : float
        K.

    Raises
    ------
    TetherError
        When it is zero, negative or NaN.
    """
    if not temperature > 0:
        raise TetherError(
            f"`temperature` is {temperature}",
            expected="a positive temperature in K",
            fix="set temperature=300",
        )


def too_close(name: str, ratio: float, attempts: int) -> Failure:
    """The failure of a geometry whose atoms stayed too close.

    Parameters
    ----------
    name : str
        Of the geometry.
    ratio : float
        Shortest distance over the sum of covalent radii.
    attempts : int
        Draws that were made.

    Returns
    -------
    Failure
        With the ratio as its value.
    """
    reason = (
        f"atoms closer than {MIN_RATIO} of the sum of their covalent radii "
        f"({ratio:.3f}) in {attempts} draws"
    )
    return Failure(name, reason, ratio)

"""From "these rows are OOD" to a split: the ID test and the training set are what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tether.errors import TetherError
from tether.splits.split import Split, StoreReference, labelled_rows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["check_share", "hold_out", "largest", "ties"]


def hold_out(
    is_ood: ArrayLike,
    *,
    method: str,
    parameters: dict[str, Any] | None = None,
    report: dict[str, Any] | None = None,
    values: ArrayLike | None = None,
    unassigned: ArrayLike | None = None,
    id_fraction: float = 0.05,
    seed: int = 42,
) -> Split:
    """Make "test/ood" of the marked rows, and "test/id" and "train" of the others.

    ``round(id_fraction * n_rest)`` of the rows that are not OOD, drawn without replacement, are the
    ID test.

    Parameters
    ----------
    is_ood : array, shape (n_systems,), bool
        What the rule holds out.
    method : str
        Name of the rule.
    parameters, report : dict, optional
        Of the rule.
    values : array, shape (n_systems,) or (n_systems, n_components), optional
        Labels; NaN rows go to no set and are counted in ``report["n_unlabelled"]``.
    unassigned : array, shape (n_systems,), bool, optional
        Rows that the rule could not judge. They go to no set, since they might belong to either
        side, and are listed in ``report["unassigned_rows"]``.
    id_fraction : float
        Share of what is not OOD that becomes the ID test.
    seed : int
        Of the draw of the ID test.

    Returns
    -------
    Split
        Sets "train", "test/id", "test/ood".

    Raises
    ------
    TetherError
        For arrays of different lengths, an impossible share, or a set that would be empty.

    Examples
    --------
    >>> hold_out([True] + [False] * 20, method="mine").sizes
    {'train': 19, 'test/id': 1, 'test/ood': 1}
    """
    check_share(id_fraction, "id_fraction")
    marked = np.asarray(is_ood, dtype=bool)
    n = len(marked)
    labelled = np.ones(n, dtype=bool) if values is None else labelled_rows(values)
    unknown = np.zeros(n, dtype=bool) if unassigned is None else np.asarray(unassigned, dtype=bool)
    if len(labelled) != n or len(unknown) != n:
        raise TetherError(
            f"{len(labelled)} labels and {len(unknown)} marks for {n} structures",
            expected="one a structure",
            fix="give arrays of the same store",
        )
    usable = labelled & ~unknown
    rest = np.random.default_rng(seed).permutation(np.flatnonzero(usable & ~marked))
    n_id = round(id_fraction * len(rest))
    found: dict[str, Any] = {"n_unlabelled": int((~labelled).sum())}
    if unknown.any():
        found["unassigned_rows"] = np.flatnonzero(unknown & labelled).tolist()
    return Split(
        name=method,
        method=method,
        parameters={**(parameters or {}), "id_fraction": id_fraction, "seed": seed},
        indices={
            "train": rest[n_id:],
            "test/id": rest[:n_id],
            "test/ood": np.flatnonzero(usable & marked),
        },
        report={**found, **(report or {})},
        store=StoreReference(n_systems=n),
    )


def largest(scores: ArrayLike, fraction: float) -> NDArray[np.bool_]:
    """Mark the share of rows with the largest score.

    Parameters
    ----------
    scores : array, shape (n,)
        Number of atoms, distance to the nearest others, …
    fraction : float
        Share; ``round(fraction * n)`` rows are marked.

    Returns
    -------
    array, shape (n,), bool
        Equal scores at the threshold: the lower row number is marked.

    Raises
    ------
    TetherError
        For a share that is not between 0 and 1, and when all scores are equal.

    Examples
    --------
    >>> largest([3, 9, 5, 9], 0.5).tolist()
    [False, True, False, True]
    """
    check_share(fraction, "ood")
    array = np.asarray(scores, dtype=np.float64)
    if np.ptp(array) == 0:
        raise TetherError(
            f"all {len(array)} structures have the score {array[0]:.6g}",
            expected="structures that differ",
            fix="use method random",
        )
    marked = np.zeros(len(array), dtype=bool)
    marked[np.argsort(-array, kind="stable")[: round(fraction * len(array))]] = True
    return marked


def ties(scores: ArrayLike, marked: ArrayLike) -> dict[str, float]:
    """Say where a cut went through structures of one score, so that row numbers decided.

    Parameters
    ----------
    scores : array, shape (n,)
        Of `largest`.
    marked : array, shape (n,), bool
        Its result.

    Returns
    -------
    dict
        ``score`` of the last row that is marked, ``n_marked`` and ``n_others`` of that score; empty
        where no other row has it.

    Examples
    --------
    >>> ties([3, 9, 5, 5], [False, True, True, False])
    {'score': 5.0, 'n_marked': 1, 'n_others': 1}
    """
    array, inside = np.asarray(scores, dtype=np.float64), np.asarray(marked, dtype=bool)
    if not inside.any():
        return {}
    edge = float(array[inside].min())
    equal = array == edge
    n_others = int((equal & ~inside).sum())
    found = {"score": edge, "n_marked": int((equal & inside).sum()), "n_others": n_others}
    return found if n_others else {}


def check_share(value: float, name: str) -> None:
    """Refuse a share outside (0, 1).

    Parameters
    ----------
    value : float
        The share.
    name : str
        What the caller calls it.

    Raises
    ------
    TetherError
        When it is not between 0 and 1.
    """
    if not 0 < value < 1:
        raise TetherError(
            f"`{name}` is {value}", expected="a number between 0 and 1", fix=f"{name}=0.05"
        )

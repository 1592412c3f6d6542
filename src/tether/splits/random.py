"""Random sets, a validation set out of the training set, and nested training subsets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tether.errors import TetherError
from tether.splits.split import Split, StoreReference, labelled_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike

__all__ = ["carve_validation", "random_split", "subsample_train"]

_DEFAULT_FRACTIONS = {"train": 0.8, "val": 0.1, "test/id": 0.1}


def random_split(
    n_systems: int,
    *,
    fractions: Mapping[str, float] | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 42,
    values: ArrayLike | None = None,
) -> Split:
    """Draw sets at random, without replacement.

    Parameters
    ----------
    n_systems : int
        Rows to choose from.
    fractions : mapping of str to float, optional
        Share of the labelled rows by set; a sum below 1 leaves rows unused, which the report
        counts. Default: train 0.8, val 0.1, test/id 0.1.
    sizes : mapping of str to int, optional
        Instead of fractions: rows by set.
    seed : int
        Of numpy's default generator.
    values : array, shape (n_systems,) or (n_systems, n_components), optional
        Labels; NaN rows go to no set and are counted in ``report["n_unlabelled"]``.

    Returns
    -------
    Split
        The sets.

    Raises
    ------
    TetherError
        When both or impossible sizes are given, or a set is empty.
    """
    rows = np.arange(n_systems)
    if values is not None:
        labelled = labelled_rows(values)
        if len(labelled) != n_systems:
            raise TetherError(
                f"`values` has {len(labelled)} rows",
                expected=f"n_systems = {n_systems}",
                fix="give one value a structure, NaN where unlabelled",
            )
        rows = rows[labelled]
    bounds = _bounds(len(rows), fractions, sizes)
    order = np.random.default_rng(seed).permutation(rows)
    chosen = dict(sizes) if sizes is not None else dict(fractions or _DEFAULT_FRACTIONS)
    return Split(
        name="random",
        method="random",
        parameters={"sizes" if sizes is not None else "fractions": chosen, "seed": seed},
        indices={name: order[low:high] for name, (low, high) in bounds.items()},
        report={"n_unlabelled": n_systems - len(rows)},
        store=StoreReference(n_systems=n_systems),
    )


def _bounds(
    n_rows: int, fractions: Mapping[str, float] | None, sizes: Mapping[str, int] | None
) -> dict[str, tuple[int, int]]:
    if fractions is not None and sizes is not None:
        raise TetherError(
            "both `fractions` and `sizes` are given", expected="one of them", fix="leave one out"
        )
    if sizes is not None:
        total = sum(sizes.values())
        if total > n_rows or min(sizes.values()) < 0:
            raise TetherError(
                f"sizes {dict(sizes)} add up to {total}",
                expected=f"non-negative sizes of at most {n_rows} labelled rows in all",
                fix="ask for fewer",
            )
        names, edges = list(sizes), np.cumsum([0, *sizes.values()])
    else:
        fractions = fractions if fractions is not None else _DEFAULT_FRACTIONS
        share = sum(fractions.values())
        if not share <= 1 + 1e-9 or min(fractions.values()) < 0:
            raise TetherError(
                f"fractions {dict(fractions)} add up to {share:.6g}",
                expected="non-negative fractions of at most 1 in all",
                fix="lower them",
            )
        # Rounded edges, not rounded sizes: fractions that add up to 1 use every row.
        names = list(fractions)
        edges = np.rint(np.cumsum([0, *fractions.values()]) * n_rows).astype(int)
    return {
        name: (int(low), int(high))
        for name, low, high in zip(names, edges[:-1], edges[1:], strict=True)
    }


def carve_validation(
    split: Split, *, fraction: float | None = None, size: int | None = None, seed: int = 42
) -> Split:
    """Move a random part of "train" to "val"; test sets stay as they are.

    Validation comes from the training distribution only: choosing a checkpoint by OOD data would
    turn the OOD test into a validation set.

    Parameters
    ----------
    split : Split
        Without a "val" set.
    fraction : float, optional
        Share of "train"; default 0.05 when no size is given.
    size : int, optional
        Instead of a fraction.
    seed : int
        Of numpy's default generator.

    Returns
    -------
    Split
        With "val".

    Raises
    ------
    TetherError
        When there is a "val" already, or nothing would be left of either set.
    """
    if "val" in split.indices:
        raise TetherError(
            f"split {split.name!r} has a `val` set of {split.sizes['val']} already",
            expected="a split without validation set",
            fix="leave the validation size out; sets of the method random have their shares by "
            "--set, as --set val=0.1",
        )
    if fraction is not None and size is not None:
        raise TetherError(
            "both `fraction` and `size` of the validation set are given",
            expected="one of them",
            fix="leave one out",
        )
    train = _train_rows(split)
    share = 0.05 if fraction is None else fraction
    if not math.isfinite(share):
        raise TetherError(
            f"`val_fraction` is {share}",
            expected="a number between 0 and 1",
            fix="val_fraction=0.05",
        )
    n_val = round(share * len(train)) if size is None else size
    if not 0 < n_val < len(train):
        raise TetherError(
            f"set 'val' would have size {n_val} of {len(train)} training rows",
            expected=f"0 < size < {len(train)}",
            fix="choose another validation size",
        )
    order = np.random.default_rng(seed).permutation(train)
    indices = {"train": order[n_val:], "val": order[:n_val]}
    indices.update({k: v for k, v in split.indices.items() if k != "train"})
    return split.with_indices(indices, parameters={"val_size": int(n_val), "val_seed": seed})


def subsample_train(split: Split, size: int, *, seed: int = 42) -> Split:
    """Keep `size` random rows of "train"; the other sets stay as they are.

    Subsets are nested: with one seed, the smaller is part of the larger, so that a learning curve
    adds data instead of exchanging it.

    Parameters
    ----------
    split : Split
        Any split with "train".
    size : int
        Rows to keep.
    seed : int
        Of numpy's default generator.

    Returns
    -------
    Split
        With the smaller "train"; ``report["n_train_left_out"]`` counts what was dropped.

    Raises
    ------
    TetherError
        When `size` is not between 1 and the size of "train".
    """
    train = _train_rows(split)
    if not 0 < size <= len(train):
        raise TetherError(
            f"set 'train' would have size {size}",
            expected=f"1 to {len(train)}, the training rows there are",
            fix="choose another training size",
        )
    kept = np.random.default_rng(seed).permutation(train)[:size]
    return split.with_indices(
        {**split.indices, "train": kept},
        parameters={"train_size": int(size), "train_seed": seed},
        report={"n_train_left_out": len(train) - int(size)},
    )


def _train_rows(split: Split) -> np.ndarray:
    if "train" not in split.indices:
        raise TetherError(
            f"split {split.name!r} has no `train` set, only {', '.join(split.indices)}",
            expected="a `train` set",
            fix="name the training set `train`",
        )
    return split.indices["train"]

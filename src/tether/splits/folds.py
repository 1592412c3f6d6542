"""Folds that somebody else published, as labels to hold out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.errors import TetherError
from tether.splits.explicit import load_index_file, plain_list
from tether.splits.labels import Labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["read_folds"]


def read_folds(path: str | Path, *, n_systems: int) -> Labels:
    """Read the rows of each fold.

    Parameters
    ----------
    path : str or Path
        JSON: a list of lists of rows, alone or as the only entry of an object; or npy or txt: the
        fold number of each row, -1 for none.
    n_systems : int
        Rows of the store.

    Returns
    -------
    Labels
        Folds "0", "1", … in the order of the file. A row may be in several or in none.

    Raises
    ------
    TetherError
        For another content, or a row that the store has not.

    Notes
    -----
    The 50 LOCO folds of Omee et al. (npj Comput. Mater. 10, 144 (2024)) come in this form.
    """
    source = Path(path)
    content = load_index_file(source)
    if isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values()))
    if isinstance(content, list) and content and all(isinstance(fold, list) for fold in content):
        return _from_lists(content, source, n_systems)
    numbers = plain_list([] if isinstance(content, dict) else content, repr(str(source)))
    if numbers.dtype.kind not in "iu" or numbers.shape != (n_systems,):
        raise TetherError(
            f"{str(source)!r} holds neither lists of rows nor {n_systems} fold numbers",
            expected="one list of rows a fold, or the fold number of each row",
            fix="write the folds as a JSON list of lists",
        )
    rows = np.flatnonzero(numbers >= 0)
    names = tuple(str(number) for number in range(int(numbers.max(initial=-1)) + 1))
    return Labels("fold", names, rows, numbers[rows].astype(np.int64), n_systems)


def _from_lists(folds: Sequence[Any], source: Path, n_systems: int) -> Labels:
    parts: list[NDArray[np.int64]] = []
    for number, fold in enumerate(folds):
        rows = plain_list(fold, f"fold {number} of {str(source)!r}")
        whole = not rows.size or rows.dtype.kind in "iu"
        if not whole or (rows.size and not 0 <= rows.min() <= rows.max() < n_systems):
            found = f"from {rows.min()} to {rows.max()}" if whole else f"such as {fold[0]!r}"
            raise TetherError(
                f"fold {number} of {str(source)!r} has rows {found}",
                expected=f"whole rows, 0 <= row < {n_systems}",
                fix="use the store that the folds were made for",
            )
        parts.append(np.unique(rows).astype(np.int64))
    names = tuple(str(number) for number in range(len(folds)))
    codes = np.repeat(np.arange(len(folds)), [len(rows) for rows in parts])
    return Labels("fold", names, np.concatenate(parts), codes, n_systems)

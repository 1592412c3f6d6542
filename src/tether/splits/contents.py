"""What test structures are made of that training structures are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tether.splits.labels import Labels
    from tether.splits.split import Split

__all__ = ["LEAST", "distinctive_elements"]

#: Difference of shares from which an element tells a set from the training set.
LEAST = 0.1


def distinctive_elements(split: Split, elements: Labels) -> dict[str, list[dict[str, Any]]]:
    """Elements that are in many more, or fewer, structures of a test set than of "train".

    A cluster or a fold has a number and no name; this says what it is.

    Parameters
    ----------
    split : Split
        With "train".
    elements : Labels
        Of every structure, see `tether.splits.elements.element_labels`.

    Returns
    -------
    dict of str to list of dict
        By test set, the largest difference first: ``element``; ``share`` and ``train_share`` of the
        structures of the set, and of "train", that have it, between 0 and 1, which differ by
        `LEAST` at least.

    Examples
    --------
    >>> from tether.splits.elements import element_labels
    >>> from tether.splits.split import Split
    >>> oxides = element_labels([26, 8, 26, 8, 12, 8, 12, 8], [0, 2, 4, 6, 8], "element")
    >>> split = Split("", "file", {}, {"train": [2, 3], "test/ood": [0, 1]})
    >>> [(row["element"], row["share"]) for row in distinctive_elements(split, oxides)["test/ood"]]
    [('Fe', 1.0), ('Mg', 0.0)]
    """
    train = _shares(elements, split.indices["train"])
    found = {}
    for name in (name for name in split.indices if name.startswith("test/")):
        shares = _shares(elements, split.indices[name])
        order = np.lexsort([-shares, -np.abs(shares - train)])
        found[name] = [
            {
                "element": elements.names[code],
                "share": float(shares[code]),
                "train_share": float(train[code]),
            }
            for code in order
            if abs(shares[code] - train[code]) >= LEAST
        ]
    return found


def _shares(elements: Labels, rows: np.ndarray) -> np.ndarray:
    """Share of the rows that have each element; zeros where there is no row."""
    return elements.select(rows).counts / max(len(rows), 1)

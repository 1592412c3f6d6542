"""Data of the explorer: each run's points as compact JSON, each molecule once."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors

from tether.report.format import as_number
from tether.report.panels import subsample
from tether.report.results import subset_label, unit_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

    from tether.report.collapse_points import Points, RunPoints, Structures
    from tether.report.collapse_read import Collapse, CollapseRun
    from tether.report.read import Comparison

__all__ = ["MAX_BYTES", "Explorer", "element_colours", "explorer", "face_on", "pack", "quantise"]

#: Most that the points may take of the page; plotly, 3Dmol and the figures need 6 MB.
MAX_BYTES = 2_500_000
_BASE64 = 4 / 3
_BYTES_PER_PLACE = 8
_BYTES_PER_POINT = 16
_KINDS = ("atoms", "edges")


@dataclass(frozen=True)
class Explorer:
    """What the page needs to draw the explorer.

    Attributes
    ----------
    payload : dict or None
        JSON object that `explorer.js` reads; None where `missing` says why.
    notes : list of str
        What was left out.
    missing : str
        Reason, "" where there is a payload.
    """

    payload: dict[str, Any] | None
    notes: list[str]
    missing: str = ""


def pack(values: NDArray[Any], dtype: DTypeLike) -> str:
    """Write an array as base64 of its little-endian bytes.

    Parameters
    ----------
    values : ndarray
        Any shape; read row by row.
    dtype : dtype
        Type of the numbers in the page.

    Returns
    -------
    str
        ASCII.

    Examples
    --------
    >>> pack(np.array([1, 258]), np.uint16)
    'AQACAQ=='
    """
    little = np.ascontiguousarray(values).astype(np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode("ascii")


def quantise(places: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Fit two joint maps into 0 … 65535, with one scale for both directions and both maps.

    Parameters
    ----------
    places : ndarray of shape (n, 4)
        x and y before, x and y after.

    Returns
    -------
    ndarray of shape (n, 4)
        Distances are true to 1/65,535 of the larger side; shapes are not stretched.
    """
    pairs = places.reshape(-1, 2)
    low, high = pairs.min(axis=0), pairs.max(axis=0)
    side = float((high - low).max()) or 1.0
    centred = (places - np.tile((low + high) / 2, 2)) / side + 0.5
    whole: NDArray[np.uint16] = np.round(np.clip(centred, 0.0, 1.0) * 65535).astype(np.uint16)
    return whole


def face_on(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centre a structure and turn it so that its widest plane faces the viewer.

    Parameters
    ----------
    positions : ndarray of shape (n_atoms, 3)
        In Å.

    Returns
    -------
    ndarray of shape (n_atoms, 3)
        Turned, never mirrored.
    """
    centred: NDArray[np.float64] = positions - positions.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=True)
    axes[2] *= np.sign(np.linalg.det(axes))
    turned: NDArray[np.float64] = centred @ axes.T
    return turned


def element_colours(number: int) -> tuple[str, str]:
    """Colour of an element by Jmol, darker on a light page and lighter on a dark one.

    Parameters
    ----------
    number : int
        Atomic number.

    Returns
    -------
    (str, str)
        On a light and on a dark page.

    Examples
    --------
    >>> element_colours(1), element_colours(17)
    (('#b8b8b8', '#ffffff'), ('#16ad16', '#57f457'))
    """
    # Hydrogen is white there, and nitrogen dark blue.
    light, dark = 0.72 * jmol_colors[number], 0.25 + 0.75 * jmol_colors[number]
    names = ["#" + "".join(f"{round(255 * part):02x}" for part in rgb) for rgb in (light, dark)]
    return names[0], names[1]


def explorer(
    comparison: Comparison, collapse: Collapse, points: Mapping[int, RunPoints]
) -> Explorer:
    """Pack the points of every run.

    Parameters
    ----------
    comparison : Comparison
        The folder.
    collapse : Collapse
        Its measures.
    points : mapping of int to RunPoints
        By the run's position in `comparison.runs`.

    Returns
    -------
    Explorer
        With at most about `MAX_BYTES` of JSON: beyond that, first the second and later seeds and
        then points are left out, and `notes` says so.
    """
    usable = [at for at, found in points.items() if found.atoms or found.edges]
    problems = [
        f"{comparison.runs[at].folder.name}: {problem}"
        for at, found in points.items()
        for problem in found.problems.values()
    ]
    if not usable:
        return Explorer(None, [], "; ".join(problems) or collapse.missing or "no run has points")
    notes = [f"Not in the explorer: {problem}." for problem in problems]
    kept, share = _within_budget(comparison, points, usable)
    if len(kept) < len(usable):
        notes.append(f"Only the first seed of each recipe is here, {len(kept)} runs.")
    if share < 1:
        notes.append(f"{100 * share:.0f} % of the sampled points are here, the same in each run.")
    chosen = {at: {kind: _choose(points[at], kind, share) for kind in _KINDS} for at in kept}
    molecules = _Molecules()
    runs = []
    for at in kept:
        own = collapse.runs[at]
        run = _run(own, points[at], chosen[at], molecules, collapse.target)
        runs.append(run)
    names = list(dict.fromkeys(name for at in kept for name in _targets(points[at])))
    payload = {
        "runs": runs,
        "start": next((i for i, at in enumerate(kept) if comparison.runs[at].recipe == "full"), 0),
        "classes": {kind: _classes(collapse, points, kept, kind) for kind in _KINDS},
        "targets": [{"name": name, "unit": unit_of(comparison.summary, name)} for name in names],
        **molecules.payload(names),
    }
    return Explorer(payload, notes)


def _targets(found: RunPoints) -> list[str]:
    return list(found.structures.true) if found.structures else []


def _within_budget(
    comparison: Comparison, points: Mapping[int, RunPoints], usable: Sequence[int]
) -> tuple[list[int], float]:
    """Runs to show and the share of their points, so that the page stays small."""

    def size(positions: Sequence[int]) -> float:
        parts = [getattr(points[at], kind) for at in positions for kind in _KINDS]
        return _BASE64 * sum(
            len(part.structure) * (_BYTES_PER_POINT + _BYTES_PER_PLACE * len(part.layers))
            for part in parts
            if part is not None
        )

    first: dict[str, int] = {}
    for at in usable:
        first.setdefault(comparison.runs[at].recipe, at)
    # Half of the points of every seed still make a picture; less do not.
    kept = list(usable) if size(usable) <= 2 * MAX_BYTES else list(first.values())
    return kept, min(1.0, MAX_BYTES / max(size(kept), 1.0))


def _choose(found: RunPoints, kind: str, share: float) -> NDArray[np.int64]:
    part: Points | None = getattr(found, kind)
    n_points = 0 if part is None else len(part.structure)
    return subsample(n_points, max(1, int(share * n_points))) if n_points else np.arange(0)


class _Molecules:
    """Structures of all runs, each once, in the order in which points first name them."""

    def __init__(self) -> None:
        self.row_of: dict[str, int] = {}
        self.sources: list[tuple[Structures, int]] = []

    def rows(self, structures: Structures, own: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows in the page of a run's own rows."""
        for row in dict.fromkeys(own.tolist()):
            name = structures.ids[row]
            if name not in self.row_of:
                self.row_of[name] = len(self.sources)
                self.sources.append((structures, row))
        return np.array([self.row_of[structures.ids[row]] for row in own], dtype=np.int64)

    def payload(self, targets: Sequence[str]) -> dict[str, Any]:
        """Everything that belongs to a structure and not to a run."""
        numbers = [found.numbers[row] for found, row in self.sources]
        centred = [face_on(found.positions[row]) for found, row in self.sources]
        flat = np.concatenate(centred) if centred else np.zeros((0, 3))
        # 0.01 Å, and coarser only for a structure wider than 600 Å.
        step = max(0.01, float(np.abs(flat).max(initial=0.0)) / 32000)
        every = np.concatenate(numbers) if numbers else np.zeros(0, dtype=np.int64)
        subsets = [found.subset[row] for found, row in self.sources]
        names = sorted(set(subsets))
        nothing = float("nan")
        true = {
            name: np.array([_at(found.true.get(name), row, nothing) for found, row in self.sources])
            for name in targets
        }
        distance = np.array([found.distance[row] for found, row in self.sources])
        return {
            "elements": {
                str(number): {
                    "symbol": chemical_symbols[number],
                    "radius": round(float(covalent_radii[number]), 2),
                    "colours": element_colours(number),
                }
                for number in sorted(set(every.tolist()))
            },
            "structures": {
                "ids": list(self.row_of),
                "sizes": pack(np.array([len(row) for row in numbers]), np.uint16),
                "numbers": pack(every, np.uint8),
                "positions": pack(np.round(flat / step), np.int16),
                "step": step,
                "subset": pack(np.array([names.index(name) for name in subsets]), np.uint8),
                "subsets": [[name, subset_label(name)] for name in names],
                "true": {name: pack(values, np.float32) for name, values in true.items()},
                "distance": pack(distance, np.float32),
            },
        }


def _at(values: NDArray[np.float64] | None, row: int, otherwise: float) -> float:
    return otherwise if values is None else float(values[row])


def _run(
    own: CollapseRun,
    found: RunPoints,
    chosen: Mapping[str, NDArray[np.int64]],
    molecules: _Molecules,
    target: str,
) -> dict[str, Any]:
    structures = found.structures
    assert structures is not None
    views = {}
    for kind in _KINDS:
        part: Points | None = getattr(found, kind)
        if part is not None:
            rows = molecules.rows(structures, part.structure[chosen[kind]])
            views[kind] = _view(part, chosen[kind], rows, own, kind)
    # Which row of the page each of this run's own structures has; -1 where no point names it.
    page_row = [molecules.row_of.get(name, -1) for name in structures.ids]
    shown = [row for row, at in enumerate(page_row) if at >= 0]
    return {
        "recipe": own.run.recipe,
        "seed": own.run.seed,
        "target": target,
        "rows": pack(np.array([page_row[row] for row in shown]), np.uint32),
        "pred": {name: pack(values[shown], np.float32) for name, values in structures.pred.items()},
        "views": views,
    }


def _view(
    part: Points, chosen: NDArray[np.int64], rows: NDArray[np.int64], own: CollapseRun, kind: str
) -> dict[str, Any]:
    names = list(dict.fromkeys(part.classes))
    view = {
        "names": names,
        "number": pack(part.number[chosen], np.uint32),
        "structure": pack(rows, np.uint32),
        "atom": pack(part.atom[chosen], np.uint16),
        "class": pack(np.array([names.index(part.classes[row]) for row in chosen]), np.uint16),
        "layers": [
            {
                "layer": layer,
                "xy": pack(quantise(places)[chosen], np.uint16),
                "purity": _purity(own, kind, layer, is_last=layer == max(part.layers)),
            }
            for layer, places in sorted(part.layers.items())
        ],
    }
    groups = sorted(set(part.groups))
    if groups not in ([], [""]):
        view["groupNames"] = [name or "not known" for name in groups]
        view["group"] = pack(np.array([groups.index(part.groups[i]) for i in chosen]), np.uint8)
    if part.length is not None:
        view["length"] = pack(part.length[chosen], np.float32)
    return view


def _purity(own: CollapseRun, kind: str, layer: int, *, is_last: bool) -> list[float | None] | None:
    """Neighbour purity before and after, in feature space, of the layer that is shown."""
    entry = own.entry(kind, "knn_purity", layer)
    if entry is None and is_last:
        entry = own.entry(kind, "knn_purity")  # the last layer has no number there
    return None if entry is None else [as_number(entry.get(key)) for key in ("before", "value")]


def _classes(
    collapse: Collapse, points: Mapping[int, RunPoints], kept: Sequence[int], kind: str
) -> list[str]:
    """Classes in the order of the measures, then of the points."""
    found: dict[str, None] = {}
    for at in kept:
        part: Points | None = getattr(points[at], kind)
        present = dict.fromkeys(part.classes) if part else {}
        named = [entry["class"] for entry in collapse.runs[at].measures.get("classes", [])]
        found.update(dict.fromkeys(name for name in named if name in present))
        found.update(present)
    return list(found)

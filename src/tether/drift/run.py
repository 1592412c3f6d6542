"""`measure_run`: what became of the pretrained features in one finished run.

The pretrained and the adapted model look at the same atoms and edges of the same test structures;
the numbers come from `tether.collapse`, which knows arrays only.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.collapse.embed import joint_embedding
from tether.collapse.separation import class_purity
from tether.collapse.table import cheap_measures, tsne_measures
from tether.drift.files import (
    FORMAT,
    CollapseFolder,
    Picture,
    atom_columns,
    edge_columns,
    structure_columns,
    write_table,
)
from tether.drift.function import function_measures
from tether.drift.groups import UNKNOWN, frequent
from tether.drift.opened import ID_SET, DriftSettings, OpenedRun
from tether.drift.points import Points, atom_points, edge_points, take_sample
from tether.drift.prints import Prints, label_columns, structure_batches, take_prints
from tether.errors import TetherError
from tether.run import environment
from tether.serialization import write_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from tether.backbones.protocol import Backbone
    from tether.collapse.measurement import Measurement

__all__ = ["STAGES", "check_packages", "is_current", "measure_run"]

#: What `measure_run` reports as done, in order.
STAGES = ("features", "fingerprints", "atoms", "edges", "pictures", "files")
#: Of what is sampled and computed: measures of another number are made again. 2: classes by what
#: most atoms are of, and OOD detection of structures drawn at random alone.
METHOD = 2


def measure_run(
    folder: Path,
    *,
    subset: str = ID_SET,
    per_class: int = 200,
    seed: int = 0,
    embed_seeds: tuple[int, ...] = (0, 1, 2),
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Measure representation collapse in a finished run.

    Atoms and edges of `subset` are measured. The pictures also show half as many of each OOD test
    set, and fingerprints of structures tell how well those can be told from `subset`.

    Parameters
    ----------
    folder : Path
        A complete run.
    subset : str
        Set of its split, see `DriftSettings`.
    per_class : int
        Atoms and edges of each class; of atoms fewer where there are more than ten classes, see
        `sample_atoms`.
    seed : int
        Of the samples and of every resampling.
    embed_seeds : tuple of int
        One t-SNE each; the first is the picture.
    report : callable
        Called with the name of each stage of `STAGES` when it is done.

    Returns
    -------
    Path
        ``<run>/collapse/measures.json``; see `tether.drift.files` for what lies beside it. A run
        that has it already, with these settings and weights, is left as it is.

    Raises
    ------
    TetherError
        When the folder is no complete run, its data are gone, or a package is missing; nothing is
        written.
    """
    check_packages()
    settings = DriftSettings(subset, per_class, seed, tuple(embed_seeds))
    opened, files = OpenedRun.open(folder, subset), CollapseFolder(folder)
    if is_current(opened, settings):
        return files.measures
    models = (opened.pretrained(), opened.adapted())
    looked = _look(opened, settings, models, report)
    content: dict[str, Any] = {
        "format": FORMAT,
        "subset": subset,
        "seed": seed,
        "n_atoms": looked.atoms.of(subset).n_points,
        "n_edges": 0 if looked.edges is None else looked.edges.of(subset).n_points,
        "atoms": _dicts(_measures(looked.atoms.of(subset), settings)),
    }
    report("atoms")
    edges = [] if looked.edges is None else _measures(looked.edges.of(subset), settings)
    content["edges"] = _dicts(edges)
    content["function"] = _dicts(function_measures(opened, looked.prints, subset))
    own = looked.atoms.of(subset)
    content["classes"] = _class_rows(own, own.classes)
    content["left_out"] = looked.left_out
    content["groups"] = _class_rows(own, frequent(own.group))
    content["provenance"] = _provenance(opened, settings, models[0])
    report("edges")
    _write_tables(opened, settings, looked, report)
    write_json(files.measures, content)
    report("files")
    return files.measures


def check_packages() -> None:
    """Refuse to start where a package of the extra ``collapse`` is missing.

    Raises
    ------
    TetherError
        Before minutes have been spent on features.
    """
    for package, module in (("openTSNE", "openTSNE"), ("POT", "ot"), ("rdkit", "rdkit")):
        if find_spec(module) is None:
            raise TetherError(
                f"the package {package} is not installed",
                expected="the extra `collapse`",
                fix="pip install 'tether[collapse]'",
            )


def is_current(opened: OpenedRun, settings: DriftSettings) -> bool:
    """Whether a run has its measures, made with these settings from the weights that it has now.

    Parameters
    ----------
    opened : OpenedRun
        The run.
    settings : DriftSettings
        What is asked for.

    Returns
    -------
    bool
        False also where a measurement was killed: ``measures.json`` is written last.
    """
    return CollapseFolder(opened.run.folder).holds(_identity(opened, settings))


@dataclass(frozen=True)
class _Looked:
    """All that the two models were asked for.

    `edges` is None where the backbone has no edge features; `names` are the sets, measured first;
    `left_out` says which share of the measured set's atoms is of how many classes not sampled.
    """

    names: list[str]
    left_out: dict[str, float]
    atoms: Points
    edges: Points | None
    prints: Prints


def _look(
    opened: OpenedRun,
    settings: DriftSettings,
    models: tuple[Backbone, Backbone],
    report: Callable[[str], None],
) -> _Looked:
    names = [settings.subset, *opened.ood_sets(settings.subset)]
    half = max(1, settings.per_class // 2)
    samples = [
        take_sample(
            opened.store,
            opened.split.indices[name],
            name=name,
            models=models,
            per_class=settings.per_class if name == settings.subset else half,
            seed=settings.seed,
        )
        for name in names
    ]
    report("features")
    needed = {one.name: one.atoms.rows for one in samples}
    prints = take_prints(opened, needed, models=models, seed=settings.seed)
    report("fingerprints")
    atoms, edges = atom_points(opened.store, samples), edge_points(opened.store, samples)
    own = samples[0].atoms
    left_out = {"n_classes": own.n_left_out, "share_of_atoms": own.share_left_out}
    return _Looked(names, left_out, atoms, edges, prints)


def _measures(points: Points, settings: DriftSettings) -> list[Measurement]:
    """Cheap measures of every layer, t-SNE of the last one; layer None is the last."""
    found: list[Measurement] = []
    if not points.n_points:
        return found
    last = len(points.before) - 1
    for layer, (before, after) in enumerate(zip(points.before, points.after, strict=True)):
        found += cheap_measures(
            before,
            after,
            points.classes,
            points.row,
            seed=settings.seed,
            layer=None if layer == last else layer,
        )
    found += tsne_measures(
        points.before[last],
        points.after[last],
        points.classes,
        points.row,
        seeds=settings.embed_seeds,
    )
    return found


def _class_rows(points: Points, labels: NDArray[np.str_]) -> list[dict[str, Any]]:
    """Each class in the last layer: purity of its neighbours, and how far its atoms have moved."""
    known = labels != UNKNOWN
    if not known.any():
        return []
    classes, row = labels[known], points.row[known]
    before, after = (layers[-1][known].astype(float) for layers in (points.before, points.after))
    try:
        purity = [class_purity(x, classes, groups=row) for x in (before, after)]
    except TetherError:  # too few atoms, or one class: the measures above say which
        purity = [{}, {}]
    spread = float(np.sqrt(((before - before.mean(axis=0)) ** 2).sum(axis=1).mean()))
    moved = np.sqrt(((after - before) ** 2).sum(axis=1))
    rows = []
    for name in np.unique(classes).tolist():
        here = classes == name
        rows.append(
            {
                "class": name,
                "n": int(here.sum()),
                "purity_before": purity[0].get(name),
                "purity_after": purity[1].get(name),
                # In spreads of the pretrained features, the scale of the Wasserstein distances.
                "displacement": float(moved[here].mean()) / spread if spread > 0 else None,
            }
        )
    return rows


def _write_tables(
    opened: OpenedRun, settings: DriftSettings, looked: _Looked, report: Callable[[str], None]
) -> None:
    atoms, edges, prints = looked.atoms, looked.edges, looked.prints
    files = CollapseFolder(opened.run.folder)
    seed = settings.embed_seeds[0]
    pictures = [_picture(*pair, seed) for pair in zip(atoms.before, atoms.after, strict=True)]
    edge_picture = None if edges is None else _picture(edges.before[0], edges.after[0], seed)
    report("pictures")
    structures = structure_columns(
        structure_batches(opened, prints, looked.names),
        label_columns(opened, prints, looked.names),
        np.concatenate([prints.distance[name] for name in looked.names]),
    )
    # Killed from here on, the folder must not pass for a complete one with other tables.
    for path in (files.measures, files.edges):
        path.unlink(missing_ok=True)
    write_table(files.structures, structures)
    write_table(files.atoms, atom_columns(pictures, atoms))
    if edges is not None and edge_picture is not None:
        write_table(files.edges, edge_columns(edge_picture, edges))


def _picture(before: NDArray[np.float32], after: NDArray[np.float32], seed: int) -> Picture:
    try:
        (found,) = joint_embedding(before, after, seeds=(seed,))
    except TetherError:
        # A few points, or points that coincide: the measures say so, and have no picture.
        found = (np.full((len(before), 2), np.nan), np.full((len(after), 2), np.nan))
    return Picture(*found)


def _dicts(measures: list[Measurement]) -> list[dict[str, Any]]:
    return [one.to_dict() for one in measures]


def _identity(opened: OpenedRun, settings: DriftSettings) -> dict[str, Any]:
    return {**settings.to_dict(), "method": METHOD, "weights_sha256": opened.weights_sha256}


def _provenance(opened: OpenedRun, settings: DriftSettings, pretrained: Backbone) -> dict[str, Any]:
    return {
        "settings": _identity(opened, settings),
        "recipe": opened.recipe,
        "run_seed": opened.seed,
        "backbone": pretrained.spec.to_dict(),
        "data": {"store": opened.store.fingerprint, "split": opened.split.fingerprint},
        **environment(),
    }

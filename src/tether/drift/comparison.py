"""`measure_collapse`: every complete run of a comparison, and which measure foretells failure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.collapse.pooled import pool
from tether.collapse.predicts import rank_correlation
from tether.config import load_config
from tether.drift.files import FORMAT, CollapseFolder
from tether.drift.opened import ID_SET, DriftSettings, OpenedRun
from tether.drift.run import check_packages, is_current, measure_run
from tether.errors import TetherError
from tether.metrics.resampling import flat_errors
from tether.run import Run
from tether.serialization import read_json, write_json
from tether.summary import errors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["MeasureJob", "collapse_file", "measure_collapse", "plan_measures"]

#: What makes two rows of two runs the same measure.
KEY = ("points", "name", "layer")
#: Facts of a measure that are the same in every run.
FACTS = ("label", "unit", "family", "collapse_means", "invariant", "needs_ood_labels", "source")


@dataclass(frozen=True)
class MeasureJob:
    """One run to be measured.

    Attributes
    ----------
    folder : Path
        Of the run.
    is_done : bool
        Whether its measures are there already, with the same settings and weights.
    """

    folder: Path
    is_done: bool


def collapse_file(folder: Path) -> Path:
    """Where the measures of a folder are: ``collapse.json`` of a comparison, else of the run.

    Parameters
    ----------
    folder : Path
        A comparison or a run.

    Returns
    -------
    Path
        It need not exist.
    """
    return folder / "collapse.json" if _is_comparison(folder) else CollapseFolder(folder).measures


def plan_measures(folder: Path, settings: DriftSettings) -> list[MeasureJob]:
    """The runs that `measure_collapse` would look at, all opened and checked.

    Parameters
    ----------
    folder : Path
        A run, or a comparison with ``runs/``.
    settings : DriftSettings
        What will be looked at.

    Returns
    -------
    list of MeasureJob
        In the order of the comparison's config where it has one, else by name.

    Raises
    ------
    TetherError
        When the folder is neither, none of its runs is complete, one cannot be opened, or a
        package is missing.
    """
    if not folder.is_dir():
        raise TetherError(
            f"there is no folder {folder}",
            expected="the folder of a run or of a comparison",
            fix="make one with `tether adapt` or `tether compare`",
        )
    folders = [folder]
    if _is_comparison(folder):
        folders = [path for path in sorted((folder / "runs").iterdir()) if _is_finished(path)]
        if not folders:
            raise TetherError(
                f"no run of {folder} is complete",
                expected="at least one with metrics.json",
                fix="let `tether compare` come to its end first",
            )
    check_packages()
    opened = [OpenedRun.open(path, settings.subset) for path in folders]
    place = {name: i for i, name in enumerate(_recipe_names(folder))} if len(opened) > 1 else {}
    opened.sort(key=lambda one: (place.get(one.recipe, len(place)), one.recipe, one.seed))
    return [MeasureJob(one.run.folder, is_current(one, settings)) for one in opened]


def measure_collapse(
    folder: Path,
    *,
    subset: str = ID_SET,
    per_class: int = 200,
    seed: int = 0,
    embed_seeds: tuple[int, ...] = (0, 1, 2),
    report: Callable[[Path, str], None] = lambda _folder, _stage: None,
) -> dict[str, Any]:
    """Measure a run, or every complete run of a comparison; a killed measurement continues.

    Parameters
    ----------
    folder : Path
        A run, or a comparison.
    subset, per_class, seed, embed_seeds
        See `measure_run`.
    report : callable
        Called with a run's folder and each of its stages that is done.

    Returns
    -------
    dict
        Content of ``collapse.json``, which a comparison gets: ``runs`` (each measure of each run,
        and how much was left out), ``pooled`` (over the seeds of each recipe) and ``predicts``
        (rank correlation of each measure with the OOD error over the runs). For a single run the
        same, not written.

    Raises
    ------
    TetherError
        See `plan_measures` and `measure_run`.
    """
    settings = DriftSettings(subset, per_class, seed, tuple(embed_seeds))
    jobs = plan_measures(folder, settings)
    for job in jobs:
        if not job.is_done:
            measure_run(
                job.folder,
                subset=subset,
                per_class=per_class,
                seed=seed,
                embed_seeds=settings.embed_seeds,
                report=lambda stage, job=job: report(job.folder, stage),  # type: ignore[misc]
            )
    opened = [OpenedRun.open(job.folder, subset) for job in jobs]
    target = opened[0].config.targets[0]
    runs = [_run_entry(one, target) for one in opened]
    content = {
        "format": FORMAT,
        "target": target,
        "unit": opened[0].store.targets[target].unit,
        "subset": subset,
        "settings": settings.to_dict(),
        "runs": runs,
        "pooled": _pooled(runs),
        "predicts": _predicts(runs, seed=seed),
    }
    if _is_comparison(folder):
        write_json(collapse_file(folder), content)
    return content


def _is_comparison(folder: Path) -> bool:
    return (folder / "runs").is_dir() and not Run(folder).is_complete


def _recipe_names(folder: Path) -> list[str]:
    config = folder / "config.yaml"
    return [point.name for point in load_config(config).points()] if config.exists() else []


def _is_finished(folder: Path) -> bool:
    run = Run(folder)
    return folder.is_dir() and run.is_complete and run.config.exists()


def _run_entry(opened: OpenedRun, target: str) -> dict[str, Any]:
    content = read_json(CollapseFolder(opened.run.folder).measures)
    measures = [
        {"points": points, **measure}
        for points in ("atoms", "edges", "function")
        for measure in content[points]
    ]
    errors = errors_of(opened.run)

    def error(sets: Sequence[str]) -> float | None:
        found = [errors[target, name] for name in sets if (target, name) in errors]
        values = [flat_errors(errors) for errors in found]
        return float(np.sqrt(np.mean(np.concatenate(values) ** 2))) if found else None

    return {
        "recipe": opened.recipe,
        "seed": opened.seed,
        "folder": opened.run.folder.name,
        "id_rmse": error([ID_SET]),
        "ood_rmse": error(opened.ood_sets(ID_SET)),
        "left_out": content["left_out"],
        "measures": measures,
    }


def _pooled(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each measure over the seeds of each recipe."""
    rows: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        for measure in run["measures"]:
            rows.setdefault((run["recipe"], *(measure[k] for k in KEY)), []).append(measure)
    pooled = []
    for (recipe, *_), found in rows.items():
        whole = asdict(pool(found))
        seeds = list(whole.pop("seeds"))
        facts = {name: found[0][name] for name in (*KEY, *FACTS)}
        pooled.append(
            {"recipe": recipe, **facts, **whole, "n_seeds": len(seeds), "seed_values": seeds}
        )
    return pooled


def _predicts(runs: list[dict[str, Any]], *, seed: int) -> list[dict[str, Any]]:
    """Each measure against the OOD error over all runs, and the ID error as the one to beat."""
    keys = {tuple(m[k] for k in KEY): m for run in runs for m in run["measures"]}
    series = []
    for key, facts in keys.items():
        values = [_value_of(run, key) for run in runs]
        series.append((dict(zip(KEY, key, strict=True)), facts, values))
    baseline = {
        "label": "RMSE on the ID test set",
        "family": "function",
        "collapse_means": "higher",
        "needs_ood_labels": False,
    }
    series.append(
        (
            {"points": "function", "name": "id_rmse", "layer": None},
            baseline,
            [run["id_rmse"] for run in runs],
        )
    )
    rows = []
    for key_row, facts, values in series:
        pairs = [
            (value, run["ood_rmse"])
            for value, run in zip(values, runs, strict=True)
            if value is not None and run["ood_rmse"] is not None
        ]
        rows.append(
            {
                "measure": key_row["name"],
                "points": key_row["points"],
                "layer": key_row["layer"],
                "label": facts["label"],
                "family": facts["family"],
                "collapse_means": facts["collapse_means"],
                "needs_ood_labels": facts["needs_ood_labels"],
                **_correlation(pairs, seed=seed),
            }
        )
    return rows


def _value_of(run: dict[str, Any], key: tuple[Any, ...]) -> float | None:
    for measure in run["measures"]:
        if tuple(measure[k] for k in KEY) == key:
            value: float | None = measure["value"]
            return value
    return None


def _correlation(pairs: list[tuple[float, float]], *, seed: int) -> dict[str, Any]:
    values, errors = (np.array([pair[i] for pair in pairs], dtype=float) for i in (0, 1))
    nothing = {"rho": None, "low": None, "high": None, "p_value": None, "n": len(pairs)}
    try:
        found = rank_correlation(values, errors, seed=seed)
    except TetherError as error:
        return {**nothing, "missing": error.problem}
    return {**nothing, **found, "missing": ""}

"""Read a comparison folder, or one run's folder, into plain values for the report."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = [
    "Comparison",
    "Predictions",
    "Run",
    "read_comparison",
    "read_object",
    "read_summary",
    "read_versioned",
    "refuse_pretraining",
]

_RUN_FILES = ("metrics.json", "log.jsonl", "predictions.parquet")
_ROW_KEYS = {
    "rows": ("recipe", "seed", "target", "unit", "subset", "metric", "value"),
    "gains": ("recipe", "reference", "target", "subset", "metric", "gain_percent"),
    "limit_distances": ("recipe", "reference", "target", "subset", "metric", "value"),
    "reference_lines": ("name", "target", "subset", "metric", "value"),
    "forgetting": ("recipe", "seed", "force_mae_before", "force_mae_after"),
}


@dataclass(frozen=True)
class Predictions:
    """Predictions of one run for one target.

    Attributes
    ----------
    true, pred : ndarray of shape (n,)
        Label and prediction, in the target's unit.
    subset : ndarray of str, shape (n,)
        "val", "test/id", "test/ood", …
    """

    true: NDArray[np.float64]
    pred: NDArray[np.float64]
    subset: NDArray[np.str_]


@dataclass(frozen=True)
class Run:
    """What one run folder holds; a piece that is missing stands in `problems`, with the reason.

    Attributes
    ----------
    recipe, seed : str, int or None
        In a comparison from the folder's name, `<recipe>-s<seed>`, as in its summary.
    folder : Path
        The run folder.
    metrics : dict or None
        `metrics.json`.
    log : list of dict
        Events of `log.jsonl`, in order.
    predictions : dict of str to Predictions
        By target name.
    problems : dict of str to str
        File name to the reason why it is not available.
    """

    recipe: str
    seed: int | None
    folder: Path
    metrics: dict[str, Any] | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    predictions: dict[str, Predictions] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """A comparison folder in memory.

    Attributes
    ----------
    folder : Path
        Where it was read from.
    summary : dict
        `summary.json`, or the same shape made from a single run's files.
    runs : list of Run
        Sorted in the summary's order of recipes, then by seed.
    config_text : str
        The configuration as it stands in the folder.
    is_single_run : bool
        Whether `folder` is a run folder.
    left_out : list of str
        Run folders that the summary does not know.
    """

    folder: Path
    summary: dict[str, Any]
    runs: list[Run]
    config_text: str
    is_single_run: bool
    left_out: list[str] = field(default_factory=list)


def read_comparison(folder: Path) -> Comparison:
    """Read a comparison folder or a single run's folder.

    Parameters
    ----------
    folder : Path
        Holds `summary.json` and `runs/`, or is itself a run folder.

    Returns
    -------
    Comparison
        Everything that the report shows.

    Raises
    ------
    TetherError
        If the folder is neither or of a pretraining, or `summary.json` is not what
        `tether compare` writes.
    """
    folder = Path(folder)
    if (folder / "summary.json").is_file():
        return _read_runs(folder, read_summary(folder))
    refuse_pretraining(folder)
    if any((folder / name).is_file() for name in _RUN_FILES):
        run = _read_run(folder, *_identity(folder))
        summary = _summary_of_run(run)
        return Comparison(folder, summary, [run], _config_text(folder, summary), is_single_run=True)
    raise TetherError(
        f"no summary.json in {str(folder)!r}",
        expected="a comparison folder (summary.json, runs/) or a run folder (metrics.json)",
        fix="run `tether compare` to its end first, or name the folder of a run",
    )


def _read_runs(folder: Path, summary: dict[str, Any]) -> Comparison:
    """Read the runs that are in the summary, or that it misses."""
    names = list(dict.fromkeys(str(row["recipe"]) for row in summary["rows"]))
    paths = {path.name: path for path in sorted((folder / "runs").glob("*")) if path.is_dir()}
    expected = {f"{row['recipe']}-s{row['seed']}" for row in summary["rows"]}
    expected |= set(summary.get("missing_runs") or [])
    runs = [_read_run(path, *_from_name(name)) for name, path in paths.items() if name in expected]
    runs.sort(key=lambda run: _run_order(run, names))
    return Comparison(
        folder,
        summary,
        runs,
        _config_text(folder, summary),
        is_single_run=False,
        left_out=[name for name in paths if name not in expected],
    )


def refuse_pretraining(folder: Path) -> None:
    """Refuse the folder of a pretraining: it predicts nothing that could be looked at.

    Parameters
    ----------
    folder : Path
        Perhaps of a run.

    Raises
    ------
    TetherError
        If `tether pretrain` made it.
    """
    # Only one of them is there before the end, and the other may have been left behind.
    files = (folder / "metrics.json", folder / "state" / "identity.json")
    if any("objective" in read_object(path) for path in files):
        raise TetherError(
            f"{str(folder)!r} holds a pretraining",
            expected="a comparison, or a run that predicts properties (`tether adapt`)",
            fix=f"its results are in {folder / 'card.md'}, written when it has finished",
        )


def read_summary(folder: Path) -> dict[str, Any]:
    """Read and check `summary.json`.

    Parameters
    ----------
    folder : Path
        A comparison folder.

    Returns
    -------
    dict
        With the lists `rows`, `gains`, `limit_distances`, `reference_lines`, `forgetting` always
        present.

    Raises
    ------
    TetherError
        If it is not JSON, of another format, or a row lacks a key.
    """
    path = folder / "summary.json"
    fix = f"delete {path} and run `tether compare` again"
    summary = read_versioned(path, fix=fix)
    for key, needed in _ROW_KEYS.items():
        entries = summary.get(key) or []
        for entry in entries:
            missing = [name for name in needed if name not in entry]
            if missing:
                raise TetherError(
                    f"an entry of `{key}` in {str(path)!r} has no {', '.join(missing)}",
                    expected=f"the keys {', '.join(needed)}",
                    fix=fix,
                )
        summary[key] = entries
    return summary


def read_versioned(path: Path, *, fix: str) -> dict[str, Any]:
    """Read a JSON object of the format that this version writes.

    Parameters
    ----------
    path : Path
        `summary.json` or `results.json`.
    fix : str
        What to do about one that is not such, for the error.

    Returns
    -------
    dict
        The content.

    Raises
    ------
    TetherError
        If it is missing, not JSON, or of another format.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TetherError(
            f"{str(path)!r} cannot be read ({error})", expected="JSON", fix=fix
        ) from error
    if not isinstance(found, dict) or found.get("format") != 1:
        version = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise TetherError(f"`format` of {str(path)!r} is {version!r}", expected="1", fix=fix)
    return found


def _run_order(run: Run, names: list[str]) -> tuple[int, str, int]:
    rank = names.index(run.recipe) if run.recipe in names else len(names)
    return rank, run.recipe, -1 if run.seed is None else run.seed


def _config_text(folder: Path, summary: Mapping[str, Any]) -> str:
    path = folder / "config.yaml"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    config = summary.get("config")
    return json.dumps(config, indent=2, ensure_ascii=False) if config else ""


def _from_name(name: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.+)-s(\d+)", name)
    return (match[1], int(match[2])) if match else (name, None)


def _identity(folder: Path) -> tuple[str, int | None]:
    """Recipe and seed that a run was started with; from its name where it does not say so."""
    identity = read_object(folder / "state" / "identity.json")
    recipe, seed = identity.get("recipe"), identity.get("seed")
    name = recipe.get("name") if isinstance(recipe, dict) else None
    if isinstance(name, str) and isinstance(seed, int):
        return name, seed
    return _from_name(folder.resolve().name)


def _read_run(folder: Path, recipe: str, seed: int | None) -> Run:
    problems: dict[str, str] = {}
    metrics = _read_metrics(folder, problems)
    log = _read_log(folder, problems)
    predictions = _read_predictions(folder, problems)
    return Run(recipe, seed, folder, metrics, log, predictions, problems)


def _read_metrics(folder: Path, problems: dict[str, str]) -> dict[str, Any] | None:
    path = folder / "metrics.json"
    if not path.is_file():
        problems[path.name] = "metrics.json is not there: the run did not finish"
        return None
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        problems[path.name] = f"metrics.json is not JSON ({error})"
        return None
    if not isinstance(metrics, dict):
        problems[path.name] = f"metrics.json holds a {type(metrics).__name__}, not an object"
        return None
    return metrics


def _read_log(folder: Path, problems: dict[str, str]) -> list[dict[str, Any]]:
    path = folder / "log.jsonl"
    if not path.is_file():
        problems[path.name] = "log.jsonl is not there"
        return []
    events, n_broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            # A run that was killed while writing leaves half a line behind.
            n_broken += 1
            continue
        if isinstance(event, dict):
            events.append(event)
    if n_broken:
        problems[path.name] = f"{n_broken} unreadable line(s) of log.jsonl left out"
    return events


def _read_predictions(folder: Path, problems: dict[str, str]) -> dict[str, Predictions]:
    path = folder / "predictions.parquet"
    if not path.is_file():
        problems[path.name] = "predictions.parquet is not there: the run did not finish"
        return {}
    try:
        table = pq.read_table(path, columns=["target", "true", "pred", "subset"])
    except (pa.ArrowException, OSError, ValueError) as error:
        problems[path.name] = f"predictions.parquet cannot be read ({error})"
        return {}
    target = np.asarray(table["target"].to_pylist(), dtype=np.str_)
    subset = np.asarray(table["subset"].to_pylist(), dtype=np.str_)
    true, pred = (np.asarray(table[name].to_numpy(), dtype=np.float64) for name in ("true", "pred"))
    found: dict[str, Predictions] = {}
    for name in dict.fromkeys(target.tolist()):
        here = target == name
        found[name] = Predictions(true[here], pred[here], subset[here])
    return found


def read_object(path: Path) -> dict[str, Any]:
    """Content of a JSON file, empty where it is missing, damaged or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _summary_of_run(run: Run) -> dict[str, Any]:
    """Give one run's files the shape of `summary.json`: no intervals, no gains."""
    metrics = run.metrics or {}
    seed = "run" if run.seed is None else run.seed
    cost = {key: metrics.get(key) for key in ("property_steps", "seconds")}
    common = {"recipe": run.recipe, "seed": "pooled", "low": None, "high": None, **cost}
    split = read_object(run.folder / "split.json")
    provenance = read_object(run.folder / "provenance.json")
    forgetting = metrics.get("forgetting")
    before, after = ((forgetting or {}).get(when) or {} for when in ("before", "after"))
    return {
        "format": 1,
        "rows": [{**row, **common} for row in metrics.get("rows", [])],
        "gains": [],
        "limit_distances": [],
        "reference_lines": [],
        "forgetting": [
            {
                "recipe": run.recipe,
                "seed": seed,
                "force_mae_before": before.get("force_mae"),
                "force_mae_after": after.get("force_mae"),
                "energy_mae_before": before.get("energy_mae_per_atom"),
                "energy_mae_after": after.get("energy_mae_per_atom"),
            }
        ],
        "split": {
            "name": split.get("name"),
            "method": split.get("method"),
            "target": (split.get("parameters") or {}).get("target"),
            "sizes": {name: len(rows) for name, rows in split.get("indices", {}).items()},
            "report": split.get("report", {}),
        },
        "backbone": provenance.get("backbone", {}),
        "provenance": provenance,
    }

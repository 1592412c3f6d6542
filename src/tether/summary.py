"""`summarise`: the run folders of a comparison → the numbers of every table and plot.

Errors come from ``predictions.parquet`` alone, so that a table can always be made again.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow.parquet as pq

from tether.data.store import Store
from tether.metrics.intervals import bootstrap_interval, paired_gain, seed_pooled_interval
from tether.metrics.limit import limit_interval
from tether.metrics.resampling import flat_errors
from tether.run import Run
from tether.serialization import read_json
from tether.splits.report import reference_lines
from tether.splits.split import Split

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from tether.config import Config
    from tether.metrics.resampling import Statistic, StructureErrors

__all__ = ["INTERVALS", "LEVEL", "Errors", "errors_of", "summarise"]

STATISTICS: tuple[Statistic, ...] = ("mae", "rmse")
#: Recipe whose gap between OOD and ID error is the unit of the distance to the limit.
LIMIT_REFERENCE = "full"
#: Nominal coverage of every interval.
LEVEL = 0.95
#: How intervals are made: a summary with others is made again.
INTERVALS = "bootstrap over structures, Student's t over seeds"
#: (recipe, seed) → (target, subset) → errors.
Errors: TypeAlias = "dict[tuple[str, int], dict[tuple[str, str], StructureErrors]]"


def summarise(folder: Path, *, config: Config) -> dict[str, Any]:
    """Collect complete runs.

    Parameters
    ----------
    folder : Path
        Of the comparison, with ``runs/<recipe>-s<seed>/``.
    config : Config
        What was compared.

    Returns
    -------
    dict
        The content of ``summary.json``; see `ARCHITECTURE.md`. Errors are in the target's unit,
        forces in eV/Å, energies in eV/atom.
    """
    names = config.methods()
    runs = {
        (name, seed): Run(folder / "runs" / f"{name}-s{seed}")
        for name in names
        for seed in config.seeds
    }
    complete = {key: run for key, run in runs.items() if run.is_complete}
    metrics = {key: read_json(run.metrics) for key, run in complete.items()}
    errors: Errors = {key: errors_of(run) for key, run in complete.items()}
    store = Store.open(config.store)
    split = Split.from_json(config.split, fingerprint=store.fingerprint)
    units = {name: store.targets[name].unit for name in config.targets}
    # A random initialisation says nothing about the backbone that the comparison is about.
    pretrained = {point.name for point in config.points() if point.initialisation == "pretrained"}
    ordered = sorted(complete, key=lambda key: key[0] not in pretrained)
    first = complete[ordered[0]] if ordered else None
    provenance = read_json(first.provenance) if first else {}
    return {
        "format": 1,
        "level": LEVEL,
        "intervals": INTERVALS,
        "rows": _seed_rows(errors, metrics, units) + _pooled_rows(errors, metrics, units, names),
        "gains": _gains(errors, names, config.references),
        "limit_distances": _limit_distances(errors, names),
        "reference_lines": _reference_lines(store, split, units),
        "forgetting": _forgetting(metrics),
        "split": {
            "name": split.name,
            "method": split.method,
            # Which property the ranges in the report are of; None where the rule looked at none.
            "target": split.parameters.get("target"),
            "sizes": split.sizes,
            "report": split.report,
        },
        "backbone": provenance.get("backbone", {}),
        "provenance": provenance,
        "config": config.model_dump(mode="json"),
        "missing_runs": [f"{n}-s{s}" for (n, s) in runs if (n, s) not in complete],
        "digests": {f"{n}-s{s}": run.digest for (n, s), run in complete.items()},
    }


def errors_of(run: Run) -> dict[tuple[str, str], StructureErrors]:
    """Errors of a finished run.

    Parameters
    ----------
    run : Run
        With predictions.

    Returns
    -------
    dict
        (target, subset) → prediction minus truth in the target's unit, one of each labelled
        structure (or an array, of its labelled atoms), in the order of the split; sets without a
        label are left out.
    """
    table = pq.read_table(run.predictions)
    target, subset, ids = (
        np.asarray(table[name].to_pylist(), dtype=object) for name in ("target", "subset", "id")
    )
    atomwise = {t["name"] for t in read_json(run.provenance)["targets"] if t["level"] == "atom"}
    error = table["pred"].to_numpy() - table["true"].to_numpy()
    found: dict[tuple[str, str], StructureErrors] = {}
    for key in dict.fromkeys(zip(target, subset, strict=True)):
        known = (target == key[0]) & (subset == key[1]) & ~np.isnan(error)
        if not known.any():  # a set without labels of one of several targets has no error
            continue
        found[key] = error[known]
        if key[0] in atomwise:
            own = ids[known]
            found[key] = tuple(np.split(error[known], np.flatnonzero(own[1:] != own[:-1]) + 1))
    return found


def _row(
    recipe: str, seed: int | str, key: tuple[str, str], units: dict[str, str], **values: Any
) -> dict[str, Any]:
    target, subset = key
    return {
        "recipe": recipe,
        "seed": seed,
        "target": target,
        "unit": units[target],
        "subset": subset,
        **values,
    }


def _seed_rows(
    errors: Errors, metrics: dict[tuple[str, int], Any], units: dict[str, str]
) -> list[dict[str, Any]]:
    rows = []
    for (recipe, seed), by_subset in errors.items():
        cost = {k: metrics[recipe, seed][k] for k in ("property_steps", "seconds")}
        for key, error in by_subset.items():
            for statistic in STATISTICS:
                found = bootstrap_interval(error, statistic, level=LEVEL)
                numbers = {"value": found.value, "low": found.low, "high": found.high}
                rows.append(
                    _row(
                        recipe, seed, key, units, metric=statistic, **numbers, n=len(error), **cost
                    )
                )
    return rows


def _pooled_rows(
    errors: Errors,
    metrics: dict[tuple[str, int], Any],
    units: dict[str, str],
    names: list[str],
) -> list[dict[str, Any]]:
    rows = []
    for recipe in names:
        seeds = [key for key in errors if key[0] == recipe]
        if not seeds:
            continue
        cost = {
            k: float(np.mean([metrics[key][k] for key in seeds]))
            for k in ("property_steps", "seconds")
        }
        for key in errors[seeds[0]]:
            by_seed = [errors[seed][key] for seed in seeds]
            for statistic in STATISTICS:
                found = seed_pooled_interval(by_seed, statistic, level=LEVEL)
                numbers = {"value": found.value, "low": found.low, "high": found.high}
                rows.append(
                    _row(
                        recipe,
                        "pooled",
                        key,
                        units,
                        metric=statistic,
                        **numbers,
                        n=len(by_seed[0]),
                        **cost,
                    )
                )
    return rows


def _by_recipe(errors: Errors) -> dict[str, dict[int, Any]]:
    by_recipe: dict[str, dict[int, Any]] = defaultdict(dict)
    for (recipe, seed), found in errors.items():
        by_recipe[recipe][seed] = found
    return by_recipe


def _limit_distances(errors: Errors, names: list[str]) -> list[dict[str, Any]]:
    """How much of the gap between OOD and ID error of `LIMIT_REFERENCE` each recipe leaves."""
    by_recipe = _by_recipe(errors)
    rows = []
    reference = by_recipe.get(LIMIT_REFERENCE, {})
    for recipe in (n for n in names if n in by_recipe and reference):
        seeds = sorted(by_recipe[recipe].keys() & reference.keys())
        keys = by_recipe[recipe][seeds[0]] if seeds else {}
        for target, subset in keys:
            inside = (target, "test/id")
            if not subset.startswith("test/") or subset == "test/id" or inside not in keys:
                continue
            ours, theirs = (
                (
                    [one[seed][target, subset] for seed in seeds],
                    [one[seed][inside] for seed in seeds],
                )
                for one in (by_recipe[recipe], reference)
            )
            for statistic in STATISTICS:
                found = limit_interval(ours, theirs, statistic, level=LEVEL)
                if np.isnan([found.value, found.low]).any():
                    continue  # the reference is no worse outside than inside, or within its noise
                rows.append(
                    {
                        "recipe": recipe,
                        "reference": LIMIT_REFERENCE,
                        "target": target,
                        "subset": subset,
                        "metric": statistic,
                        "value": found.value,
                        "low": found.low,
                        "high": found.high,
                        "n_seeds": len(seeds),
                    }
                )
    return rows


def _gains(errors: Errors, names: list[str], references: Sequence[str]) -> list[dict[str, Any]]:
    """Gain of every recipe over each reference, on the seeds that both have."""
    by_recipe = _by_recipe(errors)
    rows = []
    for reference in (r for r in references if r in by_recipe):
        for recipe in (n for n in names if n in by_recipe and n != reference):
            seeds = sorted(by_recipe[recipe].keys() & by_recipe[reference].keys())
            if not seeds:
                continue
            for target, subset in by_recipe[recipe][seeds[0]]:
                ours, theirs = (
                    [by_recipe[name][seed][target, subset] for seed in seeds]
                    for name in (recipe, reference)
                )
                if not any(flat_errors(one).any() for one in theirs):
                    continue  # of a faultless reference there are no shares
                for statistic in STATISTICS:
                    gain = paired_gain(ours, theirs, statistic, level=LEVEL)
                    rows.append(
                        {
                            "recipe": recipe,
                            "reference": reference,
                            "target": target,
                            "subset": subset,
                            "metric": statistic,
                            "gain_percent": gain.percent,
                            "low": gain.low,
                            "high": gain.high,
                            "p_value": gain.p_value,
                            "n_seeds": len(seeds),
                        }
                    )
    return rows


def _reference_lines(store: Store, split: Split, units: dict[str, str]) -> list[dict[str, Any]]:
    """What one gets without learning anything; a model must beat both to extrapolate."""
    labels = {
        target: store.label(target) for target in units if store.targets[target].level == "system"
    }
    return [
        line
        for target, unit in units.items()
        if target in labels
        for line in reference_lines(split, labels[target], target=target, unit=unit)
        if line["name"] != "clip oracle" or _extrapolates(split, labels[target], line["subset"])
    ]


def _extrapolates(split: Split, labels: NDArray[np.float64], subset: str) -> bool:
    """Whether a tenth of the labels is outside the range of training: inside, clipping is right."""
    train, asked = (labels[split.indices[name]] for name in ("train", subset))
    outside = (asked < np.nanmin(train)) | (asked > np.nanmax(train))
    return bool(10 * outside.sum() >= np.isfinite(asked).sum())


def _forgetting(metrics: dict[tuple[str, int], Any]) -> list[dict[str, Any]]:
    rows = []
    for (recipe, seed), found in metrics.items():
        if found["forgetting"] is None:
            continue
        before, after = found["forgetting"]["before"], found["forgetting"]["after"]
        rows.append(
            {
                "recipe": recipe,
                "seed": seed,
                "force_mae_before": before["force_mae"],
                "force_mae_after": after["force_mae"],
                "energy_mae_before": before["energy_mae_per_atom"],
                "energy_mae_after": after["energy_mae_per_atom"],
            }
        )
    return rows

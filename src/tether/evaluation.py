"""Errors of a model on structures: properties, and the pretrained force field; and their files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ase.data import chemical_symbols

from tether.atomic import atomic_path
from tether.errors import TetherError
from tether.metrics.regression import mae, r2, rmse
from tether.serialization import write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

    from tether.graph import Graph
    from tether.heads.readout import PropertyHead
    from tether.model import AdaptedModel
    from tether.run import Run
    from tether.structures import AtomBatch

__all__ = [
    "Judged",
    "Potential",
    "check_elements",
    "check_validation_labels",
    "forcefield_errors",
    "judge",
    "potential_errors",
    "predict_potential",
    "property_errors",
    "true_labels",
    "write_results",
]

#: Metric name → function of (true, pred), as written to ``metrics.json``.
_METRICS = {"mae": mae, "rmse": rmse, "r2": r2}
# Structures whose forces are computed at once.
_AT_ONCE = 64
#: Columns of ``predictions.parquet``.
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("target", pa.string()),
        *[(name, pa.float64()) for name in ("true", "pred", "std", "ood_score")],
        ("subset", pa.string()),
    ]
)
#: Half the size: names have long common beginnings, and predictions common leading bytes.
_ENCODING: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": ["target", "true", "subset"],
    "column_encoding": {"id": "DELTA_BYTE_ARRAY", "pred": "BYTE_STREAM_SPLIT"},
}


@dataclass(frozen=True)
class Potential:
    """What an energy head says of structures, in double precision and on the CPU.

    Attributes
    ----------
    energy : Tensor, shape (n_systems,)
        eV.
    forces : Tensor, shape (n_atoms, 3)
        eV/Å.
    stress : Tensor, shape (n_systems, 9), or None
        eV/Å³; None where the structures have no cell.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor | None


@dataclass(frozen=True)
class Judged:
    """Predictions of one subset beside their labels.

    Attributes
    ----------
    subset : str
        "val", "test/id", …
    ids : mapping of str to sequence of str
        By target, the name of each entry's structure.
    predictions, labels : mapping of str to ndarray, shape (n_systems,) or (n_atoms,)
        By target, in its unit; a label that is NaN is unknown.
    """

    subset: str
    ids: Mapping[str, Sequence[str]]
    predictions: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]


def true_labels(model: AdaptedModel, graph: Graph) -> dict[str, np.ndarray]:
    """Labels of every head's target, in the target's unit; NaN where unlabelled.

    Parameters
    ----------
    model : AdaptedModel
        Its heads say which targets.
    graph : Graph
        Labelled structures.

    Returns
    -------
    dict of str to ndarray, shape (n_systems,) or (n_atoms,)
        By target name.
    """
    labels = {}
    for name, head in model.heads.items():
        of_level = graph.batch.labels if head.target.level == "system" else graph.batch.atom_labels
        labels[name] = of_level[name].double().numpy()
    return labels


def property_errors(
    predictions: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """MAE, RMSE and R² of each target over its labelled entries.

    Parameters
    ----------
    predictions, labels : mapping of str to ndarray
        By target name, same shapes.

    Returns
    -------
    dict of str to dict of str to float
        Target → metric → value, with ``n`` the number of labelled entries.
    """
    errors = {}
    for name, predicted in predictions.items():
        known = ~np.isnan(labels[name])
        true, guess = labels[name][known], predicted[known]
        # R² of a single point, or of equal labels, is not defined.
        names = [m for m in _METRICS if m != "r2" or (true.size > 1 and np.ptp(true) > 0)]
        errors[name] = {m: float(_METRICS[m](true, guess)) for m in names if true.size}
        errors[name]["n"] = int(known.sum())
    return errors


def predict_potential(model: AdaptedModel, graph: Graph, *, head: str | None = None) -> Potential:
    """Energy, forces and stress on the model's present features.

    Parameters
    ----------
    model : AdaptedModel
        With a potential.
    graph : Graph
        The structures.
    head : str, optional
        Of the model's `potentials`; default: the backbone's own.

    Returns
    -------
    Potential
        In the order of the structures.
    """
    energies, forces, stresses = [], [], []
    for rows in torch.arange(graph.n_systems).split(_AT_ONCE):
        piece = graph.select(rows)
        found = model.energy_forces(piece.to(model.device), head=head)
        energies.append(found[0].double().cpu())
        forces.append(found[1].double().cpu())
        if found[2] is not None:
            stresses.append(found[2].double().cpu().flatten(1))
    return Potential(
        torch.cat(energies), torch.cat(forces), torch.cat(stresses) if stresses else None
    )


def forcefield_errors(
    model: AdaptedModel, graph: Graph, *, head: str | None = None
) -> dict[str, float]:
    """Errors of an energy head on the model's present features.

    Parameters
    ----------
    model : AdaptedModel
        With a potential.
    graph : Graph
        With ``energy``, NaN where it is not known, and ``forces``.
    head : str, optional
        Of the model's `potentials`; default: the backbone's own.

    Returns
    -------
    dict
        See `potential_errors`.
    """
    return potential_errors(predict_potential(model, graph, head=head), graph.batch)


def potential_errors(found: Potential, batch: AtomBatch) -> dict[str, float]:
    """Errors of predicted energies, forces and stress.

    Energies of a potential trained on forces mean something only as differences: the mean error
    per atom over the set is taken out before the energy error is formed.

    Parameters
    ----------
    found : Potential
        Predictions.
    batch : AtomBatch
        The same structures with ``energy``, NaN where it is not known, and ``forces``.

    Returns
    -------
    dict
        ``force_mae``, ``force_rmse`` (eV/Å, over components); ``energy_mae_per_atom`` (eV) where
        energies are known, and where some are not ``n_energies``, how many are; ``stress_mae``
        (eV/Å³, over components) where a structure has a label of it.
    """
    force_error = (found.forces - batch.atom_labels["forces"]).flatten()
    energy_error = (found.energy - batch.labels["energy"]) / batch.counts
    errors = {
        "force_mae": float(force_error.abs().mean()),
        "force_rmse": float(force_error.square().mean().sqrt()),
    }
    # By the labels: a prediction that is NaN must show.
    known = energy_error[torch.isfinite(batch.labels["energy"])]
    n_unknown = len(energy_error) - len(known)
    if len(known) > 1 or not n_unknown:  # a single one among others has no difference
        errors["energy_mae_per_atom"] = float((known - known.mean()).abs().mean())
    if n_unknown:
        errors["n_energies"] = len(known)
    if found.stress is not None and "stress" in batch.labels:
        stress_error = found.stress - batch.labels["stress"]
        stress_error = stress_error[torch.isfinite(stress_error)]
        if len(stress_error):
            errors["stress_mae"] = float(stress_error.abs().mean())
    return errors


def check_validation_labels(labels: Mapping[str, np.ndarray]) -> None:
    """Refuse a validation set that cannot choose between models.

    Parameters
    ----------
    labels : mapping of str to ndarray
        Of set ``val``, by target.

    Raises
    ------
    TetherError
        For a target without any label.
    """
    for name, values in labels.items():
        if not np.isfinite(values).any():
            raise TetherError(
                f"target {name!r} has no label among the {len(values)} of set 'val'",
                expected="labels to choose the best step by",
                fix="split again, so that val has labelled structures",
            )


def check_elements(heads: Iterable[PropertyHead], structures: Mapping[str, AtomBatch]) -> None:
    """Refuse structures whose extensive label has a part that training could not tell.

    Parameters
    ----------
    heads : iterable of PropertyHead
        With the scale of the training labels.
    structures : mapping of str to AtomBatch
        What is to be predicted, by the name of the set or file.

    Raises
    ------
    TetherError
        For an extensive target and an element that no labelled training structure has.
    """
    for head in heads:
        for name, batch in structures.items():
            unknown = head.lacks_reference(batch)
            if not unknown.any():
                continue
            rows = batch.system_idx[unknown].unique().tolist()
            elements = [chemical_symbols[z] for z in batch.numbers[unknown].unique().tolist()]
            which = f", the first {batch.ids[rows[0]]!r}," if batch.ids else ""
            raise TetherError(
                f"target {head.target.name!r} is extensive, and {len(rows)} structure(s) of "
                f"{name!r}{which} hold {', '.join(elements)}, which no labelled training structure "
                "has: their share of the label would be taken for zero",
                expected="elements of the training set",
                fix="predict a formation or atomisation energy, or take these structures out "
                "(another split)",
            )


def judge(model: AdaptedModel, graph: Graph, subset: str) -> Judged:
    """Predict a subset.

    Parameters
    ----------
    model : AdaptedModel
        With the weights to judge.
    graph : Graph
        Labelled structures.
    subset : str
        Their name.

    Returns
    -------
    Judged
        For `write_results`.
    """
    batch = graph.batch
    of_atoms = [batch.ids[s] for s in batch.system_idx.tolist()]
    ids = {
        name: of_atoms if head.target.level == "atom" else batch.ids
        for name, head in model.heads.items()
    }
    return Judged(subset, ids, model.predict(graph), true_labels(model, graph))


def write_results(
    run: Run,
    judged: Iterable[Judged],
    units: Mapping[str, str],
    *,
    forgetting: Mapping[str, Any] | None,
    property_steps: int,
    forcefield_steps: int,
    best_step: int,
    seconds: float,
    **more: Any,
) -> None:
    """Write ``predictions.parquet``, then ``metrics.json``, which completes the run.

    Parameters
    ----------
    run : Run
        Where.
    judged : iterable of Judged
        Validation and test sets.
    units : mapping of str to str
        Of each target.
    forgetting : mapping or None
        Force-field errors ``before`` and ``after``; None where there is no force field.
    property_steps, forcefield_steps : int
        Gradient steps of each task.
    best_step : int
        Property steps of the weights that were kept.
    seconds : float
        That the training took.
    **more
        Further keys of ``metrics.json``, those that are not empty.
    """
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
    rows: list[dict[str, Any]] = []
    for found in judged:
        for target, predicted in found.predictions.items():
            n = len(predicted)
            columns["id"] += found.ids[target]
            columns["target"] += [target] * n
            columns["true"] += found.labels[target].tolist()
            columns["pred"] += predicted.tolist()
            columns["std"] += [None] * n
            columns["ood_score"] += [None] * n
            columns["subset"] += [found.subset] * n
        for target, errors in property_errors(found.predictions, found.labels).items():
            common = {"target": target, "unit": units[target], "subset": found.subset}
            n = int(errors.pop("n"))
            rows += [{**common, "metric": m, "value": v, "n": n} for m, v in errors.items()]
    with atomic_path(run.predictions) as temporary:
        pq.write_table(pa.table(columns, schema=_SCHEMA), temporary, **_ENCODING)
    write_json(
        run.metrics,
        {
            "rows": rows,
            "forgetting": forgetting,
            "property_steps": property_steps,
            "forcefield_steps": forcefield_steps,
            "best_step": best_step,
            "seconds": round(seconds, 1),
            **{name: value for name, value in more.items() if value},
        },
    )

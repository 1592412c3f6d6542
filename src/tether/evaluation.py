"""Errors of a model on prepared structures: properties, and the pretrained force field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tether.metrics.regression import mae, r2, rmse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tether.graph import Graph
    from tether.model import AdaptedModel

__all__ = ["forcefield_errors", "property_errors", "true_labels"]

#: Metric name → function of (true, pred), as written to ``metrics.json``.
_METRICS = {"mae": mae, "rmse": rmse, "r2": r2}


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


def forcefield_errors(
    model: AdaptedModel, graph: Graph, *, batch_size: int = 64
) -> dict[str, float]:
    """Errors of the pretrained energy head on the model's present features.

    Energies of a potential trained on forces mean something only as differences: the mean error
    per atom over the set is taken out before the energy error is formed.

    Parameters
    ----------
    model : AdaptedModel
        With a potential.
    graph : Graph
        With ``energy`` and ``forces``.
    batch_size : int
        Structures at a time.

    Returns
    -------
    dict
        ``force_mae``, ``force_rmse`` (eV/Å, over components), ``energy_mae_per_atom`` (eV), and
        ``stress_mae`` (eV/Å³, over components) where a structure has a label of it.
    """
    force_errors, energy_errors, stress_errors = [], [], []
    for start in range(0, graph.n_systems, batch_size):
        piece = graph.select(torch.arange(start, min(start + batch_size, graph.n_systems)))
        energy, forces, stress = model.energy_forces(piece)
        batch = piece.batch
        force_errors.append((forces.double() - batch.atom_labels["forces"]).flatten())
        energy_errors.append((energy.double() - batch.labels["energy"]) / batch.counts)
        if stress is not None and "stress" in batch.labels:
            error = stress.double().flatten(1) - batch.labels["stress"]
            stress_errors.append(error[torch.isfinite(error)])
    force_error, energy_error = torch.cat(force_errors), torch.cat(energy_errors)
    found = {
        "force_mae": float(force_error.abs().mean()),
        "force_rmse": float(force_error.square().mean().sqrt()),
        "energy_mae_per_atom": float((energy_error - energy_error.mean()).abs().mean()),
    }
    stress_error = torch.cat(stress_errors) if stress_errors else force_error.new_empty(0)
    return found | ({"stress_mae": float(stress_error.abs().mean())} if len(stress_error) else {})


def prediction_rows(
    model: AdaptedModel, graphs: Mapping[str, Graph]
) -> tuple[dict[str, list[Any]], list[dict[str, Any]]]:
    """Predictions and errors of every subset.

    Parameters
    ----------
    model : AdaptedModel
        With the weights to judge.
    graphs : mapping of str to Graph
        Subset name → labelled structures.

    Returns
    -------
    columns : dict of str to list
        Of ``predictions.parquet``.
    rows : list of dict
        Of ``metrics.json``.
    """
    columns: dict[str, list[Any]] = {
        name: [] for name in ("id", "target", "true", "pred", "std", "ood_score", "subset")
    }
    rows = []
    for subset, graph in graphs.items():
        predictions, labels = model.predict(graph), true_labels(model, graph)
        for name, predicted in predictions.items():
            head = model.heads[name]
            ids = list(graph.batch.ids)
            if head.target.level == "atom":
                ids = [ids[s] for s in graph.batch.system_idx.tolist()]
            n = len(ids)
            columns["id"] += ids
            columns["target"] += [name] * n
            columns["true"] += labels[name].tolist()
            columns["pred"] += predicted.tolist()
            columns["std"] += [None] * n
            columns["ood_score"] += [None] * n
            columns["subset"] += [subset] * n
        for name, found in property_errors(predictions, labels).items():
            common = {"target": name, "unit": model.heads[name].target.unit, "subset": subset}
            n = int(found.pop("n"))
            rows += [{**common, "metric": m, "value": v, "n": n} for m, v in found.items()]
    return columns, rows

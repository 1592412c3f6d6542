"""A comparison folder with everything that `tether collapse` writes, of real molecules.

Not a test: `load_synthetic` of the report tests imports it by path.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from ase.data import covalent_radii

ELEMENTS = {"H", "C", "N", "O", "F"}
N_STRUCTURES = 160
N_LAYERS = 4
# Share of the way to the common centre that the classes of a recipe went, in the last layer.
COLLAPSE = {"scratch": 0.75, "probe": 0.0, "full": 0.6, "layerwise": 0.4, "mft": 0.15}
# What the functional group of an atom of a class might be; "" = not known.
GROUPS = {"C4": "alkane", "H": "alkane", "O2": "ether", "O1": "ketone", "C3": "ketone"}
CLASSES = ("C4", "C3", "C2", "H", "F", "O2", "O1", "N3", "N2", "N1")


def molecules() -> list[Atoms]:
    """Molecules of the G2 set with the elements of QM9, repeated with shaken positions."""
    names = [name for name in g2.names if set(molecule(name).symbols) <= ELEMENTS]
    found = [molecule(name) for name in names if len(molecule(name)) > 2]
    shaken = []
    for idx in range(N_STRUCTURES):
        atoms = found[idx % len(found)].copy()
        atoms.rattle(0.03, seed=idx)
        shaken.append(atoms)
    return shaken


def _neighbours(atoms: Atoms) -> np.ndarray:
    reach = 1.15 * np.add.outer(*2 * [covalent_radii[atoms.numbers]])
    return (atoms.get_all_distances() < reach) & ~np.eye(len(atoms), dtype=bool)


def _sample(mols: list[Atoms], per_class: int = 40) -> list[tuple[int, int, str]]:
    found: dict[str, list[tuple[int, int, str]]] = {name: [] for name in CLASSES}
    for row, atoms in enumerate(mols):
        for at, count in enumerate(_neighbours(atoms).sum(axis=1)):
            symbol = atoms.symbols[at]
            name = symbol if symbol in {"H", "F"} else f"{symbol}{count}"
            if name in found and len(found[name]) < per_class:
                found[name].append((row, at, name))
    return [entry for entries in found.values() for entry in entries]


def _edges(mols: list[Atoms], per_class: int = 40) -> list[tuple[int, int, int, float, str]]:
    found: dict[str, list[tuple[int, int, int, float, str]]] = {}
    for row, atoms in enumerate(mols):
        bonded, distance = _neighbours(atoms), atoms.get_all_distances()
        for i, j in zip(*np.nonzero(distance), strict=True):
            pair = f"{atoms.symbols[i]}–{atoms.symbols[j]}"
            far = distance[i, j]
            regime = (
                "bonded"
                if bonded[i, j]
                else "3–4 Å"
                if 3 < far < 4
                else "5–6 Å"
                if 5 < far < 6
                else ""
            )
            if pair in {"C–O", "C–H"} and regime:
                entries = found.setdefault(f"{pair} {regime}", [])
                if len(entries) < per_class:
                    entries.append((row, int(i), int(j), float(far), f"{pair} {regime}"))
    return [entry for name in sorted(found) for entry in found[name]]


def _places(classes: list[str], share: float, seed: int) -> np.ndarray:
    """x and y before and after: classes on a ring, drawn together by a share of the way."""
    generator = np.random.default_rng(seed)
    names = list(dict.fromkeys(classes))
    angle = 2 * np.pi * np.array([names.index(name) for name in classes]) / len(names)
    centre = 30 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    spread = generator.normal(0, 4, centre.shape)
    before = centre + spread
    if share == 0:
        return np.concatenate([before, before], axis=1)
    moved = (1 - share) * centre + spread + generator.normal(0, 14 * share, centre.shape)
    return np.concatenate([before, moved], axis=1)


Sample = tuple[list[tuple[int, int, str]], list[tuple[int, int, int, float, str]]]


def _write_points(folder: Path, recipe: str, seed: int, mols: list[Atoms], sample: Sample) -> None:
    atoms, edges = sample
    subset = [_subset(row) for row in range(len(mols))]
    layers: list[dict[str, Any]] = []
    for layer in range(N_LAYERS):
        share = COLLAPSE[recipe] * layer / (N_LAYERS - 1)
        places = _places([entry[2] for entry in atoms], share, 10 * seed + layer)
        for number, (row, at, name) in enumerate(atoms):
            own = dict(
                zip(("x_before", "y_before", "x_after", "y_after"), places[number], strict=True)
            )
            where = {"structure": _id(row), "atom_idx": at, "number": int(mols[row].numbers[at])}
            layers.append(
                {
                    "atom": number,
                    **where,
                    "class": name,
                    "group": GROUPS.get(name, ""),
                    "layer": layer,
                    **own,
                    "subset": subset[row],
                }
            )
    pq.write_table(pa.Table.from_pylist(layers), folder / "atoms.parquet")
    places = _places([entry[4] for entry in edges], COLLAPSE[recipe], 10 * seed)
    rows = []
    for number, (row, i, j, distance, name) in enumerate(edges):
        own = dict(zip(("x_before", "y_before", "x_after", "y_after"), places[number], strict=True))
        ends = {"atom_idx_i": i, "atom_idx_j": j, "distance": distance}
        rows.append(
            {"edge": number, "structure": _id(row), **ends, "class": name}
            | {**own, "subset": subset[row]}
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "edges.parquet")


def _id(row: int) -> str:
    return f"qm9-{row:06d}"


def _subset(row: int) -> str:
    return "test/ood" if row % 3 == 0 else "test/id"


def _write_structures(folder: Path, recipe: str, seed: int, mols: list[Atoms]) -> None:
    generator = np.random.default_rng([seed, len(recipe)])
    rows = []
    for row, atoms in enumerate(mols):
        is_ood = _subset(row) == "test/ood"
        distance = float(np.random.default_rng(row).gamma(4, 0.25) + (1.1 if is_ood else 0))
        true = 0.25 + (0.12 if is_ood else 0.03) * math.sin(row)
        error = generator.normal() * 0.004 * (1 + COLLAPSE[recipe]) * (1 + distance**2)
        rows.append(
            {
                "structure": _id(row),
                "numbers": atoms.numbers.tolist(),
                "positions": atoms.positions.ravel().tolist(),
                "subset": _subset(row),
                "true_gap": true,
                "pred_gap": true + error,
                "distance_to_train": distance,
            }
        )
    types = pa.schema(
        [
            ("structure", pa.string()),
            ("numbers", pa.list_(pa.int16())),
            ("positions", pa.list_(pa.float32())),
            ("subset", pa.string()),
            ("true_gap", pa.float32()),
            ("pred_gap", pa.float32()),
            ("distance_to_train", pa.float32()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=types), folder / "structures.parquet")


# name, label, unit, family, direction, invariant, OOD labels, source, before, change by collapse
MEASURES = (
    ("wasserstein1", "1-Wasserstein distance", "feature units", "drift", "higher", True, False,
     "Villani 2009", None, 4.2),
    ("cka", "Debiased CKA", "1", "drift", "lower", True, False,
     "Kornblith et al. 2019", None, -0.6),
    ("davies_bouldin", "Davies–Bouldin index", "1", "structure", "higher", True, False,
     "Davies & Bouldin 1979", 0.94, 0.9),
    ("knn_purity", "Neighbour purity", "1", "structure", "lower", True, False,
     "balanced over classes", 0.962, -0.3),
    ("effective_rank", "Effective rank", "dimensions", "structure", "lower", True, False,
     "Garrido et al. 2023", 41.3, -30.0),
    ("davies_bouldin_tsne", "Davies–Bouldin index of the t-SNE map", "1", "structure", "higher",
     False, False, "the paper's", 0.71, 1.4),
)  # fmt: skip


def measurement(
    row: tuple[Any, ...], share: float, layer: int | None, noise: float
) -> dict[str, Any]:
    """One measurement as it stands in `measures.json`."""
    name, label, unit, family, direction, invariant, labels, source, before, change = row
    start = {"wasserstein1": 0.0, "cka": 1.0}.get(name, before)
    value = start + share * change * (1 + noise)
    half = 0.03 * abs(change)
    null = (0.9, 1.05) if name == "wasserstein1" else (start - half, start + half)
    if name == "cka":
        null = (0.93, 1.0)
    return {
        "name": name, "label": label, "unit": unit, "family": family, "collapse_means": direction,
        "invariant": invariant, "needs_ood_labels": labels, "source": source, "layer": layer,
        "value": value, "low": value - half, "high": value + half, "before": before,
        "null_low": null[0], "null_high": null[1], "n": 400, "missing": "",
    }  # fmt: skip


def measures(recipe: str, seed: int) -> dict[str, Any]:
    """`measures.json` of a run."""
    share = COLLAPSE[recipe]
    noise = 0.05 * math.sin(3 * seed + 5 * share)
    atoms = [measurement(row, share, None, noise) for row in MEASURES]
    atoms += [
        measurement(row, share * layer / (N_LAYERS - 1), layer, noise)
        for row in MEASURES[1:5]
        for layer in range(N_LAYERS - 1)
    ]
    nothing = {**measurement(MEASURES[3], share, None, noise), "value": None, "low": None}
    nothing |= {"high": None, "name": "intrinsic_dimension", "label": "Intrinsic dimension"}
    nothing |= {"missing": "fewer than 10 points that differ"}
    auroc = {**measurement(MEASURES[3], share, None, noise), "family": "function"}
    auroc |= {"name": "ood_auroc", "label": "OOD-detection AUROC", "needs_ood_labels": True}
    auroc |= {"null_low": None, "null_high": None}
    classes = [
        {"class": name, "n": 40, "purity_before": 0.98 - 0.004 * idx,
         "purity_after": 0.98 - 0.004 * idx - 0.03 * idx * share, "displacement": 2 * share}
        for idx, name in enumerate(CLASSES)
    ]  # fmt: skip
    groups = [{**classes[0], "class": "alkane"}, {**classes[5], "class": "ether"}]
    return {
        "format": 2, "subset": "test/id", "seed": 0, "n_atoms": 386, "n_edges": 212,
        "atoms": [*atoms, nothing], "edges": [measurement(MEASURES[3], share, None, noise)],
        "function": [auroc], "classes": classes, "groups": groups, "provenance": {},
    }  # fmt: skip


def write_collapse(run: Path, recipe: str, seed: int, mols: list[Atoms], sample: Sample) -> None:
    """The `collapse` folder of one run, and the watched measures in its log."""
    folder = run / "collapse"
    folder.mkdir()
    (folder / "measures.json").write_text(json.dumps(measures(recipe, seed)))
    _write_points(folder, recipe, seed, mols, sample)
    _write_structures(folder, recipe, seed, mols)
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for event in events:
        if event["event"] == "validate":
            share = COLLAPSE[recipe] * (1 - math.exp(-event["step"] / 700))
            event["collapse"] = {
                "effective_rank": 41.3 - 30 * share,
                "cka": 1 - 0.6 * share,
                "n": 500,
            }
    (run / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def predicts() -> list[dict[str, Any]]:
    """What each measure foretells: raw correlations, of which the lower ones are negative."""
    entries = []
    for idx, row in enumerate((*MEASURES, ("ood_auroc", *MEASURES[3][1:6], True, "", None, 0))):
        sign = 1 if row[4] == "higher" else -1
        rho = sign * (0.85 - 0.13 * idx)
        entries.append(
            {"measure": row[0], "points": "function" if row[6] else "atoms", "layer": None,
             "rho": rho, "low": max(-1, rho - 0.4), "high": min(1, rho + 0.4),
             "p_value": 0.002 * (idx + 1), "n": 15,
             "needs_ood_labels": row[6]}
        )  # fmt: skip
    nothing = {"rho": None, "low": None, "high": None, "p_value": None}
    entries.append({**entries[0], **nothing, "measure": "intrinsic_dimension"})
    entries.append({**entries[0], "measure": "id_rmse", "label": "ID test error", "points": ""})
    return entries


def add_collapse(folder: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Everything of `tether collapse` for a comparison folder that has its runs."""
    mols = molecules()
    sample = (_sample(mols), _edges(mols))
    for recipe in COLLAPSE:
        for seed in seeds:
            write_collapse(folder / "runs" / f"{recipe}-s{seed}", recipe, seed, mols, sample)
    collapse = {"format": 2, "runs": [], "predicts": predicts(), "target": "gap"}
    (folder / "collapse.json").write_text(json.dumps({**collapse, "subset": "test/ood"}))

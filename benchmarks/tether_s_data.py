"""The data that tether-s is pretrained on: geometries near QM9's molecules, labelled here.

``python benchmarks/tether_s_data.py [--suite runs/qm9-boom] [--out runs/tether-s]``

Molecules of the training set published with arXiv 2601.08486 that no task of the suite qm9-boom
validates or tests on: no molecule of a published test split is among them. Energies and forces are
GFN2-xTB's, and of other geometries of the same molecules SO3LR's (pseudo-labels).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from kept import ROOT, tether

from tether.data.store import Store
from tether.splits.leakage import structure_hashes
from tether.splits.split import Split

PUBLISHED = ROOT.parent / "shared" / "data" / "qm9_gap"
TASKS = ("homo", "lumo", "gap", "mu", "alpha", "r2", "zpve", "cv")
N_TRAIN, N_TEST = 20_000, 300
#: Name of the store, labels, set, seed of the geometries.
STORES = (
    ("xtb_test", "gfn2-xtb", "val", 1),
    ("xtb", "gfn2-xtb", "train", 0),
    ("pseudo", "pseudo", "train", 2),
)


def published_hashes(*names: str) -> np.ndarray:
    """Hashes of the molecules of the published sets of these names, shape (n_systems,)."""
    found = []
    for name in names:
        with np.load(PUBLISHED / f"{name}.npz") as arrays:
            ptr = np.concatenate([[0], np.cumsum(arrays["n_atoms"])])
            found.append(structure_hashes(arrays["numbers"], arrays["positions"], ptr))
    return np.concatenate(found)


def choose(store: Store, splits: list[Split]) -> Split:
    """Molecules for pretraining, and some to test it on."""
    batch = store.batch(np.arange(store.n_systems))
    hashes = structure_hashes(batch.numbers.numpy(), batch.positions.numpy(), batch.ptr.numpy())
    allowed = np.isin(hashes, published_hashes("train"))
    allowed &= ~np.isin(hashes, published_hashes("val", "id_test", "ood_test"))
    for split in splits:
        for name, rows in split.indices.items():
            if name != "train":
                allowed[rows] = False
    rows = np.random.default_rng(0).permutation(np.flatnonzero(allowed))[: N_TRAIN + N_TEST]
    return Split(
        "molecules for tether-s",
        "random",
        {"n_allowed": int(allowed.sum()), "seed": 0},
        {"train": np.sort(rows[:N_TRAIN]), "val": np.sort(rows[N_TRAIN:])},
        store=splits[0].store,
    )


def main() -> None:
    """Choose the molecules, label geometries of them; what is there is not made again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", type=Path, default=Path("runs/qm9-boom"))
    parser.add_argument("--out", type=Path, default=Path("runs/tether-s"))
    parser.add_argument("--workers", default="2")
    options = parser.parse_args()
    store = options.suite / "qm9.arrow"
    if not store.exists():
        raise SystemExit(f"{store} is not there: run `tether bench qm9-boom` first, it makes it")
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = options.out / "molecules.json"
    if not chosen.exists():
        splits = [Split.from_json(options.suite / task / "split.json") for task in TASKS]
        choose(Store.open(store), splits).to_json(chosen)
    for name, labeller, part, seed in STORES:
        out = options.out / f"{name}.arrow"
        if not out.exists() or (options.out / f"{name}.arrow.parts").exists():
            tether(
                *("label", str(store), "--split", str(chosen), "--set", part, "--with", labeller),
                *("--widths", "0.02,0.05,0.1", "--n-per-structure", "3", "--seed", str(seed)),
                *("--workers", options.workers, "--out", str(out)),
            )


if __name__ == "__main__":
    main()

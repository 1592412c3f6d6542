"""QM9 gap, the published split: recipes × seeds, ID against OOD.

``python benchmarks/qm9_gap.py [--config CONFIG.yaml] [--out runs/qm9_gap] [key=value …]``

Every stage is skipped where its result is there, and a killed comparison continues. Summary, config
and the finished runs (without their weights) are kept in ``benchmarks/results/<name>/``; what is
there is not run again, so that the benchmark can be done over several sittings.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from kept import RESULTS, ROOT, copy_runs, tether

from tether.data.store import Store
from tether.splits.split import Split

DATA = ROOT.parent / "shared" / "data" / "qm9_gap"
SETS = {
    "train": "train.npz",
    "val": "val.npz",
    "test/id": "id_test.npz",
    "test/ood": "ood_test.npz",
}
WIDTHS = "0.02,0.05,0.1"
N_UNLABELLED = 8000


def prepare(folder: Path, *, train_size: int, with_xtb: bool) -> None:
    """Store, split, auxiliary geometries of the training molecules, held-out ones of the others."""
    store, split = folder / "qm9_gap.arrow", folder / "split.json"
    if not store.exists():
        files = [str(DATA / name) for name in SETS.values()]
        tether("prepare", *files, "--target", "gap:Ha:intensive", "--out", str(store))
    if not split.exists():
        sets = [part for name, file in SETS.items() for part in ("--set", f"{name}={file}")]
        tether(
            *("split", str(store), "--method", "sources", "--name", "arXiv 2601.08486, gap"),
            *("--target", "gap", *sets, "--train-size", str(train_size), "--out", str(split)),
        )
    unlabelled = folder / "wide_split.json"
    if not unlabelled.exists():
        write_unlabelled(store, split, unlabelled)
    wanted = [
        ("pseudo.arrow", "pseudo", split, "train", ()),
        ("pseudo_val.arrow", "pseudo", split, "val", ("--limit", "100")),
        ("wide.arrow", "pseudo", unlabelled, "train", ()),
    ]
    if with_xtb:
        wanted.append(("xtb.arrow", "gfn2-xtb", split, "train", ()))
    for name, method, sets, of, more in wanted:
        if not (folder / name).exists():
            tether(
                *("label", str(store), "--split", str(sets), "--set", of, "--with", method),
                *("--widths", WIDTHS, "--n-per-structure", "3", *more),
                *("--out", str(folder / name)),
            )


def write_unlabelled(store: Path, split: Path, out: Path) -> None:
    """8,000 molecules of the published training set whose gaps the recipes do not see.

    Force-field data need no property labels, so their geometries may cover more of chemical space
    than the labelled molecules do. None is in the validation set or a test set.
    """
    opened, used = Store.open(store), Split.from_json(split)
    rows = np.flatnonzero(np.array(opened.sources) == SETS["train"])
    rest = np.setdiff1d(rows, used.indices["train"])
    chosen = np.random.default_rng(0).choice(rest, N_UNLABELLED, replace=False)
    Split(
        "unlabelled molecules of the published training set",
        "random",
        {"size": N_UNLABELLED, "seed": 0},
        {"train": chosen},
        store=used.store,
    ).to_json(out)


def main() -> None:
    """Parse, run the stages, keep the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=ROOT / "benchmarks" / "qm9_gap.yaml")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "qm9_gap")
    parser.add_argument("--name", default="qm9_gap", help="of the comparison and its results")
    parser.add_argument("--train-size", type=int, default=5000)
    parser.add_argument("--xtb", action="store_true", help="also label with GFN2-xTB")
    parser.add_argument("--prepare-only", action="store_true")
    parser.add_argument("overrides", nargs="*", help="key=value, as for tether compare")
    options = parser.parse_args()
    if not DATA.is_dir():
        sys.exit(f"the published split is not at {DATA}")
    options.out.mkdir(parents=True, exist_ok=True)
    prepare(options.out, train_size=options.train_size, with_xtb=options.xtb)
    if options.prepare_only:
        return
    comparison = options.out / options.name
    results = RESULTS / options.name
    copy_runs(results, comparison)
    try:
        tether(
            *("compare", "--config", str(options.config), "--out", str(comparison)),
            *options.overrides,
        )
    finally:
        copy_runs(comparison, results)
    for name in ("summary.json", "config.yaml"):
        shutil.copy(comparison / name, results / name)
    print(f"results in {results}")


if __name__ == "__main__":
    main()

"""tether-s from nothing: its data, its pretraining, and the two files in the package.

``python benchmarks/tether_s.py``; a killed one goes on where it was. The run's log and metrics are
kept in ``benchmarks/results/tether-s/``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from kept import RESULTS, ROOT, tether

from tether.backbones.checkpoint import TETHER_S

FOLDER = Path("runs/tether-s")
#: Trained one after the other; the last one is tether-s.
PARTS = ("both", "xtb", "anneal")
DATA_CARD = """
## Where the data come from

Molecules are QM9's (R. Ramakrishnan et al., Sci. Data 1, 140022 (2014); CC0), 20,000 of them: of
the training set published with arXiv 2601.08486 those that no task of the benchmark qm9-boom
validates or tests on. No molecule of a published test split is among them, and no property label
was seen. Of each, three geometries were made by Gaussian displacements of 0.02, 0.05 and 0.1 Å;
those with a force above 30 eV/Å were left out. Labels were made here: GFN2-xTB's by tblite (the
potential), and, in the first of three trainings (40,000 steps, then 18,000 and 20,000 on GFN2-xTB
alone), SO3LR's on other geometries (a second head, not kept). The test set is of 300 further
molecules.

Made by `benchmarks/tether_s.py`; configuration and log are in `benchmarks/results/tether-s/`.
"""


def publish() -> None:
    """Put weights and card into the package, and keep what says how they came about."""
    run = FOLDER / PARTS[-1]
    shutil.copy(run / "backbone.safetensors", TETHER_S)
    card = (run / "card.md").read_text().replace(f"# {run.name}\n", "# tether-s\n", 1)
    TETHER_S.with_suffix(".md").write_text(card + DATA_CARD)
    for part in PARTS:
        kept = RESULTS / "tether-s" / part
        kept.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.json", "config.yaml", "provenance.json", "log.jsonl"):
            shutil.copy(FOLDER / part / name, kept / name)


def main() -> None:
    """Label, pretrain, publish."""
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "tether_s_data.py")], check=True)
    for part in PARTS:
        config = f"benchmarks/tether_s_{part}.yaml"
        tether("pretrain", "--config", config, "--out", str(FOLDER / part))
    publish()


if __name__ == "__main__":
    main()

"""A training step of CHGNet: through tether, and by chgnet's own trainer, on the same batch.

Both start from the published weights. "e+f+s" is the loss on energies, forces and stress;
"property" is tether's property task, beside the package's training on energies alone, which is the
nearest that its trainer can do. Graphs are built outside the step, and timed apart, each converter
from its own structure type. Variants are timed in turn, round by round, and ratios taken within a
round.

``python benchmarks/step_chgnet.py [--rounds 9] [--batch 16] [--threads 1] [--max-atoms 40]``
"""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

import torch
from crystals import Package, main

if TYPE_CHECKING:
    from collections.abc import Callable

    from ase import Atoms

    from tether.labels.pseudo import PseudoLabels

GPA = 160.21766208  # eV/Å³


def structures(frames: list[Atoms]) -> list[Any]:
    """Pymatgen's."""
    from pymatgen.io.ase import AseAtomsAdaptor

    return [AseAtomsAdaptor.get_structure(atoms) for atoms in frames]


def graphs(structures: list[Any]) -> list[Any]:
    """Crystal graphs."""
    from chgnet.graph import CrystalGraphConverter

    convert = CrystalGraphConverter()
    return [convert(structure) for structure in structures]


def step(
    graphs: list[Any], labels: PseudoLabels, counts: list[int], targets: str
) -> Callable[[], None]:
    """A pass of chgnet's own ``Trainer`` over a loader that holds this one batch."""
    from chgnet.model import CHGNet
    from chgnet.trainer import Trainer

    with redirect_stdout(StringIO()):
        network = CHGNet.load(use_device="cpu", verbose=False)
        trainer = Trainer(
            network, targets=targets, optimizer="AdamW", learning_rate=1e-6, use_device="cpu"
        )
    assert labels.stress is not None
    wanted = {
        "e": (labels.energy / torch.tensor(counts)).float(),
        "f": list(labels.forces.float().split(counts)),
        "s": list((labels.stress.float() * GPA).reshape(-1, 3, 3)),
    }
    loader = [(graphs, {key: wanted[key] for key in targets})]

    def run() -> None:
        with redirect_stdout(StringIO()):
            trainer._train(loader, 0)  # noqa: SLF001 (its public method writes checkpoints)

    return run


if __name__ == "__main__":
    main(__doc__, Package("chgnet", "chgnet", structures, graphs, step))

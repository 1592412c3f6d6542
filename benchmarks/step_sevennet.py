"""A training step of SevenNet: through tether, and by sevenn's own trainer, on the same batch.

Both start from the published weights. "e+f+s" is the loss on energies, forces and stress;
"property" is tether's property task, beside the package's training on energies alone, without the
module that would make forces. Graphs are built outside the step, and timed apart. Variants are
timed in turn, round by round, and ratios taken within a round.

``python benchmarks/step_sevennet.py [--rounds 9] [--batch 16] [--threads 1] [--max-atoms 40]``
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from crystals import Package, main

if TYPE_CHECKING:
    from collections.abc import Callable

    from ase import Atoms

    from tether.labels.pseudo import PseudoLabels

CUTOFF = 5.0  # Å


def structures(frames: list[Atoms]) -> list[Any]:
    """ASE's."""
    return frames


def graphs(structures: list[Any]) -> list[Any]:
    """Graphs without labels."""
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import unlabeled_atoms_to_graph

    return [
        AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(atoms, CUTOFF))
        for atoms in structures
    ]


def step(
    graphs: list[Any], labels: PseudoLabels, _counts: list[int], targets: str
) -> Callable[[], None]:
    """A pass of sevenn's own ``Trainer`` over a loader that holds this one batch."""
    from sevenn.train.trainer import Trainer
    from torch_geometric.data import Batch

    settings, _, _ = Trainer.args_from_checkpoint("7net-0")
    settings["optimizer_args"] = {"lr": 1e-6}
    if targets == "e":
        settings["model"].delete_module_by_key("force_output")
        settings["loss_functions"] = settings["loss_functions"][:1]
    trainer = Trainer(**settings, device="cpu")
    batch = Batch.from_data_list(graphs)
    assert labels.stress is not None
    batch["total_energy"] = labels.energy.float()
    batch["force_of_atoms"] = labels.forces.float()
    # Compression is positive there, in the order xx, yy, zz, xy, yz, zx.
    batch["stress"] = -labels.stress.float()[:, [0, 4, 8, 1, 5, 2]]

    def run() -> None:
        # The model writes its results into the batch.
        trainer.run_one_epoch([copy.copy(batch)], is_train=True)

    return run


if __name__ == "__main__":
    main(__doc__, Package("sevenn", "sevennet", structures, graphs, step))

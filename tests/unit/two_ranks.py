"""Training curves of several recipes, in one process or as a rank of torchrun; see test_ranks.py.

``torchrun --nproc-per-node 2 two_ranks.py STORE AUXILIARY OUT`` writes OUT on the first rank.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tether.assemble import build_balance, build_model, build_tasks
from tether.data.store import Store
from tether.inputs import BackboneChoice, HeadChoice
from tether.recipe import named_recipe
from tether.training.engine import Trainer
from tether.training.ranks import Ranks, join_ranks
from tether.training.settings import TrainingSettings

N_STEPS = 16
SETTINGS = TrainingSettings(
    property_steps=N_STEPS, batch_size=7, forcefield_batch_size=5, lr=3e-3, force_weight=2.0
)
#: Case → recipe, its changes, those of the settings, backbone.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "mft": ("mft", {}, {}, "tiny"),
    "so3krates": ("mft", {}, {}, "so3krates"),
    "two passes": ("mft", {}, {"accumulate": 2}, "tiny"),
    "gradual, anchored": ("gradual", {"anchor": 1.0}, {"max_atoms": 60}, "tiny"),
    "noisy, distilled": ("noisy-nodes", {"distillation": 1.0}, {}, "tiny"),
    "surgery": ("mft-surgery", {}, {}, "tiny"),
    "uncertainty": ("mft-uncertainty", {}, {}, "tiny"),
    "constraint": ("mft-constraint", {}, {}, "tiny"),
    "one structure": ("mft-sampled", {}, {"batch_size": 1}, "tiny"),
}
OPTIONS = {
    "tiny": {"n_features": 16},
    "so3krates": {"n_features": 16, "n_layers": 1, "n_heads": 2, "cutoff": 3.0},
}


def curve(
    case: str, folder: Path, ranks: Ranks, *, double: bool = True
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Losses of every step, and what the balance learnt; ranks must end in the same bits."""
    name, changes, settings, backbone = CASES[case]
    recipe, settled = named_recipe(name, **changes), replace(SETTINGS, **settings)
    store = Store.open(folder / "molecules.arrow")
    choice = BackboneChoice(backbone, OPTIONS[backbone])
    targets = ["gap", "sparse"]  # the second has holes
    model = build_model(
        store, targets, recipe, seed=0, backbone=choice, head=HeadChoice(n_hidden=8)
    )
    if double:
        model.double()
    graph = model.backbone.prepare(store.batch(np.arange(24)))
    for head in model.heads.values():
        head.fit_scale(graph.batch)
    auxiliary = Store.open(folder / "auxiliary.arrow")
    tasks, _ = build_tasks(
        model, graph, auxiliary=auxiliary, recipe=recipe, settings=settled, seed=0
    )
    groups = recipe.build_movement(0).apply(model)
    balance = build_balance(recipe, tasks, model, seed=0)
    trainer = Trainer(model, tasks, groups=groups, balance=balance, settings=settled, ranks=ranks)
    trainer.start_average()
    losses = [trainer.step() for _ in range(N_STEPS)]
    for tensor in [*model.tensors().values(), *trainer.average.values()]:
        mine = tensor.detach().clone()
        ranks.start_alike([mine])
        assert torch.equal(mine, tensor), f"{case}: ranks differ"
    return losses, {name: value.item() for name, value in balance.tensors().items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    everyone = join_ranks()
    assert everyone.n == 2
    found = {case: curve(case, Path(sys.argv[1]), everyone) for case in CASES}
    found["mft, single precision"] = curve("mft", Path(sys.argv[1]), everyone, double=False)
    if everyone.is_first:
        Path(sys.argv[2]).write_text(json.dumps(found))

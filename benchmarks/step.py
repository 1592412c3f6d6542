"""Structures per second of a training step, in one run on one machine.

Each kind of step (property, force field, MFT) through tether's engine pieces, against (a) the bare
model call with the same autograd work and nothing else, and (b) so3krates-torch's own training
step on the same batch. Variants are timed in turn, round by round, and the median of the rounds is
taken: the machine is noisy, ratios within a round are not.

``python benchmarks/step.py [--rounds 15] [--batch 32] [--auxiliary 8] [--threads 1]``
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from ase.build import molecule
from timing import compiled_ratios, medians, report, tether_step, with_labels

from tether.backbones.load import load_backbone
from tether.backbones.so3krates import LONG_RANGE_CUTOFF, LONG_RANGE_DAMPING, package_folder
from tether.data.loader import GraphStream
from tether.graph import neighbour_edges
from tether.heads.readout import PropertyHead
from tether.labels.perturb import displace
from tether.labels.pseudo import pseudo_label
from tether.model import AdaptedModel
from tether.serialization import write_json
from tether.structures import AtomBatch, collate, from_ase
from tether.targets import Target
from tether.tasks.forcefield import ForceFieldTask, force_scale
from tether.tasks.property import PropertyTask
from tether.training.allocator import keep_memory
from tether.training.settings import TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Callable

SHARED = Path(__file__).parents[2] / "shared" / "data" / "qm9_gap" / "val.npz"


def structures(n: int) -> AtomBatch:
    """QM9 molecules of 18 atoms where the shared data are there, else ethanols (9 atoms)."""
    if not SHARED.exists():
        return from_ase([molecule("CH3CH2OH") for _ in range(n)])
    data = np.load(SHARED)
    sizes, numbers, positions = (data[name] for name in ("n_atoms", "numbers", "positions"))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    chosen = np.flatnonzero(sizes == 18)[:n]
    from ase import Atoms

    return from_ase(
        [
            Atoms(numbers[offsets[i] : offsets[i + 1]], positions[offsets[i] : offsets[i + 1]])
            for i in chosen
        ]
    )


def package_step(
    batch: AtomBatch, energy: torch.Tensor, forces: torch.Tensor
) -> Callable[[], None]:
    """so3krates-torch's own `take_step` on the batch, with its loss, clipping, AdamW and EMA."""
    from so3krates_torch.modules.loss import WeightedEnergyForcesLoss
    from so3krates_torch.tools.torch_geometric.batch import Batch
    from so3krates_torch.tools.train import take_step
    from torch_ema import ExponentialMovingAverage

    path = package_folder() / "pretrained" / "so3lr" / "so3lr.model"
    network = torch.load(path, map_location="cpu", weights_only=False)
    network.r_max_lr = LONG_RANGE_CUTOFF
    network.dispersion_energy_cutoff_lr_damping = LONG_RANGE_DAMPING
    n, numbers = batch.n_systems, batch.numbers
    short = neighbour_edges(batch, 4.5, full=True)
    long = neighbour_edges(batch, LONG_RANGE_CUTOFF, full=True)
    zero = torch.zeros(n)
    data = Batch(
        positions=batch.positions.float(),
        cell=torch.zeros(3 * n, 3),
        batch=batch.system_idx,
        ptr=batch.ptr,
        edge_index=torch.stack([short.idx_i, short.idx_j]),
        shifts=short.shift.float(),
        unit_shifts=short.shift.float(),
        edge_index_lr=torch.stack([long.idx_i, long.idx_j]),
        shifts_lr=long.shift.float(),
        unit_shifts_lr=long.shift.float(),
        node_attrs=torch.nn.functional.one_hot(numbers - 1, 118).float(),
        atomic_numbers=numbers,
        total_charge=zero,
        total_spin=zero,
        head=torch.zeros(n, dtype=torch.long),
        energy=energy.float(),
        forces=forces.float(),
        weight=torch.ones(n),
        energy_weight=torch.ones(n),
        forces_weight=torch.ones(n),
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-6)
    average = ExponentialMovingAverage(network.parameters(), decay=0.99)
    loss = WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=1.0)
    wanted = {"forces": True, "virials": False, "stress": False}

    def step() -> None:
        data.positions = data.positions.detach()
        take_step(network, loss, data, optimiser, average, wanted, 5.0, torch.device("cpu"))

    return step


def variants_of(
    batch: AtomBatch, auxiliary: AtomBatch, *, compiled: bool = False
) -> dict[str, Callable[[], None]]:
    """The steps to time, by name."""
    target = Target("gap", "eV")
    backbone = load_backbone("so3lr")

    def model_of() -> AdaptedModel:
        return AdaptedModel(load_backbone("so3lr"), [PropertyHead(target, 128)])

    graph = backbone.prepare(batch)
    graph = with_labels(graph, {"gap": torch.linspace(-1, 1, graph.n_systems).double()}, {})
    labels = pseudo_label(backbone, auxiliary)
    forced = backbone.prepare(auxiliary)
    forced = with_labels(forced, {"energy": labels.energy}, {"forces": labels.forces})
    property_task = PropertyTask(GraphStream(graph, batch_size=graph.n_systems))
    force_task = ForceFieldTask(
        GraphStream(forced, batch_size=forced.n_systems), scale=force_scale(forced)
    )

    def ours(how: str) -> dict[str, Callable[[], None]]:
        settings = TrainingSettings(lr=1e-6, compile=how == "compiled")
        return {
            f"property, {how}": tether_step(model_of(), [property_task], settings),
            f"force field, {how}": tether_step(model_of(), [force_task], settings),
            f"MFT, {how}": tether_step(model_of(), [property_task, force_task], settings),
        }

    bare = model_of()

    def bare_property() -> None:
        bare.zero_grad(set_to_none=True)
        bare(graph)["gap"].square().mean().backward()

    def bare_forces() -> None:
        bare.zero_grad(set_to_none=True)
        energy, forces, _ = bare.energy_forces(forced, create_graph=True)
        (forces.square().mean() + energy.mean() * 0.0).backward()

    def bare_both() -> None:
        bare_property()
        bare_forces()

    return {
        **(ours("compiled") if compiled else {}),
        **ours("tether"),
        "property, bare call": bare_property,
        "force field, bare call": bare_forces,
        "force field, so3krates-torch": package_step(auxiliary, labels.energy, labels.forces),
        "MFT, bare call": bare_both,
    }


def main() -> None:
    """Time, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--auxiliary", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-keep-memory", action="store_true")
    parser.add_argument("--compile", action="store_true", help="compiled steps too; minutes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.no_keep_memory:
        keep_memory()
    batch = structures(options.batch)
    auxiliary = displace(structures(options.auxiliary), widths=(0.05,), n_per_structure=1, seed=0)
    many = collate([batch] * max(1, 512 // options.batch))
    backbone = load_backbone("so3lr")
    began = time.perf_counter()
    backbone.prepare(many)
    graph_ms = 1000 * (time.perf_counter() - began) / many.n_systems
    variants = variants_of(batch, auxiliary.batch, compiled=options.compile)
    seconds = medians(variants, options.rounds)
    sizes = {"p": options.batch, "f": options.auxiliary, "M": options.batch + options.auxiliary}
    ratios = {
        "property: tether / bare": ("property, tether", ("property, bare call",)),
        "force field: tether / bare": ("force field, tether", ("force field, bare call",)),
        "MFT: tether / bare": ("MFT, tether", ("MFT, bare call",)),
        "force field: tether / so3krates-torch": (
            "force field, tether",
            ("force field, so3krates-torch",),
        ),
        "MFT / (property + force field)": (
            "MFT, tether",
            ("property, tether", "force field, tether"),
        ),
    }
    if options.compile:
        ratios |= compiled_ratios(("property", "force field", "MFT"))
    n_structures = {name: sizes[name[0]] for name in seconds}
    content = report(seconds, n_structures, ratios, threads=options.threads)
    print(f"graph of an 18-atom molecule, both neighbour lists: {graph_ms:.3f} ms")
    if options.json:
        write_json(options.json, {**content, "graph_ms": graph_ms, "options": str(options)})


if __name__ == "__main__":
    main()

"""A training step of CHGNet: through tether, and by chgnet's own trainer, on the same batch.

Both start from the published weights. "e+f+s" is the loss on energies, forces and stress;
"property" is tether's property task, beside the package's training on energies alone, which is the
nearest that its trainer can do. Graphs are built outside the step, and timed apart, each converter
from its own structure type. Variants are timed in turn, round by round, and ratios taken within a
round.

``python benchmarks/step_chgnet.py [--rounds 9] [--batch 16] [--threads 1] [--max-atoms 40]``
"""

from __future__ import annotations

import argparse
import time
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ase.build import bulk
from ase.io import read
from timing import medians, report, tether_step, with_labels

from tether.backbones.load import load_backbone
from tether.data.loader import GraphStream
from tether.heads.readout import PropertyHead
from tether.labels.perturb import strained
from tether.labels.pseudo import PseudoLabels, pseudo_label
from tether.model import AdaptedModel
from tether.serialization import write_json
from tether.structures import AtomBatch, from_ase, to_ase
from tether.targets import Target
from tether.tasks.forcefield import ForceFieldTask, force_scale
from tether.tasks.property import PropertyTask
from tether.training.allocator import keep_memory
from tether.training.settings import TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.graph import Graph

SHARED = Path(__file__).parents[2] / "shared" / "data" / "forcefield" / "mptrj-random-1k.xyz.gz"
GPA = 160.21766208  # eV/Å³


def structures(n: int, max_atoms: int) -> AtomBatch:
    """MPtrj crystals where the shared data are there, else rock salts; a little strained."""
    if SHARED.exists():
        frames = [a for a in read(SHARED, index=":", format="extxyz") if len(a) <= max_atoms]
        chosen = frames[:: max(1, len(frames) // n)][:n]
    else:
        chosen = [bulk("NaCl", "rocksalt", a=5.64, cubic=True) for _ in range(n)]
    return strained(from_ase(chosen), widths=(0.03,), n_per_structure=1, seed=0).batch


@dataclass(frozen=True)
class Both:
    """One batch as each side wants it: its graphs, and the same labels."""

    graph: Graph
    labels: PseudoLabels
    package_graphs: list[Any]
    counts: torch.Tensor
    ms: dict[str, float]


def prepare(batch: AtomBatch) -> Both:
    """Graphs of both, with the time that each took a structure."""
    from chgnet.graph import CrystalGraphConverter
    from pymatgen.io.ase import AseAtomsAdaptor

    backbone = load_backbone("chgnet")
    pymatgen = [AseAtomsAdaptor.get_structure(atoms) for atoms in to_ase(batch)]
    convert = CrystalGraphConverter()

    def package_graphs() -> None:
        graphs.extend(convert(structure) for structure in pymatgen)

    def own_graph() -> None:
        backbone.prepare(batch)

    graphs: list[Any] = []
    package_graphs()
    first = list(graphs)
    builders = {"tether": own_graph, "chgnet": package_graphs}
    ms = {}
    for name, build in builders.items():
        began = time.perf_counter()
        for _ in range(3):
            build()
        ms[name] = 1000 * (time.perf_counter() - began) / (3 * batch.n_systems)
    labels = pseudo_label(backbone, batch)  # type: ignore[arg-type]
    return Both(backbone.prepare(batch), labels, first, batch.counts, ms)


def package_step(both: Both, targets: str) -> Callable[[], None]:
    """A pass of chgnet's own ``Trainer`` over a loader that holds this one batch."""
    from chgnet.model import CHGNet
    from chgnet.trainer import Trainer

    with redirect_stdout(StringIO()):
        network = CHGNet.load(use_device="cpu", verbose=False)
        trainer = Trainer(
            network, targets=targets, optimizer="AdamW", learning_rate=1e-6, use_device="cpu"
        )
    assert both.labels.stress is not None
    wanted = {
        "e": (both.labels.energy / both.counts).float(),
        "f": list(both.labels.forces.float().split(both.counts.tolist())),
        "s": list((both.labels.stress.float() * GPA).reshape(-1, 3, 3)),
    }
    loader = [(both.package_graphs, {key: wanted[key] for key in targets})]

    def step() -> None:
        with redirect_stdout(StringIO()):
            trainer._train(loader, 0)  # noqa: SLF001 (its public method writes checkpoints)

    return step


def variants_of(both: Both) -> dict[str, Callable[[], None]]:
    """The steps to time, by name."""
    settings = TrainingSettings(lr=1e-6)
    target = Target("property", "eV")
    graph, n = both.graph, both.graph.n_systems
    assert both.labels.stress is not None
    labels = {"energy": both.labels.energy, "stress": both.labels.stress}
    forced = with_labels(graph, labels, {"forces": both.labels.forces})
    named = with_labels(graph, {"property": torch.linspace(-1, 1, n).double()}, {})
    force_task = ForceFieldTask(GraphStream(forced, batch_size=n), scale=force_scale(forced))
    property_task = PropertyTask(GraphStream(named, batch_size=n))

    def ours(*tasks: Any) -> Callable[[], None]:
        model = AdaptedModel(load_backbone("chgnet"), [PropertyHead(target, 64)])
        return tether_step(model, tasks, settings)

    return {
        "e+f+s, tether": ours(force_task),
        "e+f+s, chgnet": package_step(both, "efs"),
        "property, tether": ours(property_task),
        "energy, chgnet": package_step(both, "e"),
        "MFT, tether": ours(property_task, force_task),
    }


def main() -> None:
    """Time, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-atoms", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # pymatgen's, about structures
    torch.set_num_threads(options.threads)
    keep_memory()
    batch = structures(options.batch, options.max_atoms)
    both = prepare(batch)
    graph = both.graph
    sizes = {
        "atoms": graph.batch.n_atoms,
        "pairs": len(graph.edges["pairs"].idx_i),
        "angles": len(graph.angles["bonds"].first),
    }
    print(f"{graph.n_systems} crystals: " + ", ".join(f"{n} {name}" for name, n in sizes.items()))
    seconds = medians(variants_of(both), options.rounds)
    ratios = {
        "e+f+s: tether / chgnet": ("e+f+s, tether", ("e+f+s, chgnet",)),
        "property: tether / chgnet (energy)": ("property, tether", ("energy, chgnet",)),
    }
    n_structures = dict.fromkeys(seconds, graph.n_systems)
    n_structures["MFT, tether"] *= 2
    content = report(seconds, n_structures, ratios, threads=options.threads)
    for name, ms in both.ms.items():
        print(f"graph of a structure, {name}: {ms:.2f} ms")
    print(f"graph: tether / chgnet: {both.ms['tether'] / both.ms['chgnet']:.3f}")
    if options.json:
        more = {"graph_ms": both.ms, "batch": sizes, "options": str(options)}
        write_json(options.json, {**content, **more})


if __name__ == "__main__":
    main()

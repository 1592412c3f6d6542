"""What the step benchmarks of crystal backbones share: the batch, the variants, the command."""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ase.build import bulk
from ase.io import read
from timing import compiled_ratios, medians, report, tether_step, with_labels

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

    from ase import Atoms

    from tether.graph import Graph

__all__ = ["Package", "main"]

SHARED = Path(__file__).parents[2] / "shared" / "data" / "forcefield" / "mptrj-random-1k.xyz.gz"


@dataclass(frozen=True)
class Package:
    """The other side of the comparison.

    Attributes
    ----------
    name : str
        Of the package.
    backbone : str
        Tether's name of the same network.
    structures : callable
        From ASE's structures to the package's own, not timed.
    graphs : callable
        From those to its graphs.
    step : callable
        From graphs, labels, atoms of each structure and the targets ("efs" or "e") to a step.
    """

    name: str
    backbone: str
    structures: Callable[[list[Atoms]], list[Any]]
    graphs: Callable[[list[Any]], list[Any]]
    step: Callable[[list[Any], PseudoLabels, list[int], str], Callable[[], None]]


def crystals(n: int, max_atoms: int) -> AtomBatch:
    """MPtrj crystals where the shared data are there, else rock salts; a little strained."""
    if SHARED.exists():
        frames = [a for a in read(SHARED, index=":", format="extxyz") if len(a) <= max_atoms]
        chosen = frames[:: max(1, len(frames) // n)][:n]
    else:
        chosen = [bulk("NaCl", "rocksalt", a=5.64, cubic=True) for _ in range(n)]
    return strained(from_ase(chosen), widths=(0.03,), n_per_structure=1, seed=0).batch


def builder_ms(builders: dict[str, Callable[[], object]], n_structures: int) -> dict[str, float]:
    """Milliseconds a structure that each builder of graphs takes."""
    ms = {}
    for name, build in builders.items():
        build()
        began = time.perf_counter()
        for _ in range(3):
            build()
        ms[name] = 1000 * (time.perf_counter() - began) / (3 * n_structures)
    return ms


def tether_variants(
    name: str, graph: Graph, labels: PseudoLabels, *, compiled: bool = False
) -> dict[str, Callable[[], None]]:
    """Tether's steps: force field, property, and both at once."""
    settings = TrainingSettings(lr=1e-6, compile=compiled)
    how = "compiled" if compiled else "tether"
    target = Target("property", "eV")
    n = graph.n_systems
    assert labels.stress is not None
    system = {"energy": labels.energy, "stress": labels.stress}
    forced = with_labels(graph, system, {"forces": labels.forces})
    named = with_labels(graph, {"property": torch.linspace(-1, 1, n).double()}, {})
    force_task = ForceFieldTask(GraphStream(forced, batch_size=n), scale=force_scale(forced))
    property_task = PropertyTask(GraphStream(named, batch_size=n))

    def ours(*tasks: Any) -> Callable[[], None]:
        backbone = load_backbone(name)
        head = PropertyHead(target, backbone.spec.n_features)
        return tether_step(AdaptedModel(backbone, [head]), tasks, settings)

    return {
        f"e+f+s, {how}": ours(force_task),
        f"property, {how}": ours(property_task),
        f"MFT, {how}": ours(property_task, force_task),
    }


def main(description: str, package: Package) -> None:
    """Time, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-atoms", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="compiled steps too; minutes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the packages', about structures and about torch
    torch.set_num_threads(options.threads)
    keep_memory()
    batch = crystals(options.batch, options.max_atoms)
    backbone: Any = load_backbone(package.backbone)
    own = package.structures(to_ase(batch))
    builders = {
        "tether": lambda: backbone.prepare(batch),
        package.name: lambda: package.graphs(own),
    }
    graph_ms = builder_ms(builders, batch.n_systems)
    graph, labels = backbone.prepare(batch), pseudo_label(backbone, batch)
    sizes = {"atoms": batch.n_atoms, **{n: len(e.idx_i) for n, e in graph.edges.items()}}
    sizes |= {f"angles of {name}": len(a.first) for name, a in graph.angles.items()}
    print(f"{batch.n_systems} crystals: " + ", ".join(f"{n} {name}" for name, n in sizes.items()))
    graphs, counts = package.graphs(own), batch.counts.tolist()
    steps = tether_variants(package.backbone, graph, labels)
    if options.compile:
        steps |= tether_variants(package.backbone, graph, labels, compiled=True)
    seconds = medians(
        {
            **steps,
            f"e+f+s, {package.name}": package.step(graphs, labels, counts, "efs"),
            f"energy, {package.name}": package.step(graphs, labels, counts, "e"),
        },
        options.rounds,
    )
    ratios = {
        f"e+f+s: tether / {package.name}": ("e+f+s, tether", (f"e+f+s, {package.name}",)),
        f"property: tether / {package.name} (energy)": (
            "property, tether",
            (f"energy, {package.name}",),
        ),
    }
    if options.compile:
        ratios |= compiled_ratios(("e+f+s", "property", "MFT"))
    n_structures = {
        name: (2 if name.startswith("MFT") else 1) * graph.n_systems for name in seconds
    }
    content = report(seconds, n_structures, ratios, threads=options.threads)
    for name, ms in graph_ms.items():
        print(f"graph of a structure, {name}: {ms:.2f} ms")
    print(f"graph: tether / {package.name}: {graph_ms['tether'] / graph_ms[package.name]:.3f}")
    if options.json:
        more = {"graph_ms": graph_ms, "batch": sizes, "options": str(options)}
        write_json(options.json, {**content, **more})

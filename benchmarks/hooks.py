"""Which of torch's own ways to share a training are right when the loss holds a derivative.

Two gloo ranks, one small molecule each, a loss on forces; the gradients are compared with those of
one process. tether uses none of them: this is why `tether.training.ranks` adds gradients itself.

``python benchmarks/hooks.py``
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ase.build import molecule
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tether.serialization import write_json
from tether.structures import from_ase
from tether.testing.tiny import TinyBackbone

if TYPE_CHECKING:
    from collections.abc import Callable

    from tether.graph import Graph

RESULT = Path(__file__).parent / "results" / "hooks.json"


class Loss(nn.Module):
    """A loss on forces as a module, so that all of it can be wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = TinyBackbone(seed=0)

    def forward(self, graph: Graph, features: Callable[..., Any] | None = None) -> Tensor:
        """Of features that the wrapped or the plain backbone computes."""
        leaf = graph.differentiable()
        found = (features or self.backbone)(leaf)
        energy, forces, _ = self.backbone.energy_forces(leaf, found, create_graph=True)
        return (7.0 * forces - 1.0).square().sum() + 0.1 * energy.sum()


def ddp(graph: Graph, where: str, *, look: bool) -> list[Tensor]:
    """Gradients by DDP; `look`: for weights that the loss does not know."""
    model = Loss()
    inner = model if where == "loss" else model.backbone
    wrapped = DistributedDataParallel(inner, find_unused_parameters=look)
    (wrapped(graph) if where == "loss" else model(graph, wrapped)).backward()
    return gradients(model)


def fsdp2(graph: Graph, where: str, *, reshard: bool) -> list[Tensor]:
    """Gradients by FSDP2; `reshard`: free the gathered weights after the forward pass."""
    model = Loss()
    for layer in model.backbone.interactions if "layers" in where else ():
        fully_shard(layer, reshard_after_forward=reshard)
    fully_shard(model if "loss" in where else model.backbone, reshard_after_forward=reshard)
    assert any(isinstance(module, FSDPModule) for module in model.modules())
    model(graph).backward()
    return gradients(model)


def gradients(model: nn.Module) -> list[Tensor]:
    """Of all weights, whole; zero where there is none. Both average over the two ranks."""
    found = []
    for parameter in model.parameters():
        gradient = parameter.grad
        if gradient is None:
            found.append(torch.zeros(parameter.shape))
        else:
            whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            found.append(2.0 * whole)
    return found


def worker() -> None:
    """One rank: every way in turn."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    prepare = TinyBackbone(seed=0).prepare
    graphs = [prepare(from_ase([molecule(name)])) for name in ("CH3CH2OH", "H2O")]
    plain = Loss()
    sum(plain(graph) for graph in graphs).backward()
    wanted = [g / 2.0 for g in gradients(plain)]
    own = graphs[torch.distributed.get_rank()]
    ways: dict[str, Callable[[], list[Tensor]]] = {}
    for where in ("loss", "backbone"):
        for look in (False, True):
            name = f"DDP around the {where}" + ", looking for unused weights" * look
            ways[name] = lambda where=where, look=look: ddp(own, where, look=look)
    for where in ("loss", "backbone", "loss and layers", "backbone and layers"):
        for reshard in (True, False):
            name = f"FSDP2 around {where}" + ", freed after forward" * reshard
            ways[name] = lambda where=where, reshard=reshard: fsdp2(own, where, reshard=reshard)
    found: dict[str, float | str] = {}
    for name, way in ways.items():
        try:
            off = [(a - b).square().sum() for a, b in zip(way(), wanted, strict=True)]
            found[name] = float((sum(off) / sum(w.square().sum() for w in wanted)) ** 0.5)
        except (RuntimeError, AssertionError) as error:
            found[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
        torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        write_json(RESULT, {"torch": torch.__version__, "relative gradient error": found})
        print(json.dumps(found, indent=1))


def main() -> None:
    """Start two ranks."""
    if sys.argv[1:] == ["worker"]:
        worker()
        return
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    subprocess.run([*launcher, "--nproc-per-node", "2", __file__, "worker"], check=True)


if __name__ == "__main__":
    main()

"""What the step benchmarks share: timing in turn, a step through tether's engine, the table."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tether.balance.weighted_sum import WeightedSum
from tether.movement.full import Full
from tether.training.engine import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from tether.graph import Graph
    from tether.model import AdaptedModel
    from tether.training.settings import TrainingSettings

__all__ = ["compiled_ratios", "medians", "report", "tether_step", "with_labels"]


def medians(variants: dict[str, Callable[[], None]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each variant, round by round; the order within a round changes."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for step in variants.values():
        step()
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(variants)):
            began = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def with_labels(
    graph: Graph, labels: dict[str, torch.Tensor], atom_labels: dict[str, torch.Tensor]
) -> Graph:
    """The graph with these labels."""
    return replace(graph, batch=replace(graph.batch, labels=labels, atom_labels=atom_labels))


def tether_step(
    model: AdaptedModel, tasks: Sequence[Any], settings: TrainingSettings
) -> Callable[[], None]:
    """A step of full fine-tuning through tether's engine, averaging included."""
    balance = WeightedSum({"forcefield": 0.5})
    trainer = Trainer(model, tasks, groups=Full().apply(model), balance=balance, settings=settings)
    trainer.start_average()

    def step() -> None:
        trainer.step()

    return step


def compiled_ratios(kinds: Sequence[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """For `report`: the compiled step of each kind over the plain one."""
    return {
        f"{kind}: compiled / tether": (f"{kind}, compiled", (f"{kind}, tether",)) for kind in kinds
    }


def report(
    seconds: Mapping[str, np.ndarray],
    n_structures: Mapping[str, int],
    ratios: Mapping[str, tuple[str, tuple[str, ...]]],
    *,
    threads: int,
) -> dict[str, Any]:
    """Print medians and ratios (a variant over a sum of others, round by round); return them."""
    rounds = len(next(iter(seconds.values())))
    table = Table(title=f"one step, {threads} thread(s), median of {rounds} rounds")
    for heading in ("step", "ms", "structures/s"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    middle = {name: float(np.median(values)) for name, values in seconds.items()}
    for name, value in middle.items():
        table.add_row(name, f"{1000 * value:.1f}", f"{n_structures[name] / value:.1f}")
    found = {
        name: float(np.median(seconds[top] / sum(seconds[b] for b in below)))
        for name, (top, below) in ratios.items()
    }
    console = Console()
    console.print(table)
    for name, value in found.items():
        console.print(f"{name}: {value:.3f}")
    return {"ms": {name: 1000 * value for name, value in middle.items()}, "ratios": found}

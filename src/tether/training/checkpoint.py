"""Everything that a killed run needs to continue to the same bits, in one atomic file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from tether.errors import TetherError
from tether.serialization import load_metadata, load_tensors, save_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from torch import Tensor

    from tether.model import AdaptedModel

__all__ = ["Progress", "load_checkpoint", "save_checkpoint"]


@dataclass
class Progress:
    """Counters of a run. Data order and draws are functions of these and the seed.

    Attributes
    ----------
    step : int
        Gradient steps of any kind.
    task_steps : dict of str to int
        Steps of each task; also its place in its stream.
    best_value, best_step : float, int
        Best validation error so far, and the property step it was found at.
    stale : int
        Validations since.
    seconds : float
        Spent so far, over all sittings.
    """

    step: int = 0
    task_steps: dict[str, int] = field(default_factory=dict)
    best_value: float = float("inf")
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0


def save_checkpoint(
    path: Path,
    *,
    model: AdaptedModel,
    optimiser: torch.optim.Optimizer,
    average: dict[str, Tensor],
    balance: Mapping[str, Tensor],
    progress: Progress,
) -> None:
    """Write weights, averaged weights, optimiser moments and counters.

    Parameters
    ----------
    path : Path
        The file.
    model : AdaptedModel
        Its parameters and buffers.
    optimiser : torch.optim.Optimizer
        AdamW; its state is stored by parameter name.
    average : dict of str to Tensor
        Exponential moving average by parameter name; empty without averaging.
    balance : mapping of str to Tensor
        What a balance learns, see `Balance.tensors`.
    progress : Progress
        Counters.
    """
    tensors = {f"weight/{name}": value for name, value in model.tensors().items()}
    tensors |= {f"average/{name}": value for name, value in average.items()}
    tensors |= {f"balance/{name}": value for name, value in balance.items()}
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"optimiser/{key}/{name}"] = value
    save_tensors(path, tensors, metadata={"progress": json.dumps(asdict(progress))})


def load_checkpoint(
    path: Path,
    *,
    model: AdaptedModel,
    optimiser: torch.optim.Optimizer,
    average: dict[str, Tensor],
    balance: Mapping[str, Tensor],
) -> Progress:
    """Restore what `save_checkpoint` wrote, in place.

    Parameters
    ----------
    path : Path
        The file.
    model, optimiser, average, balance
        Of the same run, freshly built.

    Returns
    -------
    Progress
        Counters.

    Raises
    ------
    TetherError
        When the file is corrupt, or of another run.
    """
    metadata = load_metadata(path)
    tensors = load_tensors(path)
    parameters = dict(model.named_parameters())
    averages = {name[8:] for name in tensors if name.startswith("average/")}
    balances = {name[8:] for name in tensors if name.startswith("balance/")}
    moments = {name for name in tensors if name.startswith("optimiser/")}
    foreign = {name for name in moments if name.split("/", 2)[2] not in parameters}
    same = averages == average.keys() and balances == balance.keys()
    if "progress" not in metadata or not same or foreign:
        raise TetherError(
            f"{path} is no checkpoint of this run",
            expected="counters, and the averages and moments of its weights",
            fix="delete the run folder and start again",
        )
    model.load({name[7:]: t for name, t in tensors.items() if name.startswith("weight/")})
    for name, value in average.items():
        value.copy_(tensors[f"average/{name}"])
    for name, value in balance.items():
        value.copy_(tensors[f"balance/{name}"])
    for key in moments:
        _, field_name, name = key.split("/", 2)
        # AdamW counts its steps on the CPU.
        device = "cpu" if field_name == "step" else parameters[name].device
        optimiser.state[parameters[name]][field_name] = tensors[key].to(device)
    return Progress(**json.loads(metadata["progress"]))

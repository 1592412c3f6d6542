"""WiSE-FT: after training, the backbone goes part of the way back to where it started."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from tether.serialization import load_tensors, save_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from tether.model import AdaptedModel
    from tether.run import Run
    from tether.training.engine import Validation

__all__ = ["SHARES", "backbone_weights", "interpolate"]

#: Shares a of the fine-tuned weights that are tried; 1 is fine-tuning itself.
SHARES = tuple(step / 10 for step in range(11))


def backbone_weights(model: AdaptedModel) -> dict[str, Tensor]:
    """A copy of the backbone's parameters, its potential's among them, by name in the model.

    Parameters
    ----------
    model : AdaptedModel
        As it is now.

    Returns
    -------
    dict of str to Tensor
        Detached.
    """
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if name.startswith("backbone.")
    }


def interpolate(
    model: AdaptedModel,
    start: Mapping[str, Tensor],
    *,
    validate: Callable[[AdaptedModel], Validation],
    run: Run,
) -> dict[str, Any]:
    """Set the backbone to ``(1 − a) θ₀ + a θ``, with the a that validates best, and keep that.

    M. Wortsman et al., arXiv 2109.01903. They interpolate a zero-shot classifier too; a property
    head has no pretrained counterpart, so it is kept as it was trained, on the features at a = 1.
    It need not fit those of a smaller a: only what the ID validation set says is believed, and
    a = 1 is among the choices.

    The fine-tuned weights stay in ``run.finetuned``. They are written first, so that a run killed
    here starts again from them and not from a mixture.

    Parameters
    ----------
    model : AdaptedModel
        Changed in place.
    start : mapping of str to Tensor
        θ₀, from `backbone_weights` before training.
    validate : callable
        Error on the ID validation set; smaller is better.
    run : Run
        Trained; ``run.weights`` is replaced by the mixture.

    Returns
    -------
    dict
        ``chosen``: a. ``curve``: for each a tried, the validation error and its details.
    """
    if not run.finetuned.exists():
        save_tensors(run.finetuned, load_tensors(run.weights))
    model.load(load_tensors(run.finetuned))
    tuned = backbone_weights(model)
    curve = []
    for share in SHARES:
        _mix(model, start, tuned, share)
        found = validate(model)
        value = found.value if math.isfinite(found.value) else None
        curve.append({"a": share, "val_loss": value, **found.details})
    possible = [point for point in curve if point["val_loss"] is not None]
    # Of equals, the one nearest to what was trained.
    chosen = min(possible, key=lambda point: (point["val_loss"], -point["a"]))["a"]
    _mix(model, start, tuned, chosen)
    save_tensors(run.weights, model.tensors())
    return {"chosen": chosen, "curve": curve}


@torch.no_grad()
def _mix(
    model: AdaptedModel, start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], share: float
) -> None:
    parameters = dict(model.named_parameters())
    for name, value in tuned.items():
        parameters[name].copy_(torch.lerp(start[name], value, share))

"""Backbones that were pretrained with tether: one safetensors file that says what is in it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tether.backbones.weights import copy_weights
from tether.errors import TetherError
from tether.serialization import load_metadata, save_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from tether.backbones.protocol import Backbone

__all__ = [
    "FORMAT",
    "TETHER_S",
    "architecture_of",
    "is_checkpoint",
    "load_checkpoint",
    "save_backbone",
]

#: Of the file's header.
FORMAT = "tether backbone 1"
#: The checkpoint inside the package.
TETHER_S = Path(__file__).with_name("tether-s.safetensors")
#: What is known about the weights, and replaces what the architecture says of random ones.
_OF_WEIGHTS = ("elements", "licence", "level_of_theory")


def is_checkpoint(name: str) -> bool:
    """Whether the name of a backbone is the path of a checkpoint."""
    return name.endswith(".safetensors")


def save_backbone(
    path: Path, backbone: Backbone, *, architecture: str, options: Mapping[str, Any], about: Any
) -> None:
    """Write a backbone's weights, with everything that it takes to build it again.

    Parameters
    ----------
    path : Path
        Ends with ``.safetensors``; written atomically.
    backbone : Backbone
        Its parameters and buffers.
    architecture : str
        Name that `load_backbone` takes.
    options : mapping
        Its size, as `load_backbone` takes it.
    about : mapping
        ``elements``, ``licence`` and ``level_of_theory``; ``charge`` and ``spin`` where its data
        had any; and whatever else is worth knowing; JSON.
    """
    content = {"architecture": architecture, "options": dict(options), "about": about}
    save_tensors(
        path,
        _tensors(backbone),
        metadata={"format": FORMAT, "backbone": json.dumps(content)},
    )


def load_checkpoint(
    path: Path, build: Callable[[str, dict[str, Any]], Backbone], *, name: str, pretrained: bool
) -> Backbone:
    """Read what `save_backbone` wrote.

    Parameters
    ----------
    path : Path
        The file.
    build : callable
        From the name and options of an architecture to one with random weights.
    name : str
        Of the backbone.
    pretrained : bool
        Whether its weights are wanted, or only an architecture of the same size.

    Returns
    -------
    Backbone
        On the CPU.

    Raises
    ------
    TetherError
        When the file is missing, or of another kind.
    """
    content = _content(path)
    backbone = build(content["architecture"], content["options"])
    if not pretrained:
        return backbone
    copy_weights(
        *(_tensors(backbone), path),
        package=f"architecture {content['architecture']}",
        fix="pretrain it again with this version of tether",
    )
    about = {key: content["about"][key] for key in _OF_WEIGHTS}
    backbone.spec = replace(
        backbone.spec,
        name=name,
        checkpoint=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        # An architecture hears more than weights that never saw any.
        charge=backbone.spec.charge and content["about"].get("charge", False),
        spin=backbone.spec.spin and content["about"].get("spin", False),
        **{**about, "elements": tuple(about["elements"])},
    )
    return backbone


def architecture_of(name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a backbone is built as, where it may be one that was pretrained here.

    Parameters
    ----------
    name : str
        As `load_backbone` takes it.
    options : mapping
        Its size, where it is no checkpoint.

    Returns
    -------
    name : str
        Of an architecture.
    options : dict
        Its size.
    """
    path = TETHER_S if name == "tether-s" else Path(name)
    if not is_checkpoint(path.name):
        return name, dict(options)
    content = _content(path)
    return content["architecture"], content["options"]


def _content(path: Path) -> dict[str, Any]:
    metadata = load_metadata(path)
    if metadata.get("format") != FORMAT:
        raise TetherError(
            f"{path} is {metadata.get('format') or 'a file without a format'}",
            expected=f"{FORMAT}, as `tether pretrain` writes it",
            fix="give the backbone.safetensors of a pretraining run",
        )
    content: dict[str, Any] = json.loads(metadata["backbone"])
    return content


def _tensors(backbone: Backbone) -> dict[str, Any]:
    module = cast("nn.Module", backbone)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.data for name, tensor in named.items()}

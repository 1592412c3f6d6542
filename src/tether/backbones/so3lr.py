"""SO3LR: the published weights of a SO3krates network, doi 10.1021/jacs.5c09558.

The package ships a pickle. It is opened for one pinned sha256 only, once, and kept as safetensors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from tether.backbones.so3krates import So3krates, globals_restored, package_folder
from tether.backbones.weights import converted_weights, copy_weights

if TYPE_CHECKING:
    import io
    from pathlib import Path

    from torch import Tensor

__all__ = ["load_so3lr", "weight_file"]

#: Of ``pretrained/so3lr/so3lr.model`` in so3krates-torch 0.2.1.
SO3LR_SHA256 = "b5145564911ff983ed076ccb2bca5ce63454b74c9c8291092695463f1e6732be"
PACKAGE = "so3krates-torch==0.2.1"


def weight_file(cache: Path | None = None) -> Path:
    """SO3LR's weights as safetensors, converted once from the package's pickle.

    Parameters
    ----------
    cache : Path, optional
        Folder of the converted file; default ``~/.cache/tether``.

    Returns
    -------
    Path
        The safetensors file.

    Raises
    ------
    TetherError
        When the pickle is not the one whose sha256 is pinned here: it is then not opened.
    """
    return converted_weights(
        package_folder() / "pretrained" / "so3lr" / "so3lr.model",
        _parameters,
        name="so3lr",
        sha256=SO3LR_SHA256,
        package=PACKAGE,
        licence="MIT",
        cache=cache,
    )


def _parameters(content: io.BytesIO) -> dict[str, Tensor]:
    with globals_restored():
        original = torch.load(content, map_location="cpu", weights_only=False)
    return {name: value.detach().clone() for name, value in original.named_parameters()}


def load_so3lr(*, cache: Path | None = None) -> So3krates:
    """SO3LR with its published weights.

    Parameters
    ----------
    cache : Path, optional
        Folder of the converted weights.

    Returns
    -------
    So3krates
        In single precision, on the CPU.
    """
    backbone = So3krates()
    backbone.spec = replace(
        backbone.spec,
        name="so3lr",
        checkpoint="so3lr (so3krates-torch 0.2.1)",
        sha256=SO3LR_SHA256,
        level_of_theory="PBE0+MBD",
    )
    parameters = {name: p.data for name, p in backbone.network.named_parameters()}
    copy_weights(parameters, weight_file(cache), package=PACKAGE)
    return backbone

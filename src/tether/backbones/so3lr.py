"""SO3LR: the published weights of a SO3krates network, doi 10.1021/jacs.5c09558.

The package ships a pickle. It is opened for one pinned sha256 only, once, and kept as safetensors.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import torch

from tether.backbones.so3krates import So3krates, globals_restored, package_folder
from tether.errors import TetherError
from tether.serialization import load_tensors, save_tensors

__all__ = ["load_so3lr", "weight_file"]

#: Of ``pretrained/so3lr/so3lr.model`` in so3krates-torch 0.2.1.
SO3LR_SHA256 = "b5145564911ff983ed076ccb2bca5ce63454b74c9c8291092695463f1e6732be"


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
    target = (cache or Path.home() / ".cache" / "tether") / f"so3lr-{SO3LR_SHA256[:12]}.safetensors"
    if target.exists():
        return target
    source = package_folder() / "pretrained" / "so3lr" / "so3lr.model"
    content = source.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SO3LR_SHA256:
        raise TetherError(
            f"{source} has sha256 {digest[:12]}…",
            expected=f"{SO3LR_SHA256[:12]}…, the file of so3krates-torch 0.2.1",
            fix="pip install 'so3krates-torch==0.2.1' (an unknown pickle is never opened)",
        )
    with globals_restored():
        original = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
    tensors = {name: value.detach().clone() for name, value in original.named_parameters()}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(target, tensors, metadata={"source_sha256": SO3LR_SHA256, "licence": "MIT"})
    return target


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
    tensors = load_tensors(weight_file(cache))
    parameters = dict(backbone.network.named_parameters())
    if parameters.keys() != tensors.keys():
        unknown = sorted(parameters.keys() ^ tensors.keys())
        raise TetherError(
            f"weights and network differ in {len(unknown)} tensors, for example {unknown[0]}",
            expected="the tensors of so3krates-torch 0.2.1",
            fix="pip install 'so3krates-torch==0.2.1' and delete ~/.cache/tether",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    return backbone

"""CHGNet's published weights, from the files of the package ``chgnet``.

Each is opened for one pinned sha256, as tensors only (no code of a pickle runs), once, and kept as
safetensors under our names: of every gated perceptron, core and gate stand in one tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from ase.units import GPa

from tether.backbones.chgnet import ELEMENTS, Chgnet, ChgnetConfig
from tether.backbones.protocol import LevelErrors
from tether.backbones.weights import Checkpoint, Published

if TYPE_CHECKING:
    import io

    from torch import Tensor

__all__ = ["CHECKPOINTS", "PUBLISHED"]

#: By the package's names of its versions; the first is the default. Errors: of the test sets, from
#: the README beside each file.
CHECKPOINTS = {
    "0.3.0": Checkpoint(
        "pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
        "d14ab7c0f093efe64b60a7bcd540bca10e74fb7f46c86108a079af60524659d1",
        "PBE(+U) with MP2020 corrections (MPtrj)",
        ChgnetConfig(),
        errors=LevelErrors(energy=0.029, force=0.068, stress=0.314 * GPa),
    ),
    "0.2.0": Checkpoint(
        "pretrained/0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar",
        "ef624f78b6db9d315b4ef256f1bb3207449924191b91720dc17d3f60c5df980e",
        "PBE(+U) with MP2020 corrections (MPtrj)",
        ChgnetConfig(
            n_radial=9,
            n_angular=9,
            cutoff=5.0,
            envelope_power=5,
            normalised=False,
            out_bias=True,
            n_hidden=2,
        ),
        errors=LevelErrors(energy=0.030, force=0.077, stress=0.348 * GPa),
    ),
    "r2scan": Checkpoint(
        "pretrained/r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
        "8eba3db0f35a2788bb3ae22885ad340591e27996f213c6643af522a633b50dad",
        "r2SCAN (MP-r2SCAN)",
        ChgnetConfig(),
        # Its table of element energies has none for ytterbium: no structure held any.
        elements=tuple(z for z in ELEMENTS if z != 70),
        errors=LevelErrors(energy=0.01676, force=0.03846, stress=0.167 * GPa),
    ),
}


def _convert(content: io.BytesIO, config: ChgnetConfig) -> dict[str, Tensor]:
    loaded = torch.load(content, map_location="cpu", weights_only=True)
    return _from_package(loaded["model"]["state_dict"], config)


def _from_package(theirs: dict[str, Tensor], config: ChgnetConfig) -> dict[str, Tensor]:
    ours = {
        "atom_embedding.weight": theirs["atom_embedding.embedding.weight"],
        "pair_frequencies": theirs["bond_basis_expansion.rbf_expansion_ag.frequencies"],
        "bond_frequencies": theirs["bond_basis_expansion.rbf_expansion_bg.frequencies"],
        "angle_frequencies": theirs["angle_basis_expansion.fourier_expansion.frequencies"],
        "pair_embedding.weight": theirs["bond_embedding.weight"],
        "pair_weights.weight": theirs["bond_weights_ag.weight"],
        "bond_weights.weight": theirs["bond_weights_bg.weight"],
        "angle_embedding.weight": theirs["angle_embedding.weight"],
        "reference": theirs["composition_model.fc.weight"][0],
    }
    ours |= _renamed(theirs, "readout_norm.", "norm.")
    for k in range(config.n_layers):
        ours |= _layer(theirs, f"atom_conv_layers.{k}.", f"atom_layers.{k}.", "twoBody_atom")
    for k in range(config.n_layers - 1):
        ours |= _layer(theirs, f"bond_conv_layers.{k}.", f"bond_layers.{k}.", "twoBody_bond")
    for k in range(config.n_layers - 2):
        ours |= _layer(theirs, f"angle_layers.{k}.", f"angle_layers.{k}.", "twoBody_bond")
    # The package's dropout layer before the last linear one has a number, and no weights.
    linear = sorted({int(key.split(".")[2]) for key in theirs if key.startswith("mlp.layers.")})
    for at, number in enumerate(linear):
        ours |= _renamed(theirs, f"mlp.layers.{number}.", f"energy.{2 * at}.")
    return {name: tensor.clone().contiguous() for name, tensor in ours.items()}


def _renamed(theirs: dict[str, Tensor], old: str, new: str) -> dict[str, Any]:
    return {new + key[len(old) :]: value for key, value in theirs.items() if key.startswith(old)}


def _layer(theirs: dict[str, Tensor], old: str, new: str, message: str) -> dict[str, Tensor]:
    """One layer: core and gate stacked, first weights cut into the parts that they multiply."""

    def halves(kind: str) -> list[Tensor]:
        return [theirs[f"{old}{message}.mlp_{half}.layers.{kind}"] for half in ("core", "gate")]

    has_hidden = f"{old}{message}.mlp_core.layers.0.weight" in theirs
    first = 0 if has_hidden else 1
    weight = torch.cat(halves(f"{first}.weight"))  # (2 width, n_parts × width)
    width = len(weight) // 2
    layer = {
        "message.parts": weight.t().reshape(-1, width, 2 * width),
        "message.bias": torch.cat(halves(f"{first}.bias")),
    }
    if has_hidden:
        layer["message.hidden"] = torch.stack(halves("3.weight")).transpose(1, 2)
        layer["message.hidden_bias"] = torch.cat(halves("3.bias"))
    if f"{old}{message}.bn1.weight" in theirs:
        for ours, kind in (("scale", "weight"), ("shift", "bias")):
            layer[f"message.{ours}"] = torch.cat(
                [theirs[f"{old}{message}.bn{n}.{kind}"] for n in (1, 2)]
            )
    named = {new + name: tensor for name, tensor in layer.items()}
    return named | _renamed(theirs, f"{old}mlp_out.layers.1.", f"{new}out.")


PUBLISHED = Published(
    backbone="chgnet",
    module="chgnet",
    package="chgnet==0.4.2",
    licence="BSD-3-Clause-LBNL",
    checkpoints=CHECKPOINTS,
    network=Chgnet,
    convert=_convert,
)

"""SevenNet's published weights, from the files of the package ``sevenn``.

Each is opened for one pinned sha256, once, and kept as safetensors under our names: flat vectors
become matrices, paths stand in our order, and a path whose coupling tensor has another sign in the
file than here has its weights negated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.units import GPa

from tether.backbones.harmonics import coupling
from tether.backbones.protocol import LevelErrors
from tether.backbones.sevennet import N_ELEMENTS, Sevennet, SevennetConfig
from tether.backbones.sevennet_layer import Interaction
from tether.backbones.weights import Checkpoint, Published

if TYPE_CHECKING:
    import io

    from torch import Tensor

__all__ = ["CHECKPOINTS", "PUBLISHED"]

LEVEL = "PBE(+U), uncorrected (MPtrj)"

#: By the package's names; the first is the default. Left out: the release of May 2024, which the
#: default has replaced, and 7net-mf-0, which wants to be told a level of theory for each structure.
CHECKPOINTS = {
    "7net-0": Checkpoint(
        "pretrained_potentials/SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
        "7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36",
        LEVEL,
        SevennetConfig(),
        # Of its training set, of which nothing was held out; from the README of the release.
        errors=LevelErrors(energy=0.011, force=0.040, stress=0.28 * GPa),
    ),
    "7net-l3i5": Checkpoint(
        "pretrained_potentials/SevenNet_l3i5/checkpoint_l3i5.pth",
        "a7ff190d41efe5b8317a03d20a468e4036a1a3e64e0b14fdbab64ac3f4bfc09d",
        LEVEL,
        SevennetConfig(
            n_features=(128, 64, 32, 32),
            cutoff_on=0.0,
            average_neighbours=35.984718322753906,
        ),
    ),
}

#: Beside tensors, the files hold arrays of numpy in their settings.
_HARMLESS: list[Any] = [
    np.ndarray,
    np.dtype,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
    (np.zeros(0).__reduce__()[0], "numpy.core.multiarray._reconstruct"),  # its old name
]


def _convert(content: io.BytesIO, config: SevennetConfig) -> dict[str, Tensor]:
    with torch.serialization.safe_globals(_HARMLESS):
        loaded = torch.load(content, map_location="cpu", weights_only=True)
    return _from_package(loaded["model_state_dict"], loaded["config"]["_type_map"], config)


def _from_package(
    theirs: dict[str, Tensor], row_of: dict[int, int], config: SevennetConfig
) -> dict[str, Tensor]:
    """Their tensors under our names; `row_of` are their rows by atomic number."""
    network = Sevennet(config)
    rows, numbers = list(row_of.values()), torch.tensor(list(row_of))

    def by_number(values: Tensor) -> Tensor:
        table = values.new_zeros(N_ELEMENTS, *values.shape[1:])
        return table.index_copy(0, numbers - 1, values[rows])

    embedding = theirs["onehot_to_feature_x.linear.weight"].view(len(rows), -1)
    ours = {
        "element_embedding.weight": by_number(embedding),
        "frequencies": theirs["edge_embedding.basis_function.coeffs"],
        "hidden": theirs["reduce_input_to_hidden.linear.weight"].view(-1, len(network.hidden)).t(),
        "energy": theirs["reduce_hidden_to_energy.linear.weight"].view(1, -1),
        "scale": by_number(theirs["rescale_atomic_energy.scale"]),
        "reference": by_number(theirs["rescale_atomic_energy.shift"]),
    }
    for k, layer in enumerate(network.layers):
        assert isinstance(layer, Interaction)
        for name, module, other in (
            ("connection", layer.connection, "self_connection_intro"),
            ("inward", layer.inward, "self_interaction_1"),
            ("outward", layer.outward, "self_interaction_2"),
        ):
            flat = theirs[f"{k}_{other}.linear.weight"]
            ours |= _matrices(flat, module.state_dict(prefix=f"layers.{k}.{name}."))
        radial = f"{k}_convolution.weight_nn.layer"
        ours[f"layers.{k}.radial.first"] = theirs[f"{radial}0.weight"].t()
        ours[f"layers.{k}.radial.second"] = theirs[f"{radial}1.weight"].t()
        ours[f"layers.{k}.radial.last"] = _path_weights(theirs, f"{k}_convolution.", layer)
    return {name: tensor.clone().contiguous() for name, tensor in ours.items()}


def _matrices(flat: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """A flat vector of matrices, degree by degree, in the names and shapes of ours."""
    parts = flat.split([matrix.numel() for matrix in like.values()])
    return {
        name: part.view(matrix.shape[::-1]).t()
        for (name, matrix), part in zip(like.items(), parts, strict=True)
    }


def _path_weights(theirs: dict[str, Tensor], prefix: str, layer: Interaction) -> Tensor:
    """Last matrix of a radial network: paths in our order, weights for our signs."""
    # The file's order is by feature, harmonic and result; ours, by feature, result and harmonic.
    order = sorted((first, second, third) for first, third, second in layer.paths)
    columns = [layer.n_in[first] for first, _, _ in order]
    last = theirs[f"{prefix}weight_nn.layer2.weight"].split(columns, dim=1)
    blocks: dict[tuple[int, ...], Tensor] = {}
    for path, block in zip(order, last, strict=True):
        blocks[path] = block
        if 0 not in path:  # the sign of these couplings is a convention, which has changed
            key = "convolution._compiled_main_left_right._w3j_" + "_".join(map(str, path))
            own, file = torch.from_numpy(coupling(*path)), theirs[prefix + key].double()
            sign = torch.sign((own * file).sum())
            assert torch.allclose(own * sign, file, atol=1e-5), f"{prefix}{key} is no coupling"
            blocks[path] = block * sign.to(block.dtype)
    ordered = [blocks[first, second, third] for first, third, second in layer.paths]
    return torch.cat(ordered, dim=1).t()


PUBLISHED = Published(
    backbone="sevennet",
    module="sevenn",
    package="sevenn==0.13.0",
    licence="MIT",
    checkpoints=CHECKPOINTS,
    network=Sevennet,
    convert=_convert,
)

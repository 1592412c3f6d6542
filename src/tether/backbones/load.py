"""Backbones by name: one function, one `match`, and an entry point for third parties."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tether.backbones.checkpoint import TETHER_S, is_checkpoint, load_checkpoint
from tether.errors import TetherError

if TYPE_CHECKING:
    from tether.backbones.protocol import Backbone

__all__ = ["BACKBONES", "load_backbone"]

#: Name → (what it is, the extra that installs it).
BACKBONES: dict[str, tuple[str, str]] = {
    "tether-s": ("pretrained here, molecules of H C N O F, GFN2-xTB; inside the package", "so3lr"),
    "so3lr": ("SO3LR, 530k parameters, molecules of H C N O F P S Cl, PBE0+MBD", "so3lr"),
    "so3krates": ("SO3krates of any size with random weights", "so3lr"),
    "chgnet": ("CHGNet 0.3.0, 400k parameters, crystals of 89 elements, PBE(+U)", "chgnet"),
    "tensornet": ("TensorNet of any size with random weights, molecules and crystals", "tensornet"),
    "sevennet": ("SevenNet-0, 840k parameters, crystals of 89 elements, PBE(+U)", "sevennet"),
    "tiny": ("small equivariant network with random weights, for tests", ""),
}


def load_backbone(
    name: str,
    *,
    weights: Literal["pretrained", "random"] = "pretrained",
    seed: int = 0,
    options: dict[str, Any] | None = None,
) -> Backbone:
    """Load a backbone.

    Parameters
    ----------
    name : str
        One of `BACKBONES`, the path of a ``.safetensors`` file from `tether pretrain`, or an entry
        point of the group ``tether.backbones``.
    weights : {"pretrained", "random"}
        Published weights, or the same architecture from a seed.
    seed : int
        Of random weights.
    options : dict, optional
        Size, where the architecture has one (`So3kratesConfig`, `TensornetConfig`;
        `SevennetConfig`, for random weights); ``checkpoint`` of chgnet: 0.3.0 (default), 0.2.0 or
        r2scan; of sevennet: 7net-0 (default) or 7net-l3i5.

    Returns
    -------
    Backbone
        A ``torch.nn.Module``, on the CPU.

    Raises
    ------
    TetherError
        For an unknown name or option, or a missing package.
    """
    options = dict(options or {})
    try:
        backbone = _built(name, weights, seed, options)
    except TetherError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise TetherError(
            f"options {options} of backbone {name!r} ({error})",
            expected="options of that architecture",
            fix="see `tether list`",
        ) from None
    for entry in entry_points(group="tether.backbones") if backbone is None else ():
        if entry.name == name:
            backbone = entry.load()(weights=weights, seed=seed, **options)
    if backbone is not None:
        return backbone
    raise TetherError(
        f"unknown backbone {name!r}",
        expected=f"one of {', '.join(BACKBONES)}",
        fix="set backbone.name=so3lr, or install the package that brings it",
    )


def _built(name: str, weights: str, seed: int, options: dict[str, Any]) -> Backbone | None:
    backbone: Backbone | None = None
    match name:
        case "tether-s":
            backbone = _own(TETHER_S, weights, seed, options)
        case _ if is_checkpoint(name):
            backbone = _own(Path(name), weights, seed, options)
        case "so3lr" if weights == "pretrained":
            backbone = _so3lr(options)
        case "so3lr" | "so3krates":
            backbone = _so3krates(seed, **options)
        case "chgnet":
            backbone = _chgnet(weights, seed, **options)
        case "sevennet":
            backbone = _sevennet(weights, seed, **options)
        case "tensornet":
            backbone = _tensornet(seed, **options)
        case "tiny":
            backbone = _tiny(seed, **options)
    return backbone


def _own(path: Path, weights: str, seed: int, options: dict[str, Any]) -> Backbone:
    if options:
        raise TetherError(
            f"options {options} of backbone '{path.name}'",
            expected="none: these weights have one size",
            fix="remove backbone.options",
        )

    def build(architecture: str, size: dict[str, Any]) -> Backbone:
        return load_backbone(architecture, weights="random", seed=seed, options=size)

    # A run's file is named by its folder.
    name = path.stem if path.stem != "backbone" else path.resolve().parent.name
    return load_checkpoint(path, build, name=name, pretrained=weights == "pretrained")


def _so3lr(options: dict[str, Any]) -> Backbone:
    from tether.backbones.so3lr import load_so3lr

    if options:
        raise TetherError(
            f"options {options} of backbone 'so3lr'",
            expected="none: the published weights have one size",
            fix="remove backbone.options, or set backbone.name=so3krates",
        )
    return load_so3lr()


def _so3krates(seed: int, **size: Any) -> Backbone:
    from tether.backbones.so3krates import So3krates, So3kratesConfig

    if "degrees" in size:
        size["degrees"] = tuple(size["degrees"])
    return So3krates(So3kratesConfig(**size), seed=seed)


def _tensornet(seed: int, **size: Any) -> Backbone:
    from tether.backbones.tensornet import Tensornet, TensornetConfig

    return Tensornet(TensornetConfig(**size), seed=seed)


def _tiny(seed: int, **size: Any) -> Backbone:
    from tether.testing.tiny import TinyBackbone

    return TinyBackbone(seed=seed, **size)


def _chgnet(weights: str, seed: int, *, checkpoint: str = "0.3.0") -> Backbone:
    from tether.backbones.chgnet import Chgnet
    from tether.backbones.chgnet_weights import PUBLISHED

    if weights == "pretrained":
        return PUBLISHED.load(checkpoint)
    return Chgnet(PUBLISHED.checkpoint(checkpoint).config, seed=seed)


def _sevennet(weights: str, seed: int, *, checkpoint: str = "7net-0", **size: Any) -> Backbone:
    from tether.backbones.sevennet import Sevennet
    from tether.backbones.sevennet_weights import PUBLISHED

    if weights == "pretrained":
        if size:
            raise TetherError(
                f"options {size} of backbone 'sevennet'",
                expected="checkpoint only: published weights have one size",
                fix="remove the size, or train from random weights (recipe scratch)",
            )
        return PUBLISHED.load(checkpoint)
    if "n_features" in size:
        size["n_features"] = tuple(size["n_features"])
    config = PUBLISHED.checkpoint(checkpoint).config
    return Sevennet(replace(config, **size), seed=seed)

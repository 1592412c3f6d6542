"""A backbone and fresh heads, put together as a recipe says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tether.backbones.load import load_backbone
from tether.errors import TetherError
from tether.heads.readout import PropertyHead
from tether.model import AdaptedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tether.backbones.protocol import Backbone
    from tether.data.store import Store
    from tether.inputs import BackboneChoice, HeadChoice
    from tether.recipe import Recipe
    from tether.targets import Target

__all__ = ["build_model", "model_of_targets"]


def build_model(
    store: Store,
    targets: Sequence[str],
    recipe: Recipe,
    *,
    seed: int,
    backbone: BackboneChoice,
    head: HeadChoice,
) -> AdaptedModel:
    """Backbone with pretrained or random weights, and fresh heads.

    Parameters
    ----------
    store : Store
        Knows the targets.
    targets : sequence of str
        Labels to learn.
    recipe : Recipe
        Says which weights.
    seed : int
        Of everything random.
    backbone : BackboneChoice
        Which one.
    head : HeadChoice
        What kind.

    Returns
    -------
    AdaptedModel
        Not yet scaled to the labels.

    Raises
    ------
    TetherError
        For an unknown target.
    """
    for name in targets:
        if name not in store.targets:
            raise TetherError(
                f"store {store.path} has no label {name!r}",
                expected=f"one of {', '.join(store.targets) or 'none'}",
                fix="set targets to one of them",
            )
    return model_of_targets(
        {name: store.targets[name] for name in targets},
        recipe,
        seed=seed,
        backbone=backbone,
        head=head,
    )


def model_of_targets(
    targets: Mapping[str, Target],
    recipe: Recipe,
    *,
    seed: int,
    backbone: BackboneChoice,
    head: HeadChoice,
) -> AdaptedModel:
    """`build_model` where the targets are known without a store.

    Parameters
    ----------
    targets : mapping of str to Target
        By name.
    recipe, seed, backbone, head
        See `build_model`.

    Returns
    -------
    AdaptedModel
        Not yet scaled to the labels.

    Raises
    ------
    TetherError
        For a target of several components.
    """
    for name, target in targets.items():
        if target.n_components != 1:
            raise TetherError(
                f"target {name!r} has {target.n_components} components",
                expected="a scalar",
                fix="store each component as a label of its own",
            )
    weights: Literal["pretrained", "random"] = (
        "pretrained" if recipe.initialisation == "pretrained" else "random"
    )
    loaded: Backbone = load_backbone(
        backbone.name, weights=weights, seed=seed, options=backbone.options
    )
    heads = [
        PropertyHead(
            target,
            loaded.spec.n_features,
            pooling=head.pooling,
            n_hidden=head.n_hidden,
            seed=seed + position,
        )
        for position, target in enumerate(targets.values())
    ]
    return AdaptedModel(loaded, heads)

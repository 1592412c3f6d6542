"""`PretrainConfig`: a pretraining, from a file and ``key=value`` overrides."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from tether.closed import Closed, checked, read_config, to_yaml
from tether.config import BackboneConfig
from tether.errors import TetherError
from tether.inputs import BackboneChoice
from tether.objective import DataSet, Objective, PretrainInputs
from tether.training.settings import TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PretrainConfig", "load_pretrain_config"]


class PretrainConfig(Closed):
    """Everything that determines a pretraining.

    Attributes
    ----------
    datasets
        Mappings with ``store`` and the other fields of `DataSet`; the first one's level of theory
        is that of the backbone's own energy head.
    validation, test
        Held-out stores; see `PretrainInputs`.
    backbone
        Architecture and size.
    weights
        ``random``, or ``pretrained`` to go on from published ones.
    objective
        Fields of `Objective`.
    training
        Fields of `TrainingSettings`, with ``steps`` in place of ``property_steps``.
    licence
        Of the weights that come out.
    """

    datasets: tuple[dict[str, Any], ...] = Field(min_length=1)
    validation: Path | None = None
    test: Path | None = None
    backbone: BackboneConfig = BackboneConfig(name="so3krates")
    weights: Literal["random", "pretrained"] = "random"
    objective: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)
    licence: str = "unspecified"
    seed: int = Field(default=0, ge=0)

    @classmethod
    def of_run(
        cls,
        inputs: PretrainInputs,
        objective: Objective,
        settings: TrainingSettings,
        *,
        seed: int,
        backbone: BackboneChoice,
        weights: Literal["random", "pretrained"],
        licence: str,
    ) -> PretrainConfig:
        """The configuration that plain arguments ask for, see `tether.pretrain.pretrain`.

        Parameters
        ----------
        inputs, objective, settings, seed, backbone, weights, licence
            As for `pretrain`.

        Returns
        -------
        PretrainConfig
            Whose methods give them back.
        """
        training = asdict(settings)
        training["steps"] = training.pop("property_steps")
        return cls(
            **asdict(inputs),
            backbone=BackboneConfig(name=backbone.name, options=backbone.options or {}),
            weights=weights,
            objective=asdict(objective),
            training=training,
            licence=licence,
            seed=seed,
        )

    def inputs(self) -> PretrainInputs:
        """What is read."""
        datasets = tuple(checked(DataSet, one, "datasets") for one in self.datasets)
        return PretrainInputs(datasets, self.validation, self.test)

    def checked_objective(self) -> Objective:
        """What is learnt."""
        return checked(Objective, self.objective, "objective")

    def settings(self) -> TrainingSettings:
        """Training settings, checked."""
        content = dict(self.training)
        if "property_steps" in content:
            raise TetherError(
                "`training.property_steps` in a pretraining",
                expected="steps: there is no property",
                fix="write training.steps",
            )
        if "steps" in content:
            content["property_steps"] = content.pop("steps")
        return checked(TrainingSettings, content, "training")

    def backbone_choice(self) -> BackboneChoice:
        """Which architecture."""
        return BackboneChoice(self.backbone.name, dict(self.backbone.options))

    def to_yaml(self) -> str:
        """The complete configuration, defaults included."""
        return to_yaml(self.model_dump(mode="json"))


def load_pretrain_config(path: Path | None, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Read a file and apply overrides.

    Parameters
    ----------
    path : Path or None
        See `read_config`.
    overrides : sequence of str
        The same.

    Returns
    -------
    PretrainConfig
        Checked.

    Raises
    ------
    TetherError
        For a missing or unreadable file, an unknown key, or a value of the wrong type.
    """
    config = read_config(PretrainConfig, path, overrides)
    config.inputs()
    config.checked_objective()
    config.settings()
    return config

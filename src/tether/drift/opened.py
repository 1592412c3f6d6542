"""A finished run, opened to be looked at: its data, and its backbone before and after."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tether.backbones.load import load_backbone
from tether.config import Config, load_config
from tether.data.store import Store
from tether.errors import TetherError
from tether.predict import load_run
from tether.run import Run
from tether.serialization import read_json
from tether.splits.split import Split

if TYPE_CHECKING:
    from pathlib import Path

    from tether.backbones.protocol import Backbone

__all__ = ["DriftSettings", "OpenedRun"]

ID_SET = "test/id"


@dataclass(frozen=True)
class DriftSettings:
    """What is looked at, and how often.

    Attributes
    ----------
    subset : str
        Set of the split whose atoms are measured; a test set, so that no label was trained on.
    per_class : int
        Atoms and edges of each class.
    seed : int
        Of the samples and of every resampling.
    embed_seeds : tuple of int
        One t-SNE each; the first is the picture.
    """

    subset: str = ID_SET
    per_class: int = 200
    seed: int = 0
    embed_seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        if self.per_class < 1:
            raise TetherError(
                f"`per_class` is {self.per_class}",
                expected="a positive integer",
                fix="set per_class=200",
            )
        if self.seed < 0 or any(seed < 0 for seed in self.embed_seeds):
            raise TetherError(
                f"seeds {[self.seed, *self.embed_seeds]}", expected="0 or more", fix="set seed=0"
            )
        if not self.embed_seeds or len(set(self.embed_seeds)) < len(self.embed_seeds):
            raise TetherError(
                f"`embed_seeds` is {list(self.embed_seeds)}",
                expected="one seed or more, each once",
                fix="set embed_seeds=(0, 1, 2)",
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping, for JSON."""
        return {**asdict(self), "embed_seeds": list(self.embed_seeds)}


@dataclass(frozen=True)
class OpenedRun:
    """A complete run and the files that it was made from.

    Attributes
    ----------
    run : Run
        The folder.
    config : Config
        What it was made with.
    store : Store
        The same data: its fingerprint has been compared.
    split : Split
        The run's own copy.
    """

    run: Run
    config: Config
    store: Store
    split: Split

    @classmethod
    def open(cls, folder: Path, subset: str = ID_SET) -> OpenedRun:
        """Open a run.

        Parameters
        ----------
        folder : Path
            The run folder.
        subset : str
            A set that will be needed.

        Returns
        -------
        OpenedRun
            No model is loaded yet.

        Raises
        ------
        TetherError
            When the folder holds no complete run, its store is missing or has changed, or the
            split has no such set.
        """
        run = Run(folder)
        if not (run.is_complete and run.config.exists() and run.weights.exists()):
            raise TetherError(
                f"{folder} is no finished run",
                expected="a folder with config.yaml, weights.safetensors and metrics.json",
                fix="let `tether adapt` or `tether compare` come to its end first",
            )
        config = load_config(run.config)
        store = Store.open(config.store)
        split = Split.from_json(run.split, fingerprint=store.fingerprint)
        if subset not in split.indices:
            raise TetherError(
                f"the split of {folder} has no set {subset!r}",
                expected=f"one of {', '.join(split.indices)}",
                fix=f"choose for example {next(n for n in split.indices if n != 'train')!r}",
            )
        return cls(run, config, store, split)

    @property
    def recipe(self) -> str:
        """Name of the recipe."""
        return self.config.points()[0].name

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.config.seeds[0]

    @cached_property
    def weights_sha256(self) -> str:
        """Of the weights' file: another training makes other measures."""
        return hashlib.sha256(self.run.weights.read_bytes()).hexdigest()

    @property
    def metrics(self) -> dict[str, Any]:
        """Content of ``metrics.json``."""
        content: dict[str, Any] = read_json(self.run.metrics)
        return content

    def ood_sets(self, subset: str) -> list[str]:
        """Test sets other than the measured one and the ID test set.

        Parameters
        ----------
        subset : str
            The measured set.

        Returns
        -------
        list of str
            In the order of the split; empty where there is none.
        """
        return [
            n for n in self.split.indices if n.startswith("test/") and n not in {subset, ID_SET}
        ]

    def pretrained(self) -> Backbone:
        """The same backbone with its pretrained weights, whatever the run started from."""
        choice = self.config.backbone_choice()
        return load_backbone(
            choice.name, weights="pretrained", seed=self.seed, options=choice.options
        )

    def adapted(self) -> Backbone:
        """The backbone as the run left it."""
        return load_run(self.run.folder).backbone

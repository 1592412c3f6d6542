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
from tether.report.read import refuse_pretraining
from tether.run import Run
from tether.serialization import read_json
from tether.splits.split import Split

if TYPE_CHECKING:
    from pathlib import Path

    from tether.backbones.protocol import Backbone

__all__ = ["ID_SET", "DriftSettings", "OpenedRun", "is_ood"]

ID_SET = "test/id"


def is_ood(subset: str) -> bool:
    """Whether a set of a split is a test set outside the distribution."""
    return subset.startswith("test/") and subset != ID_SET


@dataclass(frozen=True)
class DriftSettings:
    """What is looked at, and how often.

    Attributes
    ----------
    subset : str
        Set of the split whose atoms are measured; not "train", so that no label was trained on.
    per_class : int
        Atoms and edges of each class; of atoms fewer where there are more than ten classes, see
        `sample_atoms`.
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
            When the folder holds no complete run or a pretraining, its store is missing or has
            changed, the split has no such set, or it is the training set.
        """
        refuse_pretraining(folder)
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
        judged = [name for name in split.indices if name != "train"]
        if subset not in judged:
            problem = f"the split of {folder} has no set {subset!r}"
            if subset == "train":
                problem = "'train' is the training set: its labels were learnt, and not predicted"
            raise TetherError(
                problem,
                expected=f"one of {', '.join(judged)}",
                fix=f"choose {ID_SET if ID_SET in judged else judged[0]!r}",
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
        return [name for name in self.split.indices if is_ood(name) and name != subset]

    @property
    def backbone_sha256(self) -> str:
        """Of the file of the pretrained weights when the run was made; "" where no file is known.

        A run that started from random weights has it in its identity alone.
        """
        for path in (self.run.provenance, self.run.folder / "state" / "identity.json"):
            backbone = read_json(path).get("backbone") if path.exists() else None
            if backbone and backbone.get("sha256"):
                return str(backbone["sha256"])
        return ""

    def pretrained(self) -> Backbone:
        """The same backbone with its pretrained weights, whatever the run started from.

        Returns
        -------
        Backbone
            On the CPU.

        Raises
        ------
        TetherError
            When the weights that are there now are not those that the run was made with.
        """
        choice = self.config.backbone_choice()
        backbone = load_backbone(
            choice.name, weights="pretrained", seed=self.seed, options=choice.options
        )
        # Of converted weights both are the digest of the original file, never of the cache.
        known, found = self.backbone_sha256, backbone.spec.sha256
        if known and found != known:
            raise TetherError(
                f"the weights of backbone {choice.name!r} have "
                + (f"sha256 {found[:12]}…" if found else "no sha256"),
                expected=f"{known[:12]}…, as when {self.run.folder} was made",
                fix="put that file back, or make the run again with this one",
            )
        return backbone

    def adapted(self) -> Backbone:
        """The backbone as the run left it."""
        return load_run(self.run.folder).backbone

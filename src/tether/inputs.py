"""What a run reads: data, split and targets; opened and checked before anything is written."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tether.backbones.checkpoint import is_checkpoint
from tether.data.pieces import pieces
from tether.data.store import Store
from tether.errors import TetherError
from tether.splits.split import Split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tether.heads.readout import Pooling
    from tether.recipe import Recipe

__all__ = ["AdaptInputs", "BackboneChoice", "HeadChoice", "OpenedInputs", "check_held_out"]

# Structures that are read at once.
_PIECE = 10_000


@dataclass(frozen=True)
class BackboneChoice:
    """Which backbone, by name.

    Attributes
    ----------
    name : str
        See `load_backbone`.
    options : dict
        Size, where the architecture has one.
    """

    name: str = "so3lr"
    options: dict[str, Any] | None = None

    def identity(self) -> dict[str, Any]:
        """What tells its runs from others: of a file, its content too.

        Returns
        -------
        dict
            Fields by name.
        """
        found = {"name": self.name, "options": dict(self.options or {})}
        if not is_checkpoint(self.name):
            return found
        path = Path(self.name)
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        return {**found, "sha256": digest}


@dataclass(frozen=True)
class HeadChoice:
    """The property head.

    Attributes
    ----------
    pooling : {"mean", "sum", "max", "dipole", "extent"} or None
        Default by the kind of the target; the last two are for the length of a dipole and the
        electronic spatial extent of molecules, see `tether.heads.readout`.
    n_hidden : int
        Width of the hidden layer; 0: linear.
    """

    pooling: Pooling | None = None
    n_hidden: int = 128


@dataclass(frozen=True)
class AdaptInputs:
    """What a run reads.

    Attributes
    ----------
    store : Path
        Labelled structures, from `prepare`; like all paths, it may be given as a string.
    split : Path
        Row sets of that store, from `split`.
    targets : tuple of str
        Labels to learn; a single one may be given by its name.
    auxiliary : Path or None
        Store with energies and forces for the force-field task, from `label`.
    forcefield_test : Path or None
        Held-out store with energies and forces: forgetting is measured on it.
    """

    store: Path
    split: Path
    targets: tuple[str, ...]
    auxiliary: Path | None = None
    forcefield_test: Path | None = None

    def __post_init__(self) -> None:
        for name in ("store", "split", "auxiliary", "forcefield_test"):
            path = getattr(self, name)
            if path is not None:
                object.__setattr__(self, name, Path(path))
        given: Any = self.targets
        object.__setattr__(self, "targets", (given,) if isinstance(given, str) else tuple(given))


@dataclass(frozen=True)
class OpenedInputs:
    """The files of `AdaptInputs`, opened.

    Attributes
    ----------
    store : Store
        Labelled structures.
    split : Split
        Row sets of that store.
    auxiliary, forcefield_test : Store or None
        Force-field data; `auxiliary` only where the recipe trains on it.
    """

    store: Store
    split: Split
    auxiliary: Store | None
    forcefield_test: Store | None

    @classmethod
    def open(cls, inputs: AdaptInputs, recipe: Recipe | None = None) -> OpenedInputs:
        """Open the files that a recipe needs.

        Parameters
        ----------
        inputs : AdaptInputs
            Where they are.
        recipe : Recipe, optional
            Says whether force-field data are trained on; without one, none are opened.

        Returns
        -------
        OpenedInputs
            Memory-mapped; no structure is read yet.

        Raises
        ------
        TetherError
            For a file that is missing or corrupt, a split of another store, a split without train
            or val, and missing force-field data.
        """
        store = Store.open(inputs.store)
        split = Split.from_json(inputs.split, fingerprint=store.fingerprint)
        for needed in ("train", "val"):
            if needed not in split.indices:
                raise TetherError(
                    f"split {inputs.split} has no set {needed!r}",
                    expected="train, val and one or more test sets",
                    fix="make it with `tether split --val-fraction 0.05`",
                )
        if recipe is None:
            return cls(store, split, None, None)
        if recipe.forcefield and inputs.auxiliary is None:
            raise TetherError(
                f"recipe {recipe.name!r} trains the force field, but there are no data for it",
                expected="auxiliary: a store with energies and forces",
                fix="tether label STORE --with pseudo --out aux.arrow, then auxiliary=aux.arrow",
            )
        return cls(
            store,
            split,
            Store.open(inputs.auxiliary) if inputs.auxiliary and recipe.forcefield else None,
            Store.open(inputs.forcefield_test) if inputs.forcefield_test else None,
        )

    def fingerprints(self) -> dict[str, str | None]:
        """Content hash of each file; None where there is none."""
        return {
            "store": self.store.fingerprint,
            "split": self.split.fingerprint,
            "auxiliary": self.auxiliary.fingerprint if self.auxiliary else None,
            "forcefield_test": self.forcefield_test.fingerprint if self.forcefield_test else None,
        }


def check_held_out(auxiliary: Store, test: Store) -> None:
    """Refuse to measure forgetting on geometries that are trained on.

    Parameters
    ----------
    auxiliary, test : Store
        What is trained on and what is held out; their positions are read.

    Raises
    ------
    TetherError
        When a structure of more than one atom is in both.
    """
    shared = np.isin(_geometries(test), _geometries(auxiliary))
    # An isolated atom is the same in every data set.
    shared &= test.n_atoms_per_system > 1
    if shared.any():
        raise TetherError(
            f"{int(shared.sum())} of the {len(test)} structures of `forcefield_test` are in "
            f"`auxiliary` too, the first is {test.ids[shared][0]!r}",
            expected="geometries that are not trained on",
            fix="tether label STORE --with pseudo --split SPLIT --set val --out heldout.arrow",
        )


def _geometries(store: Store) -> NDArray[np.float64]:
    """A number for each structure, the same for the same atoms at the same places."""
    weights = torch.tensor([1.0, math.pi, math.e], dtype=torch.float64)
    sums = []
    for batch in pieces(store, _PIECE):
        of_atoms = batch.numbers * (batch.positions.double() @ weights)
        empty = of_atoms.new_zeros(batch.n_systems)
        sums.append(empty.index_add(0, batch.system_idx, of_atoms).numpy())
    return np.concatenate([np.empty(0), *sums])

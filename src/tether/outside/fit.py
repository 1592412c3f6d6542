"""`fit_fingerprint`: descriptors and boosted trees → a run folder like any other."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from tether.data.pieces import pieces
from tether.errors import TetherError
from tether.evaluation import (
    Judged,
    check_elements,
    check_validation_labels,
    property_errors,
    write_results,
)
from tether.heads.readout import PropertyHead
from tether.inputs import OpenedInputs
from tether.outside.boosting import BoostingSettings, fit_boosting
from tether.outside.fingerprint import check_packages, column_names, fingerprint_matrix
from tether.run import Run, environment
from tether.serialization import write_json
from tether.structures import collate
from tether.training.log import append_log, cut_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from tether.inputs import AdaptInputs
    from tether.outside.boosting import BoostedTrees
    from tether.structures import AtomBatch
    from tether.targets import Target

__all__ = ["METHOD", "check_fingerprint", "fit_fingerprint"]

#: Of the row in every table.
METHOD = "fingerprint"
#: Structures whose descriptors are in memory at once, where they are not needed together.
_PIECE = 2000


def fit_fingerprint(
    inputs: AdaptInputs,
    *,
    out: Path,
    seed: int = 0,
    settings: BoostingSettings | None = None,
) -> Run:
    """Predict properties without a 3D network: descriptors and gradient-boosted trees.

    The labels are treated as by `PropertyHead`: standardised, extensive ones after a linear
    reference for each element. Learning rate and number of trees are chosen on the ID validation
    set. There are no weights to keep, so that such a run cannot predict other structures, and no
    force field to forget.

    Parameters
    ----------
    inputs : AdaptInputs
        Data, split and targets; force-field data are not read.
    out : Path
        Run folder.
    seed : int
        Of the columns that a split may choose among.
    settings : BoostingSettings, optional
        Size of the trees, and what is tried.

    Returns
    -------
    Run
        Complete: predictions and metrics. One that was killed starts again; one that is complete
        is left as it is.

    Raises
    ------
    TetherError
        For bad input, a missing package, or a folder in which another process is fitting; before
        anything is written.
    """
    check_packages()
    opened = _open(inputs, settings or BoostingSettings(), seed)
    _check_structures(opened)
    run = Run(out)
    run.claim(opened.identity)
    with run.held():
        if not run.is_complete:
            _run(opened, run)
    return run


def _run(opened: _Opened, run: Run) -> None:
    if not run.split.exists():
        opened.data.split.to_json(run.split)
        write_json(run.provenance, _provenance(opened))
    cut_log(run.log, -1)
    start = time.monotonic()
    # As many threads as the process was given: scikit-learn's own would take every core.
    with threadpool_limits(torch.get_num_threads(), user_api="openmp"):
        val = _Table.of(opened, "val")
        trees = _fit(opened, run, val)
        write_results(
            run,
            _judged(opened, trees, val),
            {name: target.unit for name, target in opened.targets.items()},
            forgetting=None,
            property_steps=0,
            forcefield_steps=0,
            best_step=0,
            seconds=time.monotonic() - start,
            trees={name: asdict(fitted.trial) for name, fitted in trees.items()},
        )


def check_fingerprint(
    inputs: AdaptInputs,
    *,
    out: Path,
    seed: int = 0,
    settings: BoostingSettings | None = None,
    structures: bool = True,
) -> None:
    """Refuse what `fit_fingerprint` would refuse, without fitting or writing.

    Parameters
    ----------
    inputs, out, seed, settings
        As for `fit_fingerprint`.
    structures : bool
        Also read the structures; else only files, packages and run folder are checked. A finished
        run needs no package.

    Raises
    ------
    TetherError
        For bad input or a missing package.
    """
    run = Run(out)
    if not run.is_complete:
        check_packages()
    opened = _open(inputs, settings or BoostingSettings(), seed)
    if structures:
        _check_structures(opened)
    run.check(opened.identity)


@dataclass(frozen=True)
class _Opened:
    """Files opened and checked; nothing written yet."""

    data: OpenedInputs
    targets: dict[str, Target]
    settings: BoostingSettings
    seed: int

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this run from another."""
        return {
            "recipe": {"name": METHOD},
            "seed": self.seed,
            "settings": asdict(self.settings),
            "targets": list(self.targets),
            "data": self.data.fingerprints(),
        }

    @cached_property
    def scales(self) -> dict[str, PropertyHead]:
        """Heads of which only the scale is used: the labels are what every other recipe has."""
        train = self.data.store.batch(self.data.split.indices["train"])
        heads = {name: PropertyHead(one, 1, n_hidden=0) for name, one in self.targets.items()}
        for head in heads.values():
            head.fit_scale(train)
        return heads


def _open(inputs: AdaptInputs, settings: BoostingSettings, seed: int) -> _Opened:
    data = OpenedInputs.open(inputs)
    targets = data.store.targets_named(inputs.targets)
    for name, target in targets.items():
        if target.level == "atom" or target.n_components != 1:
            raise TetherError(
                f"target {name!r} is of level {target.level!r} and has {target.n_components} "
                "components",
                expected="one number for each structure, as a fingerprint has one row for each",
                fix=f"leave {METHOD!r} out, or choose a scalar target of structures",
            )
    return _Opened(data, targets, settings, seed)


def _check_structures(opened: _Opened) -> None:
    data = opened.data
    for name, rows in data.split.indices.items():
        if name != "train":
            check_elements(opened.scales.values(), {name: data.store.batch(rows)})
    val = np.asarray(data.split.indices["val"])
    check_validation_labels({name: data.store.label(name)[val] for name in opened.targets})


def _provenance(opened: _Opened) -> dict[str, Any]:
    return {
        "method": METHOD,
        "n_columns": len(column_names()),
        "targets": [target.to_dict() for target in opened.targets.values()],
        "data": opened.data.fingerprints(),
        "level_check": None,
        **environment(),
    }


@dataclass(frozen=True)
class _Table:
    """Structures of one subset, and their descriptors."""

    batch: AtomBatch
    matrix: NDArray[np.float32]

    @classmethod
    def of(cls, opened: _Opened, subset: str) -> _Table:
        rows = np.asarray(opened.data.split.indices[subset])
        batches = list(pieces(opened.data.store, _PIECE, indices=rows))
        return cls(collate(batches), np.concatenate([fingerprint_matrix(b) for b in batches]))

    def labels(self, target: str) -> NDArray[np.float64]:
        values: NDArray[np.float64] = self.batch.labels[target].double().numpy()
        return values

    def standardised(self, scale: PropertyHead) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Descriptors, and what the trees are fitted to."""
        return self.matrix, scale.standardise(self.batch).squeeze(1).numpy()

    def predicted(self, scale: PropertyHead, fitted: BoostedTrees) -> NDArray[np.float64]:
        """In the unit of the target."""
        output = torch.from_numpy(np.ascontiguousarray(fitted.predict(self.matrix))).unsqueeze(1)
        values: NDArray[np.float64] = scale.physical(output, self.batch).squeeze(1).numpy()
        return values


def _fit(opened: _Opened, run: Run, val: _Table) -> dict[str, BoostedTrees]:
    """The best trees of each target; every trial is logged."""
    train = _Table.of(opened, "train")
    best, step = {}, 0
    for name, scale in opened.scales.items():
        fits = fit_boosting(
            train.standardised(scale), val.standardised(scale), opened.settings, seed=opened.seed
        )
        for fitted in fits:
            step += fitted.trial.n_fitted
            errors = property_errors({name: val.predicted(scale, fitted)}, {name: val.labels(name)})
            event = {
                "event": "validate",
                "step": step,
                "property_steps": 0,
                "val_loss": fitted.trial.val_rmse,
                "val_mae": {name: errors[name]["mae"]},
                "val_rmse": {name: errors[name]["rmse"]},
                "forcefield": None,
                "trees": asdict(fitted.trial),
            }
            append_log(run.log, event)
        best[name] = fits[0]
    return best


def _judged(opened: _Opened, trees: Mapping[str, BoostedTrees], val: _Table) -> Iterator[Judged]:
    for subset in opened.data.split.indices:
        if subset == "train":
            continue
        table = val if subset == "val" else _Table.of(opened, subset)
        yield Judged(
            subset,
            dict.fromkeys(trees, table.batch.ids),
            {name: table.predicted(opened.scales[name], fit) for name, fit in trees.items()},
            {name: table.labels(name) for name in trees},
        )

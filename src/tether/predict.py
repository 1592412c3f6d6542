"""`predict`: structures in, properties out, from a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tether.assemble import model_of_targets
from tether.atomic import atomic_path, refuse_folder
from tether.config import load_config
from tether.data.chunks import CHUNK_SIZE
from tether.data.pieces import pieces
from tether.data.read import read_structures
from tether.data.store import Store
from tether.errors import TetherError
from tether.evaluation import check_elements
from tether.report.read import refuse_pretraining
from tether.run import Run
from tether.serialization import load_tensors, read_json
from tether.structures import from_ase, to_ase
from tether.targets import Target
from tether.training.device import find_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from ase import Atoms

    from tether.model import AdaptedModel
    from tether.structures import AtomBatch

    Structures: TypeAlias = "Path | str | Atoms | Sequence[Atoms]"

__all__ = ["Predicted", "load_run", "open_prediction", "predict"]

_PER_ATOM = (".xyz", ".extxyz")
FORMATS = (".parquet", ".csv", *_PER_ATOM)


@dataclass(frozen=True)
class Predicted:
    """Predictions of one input.

    Attributes
    ----------
    ids : tuple of str
        Names of the structures, in order.
    values : dict of str to ndarray, shape (n_systems,), or (n_atoms,) for atom targets
        By target name.
    units : dict of str to str
        Of each target.
    """

    ids: tuple[str, ...]
    values: dict[str, np.ndarray]
    units: dict[str, str]


def load_run(folder: Path | str) -> AdaptedModel:
    """The adapted model of a finished run.

    Parameters
    ----------
    folder : Path or str
        A run folder.

    Returns
    -------
    AdaptedModel
        With the best weights.

    Raises
    ------
    TetherError
        When the folder is no finished run or of a pretraining, or its weights are corrupt.
    """
    folder = Path(folder)
    refuse_pretraining(folder)
    run = Run(folder)
    if not (run.is_complete and run.weights.exists() and run.config.exists()):
        raise TetherError(
            f"{folder} is no finished run",
            expected="a folder with config.yaml, weights.safetensors and metrics.json",
            fix="make one with `tether adapt`, or name one of comparison/runs/*",
        )
    config = load_config(run.config)
    # The run knows its targets, so that it can be used where its training data are not.
    known = read_json(run.provenance).get("targets") if run.provenance.exists() else None
    targets = (
        {entry["name"]: Target(**entry) for entry in known}
        if known
        else {name: Store.open(config.store).targets[name] for name in config.targets}
    )
    model = model_of_targets(
        targets,
        config.points()[0],
        seed=config.seeds[0],
        backbone=config.backbone_choice(),
        head=config.head_choice(),
    )
    model.load(load_tensors(run.weights))
    return model


def open_prediction(
    folder: Path | str, source: Structures, *, out: Path | None = None
) -> tuple[AdaptedModel, Iterator[AtomBatch]]:
    """Open a run and structures, and check what can be checked before predicting.

    Parameters
    ----------
    folder : Path or str
        A finished run.
    source : Path, str, Atoms or sequence of Atoms
        Anything that `prepare` reads, a store, or structures themselves.
    out : Path, optional
        Where predictions will be written.

    Returns
    -------
    model : AdaptedModel
        Of the run.
    batches : iterator of AtomBatch
        The structures without labels.

    Raises
    ------
    TetherError
        For an unknown format of `out`, a run that is not finished, or an input that is unreadable
        or empty.
    """
    if out is not None and out.suffix not in FORMATS:
        raise TetherError(
            f"cannot write {out.name!r}",
            expected=f"one of {', '.join(FORMATS)}",
            fix="rename --out",
        )
    if out is not None:
        refuse_folder(out)
    model = load_run(folder)
    atomwise = _atomwise(model)
    if out is not None and atomwise and out.suffix not in _PER_ATOM:
        raise TetherError(
            f"{out.name} has a row a structure, but {min(atomwise)!r} has a value for each atom",
            expected=" or ".join(_PER_ATOM),
            fix="rename --out",
        )
    batches = _batches(source)
    first = next(batches, None)
    if first is None:
        raise TetherError(
            f"{source} has no structure", expected="at least one", fix="check the file"
        )
    return model, chain([first], batches)


def _atomwise(model: AdaptedModel) -> set[str]:
    return {name for name, head in model.heads.items() if head.target.level == "atom"}


def predict(
    folder: Path | str,
    source: Structures,
    *,
    out: Path | str | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Predicted:
    """Predict every structure of a file, or of a list.

    Parameters
    ----------
    folder, source
        As for `open_prediction`.
    out : Path or str, optional
        ``.parquet``, ``.csv`` or ``.xyz``/``.extxyz``; written atomically.
    progress : callable
        Called with the number of structures done.

    Returns
    -------
    Predicted
        In the order of the source.

    Raises
    ------
    TetherError
        As `open_prediction`, for a structure that the backbone does not take and, of an extensive
        target, an element that the run was not trained on; nothing is written.
    """
    out = None if out is None else Path(out)
    model, stream = open_prediction(folder, source, out=out)
    name_of_source = Path(source).name if isinstance(source, (str, Path)) else "structures"
    model = model.to(find_device("auto"))
    is_xyz = out is not None and out.suffix in _PER_ATOM
    batches, ids = [], []
    parts: dict[str, list[np.ndarray]] = {name: [] for name in model.heads}
    for batch in stream:
        graph = model.backbone.prepare(batch)
        check_elements(model.heads.values(), {name_of_source: batch})
        found = model.predict(graph)
        for name, piece in found.items():
            parts[name].append(piece)
        ids += list(batch.ids)
        if is_xyz:
            batches.append(batch)
        progress(len(ids))
    values = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    units = {name: head.target.unit for name, head in model.heads.items()}
    predicted = Predicted(tuple(ids), values, units)
    if out is not None:
        _write(predicted, batches, out, atomwise=_atomwise(model))
    return predicted


def _batches(source: Structures) -> Iterator[AtomBatch]:
    if not isinstance(source, (str, Path)):
        yield from pieces(from_ase(source), CHUNK_SIZE)
        return
    if Path(source).suffix == ".arrow":
        yield from pieces(Store.open(source), CHUNK_SIZE)
        return
    for chunk in read_structures(source, targets=()):
        yield chunk.batch


def _write(
    predicted: Predicted, batches: list[AtomBatch], out: Path, *, atomwise: set[str]
) -> None:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    with atomic_path(out) as temporary:
        if out.suffix in _PER_ATOM:
            import ase.io

            frames = [atoms for batch in batches for atoms in to_ase(batch)]
            ends = np.cumsum([len(atoms) for atoms in frames])
            for position, atoms in enumerate(frames):
                for name, values in predicted.values.items():
                    if name in atomwise:
                        mine = values[ends[position] - len(atoms) : ends[position]]
                        atoms.arrays[f"{name}_predicted"] = mine
                    else:
                        atoms.info[f"{name}_predicted"] = float(values[position])
            ase.io.write(temporary, frames, format="extxyz")
            return
        table = pa.table({"id": list(predicted.ids), **predicted.values})
        if out.suffix == ".csv":
            pyarrow.csv.write_csv(table, temporary)
        else:
            units = {f"unit.{name}": unit for name, unit in predicted.units.items()}
            pyarrow.parquet.write_table(table.replace_schema_metadata(units), temporary)

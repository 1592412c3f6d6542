"""`split_table`: the columns of a store that a method of splitting needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tether.data.geometry import geometry_hashes
from tether.data.pieces import pieces
from tether.errors import TetherError
from tether.splits.composition import composition_descriptors
from tether.splits.elements import element_labels
from tether.splits.explicit import load_index_file
from tether.splits.geometry import geometry_descriptors
from tether.splits.labels import Labels, label_each
from tether.splits.leakage import structure_hashes
from tether.splits.overlap import composition_codes
from tether.splits.rule import BY_LABEL, BY_VALUE
from tether.splits.scaffold import scaffolds
from tether.splits.split import StoreReference
from tether.splits.symmetry import check_crystals, space_groups
from tether.splits.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from tether.data.store import Store
    from tether.splits.rule import Rule
    from tether.structures import AtomBatch

__all__ = ["DESCRIPTORS", "split_table"]

#: Descriptors that are made from the structures; any other name is a file.
DESCRIPTORS = ("composition", "structure", "both")

# Structures that are in memory at once.
_CHUNK = 20_000


def split_table(
    store: Store,
    rule: Rule,
    *,
    target: str | None = None,
    descriptors: str | None = None,
    compositions: bool = False,
) -> Table:
    """Columns of a store that a rule and the report of its split need.

    Parameters
    ----------
    store : Store
        The structures.
    rule : Rule
        How they will be split.
    target : str, optional
        Label to split by, or to report on; default: the only one of the store.
    descriptors : str, optional
        "composition" (Magpie's statistics), "structure" (SOAP blind to elements), "both", or a
        file: npy, or npz with one array, of shape (n_systems, n_features), such as a pretrained
        model's fingerprints. Default: "composition" where the rule needs any, else none.
    compositions : bool
        Whether to name the compositions, for the overlap with pretraining structures.

    Returns
    -------
    Table
        Labels, hashes and what else is asked for.

    Raises
    ------
    TetherError
        For a target that is not there or is a label of atoms, for a file that does not fit, and
        without a package that the method needs.
    """
    target = _chosen_target(store, target, rule.method)
    if descriptors is None and rule.needs_descriptors:
        descriptors = "composition"
    elements = element_labels(store.numbers_flat, _ptr(store), "element")
    return Table(
        n_systems=store.n_systems,
        values=None if target is None else store.label(target),
        target=target or "",
        unit="" if target is None else store.targets[target].unit,
        ids=cast("Sequence[str]", store.ids),
        sources=cast("Sequence[str]", store.sources),
        hashes=_hashes(store),
        compositions=composition_codes(store.numbers_flat, _ptr(store)) if compositions else None,
        n_atoms=store.n_atoms_per_system if rule.method == "size" else None,
        elements=elements,
        labels=_labels(store, rule, elements) if rule.method in BY_LABEL else None,
        descriptors=None if descriptors is None else _descriptors(store, descriptors),
        descriptor_name=descriptors or "",
        store=StoreReference(str(store.path), store.fingerprint, store.n_systems),
    )


def _chosen_target(store: Store, target: str | None, method: str) -> str | None:
    per_system = [t.name for t in store.targets.values() if t.level == "system"]
    listed = ", ".join(per_system) or "(none)"
    if target is None and len(per_system) == 1:
        return per_system[0]
    if target is None and method in BY_VALUE:
        raise TetherError(
            f"method {method!r} needs a target and the store has {len(per_system)}",
            expected=f"one of {listed}",
            fix="add --target NAME",
        )
    if target is not None and target in store.targets and target not in per_system:
        raise TetherError(
            f"target {target!r} is a label of atoms",
            expected=f"a label of structures: {listed}",
            fix="choose another target",
        )
    return target


def _ptr(store: Store) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(store.n_atoms_per_system)])


def _hashes(store: Store) -> NDArray[np.int64]:
    """Two columns: what `prepare` calls a copy, and crystals whose atoms were reordered."""
    parts = [np.zeros((0, 2), dtype=np.int64)]
    for batch in pieces(store, _CHUNK):
        copies = geometry_hashes(batch).view(np.int64)
        # The copies of a crystal have its order of atoms; those of a molecule any, in any box.
        reordered = structure_hashes(*_arrays(batch), cell=batch.cell.numpy())
        periodic = batch.pbc.any(dim=1).numpy()
        parts.append(np.stack([copies, np.where(periodic, reordered, copies)], axis=1))
    return np.concatenate(parts)


def _arrays(batch: AtomBatch) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    return batch.numbers.numpy(), batch.positions.numpy(), batch.ptr.numpy()


def _labels(store: Store, rule: Rule, elements: Labels) -> Labels | None:
    match rule.method:
        case "element":
            return elements
        case "group" | "period" | "chemical-system":
            return element_labels(store.numbers_flat, _ptr(store), rule.method)
        case "space-group":
            lattices = [(b.cell.numpy(), b.pbc.numpy()) for b in pieces(store, _CHUNK)]
            # Of the whole store at once: an error of a chunk would number its rows by the chunk.
            cell, pbc = map(np.concatenate, zip(*lattices, strict=True))
            check_crystals(cell, pbc, store.ids.tolist())
            parts = (
                space_groups(*_arrays(b), b.cell.numpy(), b.pbc.numpy())
                for b in pieces(store, _CHUNK)
            )
            return label_each("space group", [name for part in parts for name in part])
        case "scaffold":
            parts = (scaffolds(*_arrays(b), b.charge.numpy()) for b in pieces(store, _CHUNK))
            names = [name for part in parts for name in part]
            if not any(names):
                raise TetherError(
                    f"in none of {len(names)} structures could bonds be perceived",
                    expected="neutral or charged organic molecules, hydrogens included",
                    fix="use method element, chemical-system or size",
                )
            return label_each("scaffold", names)
    return None  # folds are read from their file


def _descriptors(store: Store, name: str) -> NDArray[np.float64]:
    if name not in DESCRIPTORS:
        return _from_file(Path(name), store.n_systems)
    parts = []
    if name in {"composition", "both"}:
        parts.append(composition_descriptors(store.numbers_flat, _ptr(store)))
    if name in {"structure", "both"}:
        soap = [
            geometry_descriptors(
                batch.positions.numpy(), batch.ptr.numpy(), batch.cell.numpy(), batch.pbc.numpy()
            )
            for batch in pieces(store, _CHUNK)
        ]
        parts.append(np.concatenate(soap))
    return np.concatenate(parts, axis=1)


def _from_file(path: Path, n_systems: int) -> NDArray[np.float64]:
    if path.suffix not in {".npy", ".npz"}:
        raise TetherError(
            f"descriptors {str(path)!r} are neither a known name nor an npy or npz file",
            expected=f"{', '.join(DESCRIPTORS)} or a file of shape ({n_systems}, n_features)",
            fix="--descriptors composition",
        )
    content: Any = load_index_file(path)
    if isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values()))
    if isinstance(content, dict) or np.ndim(content) != 2 or len(content) != n_systems:
        shape = f"{len(content)} arrays" if isinstance(content, dict) else str(np.shape(content))
        raise TetherError(
            f"descriptors {str(path)!r} have {shape}",
            expected=f"one array of shape ({n_systems}, n_features)",
            fix="write one row for each structure of the store",
        )
    array = np.asarray(content)
    if array.dtype.kind not in "iufb":
        raise TetherError(
            f"descriptors {str(path)!r} are of type {array.dtype}",
            expected="real numbers",
            fix="write an array of floats",
        )
    return array.astype(np.float64)

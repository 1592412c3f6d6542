"""Checks that every backbone makes in `prepare`: what it cannot treat is named, not computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tether.errors import TetherError
from tether.graph import Graph, named, refuse_flat_cells

if TYPE_CHECKING:
    from tether.backbones.protocol import BackboneSpec
    from tether.graph import Edges
    from tether.structures import AtomBatch

__all__ = ["OVERLAP_DISTANCE", "check_overlaps", "check_structures"]

#: Å. Two atoms this close stand at one place: a duplicated line or an unresolved disorder, and the
#: direction between them, which equivariant networks use, is noise. Atoms that are merely too close
#: to be physical (about 0.5 Å) are left to the data audit: a perturbed geometry may hold them.
OVERLAP_DISTANCE = 1e-3


def check_structures(batch: AtomBatch, spec: BackboneSpec) -> None:
    """Refuse structures that a backbone cannot treat; call it before building neighbour lists.

    Parameters
    ----------
    batch : AtomBatch
        Structures that came to `prepare`.
    spec : BackboneSpec
        Of the backbone: its elements, and whether it accepts a cell.

    Raises
    ------
    TetherError
        For a structure without atoms, numbers that are not finite, elements that the
        backbone does not know, a cell that it does not accept, a molecule where it knows crystals
        only, periodic lattice vectors that are dependent, and a charge or unpaired electrons that
        it would not notice. The structures are named by their ids.
    """
    system_idx = batch.system_idx
    empty = batch.counts == 0
    if bool(empty.any()):
        raise TetherError(
            f"no atoms in {named(batch, empty)}",
            expected="at least one atom in each structure",
            fix="remove the empty structures",
        )
    infinite = ~torch.isfinite(batch.cell).flatten(1).all(1)
    infinite |= ~torch.isfinite(batch.charge + batch.spin)
    infinite[system_idx[~torch.isfinite(batch.positions).all(1)]] = True
    if bool(infinite.any()):
        raise TetherError(
            f"positions, cell, charge or spin are not finite in {named(batch, infinite)}",
            expected="finite numbers",
            fix="remove these structures or read them again from their source",
        )
    _check_elements(batch, spec)
    _check_cells(batch, spec)
    _check_electrons(batch, spec)


def check_overlaps(batch: AtomBatch, edges: Edges) -> None:
    """Refuse two atoms at one place; call it once the neighbour list is there.

    Parameters
    ----------
    batch : AtomBatch
        Structures that came to `prepare`.
    edges : Edges
        Any neighbour list of the batch, of any cutoff.

    Raises
    ------
    TetherError
        When two atoms, or an atom and a periodic image, are closer than `OVERLAP_DISTANCE`; it
        names the structures and one pair.
    """
    # Double precision: far from the origin, single precision cannot tell 1e-3 Å from 0.
    distances = Graph(batch.to(dtype=torch.float64), {"edges": edges}).vectors("edges").norm(dim=-1)
    close = distances.detach() < OVERLAP_DISTANCE
    if not bool(close.any()):
        return
    first, second = edges.idx_i[close], edges.idx_j[close]
    systems = torch.zeros(batch.n_systems, dtype=torch.bool, device=batch.ptr.device)
    systems[batch.system_idx[first]] = True
    start = batch.ptr[batch.system_idx[first[0]]]
    pair = (int(first[0] - start), int(second[0] - start))
    raise TetherError(
        f"atoms {pair[0]} and {pair[1]} are {float(distances[close][0]):.2g} Å apart in "
        f"{named(batch, systems)}",
        expected=f"atoms at least {OVERLAP_DISTANCE} Å apart",
        fix="remove the duplicated atoms",
    )


def _check_elements(batch: AtomBatch, spec: BackboneSpec) -> None:
    known = torch.tensor(spec.elements, dtype=torch.int64, device=batch.numbers.device)
    foreign = ~torch.isin(batch.numbers, known)
    if not bool(foreign.any()):
        return
    systems = torch.zeros(batch.n_systems, dtype=torch.bool, device=batch.numbers.device)
    systems[batch.system_idx[foreign]] = True
    symbols = _symbols(torch.unique(batch.numbers[foreign]).tolist())
    raise TetherError(
        f"backbone `{spec.name}` does not know {symbols}, found in {named(batch, systems)}",
        expected=_element_summary(spec.elements),
        fix="remove these structures, or choose a backbone that was trained on these elements",
    )


def _check_cells(batch: AtomBatch, spec: BackboneSpec) -> None:
    periodic = batch.pbc.any(dim=1)
    if not spec.periodic and bool(periodic.any()):
        raise TetherError(
            f"backbone `{spec.name}` accepts no cell, but {named(batch, periodic)} is periodic",
            expected="molecules: pbc=False",
            fix="choose a periodic backbone, or set pbc=False if the cell is only a box",
        )
    if not spec.molecules and not bool(periodic.all()):
        raise TetherError(
            f"backbone `{spec.name}` knows crystals only, but {named(batch, ~periodic)} has no "
            "periodic direction",
            expected="crystals: a cell, and pbc=True",
            fix="choose a backbone for molecules (`tether list`), or write the cell and pbc",
        )
    refuse_flat_cells(batch)


def _check_electrons(batch: AtomBatch, spec: BackboneSpec) -> None:
    for heard, values, what, normal in (
        (spec.charge, batch.charge, "a charge", "neutral structures: charge 0"),
        (spec.spin, batch.spin, "unpaired electrons", "closed shells: spin 0"),
    ):
        if heard or not bool(values.any()):
            continue
        raise TetherError(
            f"backbone `{spec.name}` does not know {what}, found in "
            f"{named(batch, values != 0)}: {float(values[values != 0][0]):g}",
            expected=normal,
            fix="remove these structures, or choose a backbone that was trained on such ones",
        )


def _symbols(numbers: list[int]) -> str:
    from ase.data import chemical_symbols

    known = len(chemical_symbols)
    return ", ".join(chemical_symbols[z] if 0 < z < known else f"Z={z}" for z in numbers)


def _element_summary(elements: tuple[int, ...]) -> str:
    shown = _symbols(sorted(elements)[:12])
    return f"one of {shown}" + (f", … ({len(elements)} elements)" if len(elements) > 12 else "")

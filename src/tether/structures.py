"""`AtomBatch`: the one central structure. Always batched, frozen, without edges."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ase import Atoms

__all__ = ["AtomBatch", "collate", "from_ase", "ragged_indices", "to_ase"]

#: What an `AtomBatch` finds out once, when it is first asked.
_FACTS = ("system_idx", "is_periodic", "is_charged", "complete")
_OF_ATOMS, _OF_SYSTEMS = ("numbers", "positions"), ("cell", "pbc", "charge", "spin")


def ragged_indices(ptr: Tensor, select: Tensor) -> tuple[Tensor, Tensor]:
    """Flat positions of the selected segments of a ragged array, without a Python loop.

    Parameters
    ----------
    ptr : Tensor, shape (n_segments + 1,)
        Offsets: segment ``s`` is ``ptr[s]:ptr[s + 1]``.
    select : Tensor, shape (n_selected,)
        Segments to take, in order; repeats are allowed.

    Returns
    -------
    flat : Tensor, shape (n_flat,)
        Positions in the flat array.
    new_ptr : Tensor, shape (n_selected + 1,)
        Offsets of the selection.

    Examples
    --------
    >>> flat, ptr = ragged_indices(torch.tensor([0, 2, 5]), torch.tensor([1, 0]))
    >>> flat.tolist(), ptr.tolist()
    ([2, 3, 4, 0, 1], [0, 3, 5])
    """
    counts = ptr[select + 1] - ptr[select]
    new_ptr = torch.zeros(len(select) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=new_ptr[1:])
    start = torch.repeat_interleave(ptr[select] - new_ptr[:-1], counts)
    return start + torch.arange(int(new_ptr[-1])), new_ptr


@dataclass(frozen=True)
class AtomBatch:
    """A batch of structures; one structure is a batch of one.

    Attributes
    ----------
    numbers : Tensor, shape (n_atoms,), int64
        Atomic numbers.
    positions : Tensor, shape (n_atoms, 3), float
        Cartesian positions in Å.
    ptr : Tensor, shape (n_systems + 1,), int64
        Offsets: the atoms of system ``s`` are ``ptr[s]:ptr[s + 1]``.
    cell : Tensor, shape (n_systems, 3, 3), float
        Lattice vectors as rows, Å; zero where there is none.
    pbc : Tensor, shape (n_systems, 3), bool
        Periodic directions.
    charge, spin : Tensor, shape (n_systems,), float
        Total charge in e; number of unpaired electrons.
    labels : mapping of str to Tensor, shape (n_systems,) or (n_systems, k)
        One value (or k components) a structure, by target name; NaN = unlabelled.
    atom_labels : mapping of str to Tensor, shape (n_atoms,) or (n_atoms, k)
        The same for atoms. Kept apart from `labels`, so that nothing guesses a level by length.
    ids : tuple of str, length n_systems
        A name for each structure, kept from file to prediction.

    Examples
    --------
    >>> from ase.build import molecule
    >>> batch = from_ase([molecule("H2O"), molecule("CH4")])
    >>> batch.n_systems, batch.n_atoms, batch.system_idx.tolist()
    (2, 8, [0, 0, 0, 1, 1, 1, 1, 1])
    """

    numbers: Tensor
    positions: Tensor
    ptr: Tensor
    cell: Tensor
    pbc: Tensor
    charge: Tensor
    spin: Tensor
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    atom_labels: Mapping[str, Tensor] = field(default_factory=dict)
    ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n_atoms, n_systems = self.n_atoms, self.n_systems
        shapes = {
            "positions": (self.positions, (n_atoms, 3)),
            "cell": (self.cell, (n_systems, 3, 3)),
            "pbc": (self.pbc, (n_systems, 3)),
            "charge": (self.charge, (n_systems,)),
            "spin": (self.spin, (n_systems,)),
        }
        for name, (tensor, shape) in shapes.items():
            if tuple(tensor.shape) != shape:
                raise TetherError(
                    f"`{name}` has shape {tuple(tensor.shape)}",
                    expected=f"{shape} for {n_atoms} atoms in {n_systems} systems",
                    fix="build batches with from_ase(), collate() or a store",
                )

    @property
    def n_atoms(self) -> int:
        """Number of atoms in the batch."""
        return self.numbers.shape[0]

    @property
    def n_systems(self) -> int:
        """Number of structures in the batch."""
        return self.ptr.shape[0] - 1

    @property
    def counts(self) -> Tensor:
        """Atoms of each structure, shape (n_systems,)."""
        return self.ptr[1:] - self.ptr[:-1]

    @cached_property
    def system_idx(self) -> Tensor:
        """Structure of each atom, shape (n_atoms,), sorted."""
        return torch.repeat_interleave(
            torch.arange(self.n_systems, device=self.ptr.device), self.counts
        )

    @cached_property
    def is_periodic(self) -> bool:
        """Whether any structure has a cell that repeats."""
        return bool(self.pbc.any())

    @cached_property
    def is_charged(self) -> bool:
        """Whether any structure has a charge or unpaired electrons."""
        return bool(self.charge.any()) or bool(self.spin.any())

    @cached_property
    def complete(self) -> frozenset[str]:
        """Labels, of structures or of atoms, that none of them lacks."""
        every = {**self.labels, **self.atom_labels}
        return frozenset(name for name, label in every.items() if not bool(label.isnan().any()))

    def with_geometry(self, positions: Tensor, cell: Tensor | None = None) -> AtomBatch:
        """The same structures at other positions, and in another cell where one is given.

        Parameters
        ----------
        positions : Tensor, shape (n_atoms, 3)
            Å.
        cell : Tensor, shape (n_systems, 3, 3), optional
            Å.

        Returns
        -------
        AtomBatch
            What was found out about the structures is not asked of them again.
        """
        moved = replace(self, positions=positions, cell=self.cell if cell is None else cell)
        return moved.told(**{name: vars(self)[name] for name in _FACTS if name in vars(self)})

    def told(self, **facts: Any) -> AtomBatch:
        """Take facts for granted that the batch would find out: those of `_FACTS`; return it."""
        vars(self).update(facts)
        return self

    def centred(self, values: Tensor, weights: Tensor | None = None) -> Tensor:
        """Values of atoms less their mean over each structure.

        Parameters
        ----------
        values : Tensor, shape (n_atoms, k)
            Positions, noise, …
        weights : Tensor, shape (n_atoms,), optional
            Of each atom in the mean, positive; default equal ones.

        Returns
        -------
        Tensor, shape (n_atoms, k)
        """
        each = torch.ones_like(values[:, :1]) if weights is None else weights[:, None]
        none = values.new_zeros(self.n_systems, values.shape[1])
        total = none.index_add(0, self.system_idx, values * each)
        share = none[:, :1].index_add(0, self.system_idx, each)
        return values - (total / share).index_select(0, self.system_idx)

    def select(self, systems: Tensor | Sequence[int]) -> AtomBatch:
        """The given structures, in that order; repeats are allowed.

        Parameters
        ----------
        systems : Tensor or sequence of int
            Indices of structures.

        Returns
        -------
        AtomBatch
            A new batch; no tensor is shared with this one.
        """
        idx = torch.as_tensor(systems, dtype=torch.int64)
        flat, ptr = ragged_indices(self.ptr, idx)
        return AtomBatch(
            **{name: getattr(self, name)[flat] for name in _OF_ATOMS},
            **{name: getattr(self, name)[idx] for name in _OF_SYSTEMS},
            ptr=ptr,
            labels={name: value[idx] for name, value in self.labels.items()},
            atom_labels={name: value[flat] for name, value in self.atom_labels.items()},
            ids=tuple(self.ids[i] for i in idx.tolist()) if self.ids else (),
        )

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> AtomBatch:
        """Move to a device; `dtype` applies to the geometry, labels keep their precision.

        Parameters
        ----------
        device : torch.device or str, optional
            Where the tensors go; default: where they are.
        dtype : torch.dtype, optional
            Of positions, cell, charge and spin; default: as it is.

        Returns
        -------
        AtomBatch
            The moved batch, which knows what an accelerator would have to be waited for.
        """
        if dtype is None and (device is None or torch.device(device) == self.positions.device):
            return self

        geometry = ("positions", "cell", "charge", "spin")
        moved = AtomBatch(
            **{name: getattr(self, name).to(device, dtype) for name in geometry},
            numbers=self.numbers.to(device),
            ptr=self.ptr.to(device),
            pbc=self.pbc.to(device),
            labels={name: value.to(device) for name, value in self.labels.items()},
            atom_labels={name: value.to(device) for name, value in self.atom_labels.items()},
            ids=self.ids,
        )
        return moved.told(
            system_idx=self.system_idx.to(device),
            is_periodic=self.is_periodic,
            is_charged=self.is_charged,
            complete=self.complete,
        )


def collate(batches: Sequence[AtomBatch]) -> AtomBatch:
    """Concatenate batches; a label that a batch lacks becomes NaN for its structures.

    Parameters
    ----------
    batches : sequence of AtomBatch
        At least one.

    Returns
    -------
    AtomBatch
        All structures, in order.

    Raises
    ------
    TetherError
        When there is nothing to concatenate.
    """
    if not batches:
        raise TetherError(
            "no batch to concatenate", expected="at least one", fix="check the selection"
        )

    def labels_of(kind: str) -> dict[str, Tensor]:
        names = {name: value for b in batches for name, value in getattr(b, kind).items()}
        merged = {}
        for name, like in names.items():
            parts = []
            for b in batches:
                length = b.n_systems if kind == "labels" else b.n_atoms
                missing = torch.full((length, *like.shape[1:]), float("nan"), dtype=like.dtype)
                parts.append(getattr(b, kind).get(name, missing))
            merged[name] = torch.cat(parts)
        return merged

    whole = {n: torch.cat([getattr(b, n) for b in batches]) for n in _OF_ATOMS + _OF_SYSTEMS}
    counts = torch.cat([b.counts for b in batches])
    ptr = torch.zeros(len(counts) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=ptr[1:])
    return AtomBatch(
        **whole,
        ptr=ptr,
        labels=labels_of("labels"),
        atom_labels=labels_of("atom_labels"),
        ids=tuple(name for b in batches for name in (b.ids or [""] * b.n_systems)),
    )


def from_ase(
    atoms: Sequence[Atoms] | Atoms,
    *,
    labels: Mapping[str, np.ndarray] | None = None,
    atom_labels: Mapping[str, np.ndarray] | None = None,
    ids: Sequence[str] | None = None,
) -> AtomBatch:
    """Build a batch from ASE structures.

    Parameters
    ----------
    atoms : ase.Atoms or sequence of ase.Atoms
        The structures. ``info["charge"]`` and ``info["spin"]`` are read, default 0.
    labels, atom_labels : mapping of str to array, optional
        Label arrays with a leading axis of n_systems or n_atoms.
    ids : sequence of str, optional
        Names; default: running numbers.

    Returns
    -------
    AtomBatch
        Double precision, on the CPU.
    """
    from ase import Atoms as AseAtoms

    frames = [atoms] if isinstance(atoms, AseAtoms) else list(atoms)
    ids = [str(i) for i in range(len(frames))] if ids is None else ids
    if not frames:
        raise TetherError(
            "no structure given", expected="at least one ase.Atoms", fix="check the input file"
        )
    ptr = np.concatenate([[0], np.cumsum([len(a) for a in frames])])
    return AtomBatch(
        numbers=torch.as_tensor(np.concatenate([a.numbers for a in frames]), dtype=torch.int64),
        positions=torch.as_tensor(np.concatenate([a.positions for a in frames])),
        ptr=torch.as_tensor(ptr, dtype=torch.int64),
        cell=torch.as_tensor(np.stack([np.asarray(a.cell.array) for a in frames])),
        pbc=torch.as_tensor(np.stack([a.pbc for a in frames])),
        charge=_electrons(frames, "charge", ids),
        spin=_electrons(frames, "spin", ids),
        labels={k: torch.as_tensor(np.asarray(v)) for k, v in (labels or {}).items()},
        atom_labels={k: torch.as_tensor(np.asarray(v)) for k, v in (atom_labels or {}).items()},
        ids=tuple(ids),
    )


def _electrons(frames: Sequence[Atoms], name: str, ids: Sequence[str]) -> Tensor:
    values = [np.asarray(atoms.info.get(name, 0.0)) for atoms in frames]
    for id_, value in zip(ids, values, strict=True):
        # ASE makes True of a bare word, and float() would make 1 of that.
        if value.dtype.kind not in "iuf" or value.size != 1:
            raise TetherError(
                f"`{name}` of structure {id_} is {value.tolist()!r}",
                expected="a number",
                fix=f"correct it, or leave it out for {name}=0",
            )
    return torch.tensor([float(value.item()) for value in values]).double()


def to_ase(batch: AtomBatch) -> list[Atoms]:
    """One ``ase.Atoms`` a structure; id and system labels go to ``info``, the rest to ``arrays``.

    Parameters
    ----------
    batch : AtomBatch
        Structures to convert.

    Returns
    -------
    list of ase.Atoms
        In the order of the batch.
    """
    from ase import Atoms as AseAtoms

    frames = []
    for s, (start, stop) in enumerate(itertools.pairwise(batch.ptr.tolist())):
        atoms = AseAtoms(
            numbers=batch.numbers[start:stop].numpy(),
            positions=batch.positions[start:stop].detach().double().numpy(),
            cell=batch.cell[s].detach().double().numpy(),
            pbc=batch.pbc[s].numpy(),
        )
        atoms.info["charge"], atoms.info["spin"] = float(batch.charge[s]), float(batch.spin[s])
        if batch.ids:
            atoms.info["id"] = batch.ids[s]
        for name, value in batch.labels.items():
            atoms.info[name] = value[s].tolist()
        for name, value in batch.atom_labels.items():
            atoms.arrays[name] = value[start:stop].numpy()
        frames.append(atoms)
    return frames

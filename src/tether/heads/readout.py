"""`PropertyHead`: node features → one property, pooled over the atoms of each structure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tether.errors import TetherError
from tether.targets import WITHOUT_HEAD

if TYPE_CHECKING:
    from tether.features import Features
    from tether.structures import AtomBatch
    from tether.targets import Target

__all__ = ["Pooling", "PropertyHead"]

Pooling = Literal["mean", "sum", "max", "dipole", "extent"]
#: Length below which the direction of a dipole has no meaning, in the target's unit.
SMALLEST_DIPOLE = 1e-3
#: Atomic numbers run to 118; entry 0 stays empty.
N_ELEMENTS = 119
#: Least standard deviation that a head learns, as a share of the labels' own.
SMALLEST_RESIDUAL = 1e-6
#: Poolings that see where the atoms are, and the kind of target that they are for.
_GEOMETRIC = {"dipole": "intensive", "extent": "extensive"}
_DEFAULT_POOLING: dict[str, Pooling] = {"intensive": "mean", "extensive": "sum", "max": "max"}


class PropertyHead(nn.Module):
    """An atom-wise perceptron and a pooling; predicts standardised labels.

    The standardisation travels with the head: ``label = mean + std * output + Σ reference[Z]``,
    the last term a per-element linear reference that only extensive targets get (JMP,
    arXiv 2310.16802, does so for ZPVE, U0, U, H, G, Cv).

    Parameters
    ----------
    target : Target
        What is predicted.
    n_features : int
        Width of the node features.
    pooling : {"mean", "sum", "max", "dipole", "extent"}, optional
        Default by the kind of the target: intensive, extensive, max. ``dipole``: the perceptron
        gives partial charges, made neutral, and the prediction is ``|Σ q r|``, smooth at zero. A
        dipole grows with the distance of its charges, which no mean of what atoms look like does.
        ``extent``, for the electronic spatial extent: two numbers of each atom, its electrons,
        which count with the square of their distance from the centre of nuclear charge, and its
        own width, which counts as it is; both have an element reference. That centre is the origin
        of Gaussian's standard orientation, about which QM9's ⟨R²⟩ is. After SchNetPack's two heads
        (K. T. Schütt et al., J. Chem. Theory Comput. 15, 448 (2019)), which know neither this
        centre nor the width.
    n_hidden : int
        Width of the hidden layer; 0 makes the head linear.
    residual : bool
        Read the pretrained features, too: an atom has the sum of a perceptron on those and of one
        on the features that move.
    seed : int
        Of the initial weights; the global generator is left as it was.
    """

    def __init__(
        self,
        target: Target,
        n_features: int,
        *,
        pooling: Pooling | None = None,
        n_hidden: int = 128,
        residual: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if target.kind in WITHOUT_HEAD:
            raise TetherError(
                f"target {target.name!r} is of kind {target.kind!r}",
                expected="intensive, extensive or max",
                fix="there is no head for vectors and classes yet; a vector has a length",
            )
        kind = _GEOMETRIC.get(pooling or "")
        if kind and (target.level, target.n_components, target.kind) != ("system", 1, kind):
            raise TetherError(
                f"a head of pooling {pooling!r} for target {target.name!r}, which is "
                f"{target.kind} with {target.n_components} component(s) for each {target.level}",
                expected=f"one number for each structure, {kind}",
                fix="leave `pooling` out",
            )
        self.target = target
        self.pooling: Pooling = pooling or _DEFAULT_POOLING[target.kind]
        n_outputs = 2 if self.pooling == "extent" else target.n_components
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.readout = _perceptron(n_features, n_hidden, n_outputs)
            self.base = _perceptron(n_features, n_hidden, n_outputs) if residual else None
        self.register_buffer("mean", torch.zeros(target.n_components, dtype=torch.float64))
        self.register_buffer("std", torch.ones(target.n_components, dtype=torch.float64))
        self.register_buffer("reference", torch.zeros(N_ELEMENTS, dtype=torch.float64))
        self.mean: Tensor
        self.std: Tensor
        self.reference: Tensor
        if self.pooling == "extent":
            # Å², of the average atom: the sum is then of the size of a plain one.
            self.register_buffer("extent", torch.ones((), dtype=torch.float64))
            self.register_buffer("extent_reference", torch.zeros(N_ELEMENTS, dtype=torch.float64))
            self.extent: Tensor
            self.extent_reference: Tensor

    def fit_scale(self, batch: AtomBatch) -> None:
        """Take mean, standard deviation and element reference from labelled structures.

        Parameters
        ----------
        batch : AtomBatch
            Training structures with the target among their labels.

        Raises
        ------
        TetherError
            When no structure is labelled, or all labels are equal.
        """
        values = self._labels(batch).double().numpy()
        labelled = values[~np.isnan(values).any(axis=1)]
        raw = labelled.std(axis=0) if len(labelled) else np.zeros(1)
        # Equal labels leave a rounding error of about one ulp of the mean; infinite ones no number.
        level = np.abs(labelled.mean(axis=0)) if len(labelled) else np.zeros(1)
        if not (raw > 4 * np.finfo(np.float64).eps * level).all():
            raise TetherError(
                f"target {self.target.name!r} has {len(labelled)} labels of spread {raw.max():.3g}",
                expected="finite training labels that differ",
                fix="check the label column and the split",
            )
        if self.target.kind == "extensive" and self.target.level == "system":
            self._fit_reference(batch, values[:, 0])
        residual = values - self._offset(batch).numpy()
        known = ~np.isnan(residual).any(axis=1)
        self.mean.copy_(torch.as_tensor(residual[known].mean(axis=0)))
        # Where the reference explains everything, what is left is rounding: not to be learnt.
        std = np.maximum(residual[known].std(axis=0), SMALLEST_RESIDUAL * raw)
        self.std.copy_(torch.as_tensor(std))

    def lacks_reference(self, batch: AtomBatch) -> Tensor:
        """Atoms of elements that no labelled training structure has; none but of extensive targets.

        Parameters
        ----------
        batch : AtomBatch
            Structures to predict.

        Returns
        -------
        Tensor, shape (n_atoms,), bool
            True: the atom's share of the label is unknown, and would be taken for zero.
        """
        if self.target.kind != "extensive" or self.target.level == "atom":
            return torch.zeros(batch.n_atoms, dtype=torch.bool)
        return self.reference.cpu().index_select(0, batch.numbers.cpu()) == 0

    def _fit_reference(self, batch: AtomBatch, values: np.ndarray) -> None:
        from tether.data.statistics import fit_element_reference

        counts = element_counts(batch)
        if self.pooling == "extent":
            extents = _extents(batch)
            self.extent.copy_(extents.mean())
            counts = np.hstack([counts, element_counts(batch, extents)])
        counts = np.where(np.isnan(values)[:, None], 0.0, counts)
        found, coefficients = fit_element_reference(counts, values)
        both = self.reference.new_zeros(counts.shape[1])
        # Zero means that an element was not there; the least number changes no sum.
        known = np.where(coefficients == 0.0, np.finfo(np.float64).tiny, coefficients)
        both[torch.as_tensor(found)] = torch.as_tensor(known)
        self.reference.copy_(both[:N_ELEMENTS])
        if self.pooling == "extent":
            self.extent_reference.copy_(both[N_ELEMENTS:])

    def forward(self, features: Features, batch: AtomBatch) -> Tensor:
        """Standardised prediction.

        Parameters
        ----------
        features : Features
            Of the batch.
        batch : AtomBatch
            For its system indices.

        Returns
        -------
        Tensor, shape (n_systems, n_components), or (n_atoms, n_components) for atom targets
        """
        atomic: Tensor = self.readout(features.node)
        if self.base is not None:
            atomic = atomic + self.base(features.pretrained)
        if self.target.level == "atom":
            return atomic
        index, shape = batch.system_idx, (batch.n_systems, atomic.shape[1])
        if self.pooling == "max":
            expanded = index.unsqueeze(1).expand_as(atomic)
            return atomic.new_zeros(shape).scatter_reduce(
                0, expanded, atomic, "amax", include_self=False
            )
        if self.pooling == "dipole":
            return self._dipole(atomic, batch)
        if self.pooling == "extent":
            electrons, width = atomic[:, :1], atomic[:, 1:]
            atomic = electrons * (_extents(batch) / self.extent).to(atomic.dtype)[:, None] + width
            shape = (batch.n_systems, 1)
        total = atomic.new_zeros(shape).index_add(0, index, atomic)
        return total / batch.counts.unsqueeze(1) if self.pooling == "mean" else total

    def _dipole(self, charges: Tensor, batch: AtomBatch) -> Tensor:
        # From the centre the mean charge has no moment, so that what counts is neutral.
        _require_molecules(batch)
        moments = charges * batch.centred(batch.positions.double()).to(charges.dtype)
        vector = charges.new_zeros(batch.n_systems, 3).index_add(0, batch.system_idx, moments)
        length = (vector.square().sum(1, keepdim=True) + SMALLEST_DIPOLE**2).sqrt()
        return (length - self.mean.to(length.dtype)) / self.std.to(length.dtype)

    def standardise(self, batch: AtomBatch) -> Tensor:
        """Labels of the batch on the scale of `forward`; NaN where unlabelled."""
        labels = self._labels(batch)
        offset = self._offset(batch)
        return ((labels.double() - offset - self.mean) / self.std).to(torch.get_default_dtype())

    def physical(self, output: Tensor, batch: AtomBatch) -> Tensor:
        """Predictions in the unit of the target, double precision."""
        return output.double() * self.std + self.mean + self._offset(batch)

    def _labels(self, batch: AtomBatch) -> Tensor:
        kind = batch.labels if self.target.level == "system" else batch.atom_labels
        if self.target.name not in kind:
            raise TetherError(
                f"there is no label {self.target.name!r}",
                expected=f"one of {', '.join(sorted(kind)) or 'none'}",
                fix="set targets to a label of the store (`tether list STORE`)",
            )
        value = kind[self.target.name]
        return value.unsqueeze(1) if value.ndim == 1 else value

    def _offset(self, batch: AtomBatch) -> Tensor:
        """Sum of the element references, shape (n_systems, 1); zero but for extensive targets."""
        if self.target.level == "atom":
            return self.mean.new_zeros(1, 1)
        atomic = self.reference.index_select(0, batch.numbers)
        if self.pooling == "extent":
            atomic = atomic + self.extent_reference.index_select(0, batch.numbers) * _extents(batch)
        total = self.reference.new_zeros(batch.n_systems).index_add(0, batch.system_idx, atomic)
        return total.unsqueeze(1)


def _perceptron(n_in: int, n_hidden: int, n_out: int) -> nn.Module:
    if not n_hidden:
        return nn.Linear(n_in, n_out)
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_out))


def _require_molecules(batch: AtomBatch) -> None:
    if batch.is_periodic:
        raise TetherError(
            "a dipole or an extent of a periodic structure",
            expected="molecules: in a crystal both depend on the choice of the cell",
            fix="set head.pooling=mean or sum",
        )


def _extents(batch: AtomBatch) -> Tensor:
    """Squared distances from the centre of nuclear charge, Å², shape (n_atoms,), double."""
    _require_molecules(batch)
    return batch.centred(batch.positions.double(), batch.numbers.double()).square().sum(1)


def element_counts(batch: AtomBatch, weights: Tensor | None = None) -> np.ndarray:
    """Atoms of each element in each structure.

    Parameters
    ----------
    batch : AtomBatch
        Structures.
    weights : Tensor, shape (n_atoms,), optional
        As how many atoms each counts; default one.

    Returns
    -------
    ndarray, shape (n_systems, 119)
        Indexed by atomic number.
    """
    counts = torch.zeros(batch.n_systems * N_ELEMENTS, dtype=torch.float64)
    index = batch.system_idx * N_ELEMENTS + batch.numbers
    one = torch.ones(batch.n_atoms, dtype=torch.float64)
    counts.index_add_(0, index, one if weights is None else weights.double())
    return counts.view(batch.n_systems, N_ELEMENTS).numpy()

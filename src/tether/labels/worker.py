"""What one worker process does: geometries of some structures, their labels, a shard as bytes."""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch

from tether.errors import TetherError
from tether.labels.dynamics import short_md
from tether.labels.failure import Failure
from tether.labels.perturb import displace, normal_mode_like, strained, unchanged
from tether.labels.pseudo import PseudoLabeller, potential_calculator, pseudo_label
from tether.labels.samples import Kind, Samples
from tether.labels.shards import pack_shard
from tether.labels.xtb import xtb_calculator, xtb_label
from tether.structures import AtomBatch, collate
from tether.workers import end_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ase.calculators.calculator import Calculator

__all__ = [
    "ChunkResult",
    "ChunkTask",
    "Labeller",
    "Sampling",
    "Settings",
    "chunk_result",
    "label_chunk",
    "run_task",
    "start_worker",
    "with_labels",
]

Labeller = Literal["pseudo", "gfn2-xtb"]


@dataclass(frozen=True)
class Sampling:
    """Which geometries are made of each structure.

    Attributes
    ----------
    kinds : tuple of {"displace", "strain", "modes", "md", "input"}
        Gaussian noise, the same in a strained cell, thermal model modes, snapshots of dynamics, the
        structure as it is.
    n_per_structure : int
        Geometries of each kind ("input" makes one).
    widths : tuple of float
        Å, of "displace" and "strain", taken in turn.
    strain : float
        Standard deviation of the strain components of "strain".
    temperature : float
        K, of "modes" and "md".
    md_every : int
        Steps of 0.5 fs between snapshots of "md".
    """

    kinds: tuple[Kind, ...] = ("displace",)
    n_per_structure: int = 3
    widths: tuple[float, ...] = (0.02, 0.05, 0.1)
    strain: float = 0.02
    temperature: float = 300.0
    md_every: int = 50

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in get_args(Kind)]
        if unknown or not self.kinds or len(set(self.kinds)) != len(self.kinds):
            raise TetherError(
                f"`sampling` is {', '.join(self.kinds) or 'empty'}",
                expected=f"different ones of {', '.join(get_args(Kind))}",
                fix="set sampling to displace",
            )
        for name in ("n_per_structure", "strain", "temperature", "md_every"):
            if not getattr(self, name) > 0:
                raise TetherError(
                    f"`{name}` is {getattr(self, name)}",
                    expected="a positive number",
                    fix=f"set {name}={getattr(type(self), name)}",
                )
        if not self.widths or min(self.widths) <= 0:
            raise TetherError(
                f"`widths` is {self.widths}",
                expected="positive standard deviations in Å",
                fix="set widths=0.02,0.05,0.1",
            )

    @property
    def n_geometries(self) -> int:
        """Geometries of each structure, all kinds together."""
        return sum(1 if kind == "input" else self.n_per_structure for kind in self.kinds)

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Settings:
    """What the labels of a chunk depend on, apart from its structures.

    Attributes
    ----------
    labeller : {"pseudo", "gfn2-xtb"}
        Where labels come from.
    sampling : Sampling
        Which geometries.
    seed : int
        Of the random streams.
    max_force : float
        eV/Å; geometries with a larger force on an atom are left out and listed.
    max_atoms : int
        Atoms of one forward pass of "pseudo".
    """

    labeller: Labeller
    sampling: Sampling
    seed: int
    max_force: float
    max_atoms: int


class ChunkTask(NamedTuple):
    """Work for a process. The batch is pickled by hand: torch would put it in shared memory.

    The path of the shard is for the process that writes it; a worker may be on another machine.
    """

    batch: bytes
    settings: Settings
    path: Path


class ChunkResult(NamedTuple):
    """What a finished chunk reports; the labels themselves are in its shard."""

    n_structures: int
    n_labels: int
    n_failures: int
    shard: bytes


def _sample(batch: AtomBatch, settings: Settings, backbone: PseudoLabeller | None) -> Samples:
    sampling, seed = settings.sampling, settings.seed
    n_each = sampling.n_per_structure
    parts = []
    for kind in sampling.kinds:
        match kind:
            case "input":
                parts.append(unchanged(batch))
            case "displace":
                parts.append(
                    displace(batch, widths=sampling.widths, n_per_structure=n_each, seed=seed)
                )
            case "strain":
                parts.append(
                    strained(
                        batch,
                        strain=sampling.strain,
                        widths=sampling.widths,
                        n_per_structure=n_each,
                        seed=seed,
                    )
                )
            case "modes":
                parts.append(
                    normal_mode_like(
                        batch,
                        temperature=sampling.temperature,
                        n_per_structure=n_each,
                        seed=seed,
                    )
                )
            case "md":
                calculator: Callable[[], Calculator] = xtb_calculator
                if backbone is not None:
                    calculator = partial(potential_calculator, backbone)
                parts.append(
                    short_md(
                        batch,
                        calculator,
                        temperature=sampling.temperature,
                        steps=n_each * sampling.md_every,
                        every=sampling.md_every,
                        seed=seed,
                    )
                )
    rejected = tuple(failure for part in parts for failure in part.rejected)
    together = collate([part.batch for part in parts])
    # By structure, then by kind: the order of the store must not depend on the chunk size.
    place = {name: s for s, name in reversed(list(enumerate(batch.ids)))}
    order = sorted(range(together.n_systems), key=lambda i: place[_parent(together.ids[i])])
    return Samples(together.select(order), rejected)


def _parent(name: str) -> str:
    return name.rpartition("/")[0]


def _label_xtb(batch: AtomBatch) -> tuple[AtomBatch, list[Failure]]:
    ptr, kept, energies, forces = batch.ptr.tolist(), [], [], [torch.empty(0, 3).double()]
    failures: list[Failure] = []
    for s in range(batch.n_systems):
        atoms = slice(ptr[s], ptr[s + 1])
        label = xtb_label(
            batch.numbers[atoms].numpy(),
            batch.positions[atoms].numpy(),
            charge=float(batch.charge[s]),
            spin=float(batch.spin[s]),
            cell=batch.cell[s].numpy(),
            pbc=batch.pbc[s].numpy(),
            name=batch.ids[s],
        )
        if isinstance(label, Failure):
            failures.append(label)
        else:
            kept.append(s)
            energies.append(label.energy)
            forces.append(torch.from_numpy(label.forces))
    energy = torch.tensor(energies, dtype=torch.float64)
    return with_labels(batch.select(kept), energy, torch.cat(forces)), failures


def _label_pseudo(
    batch: AtomBatch, backbone: PseudoLabeller, max_atoms: int
) -> tuple[AtomBatch, list[Failure]]:
    try:
        label = pseudo_label(backbone, batch, max_atoms=max_atoms)
        return with_labels(batch, *label), []
    except (TetherError, RuntimeError) as error:
        if batch.n_systems == 1:
            empty = batch.select([])
            reason = f"the backbone failed: {error}"
            none = torch.empty(0, dtype=torch.float64)
            return with_labels(empty, none, none.reshape(0, 3)), [Failure(batch.ids[0], reason)]
    # Some structure is at fault; one by one, so that only that one is lost.
    single = [_label_pseudo(batch.select([s]), backbone, max_atoms) for s in range(batch.n_systems)]
    return collate([part for part, _ in single]), [f for _, found in single for f in found]


def with_labels(
    batch: AtomBatch, energy: torch.Tensor, forces: torch.Tensor, stress: torch.Tensor | None = None
) -> AtomBatch:
    """The batch with these labels and no others.

    Parameters
    ----------
    batch : AtomBatch
        Structures.
    energy : Tensor, shape (n_systems,)
        eV.
    forces : Tensor, shape (n_atoms, 3)
        eV/Å.
    stress : Tensor, shape (n_systems, 9), optional
        eV/Å³, row by row.

    Returns
    -------
    AtomBatch
        Labelled.
    """
    labels = {"energy": energy} if stress is None else {"energy": energy, "stress": stress}
    return replace(batch, labels=labels, atom_labels={"forces": forces})


def _guard(batch: AtomBatch, max_force: float) -> tuple[AtomBatch, list[Failure]]:
    norm = batch.atom_labels["forces"].norm(dim=1)
    largest = torch.zeros(batch.n_systems, dtype=torch.float64)
    largest.scatter_reduce_(0, batch.system_idx, norm, reduce="amax")
    finite = torch.isfinite(batch.labels["energy"]) & torch.isfinite(largest)
    good = finite & (largest <= max_force)
    failures = []
    for s in (~good).nonzero().flatten().tolist():
        force = float(largest[s]) if bool(finite[s]) else None
        reason = (
            "energy or forces are not finite"
            if force is None
            else f"largest force {force:.1f} eV/Å is above max_force {max_force:g}"
        )
        failures.append(Failure(batch.ids[s], reason, force))
    return batch.select(good.nonzero().flatten()), failures


def label_chunk(
    batch: AtomBatch, settings: Settings, backbone: PseudoLabeller | None
) -> tuple[AtomBatch, list[Failure]]:
    """Make geometries of some structures and label them.

    Parameters
    ----------
    batch : AtomBatch
        Structures on the CPU.
    settings : Settings
        How.
    backbone : Backbone and Potential, or None
        For "pseudo".

    Returns
    -------
    batch, failures
        Labelled geometries (energy in eV, forces in eV/Å, stress of crystals in eV/Å³), and
        everything that is not among them.
    """
    from threadpoolctl import threadpool_limits

    # One BLAS thread: a sum in another order would change the last bits of the geometries.
    with threadpool_limits(1, user_api="blas"):
        samples = _sample(batch, settings, backbone)
    if settings.labeller == "gfn2-xtb" or backbone is None:
        labelled, failures = _label_xtb(samples.batch)
    else:
        labelled, failures = _label_pseudo(samples.batch, backbone, settings.max_atoms)
    kept, outliers = _guard(labelled, settings.max_force)
    return kept, [*samples.rejected, *failures, *outliers]


def chunk_result(
    n_structures: int, labelled: AtomBatch, failures: Sequence[Failure]
) -> ChunkResult:
    """Counts and shard of what came of some structures.

    Parameters
    ----------
    n_structures : int
        That went in.
    labelled : AtomBatch
        Geometries with labels.
    failures : sequence of Failure
        Everything that is not among them.

    Returns
    -------
    ChunkResult
        Small, and the same bytes wherever it is made.
    """
    shard = pack_shard(labelled, failures)
    return ChunkResult(n_structures, labelled.n_systems, len(failures), shard)


def run_task(task: ChunkTask, backbone: PseudoLabeller | None = None) -> ChunkResult:
    """Label a chunk; writes nothing.

    Parameters
    ----------
    task : ChunkTask
        The work.
    backbone : Backbone and Potential, optional
        Default: the one that `start_worker` loaded in this process.

    Returns
    -------
    ChunkResult
        Counts and shard.
    """
    batch: AtomBatch = pickle.loads(task.batch)
    labelled, failures = label_chunk(batch, task.settings, backbone or _Process.backbone)
    return chunk_result(batch.n_systems, labelled, failures)


class _Process:
    """The backbone of this worker process; loaded once, used by every chunk."""

    backbone: PseudoLabeller | None = None


def start_worker(backbone: bytes | str | None) -> None:
    """Prepare a worker process: one thread, the backbone, and no life after the parent's.

    Parameters
    ----------
    backbone : bytes, str or None
        Pickled backbone, or a name for `load_backbone`.
    """
    from threadpoolctl import threadpool_limits

    # The environment variables set by the parent come first; this is for libraries that were
    # loaded with their own defaults.
    threadpool_limits(1)
    torch.set_num_threads(1)
    end_with_parent()
    if isinstance(backbone, str):
        from tether.backbones.load import load_backbone

        _Process.backbone = load_backbone(backbone)  # type: ignore[assignment]
    elif backbone is not None:
        _Process.backbone = pickle.loads(backbone)

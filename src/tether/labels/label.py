"""`label_structures`: from structures to a store of force-field labels, in parallel, resumable."""

from __future__ import annotations

import hashlib
import pickle
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import nn

import tether
from tether.data.chunks import CHUNK_SIZE
from tether.data.pieces import StructureSource, pieces
from tether.data.store import write_store
from tether.errors import TetherError
from tether.labels.chunking import Chunks, Merge
from tether.labels.cluster import ray_workers
from tether.labels.dispatch import Workers, run_tasks
from tether.labels.perturb import check_strain
from tether.labels.pool import ThisProcess, n_cores, pool
from tether.labels.pseudo import PseudoLabeller, require_potential
from tether.labels.shards import Parts, check_parts, open_parts
from tether.labels.worker import ChunkResult, Labeller, Sampling, Settings
from tether.labels.xtb import xtb_version
from tether.serialization import write_json
from tether.structures import AtomBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from tether.labels.failure import Failure

__all__ = [
    "LabelReport",
    "Labeller",
    "Sampling",
    "StructureSource",
    "check_labeller",
    "label_structures",
]


@dataclass(frozen=True)
class LabelReport:
    """What `label_structures` did.

    Attributes
    ----------
    out : str
        The store.
    level_of_theory : str
        Of the labels.
    n_structures : int
        Structures that came in.
    n : int
        Labelled geometries in the store.
    failures : tuple of Failure
        Everything that is not in the store, with the reason.
    n_resumed : int
        Structures whose labels an earlier, interrupted call had made.
    seconds : float
        Wall time of this call.
    structures_per_second : float
        Geometries labelled by this call over the wall time of labelling; 0 where all was resumed.
    force_rms : float
        Root mean square of the force components, eV/Å.
    """

    out: str
    level_of_theory: str
    n_structures: int = 0
    n: int = 0
    failures: tuple[Failure, ...] = ()
    n_resumed: int = 0
    seconds: float = 0.0
    structures_per_second: float = 0.0
    force_rms: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Origin:
    """Where labels come from: for the manifest, the store and the workers."""

    level_of_theory: str
    provenance: dict[str, Any]
    backbone: PseudoLabeller | None = None
    payload: bytes | str | None = None


def _weights_hash(backbone: object) -> str:
    # Random or tuned weights have no file hash; labels of other weights must not be mixed in.
    digest = hashlib.sha256()
    if isinstance(backbone, nn.Module):
        for name, tensor in sorted(backbone.state_dict().items()):
            digest.update(name.encode())
            if isinstance(tensor, torch.Tensor):
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_labeller(name: str) -> Labeller:
    """Check where labels shall come from.

    Parameters
    ----------
    name : str
        What the user wrote.

    Returns
    -------
    str
        The same.

    Raises
    ------
    TetherError
        When it is not one of `Labeller`.
    """
    if name not in get_args(Labeller):
        raise TetherError(
            f"`with` is {name!r}",
            expected=f"one of {', '.join(get_args(Labeller))}",
            fix="set --with gfn2-xtb",
        )
    return cast("Labeller", name)


def _origin(labeller: Labeller, backbone: PseudoLabeller | str | None) -> _Origin:
    check_labeller(labeller)
    if labeller == "gfn2-xtb":
        if backbone is not None:
            raise TetherError(
                "a backbone was given for labels of gfn2-xtb",
                expected="no backbone",
                fix="leave the backbone out, or set --with pseudo",
            )
        return _Origin("GFN2-xTB", {"program": f"tblite {xtb_version()}"})
    if backbone is None:
        raise TetherError(
            "pseudo-labels were asked for without a backbone",
            expected="a pretrained backbone",
            fix="set --backbone so3lr",
        )
    payload: bytes | str | None = backbone if isinstance(backbone, str) else None
    if isinstance(backbone, str):
        from tether.backbones.load import load_backbone

        backbone = cast("PseudoLabeller", load_backbone(backbone))
    require_potential(backbone)
    provenance = {"backbone": backbone.spec.to_dict(), "weights": _weights_hash(backbone)}
    return _Origin(backbone.spec.level_of_theory, provenance, backbone, payload)


def _metadata(settings: Settings, origin: _Origin) -> dict[str, Any]:
    return {
        "level_of_theory": origin.level_of_theory,
        "labels": settings.labeller,
        **origin.provenance,
        "sampling": settings.sampling.to_dict(),
        "seed": settings.seed,
        "max_force": settings.max_force,
        "tether": tether.__version__,
    }


def _on_cpu(backbone: PseudoLabeller) -> bool:
    parameters = backbone.parameters() if isinstance(backbone, nn.Module) else ()
    return all(parameter.device.type == "cpu" for parameter in parameters)


def _open_workers(
    workers: int | None, origin: _Origin, ray: str | None
) -> AbstractContextManager[Workers]:
    backbone = origin.payload
    if origin.backbone is not None and backbone is None and workers != 0:
        try:
            if not _on_cpu(origin.backbone):
                # Handled below together with what pickle raises.
                raise TypeError("it is not on the CPU")  # noqa: TRY301
            backbone = pickle.dumps(origin.backbone)
        except (pickle.PicklingError, TypeError, AttributeError, RuntimeError) as error:
            if workers is not None or ray is not None:
                raise TetherError(
                    f"the backbone cannot be sent to worker processes ({error})",
                    expected="a backbone on the CPU that pickles, or its name",
                    fix="set workers=0 to label in this process",
                ) from error
            workers = 0
    if ray is not None:
        return ray_workers(ray, n=workers, backbone=backbone)
    if workers == 0:
        return nullcontext(ThisProcess(origin.backbone))
    return pool(workers or n_cores(), backbone)


def _finish(
    out: Path, chunks: Chunks, parts: Parts, metadata: dict[str, Any], labeller: str
) -> Merge:
    merge = Merge(chunks.paths, labeller)
    merge.read_failures()
    listed = out.with_name(out.name + ".failures.json")
    write_json(listed, [failure.to_dict() for failure in merge.failures])
    if not merge.n:
        parts.remove()
        first = merge.failures[0].reason if merge.failures else "no structure came in"
        raise TetherError(
            f"no label from {chunks.n_structures} structures (first reason: {first})",
            expected="at least one labelled structure",
            fix=f"see {listed}",
        )
    counts = {"n_structures": chunks.n_structures, "n_failures": len(merge.failures)}
    write_store(out, merge.chunks(), merge.targets, metadata={**metadata, **counts})
    parts.remove()
    return merge


def label_structures(
    source: StructureSource | AtomBatch | Iterable[AtomBatch],
    *,
    with_: Labeller = "pseudo",
    out: str | Path,
    backbone: PseudoLabeller | str | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    max_force: float = 30.0,
    indices: Sequence[int] | None = None,
    workers: int | None = None,
    ray: str | None = None,
    chunk_size: int = 32,
    max_atoms: int = 2000,
    progress: Callable[[int, int, int], None] | None = None,
    dry_run: bool = False,
) -> LabelReport:
    """Make off-equilibrium geometries of structures, label them, and write one store.

    A killed call goes on when it is repeated. Neither that nor who labels changes the store.

    Parameters
    ----------
    source : Store, AtomBatch or iterable of AtomBatch
        The structures; their own labels are not used.
    with_ : {"pseudo", "gfn2-xtb"}
        Labels of a pretrained potential, or of GFN2-xTB by tblite.
    out : path
        The store. Beside it ``.failures.json``: what is not in it, and ``.parts`` until it is done.
    backbone : Backbone and Potential, or str
        For "pseudo"; a name is loaded in every worker.
    sampling : Sampling, optional
        Which geometries; default: three Gaussian displacements.
    seed : int
        Of all random streams.
    max_force : float
        eV/Å; geometries with a larger force on an atom are left out.
    indices : sequence of int, optional
        Rows of a store; default all.
    workers : int, optional
        Processes of one thread each; default one a core; 0: this one, as on an accelerator.
    ray : str, optional
        Label by Ray instead: "local", "auto" or an address, see `labels.cluster.ray_workers`.
    chunk_size : int
        Structures between two writes: what a kill may cost for each worker.
    max_atoms : int
        Atoms of one forward pass of "pseudo".
    progress : callable, optional
        Called with (structures done, geometries labelled, geometries failed), in this call.
    dry_run : bool
        Only check the arguments: nothing is written, and all counts are 0.

    Returns
    -------
    LabelReport
        Counts, failures and rate.

    Raises
    ------
    TetherError
        For bad arguments, a missing package, an `out` that exists, parts of another call, no label.
    """
    began, out = time.monotonic(), Path(out)
    settings = Settings(with_, sampling or Sampling(), seed, max_force, max_atoms)
    _check_numbers(chunk_size, max_force, workers, ray)
    _check_source(source, indices, settings.sampling)
    origin = _origin(with_, backbone)
    metadata = _metadata(settings, origin)
    parameters = {**metadata, "chunk_size": chunk_size, "max_atoms": max_atoms}
    if dry_run:
        check_parts(out, parameters)
        return LabelReport(str(out), origin.level_of_theory)
    with _open_workers(workers, origin, ray) as crew:
        parts = open_parts(out, parameters)
        chunks = Chunks(pieces(source, chunk_size, indices=indices), parts, settings)
        rate = _drain(run_tasks(chunks.unfinished(), crew), chunks, parts, progress)
    merge = _finish(out, chunks, parts, metadata, with_)
    return _report(out, origin, chunks, merge, seconds=time.monotonic() - began, rate=rate)


def _report(
    out: Path, origin: _Origin, chunks: Chunks, merge: Merge, *, seconds: float, rate: float
) -> LabelReport:
    return LabelReport(
        out=str(out),
        level_of_theory=origin.level_of_theory,
        n_structures=chunks.n_structures,
        n=merge.n,
        failures=tuple(merge.failures),
        n_resumed=chunks.n_resumed,
        seconds=seconds,
        structures_per_second=rate,
        force_rms=merge.force_rms,
    )


def _check_numbers(chunk_size: int, max_force: float, workers: int | None, ray: str | None) -> None:
    for name, value in (("chunk_size", chunk_size), ("max_force", max_force)):
        if not value > 0:
            raise TetherError(
                f"`{name}` is {value}", expected="a positive number", fix=f"leave {name} out"
            )
    least = 0 if ray is None else 1
    if workers is not None and workers < least:
        raise TetherError(
            f"`workers` is {workers}",
            expected=f"{least} or more",
            fix="leave it out to use all cores",
        )


def _check_source(
    source: StructureSource | AtomBatch | Iterable[AtomBatch],
    indices: Sequence[int] | None,
    sampling: Sampling,
) -> None:
    if indices is not None and not isinstance(source, StructureSource):
        raise TetherError(
            f"`indices` was given with a {type(source).__name__}",
            expected="a store",
            fix="select the structures first: batch.select(indices)",
        )
    # A stream can be read only once; its structures are checked where they are strained.
    if "strain" in sampling.kinds and isinstance(source, (StructureSource, AtomBatch)):
        for batch in pieces(source, CHUNK_SIZE, indices=indices):
            check_strain(batch, sampling.strain)


def _drain(
    results: Iterator[ChunkResult],
    chunks: Chunks,
    parts: Parts,
    progress: Callable[[int, int, int], None] | None,
) -> float:
    # Geometries labelled a second.
    began = time.monotonic()
    done = labels = failures = 0
    try:
        for result in results:
            done += result.n_structures
            labels += result.n_labels
            failures += result.n_failures
            if progress is not None:
                progress(done + chunks.n_resumed, labels, failures)
    except TetherError:
        parts.remove_if_empty()
        raise
    return labels / max(time.monotonic() - began, 1e-9)

"""`prepare`: files to an audited store. Read, audit, write; or nothing at all."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tether.atomic import write_text
from tether.data.audit import Audit, Auditor
from tether.data.choose import agreed_target, asked_labels, choose_targets
from tether.data.read import read_structures
from tether.data.store_file import MANIFEST
from tether.data.store_write import write_store
from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from tether.data.chunks import Chunk
    from tether.targets import Target

__all__ = ["PrepareReport", "Progress", "prepare", "sample_structures"]

Progress = Callable[[str, int], None]
"""Called with the name of an input and the number of structures that were just read from it."""


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare` did.

    Attributes
    ----------
    store : Path or None
        The store; None after a dry run.
    audit_file : Path or None
        The complete audit, beside it.
    fingerprint : str or None
        Of the store.
    n_systems, n_atoms : int
        Structures and atoms that were kept.
    targets : tuple of Target
        Labels of the store.
    n_labelled : mapping of str to int
        Kept structures with a finite value, by target.
    audit : Audit
        Everything that was found.
    """

    store: Path | None
    audit_file: Path | None
    fingerprint: str | None
    n_systems: int
    n_atoms: int
    targets: tuple[Target, ...]
    n_labelled: Mapping[str, int]
    audit: Audit

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping, for JSON."""
        return {
            "store": None if self.store is None else str(self.store),
            "audit_file": None if self.audit_file is None else str(self.audit_file),
            "fingerprint": self.fingerprint,
            "n_systems": self.n_systems,
            "n_atoms": self.n_atoms,
            "targets": [target.to_dict() for target in self.targets],
            "n_labelled": dict(self.n_labelled),
            "audit": self.audit.to_dict(),
        }


def prepare(
    inputs: Sequence[str | Path],
    out: str | Path | None,
    *,
    targets: Sequence[Target | str] | None = None,
    supported_elements: Sequence[int] | None = None,
    limit: int | None = None,
    seed: int = 0,
    shard_size: int | None = None,
    progress: Progress | None = None,
) -> PrepareReport:
    """Read files, audit them, write a store and, beside it, ``<out>.audit.json``.

    Structures that cannot be used are left out and named in the audit; everything else is kept,
    and what looks odd is reported there. An infinite label counts as none.

    Parameters
    ----------
    inputs : sequence of str or Path
        Files, or the name ``qm9``; see `tether.data.read.read_structures`.
    out : str or Path or None
        The store; None audits without writing (a dry run).
    targets : sequence of Target or str, optional
        Labels to keep, as targets or as ``name[:unit[:kind]]``, where unit and kind default to
        what the file format says. Default: every label in the first chunk (4,096 structures) of
        an input.
    supported_elements : sequence of int, optional
        Atomic numbers that the backbone knows; structures with others are left out.
    limit : int, optional
        Keep a random sample of this many structures, drawn before the audit.
    seed : int
        Of that sample.
    shard_size : int, optional
        Write a folder of files of this many structures; a killed call, repeated, goes on.
    progress : callable, optional
        Called with (input, number of structures just read).

    Returns
    -------
    PrepareReport
        What was kept and what was found.

    Raises
    ------
    TetherError
        When an input is unreadable or empty, a target does not exist or has no value, an id is
        used twice, or no structure is left. Then no store is written.
    """
    destination = None if out is None else _destination(Path(out), inputs, shard_size)
    if not inputs:
        raise TetherError(
            "no input", expected="at least one file, or qm9", fix="name the files to read"
        )
    if limit is not None and limit < 1:
        raise TetherError(f"`limit` is {limit}", expected="at least 1", fix="leave it out for all")
    known, streams = _open(inputs, progress or (lambda _name, _n: None), targets)
    chosen = choose_targets(known, targets)
    auditor = Auditor({t.name: t for t in chosen}, supported_elements=supported_elements)
    stream = _checked(chain.from_iterable(streams), chosen, inputs, strict=targets is None)
    if limit is not None:
        stream = sample_structures(stream, limit, seed=seed)
    kept = _Kept(stream, auditor, chosen)
    fingerprint = audit_file = None
    if destination is None:
        deque(kept, maxlen=0)
    else:
        metadata = {"inputs": [str(path) for path in inputs], "limit": limit, "seed": seed}
        fingerprint = write_store(
            destination, kept, chosen, metadata=metadata, shard_size=shard_size
        )
        audit_file = destination.with_name(destination.name + ".audit.json")
    report = PrepareReport(
        destination, audit_file, fingerprint, kept.n_systems, kept.n_atoms, tuple(chosen),
        kept.n_labelled, kept.audit,
    )  # fmt: skip
    if audit_file is not None:
        text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False)
        write_text(audit_file, text)
    return report


def sample_structures(chunks: Iterable[Chunk], n_systems: int, *, seed: int) -> Iterator[Chunk]:
    """A uniform random sample from a stream of unknown length, in the order of the stream.

    Each structure draws a number and the smallest `n_systems` numbers win, so that memory holds
    about two samples and the result does not depend on how the stream is cut into chunks.

    Parameters
    ----------
    chunks : iterable of Chunk
        The structures.
    n_systems : int
        How many to keep; all if there are fewer.
    seed : int
        Of the draw.

    Yields
    ------
    Chunk
        The sample.
    """
    generator = np.random.default_rng(seed)
    waiting: list[Chunk] = []
    draws: list[NDArray[np.float64]] = []

    def prune() -> None:
        drawn = np.concatenate(draws)
        if len(drawn) <= n_systems:
            return
        winners = np.sort(np.argsort(drawn, kind="stable")[:n_systems])
        starts = np.cumsum([0] + [len(part) for part in draws])
        for place, (chunk, part) in enumerate(zip(waiting, draws, strict=True)):
            inside = (winners >= starts[place]) & (winners < starts[place + 1])
            rows = winners[inside] - starts[place]
            waiting[place], draws[place] = chunk.select(rows), part[rows]

    for chunk in chunks:
        waiting.append(chunk)
        draws.append(generator.random(chunk.batch.n_systems))
        if sum(len(part) for part in draws) > 2 * n_systems:
            prune()
    if draws:
        prune()
    yield from (chunk for chunk in waiting if chunk.batch.n_systems)


class _Kept:
    """The usable structures of a stream; once it is exhausted, counts and the audit."""

    def __init__(
        self, stream: Iterable[Chunk], auditor: Auditor, targets: Sequence[Target]
    ) -> None:
        self._stream, self._auditor, self._targets = stream, auditor, targets
        self.n_systems = self.n_atoms = 0
        self.n_labelled = {target.name: 0 for target in targets}
        self.audit: Audit

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._stream:
            kept = _without_infinities(chunk.select(self._auditor.add(chunk.batch)))
            self.n_systems += kept.batch.n_systems
            self.n_atoms += kept.batch.n_atoms
            yield kept
        # Inside the iteration: an error here stops the writer before the file appears.
        self.audit = self._auditor.finish()
        self._refuse_unusable()
        for target in self._targets:
            found = self.audit.finding(f"no-label:{target.name}")
            self.n_labelled[target.name] = self.n_systems - len(found.structures if found else ())

    def _refuse_unusable(self) -> None:
        findings = self.audit.findings
        if self.n_systems == 0:
            reasons = "; ".join(f.summary for f in findings if f.severity == "left out")
            raise TetherError(
                f"no structure is left of {self.audit.n_systems}: {reasons}",
                expected="at least one usable structure",
                fix="use other data, or a backbone that knows these elements",
            )
        for finding in findings:
            if finding.severity == "error":
                first = ", ".join(name for name, _ in finding.structures[:3])
                raise TetherError(
                    f"{finding.summary} (first: {first})",
                    expected="unique ids"
                    if finding.code == "repeated-id"
                    else "at least one value for each target",
                    fix="rename input files that share a stem, or their ids"
                    if finding.code == "repeated-id"
                    else "leave this target out, or add labels",
                )


def _without_infinities(chunk: Chunk) -> Chunk:
    """The chunk with NaN, which is no label, for infinite labels: the audit has named them."""

    def finite(labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: v.double().masked_fill(v.isinf(), torch.nan) for n, v in labels.items()}

    batch = chunk.batch
    labels, atom_labels = finite(batch.labels), finite(batch.atom_labels)
    return replace(chunk, batch=replace(batch, labels=labels, atom_labels=atom_labels))


def _destination(out: Path, inputs: Sequence[str | Path], shard_size: int | None) -> Path:
    if any(Path(path).exists() and Path(path).resolve() == out.resolve() for path in inputs):
        raise TetherError(
            f"{out} is input and output at once", expected="another name", fix="change --out"
        )
    if out.is_dir() and (shard_size is None or not (out / MANIFEST).is_file()):
        raise TetherError(f"{out} is a folder", expected="a file name", fix=f"use {out}/data.arrow")
    if out.is_file():
        with out.open("rb") as file:
            if file.read(6) != b"ARROW1":
                raise TetherError(
                    f"{out} exists and is no store",
                    expected="a new name, or a store to replace",
                    fix="change --out",
                )
    return out


def _open(
    inputs: Sequence[str | Path], progress: Progress, targets: Sequence[Target | str] | None
) -> tuple[dict[str, Target], list[Iterator[Chunk]]]:
    """Targets in the first chunks of the inputs, and the inputs as streams."""
    known: dict[str, Target] = {}
    streams = []
    # An unwanted label may be anything: the reader is not to trip over it.
    only = asked_labels(targets)
    for path in inputs:
        stream = read_structures(path, targets=only)
        first = next(stream, None)
        if first is None:
            raise TetherError(
                f"{path} has no structure", expected="at least one", fix="check the file"
            )
        for target in first.targets.values():
            known[target.name] = agreed_target(target, known.get(target.name), str(path), targets)
        if len(inputs) == 1:
            streams.append(_reported(chain([first], stream), str(path), progress))
        else:
            # Read again later: open streams of many files would hold all of them in memory.
            streams.append(_reported(read_structures(path, targets=only), str(path), progress))
    return known, streams


def _reported(stream: Iterable[Chunk], name: str, progress: Progress) -> Iterator[Chunk]:
    for chunk in stream:
        progress(name, chunk.batch.n_systems)
        yield chunk


def _checked(
    stream: Iterable[Chunk], chosen: Sequence[Target], inputs: Sequence[str | Path], *, strict: bool
) -> Iterator[Chunk]:
    """The stream with only the chosen labels; every chosen label must occur in it."""
    names = {target.name for target in chosen}
    unseen = set(names)
    for chunk in stream:
        found = {**chunk.batch.labels, **chunk.batch.atom_labels}
        unseen -= found.keys()
        if strict and not names >= found.keys():
            new = min(found.keys() - names)
            raise TetherError(
                f"label `{new}` first appears after the start of {chunk.sources[0]}",
                expected="every label among the first structures of an input",
                fix=f"name the labels to keep, for example --target {new}",
            )
        yield _only(chunk, chosen)
    if unseen:
        raise TetherError(
            f"no input has the label `{min(unseen)}`",
            expected=f"one of {', '.join(_label_names(inputs)) or '(the inputs have no labels)'}",
            fix="correct --target; a label is a number (code classes as 0, 1, …), and `charge` and "
            "`spin` are read as those of the structure",
        )


def _label_names(inputs: Sequence[str | Path]) -> list[str]:
    """Labels of the first structures of the inputs, one by one: they may differ in shape."""
    streams = (islice(read_structures(path, chunk_size=1), 100) for path in inputs)
    return sorted({name for chunk in chain.from_iterable(streams) for name in chunk.targets})


def _only(chunk: Chunk, chosen: Sequence[Target]) -> Chunk:
    """The chunk with the chosen labels, NaN where it lacks one."""
    batch = chunk.batch
    labels = {t.name: batch.labels[t.name] for t in chosen if t.name in batch.labels}
    atoms = {t.name: batch.atom_labels[t.name] for t in chosen if t.name in batch.atom_labels}
    return replace(chunk, batch=replace(batch, labels=labels, atom_labels=atoms))

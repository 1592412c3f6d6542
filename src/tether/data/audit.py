"""What is wrong with a data set, structure by structure: left out, or reported and kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from ase.data import chemical_symbols
from scipy.sparse import csr_array, vstack

from tether.data.geometry import geometry_hashes, shortest_distances
from tether.data.pieces import pieces
from tether.data.statistics import reference_outlier_scores
from tether.data.store import Store
from tether.errors import TetherError
from tether.graph import has_flat_cell

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from tether.structures import AtomBatch
    from tether.targets import Target

__all__ = ["Audit", "Auditor", "Finding", "audit"]

# Å. Half of the shortest bond there is (H-H, 0.74 Å).
OVERLAP_DISTANCE = 0.4
# Robust standard deviations per atom from the per-element fit.
OUTLIER_SCORE = 15.0
# Copies disagree about a label from this fraction of its standard deviation on.
CONFLICT_SPREAD = 0.01

Severity = Literal["left out", "error", "reported"]


@dataclass(frozen=True)
class Finding:
    """One kind of problem and every structure that has it.

    Attributes
    ----------
    code : str
        Short name, e.g. ``overlapping-atoms``.
    severity : {"left out", "error", "reported"}
        "left out": these structures are not kept. "error": the data cannot be used as it is.
        "reported": kept.
    summary : str
        One line for people.
    structures : tuple of (str, str)
        Id and reason of each structure.
    """

    code: str
    severity: Severity
    summary: str
    structures: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping, for JSON."""
        return {
            "code": self.code,
            "severity": self.severity,
            "summary": self.summary,
            "n_structures": len(self.structures),
            "structures": [{"id": name, "reason": reason} for name, reason in self.structures],
        }


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes
    ----------
    n_systems : int
        Structures looked at.
    keep : array of bool, shape (n_systems,)
        False for the structures that are left out.
    findings : tuple of Finding
        Left out first, then errors, then what is only reported.
    """

    n_systems: int
    keep: NDArray[np.bool_]
    findings: tuple[Finding, ...]

    @property
    def n_kept(self) -> int:
        """Structures that are kept."""
        return int(self.keep.sum())

    def finding(self, code: str) -> Finding | None:
        """The finding of that code, if there is one.

        Parameters
        ----------
        code : str
            E.g. ``duplicate``.

        Returns
        -------
        Finding or None
            None: no structure has this problem.
        """
        return next((finding for finding in self.findings if finding.code == code), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping, for JSON."""
        return {
            "n_systems": self.n_systems,
            "n_kept": self.n_kept,
            "n_left_out": self.n_systems - self.n_kept,
            "findings": [finding.to_dict() for finding in self.findings],
        }


class Auditor:
    """Looks at batches one by one; keeps a few numbers a structure, never the structures.

    Parameters
    ----------
    targets : mapping of str to Target
        Labels to look at.
    supported_elements : sequence of int, optional
        Atomic numbers that the backbone knows; structures with others are left out.
    """

    def __init__(
        self, targets: Mapping[str, Target], *, supported_elements: Sequence[int] | None = None
    ) -> None:
        self._targets = targets
        self._supported = None if supported_elements is None else np.unique(supported_elements)
        self._ids: list[str] = []
        self._keep: list[NDArray[np.bool_]] = []
        self._left_out: dict[str, list[tuple[str, str]]] = {}
        self._hashes: list[NDArray[np.uint64]] = []
        self._counts: list[csr_array] = []
        self._values: dict[str, list[NDArray[np.float64]]] = {n: [] for n in targets}
        self._missing: dict[str, list[NDArray[np.bool_]]] = {n: [] for n in targets}
        self._reported: dict[tuple[str, str], list[tuple[str, str]]] = {}

    def add(self, batch: AtomBatch) -> NDArray[np.int64]:
        """Look at a batch.

        Parameters
        ----------
        batch : AtomBatch
            The next structures, with ids.

        Returns
        -------
        array of int
            Rows of the batch that are kept.
        """
        keep = np.ones(batch.n_systems, dtype=bool)
        for code, reasons in self._unusable(batch):
            for row, reason in reasons.items():
                # A structure is left out for the first reason found.
                if keep[row]:
                    self._left_out.setdefault(code, []).append((batch.ids[row], reason))
                    keep[row] = False
        rows = np.flatnonzero(keep)
        self._overlaps(batch, rows, keep)
        rows = np.flatnonzero(keep)
        self._ids.extend(batch.ids)
        self._keep.append(keep)
        kept = batch.select(torch.from_numpy(rows))
        self._hashes.append(geometry_hashes(kept))
        self._labels(kept)
        return rows

    def _unusable(self, batch: AtomBatch) -> Iterator[tuple[str, dict[int, str]]]:
        """Problems that are seen without distances, as {row: reason}."""
        system = batch.system_idx.numpy()
        empty = np.flatnonzero(batch.counts.numpy() == 0)
        yield "no-atoms", dict.fromkeys(empty.tolist(), "it has no atoms")
        finite = torch.isfinite(batch.positions).all(dim=1).numpy()
        bad = np.unique(system[~finite])
        yield "non-finite-positions", dict.fromkeys(bad.tolist(), "a position is NaN or infinite")
        unknown = np.flatnonzero(~torch.isfinite(batch.charge + batch.spin).numpy())
        reason = "its charge or spin is NaN or infinite"
        yield "non-finite-charge", dict.fromkeys(unknown.tolist(), reason)
        flat = np.flatnonzero(has_flat_cell(batch).numpy())
        yield (
            "flat-cell",
            dict.fromkeys(flat.tolist(), "periodic, but its cell has no extent or is not finite"),
        )
        numbers = batch.numbers.numpy()
        possible = np.arange(1, 119) if self._supported is None else self._supported
        foreign = ~np.isin(numbers, possible)
        reasons: dict[int, str] = {}
        for row in np.unique(system[foreign]).tolist():
            found = np.unique(numbers[foreign & (system == row)]).tolist()
            names = [chemical_symbols[z] if 0 <= z <= 118 else str(z) for z in found]
            reasons[row] = f"it contains {', '.join(names)}"
        yield "unsupported-element", reasons

    def _overlaps(self, batch: AtomBatch, rows: NDArray[np.int64], keep: NDArray[np.bool_]) -> None:
        shortest = shortest_distances(batch.select(torch.from_numpy(rows)), OVERLAP_DISTANCE)
        for place in np.flatnonzero(shortest < OVERLAP_DISTANCE).tolist():
            row = int(rows[place])
            keep[row] = False
            reason = f"two atoms are {shortest[place]:.3f} Å apart"
            self._left_out.setdefault("overlapping-atoms", []).append((batch.ids[row], reason))

    def _labels(self, batch: AtomBatch) -> None:
        system, n_systems = batch.system_idx.numpy(), batch.n_systems
        flat = np.bincount(system * 119 + batch.numbers.numpy(), minlength=n_systems * 119)
        # Sparse: of a million structures, 32 MB instead of 476.
        self._counts.append(csr_array(flat.reshape(n_systems, 119).astype(np.int32)))
        paired = flat.reshape(n_systems, 119) @ np.arange(119) - (batch.charge + batch.spin).numpy()
        odd = np.flatnonzero((np.rint(paired) % 2 == 1) & ~batch.pbc.any(dim=1).numpy())
        text = "molecules whose electrons cannot pair up with this charge and spin"
        self._report(batch, odd, "spin-parity", text, "electrons - spin is odd")
        for name, target in self._targets.items():
            source = batch.atom_labels if target.level == "atom" else batch.labels
            rows = batch.n_atoms if target.level == "atom" else n_systems
            value = source[name].double().numpy() if name in source else np.full(rows, np.nan)
            owner = system if target.level == "atom" else np.arange(n_systems)
            components = tuple(range(1, value.ndim))
            infinite = np.unique(owner[np.isinf(value).any(axis=components)])
            text = f"structures have an infinite label `{name}`, which counts as none"
            self._report(batch, infinite, f"infinite-label:{name}", text, f"infinite `{name}`")
            bad = np.zeros(n_systems, dtype=bool)
            bad[owner[~np.isfinite(value).all(axis=components)]] = True
            self._missing[name].append(bad)
            if target.level == "system" and target.n_components == 1 and target.kind != "class":
                self._values[name].append(np.where(bad, np.nan, value.reshape(-1)))
        if "forces" in self._targets and "forces" in batch.atom_labels:
            forces = batch.atom_labels["forces"].numpy().reshape(batch.n_atoms, 3)
            moved = (forces != 0).any(axis=1)
            per_system = np.bincount(system, weights=moved, minlength=n_systems)
            still = np.flatnonzero((per_system == 0) & (batch.counts.numpy() > 1))
            text = "structures whose forces are all exactly zero"
            self._report(batch, still, "zero-forces", text, "every force is exactly 0")

    def _report(
        self, batch: AtomBatch, rows: NDArray[np.int64], code: str, text: str, reason: str
    ) -> None:
        if len(rows):
            found = self._reported.setdefault((code, text), [])
            found.extend((batch.ids[row], reason) for row in rows.tolist())

    def finish(self) -> Audit:
        """The findings over everything that was added.

        Returns
        -------
        Audit
            With every structure concerned, by id.
        """
        keep = np.concatenate([np.zeros(0, dtype=bool), *self._keep])
        names = np.array(self._ids, dtype=object)[keep]
        findings = [_left_out(code, found) for code, found in self._left_out.items()]
        findings += self._repeated_ids()
        if len(names):
            findings += self._missing_labels(names)
            findings += self._duplicates(names)
            for (code, text), found in self._reported.items():
                findings.append(Finding(code, "reported", f"{len(found)} {text}", tuple(found)))
            findings += self._outliers(names)
        order = ("left out", "error", "reported")
        findings.sort(key=lambda finding: order.index(finding.severity))
        return Audit(len(keep), keep, tuple(findings))

    def _repeated_ids(self) -> Iterator[Finding]:
        repeated = {name: count for name, count in Counter(self._ids).items() if count > 1}
        if repeated:
            reasons = tuple((name, f"{count} structures") for name, count in repeated.items())
            summary = f"{len(reasons)} ids name more than one structure"
            yield Finding("repeated-id", "error", summary, reasons)

    def _missing_labels(self, names: NDArray[np.object_]) -> Iterator[Finding]:
        for target, parts in self._missing.items():
            missing = np.concatenate(parts)
            n_missing = int(missing.sum())
            if n_missing == 0:
                continue
            severity: Severity = "error" if n_missing == len(names) else "reported"
            summary = f"{n_missing} of {len(names)} structures have no finite label `{target}`"
            reasons = tuple((name, f"no finite `{target}`") for name in names[missing])
            yield Finding(f"no-label:{target}", severity, summary, reasons)

    def _duplicates(self, names: NDArray[np.object_]) -> Iterator[Finding]:
        _, first, group = np.unique(
            np.concatenate(self._hashes), return_index=True, return_inverse=True
        )
        original = first[group]
        copies = np.flatnonzero(original != np.arange(len(names)))
        if len(copies):
            reasons = tuple((names[c], f"same geometry as {names[original[c]]}") for c in copies)
            are = "structure is a copy" if len(copies) == 1 else "structures are copies"
            summary = f"{len(copies)} {are} of an earlier one"
            yield Finding("duplicate", "reported", summary, reasons)
            yield from self._conflicts(names, copies, original[copies])

    def _conflicts(
        self,
        names: NDArray[np.object_],
        copies: NDArray[np.int64],
        originals: NDArray[np.int64],
    ) -> Iterator[Finding]:
        """Copies whose label is another one: at most one of the two can be right."""
        for target, parts in self._values.items():
            values = np.concatenate([np.zeros(0), *parts])
            if not np.isfinite(values).any():
                continue
            difference = np.abs(values[copies] - values[originals])
            spread = np.std(values[np.isfinite(values)])
            pairs = np.flatnonzero(difference > CONFLICT_SPREAD * spread)
            if len(pairs):
                but = f"but `{target}` differs by"
                reasons = tuple(
                    (names[a], f"same geometry as {names[b]}, {but} {difference[k]:.4g}")
                    for k, a, b in zip(pairs, copies[pairs], originals[pairs], strict=True)
                )
                summary = f"{len(pairs)} copies disagree with their original about `{target}`"
                yield Finding(f"conflicting-label:{target}", "reported", summary, reasons)

    def _outliers(self, names: NDArray[np.object_]) -> Iterator[Finding]:
        stacked = vstack(self._counts).tocsc()
        counts = stacked[:, np.flatnonzero(np.diff(stacked.indptr))].toarray()
        for target, parts in self._values.items():
            if not parts or self._targets[target].kind != "extensive":
                continue
            scores = reference_outlier_scores(counts, np.concatenate(parts))
            far = np.flatnonzero(np.abs(np.nan_to_num(scores, posinf=np.inf)) > OUTLIER_SCORE)
            if len(far):
                text = "robust standard deviations from the per-element fit"
                reasons = tuple(
                    (names[row], f"`{target}` per atom is {scores[row]:+.1f} {text}") for row in far
                )
                summary = f"{len(far)} structures are outliers of `{target}`, compared by elements"
                yield Finding(f"outlier:{target}", "reported", summary, reasons)


def audit(
    structures: Store | Iterable[AtomBatch],
    *,
    targets: Sequence[Target] = (),
    supported_elements: Sequence[int] | None = None,
) -> Audit:
    """Audit a store or batches.

    Left out: no atoms, non-finite positions, charge or spin, flat cells, atoms closer than 0.4 Å,
    elements that the backbone does not know. Errors: a target without any label, an id that is
    used twice. Reported: missing and infinite labels, copies (and copies with another label),
    all-zero forces, impossible spins of molecules, outliers of extensive labels.

    Parameters
    ----------
    structures : Store or iterable of AtomBatch
        What to look at.
    targets : sequence of Target, optional
        Labels to look at; default: those of the store.
    supported_elements : sequence of int, optional
        Atomic numbers that the backbone knows; default: no limit.

    Returns
    -------
    Audit
        Nothing is changed; `Audit.keep` says what to leave out.

    Raises
    ------
    TetherError
        When there is no structure.
    """
    batches: Iterable[AtomBatch]
    if isinstance(structures, Store):
        targets = targets or list(structures.targets.values())
        batches = pieces(structures, 8_192)
    else:
        batches = structures
    auditor = Auditor({t.name: t for t in targets}, supported_elements=supported_elements)
    for batch in batches:
        auditor.add(batch)
    result = auditor.finish()
    if result.n_systems == 0:
        raise TetherError("no structure to audit", expected="at least one", fix="check the input")
    return result


_LEFT_OUT = {
    "no-atoms": "without atoms",
    "non-finite-positions": "with NaN or infinite positions",
    "non-finite-charge": "with a NaN or infinite charge or spin",
    "flat-cell": "periodic in a direction without extent",
    "unsupported-element": "with elements that are not supported",
    "overlapping-atoms": f"with atoms closer than {OVERLAP_DISTANCE} Å",
}


def _left_out(code: str, found: Sequence[tuple[str, str]]) -> Finding:
    return Finding(code, "left out", f"{len(found)} structures {_LEFT_OUT[code]}", tuple(found))

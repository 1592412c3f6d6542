"""`validate_backbone`: the contract that every backbone passes, with a figure for each check.

Each check has a broken backbone in `tether.testing.broken` that must fail it.
"""

from __future__ import annotations

import copy
import random
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from tether.errors import TetherError
from tether.structures import from_ase
from tether.testing import derivative_checks as derivatives
from tether.testing import interface_checks as interface
from tether.testing import symmetry_checks as symmetry
from tether.testing.probe import Probe
from tether.testing.structures import small_structures

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from ase import Atoms
    from torch import nn

    from tether.testing.probe import Measured

__all__ = ["CHECK_NAMES", "CheckResult", "ContractReport", "validate_backbone"]


@dataclass(frozen=True)
class _Check:
    """One check, and when it has a meaning."""

    name: str
    measure: Callable[[Probe], Measured]
    skip_reason: Callable[[Probe], str] = lambda _: ""


def _without_potential(probe: Probe) -> str:
    return "" if probe.has_potential else "the backbone has no energy_forces"


def _without_cell(probe: Probe) -> str:
    return "" if probe.periodic_structures else "no periodic structure"


def _without_stress(probe: Probe) -> str:
    return _without_potential(probe) or _without_cell(probe)


def _without_edges(probe: Probe) -> str:
    edge = probe.features(probe.structures[0]).edge
    return "the backbone has no edge features" if edge is None else ""


def _all_elements_known(probe: Probe) -> str:
    unknown = set(range(1, 119)) - set(probe.backbone.spec.elements)
    return "" if unknown else "the backbone knows all 118 elements"


def _accepts_cells(probe: Probe) -> str:
    return "the backbone is periodic" if probe.backbone.spec.periodic else ""


def _accepts_molecules(probe: Probe) -> str:
    return "the backbone accepts molecules" if probe.backbone.spec.molecules else ""


def _tells_mirror_images(probe: Probe) -> str:
    return "" if probe.backbone.spec.mirror else "the backbone tells mirror images apart"


#: Process settings come first, because some packages change them when they are imported.
_CHECKS = (
    _Check("process settings", interface.check_process_settings),
    _Check("random state", interface.check_random_state),
    _Check("inputs untouched", interface.check_inputs_untouched),
    _Check("shapes", interface.check_shapes),
    _Check("last layer is node", interface.check_last_layer),
    _Check("unknown element refused", interface.check_unknown_element_refused, _all_elements_known),
    _Check("cell refused", interface.check_cell_refused, _accepts_cells),
    _Check("molecule refused", interface.check_molecule_refused, _accepts_molecules),
    _Check("charge and spin heard", interface.check_electrons),
    _Check("overlapping atoms refused", interface.check_overlap_refused),
    _Check("non-finite positions refused", interface.check_non_finite_refused),
    _Check("deterministic", symmetry.check_deterministic),
    _Check("geometry matters", symmetry.check_geometry_matters),
    _Check("batched equals single", symmetry.check_batching),
    _Check("graph selection", symmetry.check_select),
    _Check("permutation", symmetry.check_permutation),
    _Check("rotation", symmetry.check_rotation),
    _Check("reflection", symmetry.check_reflection, _tells_mirror_images),
    _Check("translation", symmetry.check_translation),
    _Check("lattice translation", symmetry.check_lattice_translation, _without_cell),
    _Check("choice of cell", symmetry.check_cell_choice, _without_cell),
    _Check("supercell", symmetry.check_supercell, _without_cell),
    _Check("isolated atom", symmetry.check_isolated_atom),
    _Check("cutoff as stated", symmetry.check_cutoff_stated),
    _Check("smooth at the cutoff", symmetry.check_smooth_value),
    _Check("smooth derivative at the cutoff", symmetry.check_smooth_derivative),
    _Check("smooth edge features", symmetry.check_smooth_edges, _without_edges),
    _Check("single precision", symmetry.check_single_precision),
    _Check("forces are not zero", derivatives.check_forces_not_zero, _without_potential),
    _Check("forces", derivatives.check_forces, _without_potential),
    _Check("stress", derivatives.check_stress, _without_stress),
    _Check("detached outputs", derivatives.check_detached),
    _Check("gradients from features", derivatives.check_feature_gradients),
    _Check("gradients from forces", derivatives.check_force_gradients, _without_potential),
    _Check("blocks are distinct", derivatives.check_blocks_distinct),
    _Check("blocks are complete", derivatives.check_blocks_complete),
    _Check("blocks are in order", derivatives.check_blocks_order),
)

#: Names of all checks, in the order in which they run.
CHECK_NAMES = tuple(check.name for check in _CHECKS)


@dataclass(frozen=True)
class CheckResult:
    """One line of the report.

    Attributes
    ----------
    name : str
        One of `CHECK_NAMES`.
    status : "passed", "failed" or "skipped"
        A check that raised has failed.
    deviation, tolerance : float or None
        Measured and accepted; None where the check was skipped or raised.
    detail : str
        Where the deviation is, what was raised, or why the check was skipped.
    """

    name: str
    status: Literal["passed", "failed", "skipped"]
    deviation: float | None
    tolerance: float | None
    detail: str

    def __str__(self) -> str:
        if self.deviation is None:
            return f"{self.status:8}{self.name}: {self.detail}"
        figures = f"{self.deviation:.2g} (tolerance {self.tolerance:.2g})"
        return f"{self.status:8}{self.name}: {figures}" + (f", {self.detail}" * bool(self.detail))


@dataclass(frozen=True)
class ContractReport:
    """What `validate_backbone` found; printing it gives one line a check.

    Attributes
    ----------
    backbone : str
        ``spec.name``.
    checks : tuple of CheckResult
        One for each of `CHECK_NAMES`, in order.
    """

    backbone: str
    checks: tuple[CheckResult, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the checks that failed."""
        return tuple(check.name for check in self.checks if check.status == "failed")

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the checks that were skipped."""
        return tuple(check.name for check in self.checks if check.status == "skipped")

    def __str__(self) -> str:
        return "\n".join([f"backbone `{self.backbone}`", *(str(check) for check in self.checks)])


def validate_backbone(
    backbone: nn.Module,
    *,
    structures: Sequence[Atoms] | None = None,
    unused: Collection[str] | Callable[[str], bool] = (),
    skip: Collection[str] = (),
    raise_on_failure: bool = True,
) -> ContractReport:
    """Hold a backbone against the contract of `tether.backbones.protocol`.

    The checks run in float64, in eval mode, on the CPU, on a deep copy of the backbone: the
    original is not touched. Random state and process settings are put back after every check.

    Parameters
    ----------
    backbone : torch.nn.Module
        Implements `Backbone`; where it has `energy_forces`, `Potential` is checked too.
    structures : sequence of ase.Atoms, optional
        Small structures with neighbours within the cutoff, without symmetry (rattled), at least
        two atoms each. Default: those of `tether.testing.structures` whose elements and cells the
        backbone accepts. If all are periodic, the clusters that some checks build are put into a
        large cell.
    unused : collection of str or callable, optional
        Parameters in `blocks` that may rightly get no gradient from these structures: names or
        patterns of `fnmatch` (``"*.charge_embedding.*"``), or a predicate of the name.
    skip : collection of str, optional
        Names of checks not to run; they are reported as skipped.
    raise_on_failure : bool
        Whether failures raise, or only stand in the report.

    Returns
    -------
    ContractReport
        Deviation and tolerance of every check.

    Raises
    ------
    AssertionError
        When checks failed, with all of them in the message.
    TetherError
        For an unknown name in `skip`, a backbone that lacks a member of the protocol, or no
        structure that it accepts.

    Examples
    --------
    >>> from tether.testing.tiny import TinyBackbone
    >>> report = validate_backbone(TinyBackbone(elements=(1, 8), periodic=False))
    >>> report.failed
    ()
    >>> report.skipped
    ('molecule refused', 'lattice translation', 'choice of cell', 'supercell', 'stress')
    """
    unknown = sorted(set(skip) - set(CHECK_NAMES))
    if unknown:
        raise TetherError(
            f"`skip` names {unknown}",
            expected=f"names among {', '.join(CHECK_NAMES)}",
            fix="take the names that the report prints",
        )
    probe = _probe(backbone, structures, unused)
    results = tuple(_run(check, probe, skip) for check in _CHECKS)
    report = ContractReport(probe.backbone.spec.name, results)
    if raise_on_failure and report.failed:
        lines = [str(check) for check in results if check.status == "failed"]
        raise AssertionError(
            f"backbone `{report.backbone}` fails {len(lines)} of {len(results)} checks:\n"
            + "\n".join(lines)
        )
    return report


def _probe(
    backbone: nn.Module,
    structures: Sequence[Atoms] | None,
    unused: Collection[str] | Callable[[str], bool],
) -> Probe:
    lacking = [m for m in ("spec", "prepare", "forward", "blocks") if not hasattr(backbone, m)]
    if lacking or not isinstance(backbone, torch.nn.Module):
        raise TetherError(
            f"{type(backbone).__name__} lacks {', '.join(lacking) or 'torch.nn.Module'}",
            expected="a torch.nn.Module with spec, prepare, forward and blocks",
            fix="see tether.backbones.protocol.Backbone",
        )
    spec = getattr(backbone, "spec")  # noqa: B009 - nn.Module's type does not know it
    chosen = structures
    if chosen is None:
        chosen = [
            atoms
            for atoms in small_structures()
            if set(atoms.numbers.tolist()) <= set(spec.elements)
            and (spec.periodic if atoms.pbc.any() else spec.molecules)
        ]
    if not chosen or min(len(atoms) for atoms in chosen) < 2:
        raise TetherError(
            f"{len(chosen)} structures for backbone `{spec.name}`, or one with a single atom",
            expected="at least one structure, each of two atoms or more, that the backbone accepts",
            fix="pass structures=[...] with elements that the backbone knows",
        )
    formulas = [f"{i}: {atoms.symbols}" for i, atoms in enumerate(chosen)]
    batches = [from_ase(a, ids=[name]) for a, name in zip(chosen, formulas, strict=True)]
    patterns = () if callable(unused) else tuple(unused)

    def matches(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return Probe(
        backbone=copy.deepcopy(backbone).cpu().double().eval(),
        structures=tuple(batches),
        is_unused=unused if callable(unused) else matches,
    )


def _run(check: _Check, probe: Probe, skip: Collection[str]) -> CheckResult:
    try:
        with _process_restored():
            reason = "by request" if check.name in skip else check.skip_reason(probe)
            if reason:
                return CheckResult(check.name, "skipped", None, None, reason)
            found = check.measure(probe)
    except Exception as error:  # a check that cannot run has failed, and the others still run
        return CheckResult(check.name, "failed", None, None, f"{type(error).__name__}: {error}")
    # Not `deviation > tolerance`: NaN must fail.
    passed = found.deviation <= found.tolerance
    return CheckResult(
        check.name,
        "passed" if passed else "failed",
        found.deviation,
        found.tolerance,
        found.detail,
    )


@contextmanager
def _process_restored() -> Iterator[None]:
    """Put back what a check, or the backbone in it, changed in the process."""
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    python_state, threads = random.getstate(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        torch.set_grad_enabled(True)
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        torch.use_deterministic_algorithms(deterministic)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)

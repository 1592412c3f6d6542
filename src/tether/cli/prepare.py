"""``tether prepare``: files to an audited store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from ase.data import atomic_numbers
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tether.errors import TetherError

if TYPE_CHECKING:
    from tether.data.prepare import PrepareReport

__all__ = ["prepare_command"]


def prepare_command(
    inputs: Annotated[
        list[str], typer.Argument(help="Files (extended XYZ, .db, .npz, ...), or the name qm9.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The store to write (.arrow).")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Label to keep, as name[:unit[:kind]]; repeat for more. Default: every label."
        ),
    ] = None,
    elements: Annotated[
        str | None,
        typer.Option(help="Elements that the backbone knows, e.g. H,C,N,O. Default: no limit."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Keep a random sample of this many structures.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    shard_size: Annotated[
        int | None,
        typer.Option(
            help="Write a folder of files of this many structures, e.g. 100000: a killed call, "
            "repeated, goes on. Default: one file."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and audit, but write nothing.")
    ] = False,
) -> None:
    """Read structures with their labels, audit them and write a store.

    What cannot be used is left out and listed in <out>.audit.json; what looks odd is kept and
    listed there, too.
    """
    from tether.data.prepare import prepare  # with it comes torch: `tether --help` must not wait

    supported = None if elements is None else _atomic_numbers(elements)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.completed:,.0f} structures"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, int] = {}

    def advance(name: str, n_systems: int) -> None:
        if name not in tasks:
            tasks[name] = bar.add_task(escape(name), total=None)
        bar.advance(tasks[name], n_systems)  # type: ignore[arg-type]

    with bar:
        report = prepare(
            inputs,
            None if dry_run else out,
            targets=target or None,
            supported_elements=supported,
            limit=limit,
            seed=seed,
            shard_size=shard_size,
            progress=advance,
        )
    if as_json:
        typer.echo(json.dumps(report.to_dict(), ensure_ascii=False))
    else:
        _print(report)


def _atomic_numbers(symbols: str) -> list[int]:
    numbers = []
    for symbol in symbols.replace(",", " ").split():
        if atomic_numbers.get(symbol, 0) < 1:
            raise TetherError(
                f"element {symbol!r}",
                expected="chemical symbols, separated by commas",
                fix="for example --elements H,C,N,O",
            )
        numbers.append(atomic_numbers[symbol])
    return numbers


def _print(report: PrepareReport) -> None:
    from tether.data.chunks import FORCES, STRESS
    from tether.targets import WITHOUT_HEAD

    console = Console()
    if report.audit.findings:
        table = Table("", "found", "structures", "the first of them", title="Audit")
        for finding in report.audit.findings:
            first = ", ".join(name for name, _ in finding.structures[:3])
            more = ", …" if len(finding.structures) > 3 else ""
            count = f"{len(finding.structures):,}"
            table.add_row(finding.severity, escape(finding.summary), count, escape(first + more))
        console.print(table)
    else:
        console.print("Audit: nothing found.")
    labels = Table("target", "unit", "level", "kind", "labelled structures")
    for target in report.targets:
        n_labelled = f"{report.n_labelled[target.name]:,}"
        name, unit = escape(target.name), escape(target.unit or "?")
        labels.add_row(name, unit, target.level, target.kind, n_labelled)
    if report.targets:
        console.print(labels)
    unlearnt = [
        target.name
        for target in report.targets
        if target.name not in {FORCES.name, STRESS.name}  # the force-field task learns these
        and (target.n_components != 1 or target.kind in WITHOUT_HEAD)
    ]
    if unlearnt:
        names = escape(", ".join(unlearnt))
        console.print(f"kept, but no head learns vectors or classes yet: {names}", soft_wrap=True)
    kept = f"{report.n_systems:,} of {report.audit.n_systems:,} structures"
    if report.store is None:
        console.print(f"{kept} would be kept; nothing was written (--dry-run).")
        return
    console.print(f"{kept} are in {escape(str(report.store))}", soft_wrap=True)
    audit_file = escape(str(report.audit_file))
    console.print(f"every structure of the audit, with its reason: {audit_file}", soft_wrap=True)

"""``tether label``: force-field labels for off-equilibrium geometries of a store's structures."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from tether.errors import TetherError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tether.data.store import Store
    from tether.labels.label import LabelReport
    from tether.labels.samples import Kind
    from tether.labels.worker import Sampling

__all__ = ["label_command"]

_SHOWN_FAILURES = 20
#: Option → kinds of geometries that read it.
_READERS = {
    "n_per_structure": ("displace", "strain", "modes", "md"),
    "widths": ("displace", "strain"),
    "strain": ("strain",),
    "temperature": ("modes", "md"),
}


def label_command(
    store: Annotated[Path, typer.Argument(help="Store of structures (.arrow).")],
    out: Annotated[Path, typer.Option(help="Store to write; must not exist.")],
    with_: Annotated[str, typer.Option("--with", help="pseudo or gfn2-xtb.")] = "pseudo",
    backbone: Annotated[
        str | None, typer.Option(help="Of pseudo-labels.", show_default="so3lr")
    ] = None,
    split: Annotated[Path | None, typer.Option(help="split.json, with --set.")] = None,
    set_: Annotated[str, typer.Option("--set", help="Set of the split, as train.")] = "",
    n_per_structure: Annotated[
        int | None, typer.Option(help="Geometries of each kind.", show_default="3")
    ] = None,
    widths: Annotated[
        str | None, typer.Option(help="Å, of displace and strain.", show_default="0.02,0.05,0.1")
    ] = None,
    sampling: Annotated[
        list[str] | None, typer.Option(help="displace, strain, modes, md or input; repeat to mix.")
    ] = None,
    strain: Annotated[
        float | None, typer.Option(help="Width of the strain components.", show_default="0.02")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="K, of modes and md.", show_default="300")
    ] = None,
    max_force: Annotated[float, typer.Option(help="eV/Å; larger ones are left out.")] = 30.0,
    limit: Annotated[int | None, typer.Option(help="First structures only.")] = None,
    seed: Annotated[int, typer.Option(help="Of the geometries.")] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default one a core, 0: this process.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Label by Ray: local, auto, or a cluster's address.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
) -> None:
    """Make geometries near a store's structures, label them with energies, forces and stress.

    An interrupted command goes on when it is given again with the same options.
    """
    from tether.data.store import Store
    from tether.labels.label import check_labeller, label_structures

    labeller = check_labeller(with_)
    chosen = _sampling(
        sampling or ["displace"],
        n_per_structure=n_per_structure,
        widths=None if widths is None else _numbers(widths),
        strain=strain,
        temperature=temperature,
    )
    opened = Store.open(store)
    indices = _rows(opened, split, set_, limit)
    # Ray tells of workers that died on the output, which is for the report.
    with redirect_stdout(sys.stderr), _progress(len(indices), chosen.n_geometries) as progress:
        report = label_structures(
            opened,
            with_=labeller,
            out=out,
            backbone=backbone or ("so3lr" if labeller == "pseudo" else None),
            sampling=chosen,
            seed=seed,
            max_force=max_force,
            indices=indices,
            workers=workers,
            ray=ray,
            progress=progress,
            dry_run=dry_run,
        )
    if dry_run:
        _print_plan(opened, indices, chosen, with_=with_, out=out, as_json=json_)
    elif json_:
        typer.echo(json.dumps(report.to_dict()))
    else:
        _print_report(report, labeller)


def _sampling(kinds: Sequence[str], **options: Any) -> Sampling:
    """Geometries with the options that were given, each of which one of the kinds must read."""
    from tether.labels.label import Sampling

    given = {name: value for name, value in options.items() if value is not None}
    chosen = Sampling(kinds=cast("tuple[Kind, ...]", tuple(kinds)), **given)
    for name in given:
        if not set(kinds) & set(_READERS[name]):
            option = f"--{name.replace('_', '-')}"
            raise TetherError(
                f"{option} was given, and nothing reads it with --sampling {', '.join(kinds)}",
                expected=f"--sampling {' or '.join(_READERS[name])}",
                fix=f"leave {option} out",
            )
    return chosen


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise TetherError(
            f"`widths` is {text!r}",
            expected="numbers in Å with commas between them",
            fix="set --widths 0.02,0.05,0.1",
        ) from None


def _rows(store: Store, split: Path | None, set_: str, limit: int | None) -> list[int]:
    if bool(split) != bool(set_):
        raise TetherError(
            "--set was given without --split" if set_ else "--split was given without --set",
            expected="both or neither",
            fix="add --set train" if split else "add --split split.json",
        )
    if limit is not None and limit < 1:
        raise TetherError(f"`limit` is {limit}", expected="at least 1", fix="leave --limit out")
    rows = list(range(store.n_systems))
    if split is not None:
        from tether.splits.split import Split

        indices = Split.from_json(split, fingerprint=store.fingerprint).indices
        if set_ not in indices:
            raise TetherError(
                f"{split} has no set {set_!r}",
                expected=f"one of {', '.join(indices)}",
                fix="choose one with --set",
            )
        rows = [int(row) for row in indices[set_]]
    rows = rows[:limit]
    if not rows:
        raise TetherError(
            f"no structure to label in {store.path}",
            expected="at least one",
            fix="check --split and --set",
        )
    return rows


@contextmanager
def _progress(n_structures: int, n_each: int) -> Iterator[Callable[[int, int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (
        TextColumn("labelling"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[failures]} failed"),
        Remaining(),
    )
    # On the error stream, so that --json leaves the output to the report; an error in a log file
    # stays one line.
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=n_structures * n_each, rate="starting", failures=0)

        def update(done: int, labelled: int, failed: int) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            rate = f"{labelled / elapsed:.1f} structures/s" if elapsed else "starting"
            bar.update(task, completed=done * n_each, rate=rate, failures=failed)

        yield update


def _print_plan(
    store: Store, indices: list[int], sampling: Sampling, *, with_: str, out: Path, as_json: bool
) -> None:
    plan: dict[str, Any] = {
        "store": str(store.path),
        "labels": with_,
        "structures": len(indices),
        "geometries": len(indices) * sampling.n_geometries,
        "sampling": sampling.to_dict(),
        "out": str(out),
    }
    if as_json:
        typer.echo(json.dumps(plan))
        return
    for name, value in plan.items():
        typer.echo(f"{name:12} {value}")
    typer.echo("dry run: nothing was written")


def _print_report(report: LabelReport, with_: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    kind = "pseudo-labels, of the level of" if with_ == "pseudo" else "labels of"
    table = Table("", escape(report.out), title=escape(f"{kind} {report.level_of_theory}"))
    table.add_row("structures", f"{report.n_structures}")
    table.add_row("labelled geometries", f"{report.n}")
    table.add_row("failures", f"{len(report.failures)}")
    table.add_row("structures/s", f"{report.structures_per_second:.1f}")
    table.add_row("force rms", f"{report.force_rms:.3f} eV/Å")
    if report.n_resumed:
        table.add_row("resumed structures", f"{report.n_resumed}")
    console = Console()
    console.print(table)
    for failure in report.failures[:_SHOWN_FAILURES]:
        line = Text.assemble(("failed", "yellow"), f" {failure.id}: {failure.reason}")
        console.print(line, soft_wrap=True)
    hidden = len(report.failures) - _SHOWN_FAILURES
    if hidden > 0:
        more = Text(f"… and {hidden} more in {report.out}.failures.json")
        console.print(more, soft_wrap=True)

"""``tether bench``: a named suite of comparisons, over as many sittings as it takes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tether.cli.options import DryRunOption, JsonOption, OverridesArgument
from tether.errors import TetherError

if TYPE_CHECKING:
    from tether.suites.suite import Suite

__all__ = ["bench_command"]


def bench_command(
    name: Annotated[
        str, typer.Argument(help="qm9-boom, qm9-sizes, matbench-loco, or a YAML file of your own.")
    ],
    overrides: OverridesArgument = None,
    *,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the suite. Default: its name.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of files that a suite reads and does not make.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this; repeat for more.")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="Only this; repeat for more.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; default one a core.")
    ] = None,
    status: Annotated[
        bool, typer.Option("--status", help="Say what is done and show the results so far.")
    ] = False,
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Run a suite of comparisons; a killed one goes on, and what is finished is not run again."""
    from tether.bench import (
        check_finished,
        check_stages,
        prepare_suite,
        run_suite,
        suite_jobs,
        write_results,
    )
    from tether.cli.bench_tables import print_results, print_stages
    from tether.cli.progress import print_files, run_progress
    from tether.suites.suite import load_suite

    folder = out or Path(Path(name).stem)
    suite = load_suite(
        name,
        out=folder,
        data=data,
        tasks=task or (),
        recipes=recipe or (),
        overrides=overrides or (),
    )
    jobs = suite_jobs(suite)
    console = Console(stderr=as_json)
    if dry_run:
        check_stages(suite)
        _print_plan(suite, {job.label: job.is_complete for job in jobs}, console, as_json=as_json)
        return
    # Whatever was asked to run now, the results are those of everything that is there.
    whole = load_suite(name, out=folder, data=data, overrides=overrides or ())
    if status and not folder.is_dir():
        raise TetherError(
            f"there is no folder {str(folder)!r}",
            expected="the folder of a suite that was started",
            fix="check --out, or leave --status out to start it",
        )
    if not status:
        prepare_suite(suite, lambda stage, state: print_stages(stage, state, console))
        check_finished(whole)
        with run_progress(jobs, console=console) as report:
            run_suite(suite, workers=workers, report=report)
    results = write_results(whole)
    if as_json:
        typer.echo(json.dumps(results))
        return
    print_results(results, console)
    print_files(
        console,
        (folder / "results.html", "tables and figures"),
        (folder / "results.json", "every number"),
    )


def _print_plan(suite: Suite, runs: dict[str, bool], console: Console, *, as_json: bool) -> None:
    stages: list[dict[str, Any]] = [
        {"command": ["tether", *stage.arguments], "out": str(stage.out), "done": stage.is_done}
        for stage in suite.stages
    ]
    if as_json:
        typer.echo(json.dumps({"stages": stages, "runs": runs}))
        return
    for title, rows in (
        ("data", [(shlex.join(stage["command"]), stage["done"]) for stage in stages]),
        ("runs", list(runs.items())),
    ):
        table = Table(title, "", title_justify="left")
        for what, is_done in rows:
            table.add_row(escape(what), "done" if is_done else "to do")
        console.print(table)

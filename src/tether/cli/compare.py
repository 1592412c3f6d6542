"""``tether compare``: recipes × seeds, one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tether.cli.options import ConfigOption, DryRunOption, JsonOption, OverridesArgument

__all__ = ["compare_command"]


def compare_command(
    overrides: OverridesArgument = None,
    *,
    config: ConfigOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the comparison.")] = Path(
        "comparison"
    ),
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Compare recipes over seeds, ID against OOD; a killed comparison continues."""
    from tether.cli.progress import print_files, run_progress
    from tether.cli.tables import print_comparison
    from tether.compare import compare
    from tether.config import load_config
    from tether.jobs import check_jobs, plan

    loaded = load_config(config, overrides or [])
    jobs = plan(loaded, out)
    console = Console(stderr=as_json)
    if dry_run:
        check_jobs(jobs)
        runs = {str(job.out): job.settings.property_steps for job in jobs}
        if as_json:
            typer.echo(json.dumps({"config": loaded.model_dump(mode="json"), "runs": runs}))
            return
        typer.echo(loaded.to_yaml())
        for folder, steps in runs.items():
            typer.echo(f"{folder}: {steps} property steps")
        return
    with run_progress(jobs, console=console) as report:
        summary = compare(loaded, out=out, report=report)
    if as_json:
        typer.echo(json.dumps(summary))
        return
    print_comparison(summary, console)
    print_files(
        console,
        (out / "summary.json", "every number above"),
        (out / "report.html", "plots; open it in a browser"),
    )

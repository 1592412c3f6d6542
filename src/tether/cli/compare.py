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
    from tether.cli.progress import run_progress
    from tether.cli.tables import print_comparison
    from tether.compare import compare, plan
    from tether.config import load_config

    loaded = load_config(config, overrides or [])
    jobs = plan(loaded, out)
    console = Console(stderr=as_json)
    if dry_run:
        console.print(loaded.to_yaml(), markup=False)
        for job in jobs:
            console.print(f"{job.out}: {job.settings.property_steps} property steps")
        return
    with run_progress(jobs, console=console) as report:
        summary = compare(loaded, out=out, report=report)
    if as_json:
        typer.echo(json.dumps(summary))
        return
    print_comparison(summary, console)
    console.print(f"  {out / 'summary.json'}  [dim]every number above[/dim]")
    console.print(f"  {out / 'report.html'}  [dim]plots; open it in a browser[/dim]")

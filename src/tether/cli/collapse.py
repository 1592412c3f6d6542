"""``tether collapse``: what became of the pretrained features, before against after."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tether.cli.options import DryRunOption, JsonOption

__all__ = ["collapse_command"]


def collapse_command(
    folder: Annotated[Path, typer.Argument(help="A comparison folder, or the folder of one run.")],
    *,
    subset: Annotated[str, typer.Option(help="Set whose atoms are measured.")] = "test/id",
    per_class: Annotated[int, typer.Option(help="Atoms and edges of each class.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of samples and intervals.")] = 0,
    seeds: Annotated[
        int, typer.Option(min=1, help="How many t-SNE embeddings; the first is drawn.")
    ] = 3,
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Measure representation collapse in finished runs; a killed measurement continues."""
    # Imported here, so that `tether --help` does not wait for torch and scikit-learn.
    from tether.cli.collapse_tables import measure_progress, print_collapse
    from tether.cli.progress import print_files
    from tether.drift.comparison import collapse_file, measure_collapse, plan_measures
    from tether.drift.opened import DriftSettings

    embed_seeds = tuple(range(seed, seed + seeds))
    jobs = plan_measures(folder, DriftSettings(subset, per_class, seed, embed_seeds))
    if dry_run:
        if as_json:
            typer.echo(json.dumps({"runs": {str(j.folder): j.is_done for j in jobs}}))
            return
        for job in jobs:
            typer.echo(f"{job.folder}: {'measured already' if job.is_done else 'to be measured'}")
        return
    console = Console(stderr=as_json)
    with measure_progress(jobs, console=console) as report:
        content = measure_collapse(
            folder,
            subset=subset,
            per_class=per_class,
            seed=seed,
            embed_seeds=embed_seeds,
            report=report,
        )
    if as_json:
        typer.echo(json.dumps(content))
        return
    print_collapse(content, console)
    print_files(console, (collapse_file(folder), "every number above"))
    again = f"tether report {shlex.quote(str(folder))}"
    console.print(
        Text.assemble(f"  {again}  ", ("shows them with pictures", "dim")), soft_wrap=True
    )

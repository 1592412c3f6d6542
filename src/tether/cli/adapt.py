"""``tether adapt``: one recipe, one seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tether.cli.options import ConfigOption, DryRunOption, JsonOption, OverridesArgument

__all__ = ["adapt_command"]


def adapt_command(
    overrides: OverridesArgument = None,
    *,
    config: ConfigOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="A name in `tether list` or the config. Default: the config's only one, or mft.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Of head, data order and random weights. Default: the config's first, or 0."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder.")] = Path("run"),
    watch_collapse: Annotated[
        bool, typer.Option("--watch-collapse", help="Log collapse measures at each validation.")
    ] = False,
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Adapt a backbone with one recipe; run it again after a kill and it continues."""
    from tether.cli.progress import run_progress
    from tether.config import load_config
    from tether.jobs import Job

    changes = [*(overrides or []), *(["watch_collapse=true"] if watch_collapse else [])]
    loaded = load_config(config, changes).single(recipe, seed)
    (point,), (seed,) = loaded.points(), loaded.seeds
    job = Job(loaded, point.name, point, seed, 0, loaded.settings(), out, out.name)
    from tether.adapt import adapt, check_run
    from tether.serialization import read_json
    from tether.workers import rank

    if dry_run:
        check_run(
            loaded.inputs(),
            point,
            job.settings,
            out=out,
            seed=seed,
            backbone=loaded.backbone_choice(),
            head=loaded.head_choice(),
        )
        content = loaded.model_dump(mode="json")
        typer.echo(json.dumps({"config": content}) if as_json else loaded.to_yaml())
        return

    console = Console(stderr=as_json, quiet=rank() > 0)
    with run_progress([job], console=console) as report:
        run = adapt(
            loaded.inputs(),
            point,
            job.settings,
            out=out,
            seed=seed,
            backbone=loaded.backbone_choice(),
            head=loaded.head_choice(),
            watch_collapse=loaded.watch_collapse,
            report=lambda progress: report(job, progress.task_steps["property"], "running"),
        )
        report(job, job.settings.property_steps, "done")
    if rank() > 0:
        return
    metrics = read_json(run.metrics)
    if as_json:
        typer.echo(json.dumps(metrics))
        return
    from tether.cli.progress import print_run

    print_run(run, metrics, console)

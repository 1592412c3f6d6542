"""``tether pretrain``: a backbone from random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tether.cli.options import ConfigOption, DryRunOption, JsonOption, OverridesArgument

if TYPE_CHECKING:
    from tether.run import Run

__all__ = ["pretrain_command"]


def pretrain_command(
    overrides: OverridesArgument = None,
    *,
    config: ConfigOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Run folder.")] = Path("pretrained"),
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Pretrain a backbone by denoising, force field or both; run it again and it continues."""
    from tether.cli.progress import step_progress
    from tether.pretrain import check_pretraining, pretrain
    from tether.pretrain_config import load_pretrain_config
    from tether.serialization import read_json
    from tether.workers import rank

    loaded = load_pretrain_config(config, overrides or [])
    settings = loaded.settings()
    arguments: dict[str, Any] = {
        "out": out,
        "seed": loaded.seed,
        "backbone": loaded.backbone_choice(),
        "weights": loaded.weights,
        "licence": loaded.licence,
    }
    inputs, objective = loaded.inputs(), loaded.checked_objective()
    if dry_run:
        check_pretraining(inputs, objective, settings, **arguments)
        content = loaded.model_dump(mode="json")
        typer.echo(json.dumps({"config": content}) if as_json else loaded.to_yaml())
        return
    console = Console(stderr=as_json, quiet=rank() > 0)
    with step_progress(out.name, settings.property_steps, console=console) as advance:
        run = pretrain(inputs, objective, settings, report=lambda p: advance(p.step), **arguments)
    if rank() > 0:
        return
    metrics = read_json(run.metrics)
    if as_json:
        typer.echo(json.dumps(metrics))
        return
    _print(run, metrics, console)


def _print(run: Run, metrics: dict[str, Any], console: Console) -> None:
    from tether.cli.progress import print_files

    table = Table(title=f"{escape(str(run.folder))}: best at step {metrics['best_step']:,}")
    for heading, side in (("set", "left"), ("n", "right"), ("measure", "left"), ("value", "right")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for part, errors in metrics["errors"].items():
        for measure, value in errors.items():
            n = f"{metrics['n_held_out'][part]:,}"
            table.add_row(escape(part), n, measure.replace("_", " "), f"{value:.4g}")
    console.print(table)
    print_files(
        console,
        (run.folder / "backbone.safetensors", "the weights: backbone.name of a config takes it"),
        (run.folder / "card.md", "what they are, and what they are not for"),
        (run.log, "losses and validations over the steps"),
    )

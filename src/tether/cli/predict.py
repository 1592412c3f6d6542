"""``tether predict``: structures in, properties out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tether.cli.options import DryRunOption, JsonOption

__all__ = ["predict_command"]


def predict_command(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    structures: Annotated[Path, typer.Argument(help="Any file that ASE reads, npz, or a store.")],
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help=".parquet, .csv, .xyz or .extxyz")
    ] = Path("predictions.csv"),
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Predict the properties of structures with a finished run."""
    from tether.predict import open_prediction, predict

    console = Console(stderr=as_json)
    if dry_run:
        model, _ = open_prediction(run, structures, out=out)
        units = {name: head.target.unit for name, head in model.heads.items()}
        names = ", ".join(f"{name} ({unit})" for name, unit in units.items())
        typer.echo(json.dumps({"units": units}) if as_json else f"{run} predicts {names}")
        return
    with console.status("predicting") as status:
        predicted = predict(
            run,
            structures,
            out=out,
            progress=lambda n: status.update(f"predicted {n} structures"),
        )
    if as_json:
        values = {name: array.tolist() for name, array in predicted.values.items()}
        typer.echo(json.dumps({"ids": predicted.ids, "values": values, "units": predicted.units}))
        return
    names = ", ".join(f"{name} ({unit})" for name, unit in predicted.units.items())
    typer.echo(f"{len(predicted.ids)} structures: {names} → {out}")

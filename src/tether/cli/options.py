"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ConfigOption", "DryRunOption", "JsonOption", "OverridesArgument"]

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file; see the README.")
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="key=value, for example training.lr=1e-3.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")]

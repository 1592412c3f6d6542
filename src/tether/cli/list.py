"""``tether list``: what there is to choose from, and what a store holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tether.cli.options import JsonOption

__all__ = ["list_command"]


def list_command(
    store: Annotated[Path | None, typer.Argument(help="A store; default: what tether has.")] = None,
    *,
    as_json: JsonOption = False,
) -> None:
    """List backbones and recipes, or the labels of a store."""
    content = _of_store(store) if store else _of_tether()
    if as_json:
        typer.echo(json.dumps(content))
        return
    console = Console()
    for title, rows in content.items():
        table = Table(title=escape(title), title_justify="left")
        for heading in rows[0] if rows else ():
            table.add_column(heading)
        for row in rows:
            table.add_row(*[escape(str(value)) for value in row.values()])
        console.print(table)


def _of_tether() -> dict[str, list[dict[str, Any]]]:
    from tether.backbones.load import BACKBONES
    from tether.recipe import RECIPES

    return {
        "backbones": [
            {
                "name": name,
                "what": what,
                "install": f"pip install 'tether[{extra}]'" if extra else "–",
            }
            for name, (what, extra) in BACKBONES.items()
        ],
        "recipes": [{"name": name, "what": what} for name, (what, _) in RECIPES.items()],
    }


def _of_store(path: Path) -> dict[str, list[dict[str, Any]]]:
    import numpy as np

    from tether.data.store import Store

    store = Store.open(path)
    labels = []
    for name, target in store.targets.items():
        row = {"label": name, "unit": target.unit, "level": target.level, "kind": target.kind}
        if target.level == "system" and target.n_components == 1:
            values = store.label(name)
            known = values[~np.isnan(values)]
            row |= {"labelled": f"{known.size:,}"}
            row |= (
                {"mean": f"{known.mean():.5g}", "std": f"{known.std():.4g}"} if known.size else {}
            )
        row = {key: row.get(key, "–") for key in (*_LABEL_COLUMNS,)}
        labels.append(row)
    about = {
        "structures": f"{store.n_systems:,}",
        "atoms": f"{store.n_atoms:,}",
        "fingerprint": store.fingerprint[:16],
    }
    return {str(path): [about], "labels": labels}


_LABEL_COLUMNS = ("label", "unit", "level", "kind", "labelled", "mean", "std")

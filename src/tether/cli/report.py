"""`tether report FOLDER`: write the page, print the table."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tether.cli.options import JsonOption

__all__ = ["report_command"]


def report_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison, a run or a suite.")],
    *,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the default browser.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the page of a comparison, a run or a suite: one file that needs no network."""
    # Imported here, so that `tether --help` does not wait for plotly and pyarrow.
    from tether.cli.bench_tables import print_results
    from tether.cli.tables import print_comparison
    from tether.report.build import build_report
    from tether.report.read import read_comparison
    from tether.report.suite import build_suite_report
    from tether.report.suite_read import read_results

    is_suite = (folder / "results.json").exists()
    path = build_suite_report(folder) if is_suite else build_report(folder)
    if as_json:
        typer.echo(json.dumps({"report": str(path.resolve()), "bytes": path.stat().st_size}))
    else:
        console = Console()
        if is_suite:
            print_results(read_results(folder), console)
        else:
            print_comparison(read_comparison(folder).summary, console)
        console.print(Text(f"\nreport: {path}"), soft_wrap=True)
    if open_page:
        webbrowser.open(path.resolve().as_uri())

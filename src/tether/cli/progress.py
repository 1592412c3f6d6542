"""Progress bars of runs, the table of a single one, and which files a command has written."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rich.console import Console

    from tether.jobs import Job
    from tether.run import Run

__all__ = ["print_files", "print_run", "run_progress", "step_progress"]

#: Without a terminal a line is printed each time a run has done another part of this size.
PLAIN_PARTS = 10


@contextmanager
def run_progress(
    jobs: Sequence[Job], *, console: Console
) -> Iterator[Callable[[Job, int, str], None]]:
    """A bar for all runs, and one for each that is running.

    Parameters
    ----------
    jobs : sequence of Job
        What will run.
    console : Console
        Where to draw; a log file gets plain lines instead.

    Yields
    ------
    callable
        To be called with a job, its property steps so far, and its state.
    """
    total = sum(job.settings.property_steps for job in jobs)
    done: dict[str, int] = {}
    parts: dict[str, tuple[int, str]] = {}
    bars: dict[str, Any] = {}
    with _bars(console) as progress:
        overall = progress.add_task("all runs", total=total, visible=len(jobs) > 1)

        def report(job: Job, steps: int, state: str) -> None:
            name, n_steps = job.label, job.settings.property_steps
            done[name] = steps
            progress.update(overall, completed=sum(done.values()))
            if state == "running" and name not in bars:
                bars[name] = progress.add_task(name, total=n_steps)
            if name in bars:
                progress.update(bars[name], completed=steps, visible=state == "running")
            # The last steps are also those of a run that is still predicting.
            part = PLAIN_PARTS * steps // n_steps, state
            if not console.is_terminal and part != parts.get(name) and state != "waiting":
                parts[name] = part
                line = Text(f"{name}: {steps}/{n_steps} property steps, {state}")
                console.print(line, soft_wrap=True)

        yield report


@contextmanager
def step_progress(name: str, n_steps: int, *, console: Console) -> Iterator[Callable[[int], None]]:
    """A bar for the steps of one training, or plain lines in a log file.

    Parameters
    ----------
    name : str
        Stands before the bar.
    n_steps : int
        Of all.
    console : Console
        Where to draw.

    Yields
    ------
    callable
        To be called with the steps so far.
    """
    with _bars(console) as progress:
        bar, part = progress.add_task(name, total=n_steps), -1

        def advance(steps: int) -> None:
            nonlocal part
            progress.update(bar, completed=steps)
            if not console.is_terminal and PLAIN_PARTS * steps // n_steps != part:
                part = PLAIN_PARTS * steps // n_steps
                console.print(Text(f"{name}: {steps}/{n_steps} steps"), soft_wrap=True)

        yield advance


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),  # names of folders, as they are
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def print_run(run: Run, metrics: dict[str, Any], console: Console) -> None:
    """Table of one run's errors, and where its files are.

    Parameters
    ----------
    run : Run
        Complete.
    metrics : dict
        Content of its ``metrics.json``.
    console : Console
        Where to print.
    """
    table = Table(title=f"{escape(str(run.folder))}: best at property step {metrics['best_step']}")
    for heading, side in (("target", "left"), ("subset", "left"), ("n", "right")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for heading in ("MAE", "RMSE", "R²"):
        table.add_column(heading, justify="right")
    grouped: dict[tuple[str, str], dict[str, Any]] = {}
    for row in metrics["rows"]:
        grouped.setdefault((row["target"], row["subset"]), {"n": row["n"], "unit": row["unit"]})[
            row["metric"]
        ] = row["value"]
    for (target, subset), row in grouped.items():
        cells = [f"{row[name]:.4g}" if name in row else "–" for name in ("mae", "rmse", "r2")]
        label = f"{target} ({row['unit']})"
        table.add_row(escape(label), subset, str(row["n"]), *cells)
    console.print(table)
    if metrics["forgetting"] is not None:
        before, after = (metrics["forgetting"][k]["force_mae"] for k in ("before", "after"))
        text = "–" if before is None else f"{before:.3f}"
        console.print(f"force MAE on held-out data: {text} → {after:.3f} eV/Å")
    print_files(
        console,
        (run.weights, "best weights on the ID validation set"),
        (run.predictions, "a row for each structure of the validation and test sets"),
        (run.metrics, "these numbers"),
        (run.log, "losses and validations over the steps"),
    )


def print_files(console: Console, *files: tuple[Path, str]) -> None:
    """Print a line a file, which stays one line however narrow the terminal is.

    Parameters
    ----------
    console : Console
        Where to print.
    *files : tuple of Path and str
        Each with what is in it.
    """
    for path, what in files:
        console.print(Text.assemble(f"  {path}  ", (what, "dim")), soft_wrap=True)

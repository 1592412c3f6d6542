"""A suite's data, its runs, its results: what `tether bench` does; a killed one goes on."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tether.errors import TetherError
from tether.jobs import Job, check_jobs, plan, run_jobs
from tether.outside.published import published_figures
from tether.report.suite import build_suite_report
from tether.serialization import read_json, write_json
from tether.suites.results import suite_results

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tether.suites.suite import Stage, Suite

__all__ = [
    "check_finished",
    "check_stages",
    "prepare_suite",
    "run_suite",
    "suite_jobs",
    "write_results",
]


def suite_jobs(suite: Suite) -> list[Job]:
    """The runs of a suite.

    Parameters
    ----------
    suite : Suite
        From `load_suite`.

    Returns
    -------
    list of Job
        Task by task.
    """
    return [job for task in suite.tasks for job in plan(task.config, task.out, task=task.name)]


def prepare_suite(
    suite: Suite, report: Callable[[Stage, str], None] = lambda _stage, _state: None
) -> None:
    """Make the data that are not there yet, each with the command that a user would give.

    Parameters
    ----------
    suite : Suite
        From `load_suite`.
    report : callable
        Called with each stage before it runs, and its state: done or running.

    Raises
    ------
    TetherError
        As of `check_stages`; when a command fails, which has said why.
    """
    check_stages(suite)
    for stage in suite.stages:
        report(stage, "done" if stage.is_done else "running")
        if stage.is_done:
            continue
        stage.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(_beside(stage), {"command": stage.template})
        # A process of its own: what a stage holds in memory is gone before the runs start.
        command = [sys.executable, "-m", "tether.cli", *stage.arguments]
        if subprocess.run(command, check=False).returncode:  # noqa: S603  (tether's own verbs)
            raise TetherError(
                f"stage `{shlex.join(['tether', *stage.arguments])}` failed",
                expected=f"{stage.out}",
                fix="see the error above; the same command continues",
            )


def check_stages(suite: Suite) -> None:
    """Refuse data that another command made than the one that the suite has now.

    What a user put there by hand is taken as it is: no command is recorded beside it.

    Parameters
    ----------
    suite : Suite
        From `load_suite`.

    Raises
    ------
    TetherError
        With both commands.
    """
    for stage in suite.stages:
        if not stage.is_done or not _beside(stage).exists():
            continue
        made_by = read_json(_beside(stage))["command"]
        if made_by != stage.template:
            raise TetherError(
                f"{stage.out} was made by `tether {made_by}`",
                expected=f"`tether {stage.template}`, as the suite says now",
                fix="delete it with what was made from it, choose another --out, "
                "or write the stage as it was",
            )


def _beside(stage: Stage) -> Path:
    """Where the command of a stage is kept: a copy of the data takes it along, or leaves it."""
    return stage.out.with_name(stage.out.name + ".stage.json")


def run_suite(
    suite: Suite,
    *,
    workers: int | None = None,
    report: Callable[[Job, int, str], None] = lambda _job, _steps, _state: None,
) -> None:
    """Run what is not yet complete, one process a core.

    Parameters
    ----------
    suite : Suite
        Whose data are there, see `prepare_suite`.
    workers : int, optional
        Runs at a time; default one a core.
    report : callable
        As of `run_jobs`.

    Raises
    ------
    TetherError
        For bad input, before anything runs; a run that fails later stops the others.
    """
    for task in suite.tasks:
        jobs = plan(task.config, task.out)
        check_jobs(jobs, structures=not all(job.is_complete for job in jobs))
    run_jobs(suite_jobs(suite), report, workers=workers)


def check_finished(suite: Suite) -> None:
    """Refuse a folder whose finished runs are not those that the suite asks for.

    Parameters
    ----------
    suite : Suite
        All of it, not the part that is to run. Tasks whose data are not there are left out.

    Raises
    ------
    TetherError
        For a run with other settings, or of other data.
    """
    for task in suite.tasks:
        finished = [job for job in plan(task.config, task.out) if job.is_complete]
        if task.has_data:
            check_jobs(finished, structures=False)


def write_results(suite: Suite) -> dict[str, Any]:
    """Write ``results.json`` from what is finished, and ``results.html`` from it.

    Parameters
    ----------
    suite : Suite
        From `load_suite`.

    Returns
    -------
    dict
        The content of ``results.json``.

    Raises
    ------
    TetherError
        As of `check_finished`.
    """
    check_finished(suite)
    results = suite_results(suite)
    if suite.published:
        figures = published_figures(suite=suite.published)
        results["published_rows"] = [vars(figure) for figure in figures]
    write_json(suite.out / "results.json", results)
    build_suite_report(suite.out)
    return results

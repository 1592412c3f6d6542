"""`compare`: recipes × seeds → run folders, one table, one report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tether.atomic import write_text
from tether.jobs import check_jobs, plan, run_jobs
from tether.report.build import build_report
from tether.serialization import write_json
from tether.summary import summarise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tether.config import Config
    from tether.jobs import Job

__all__ = ["compare", "summarise_comparison", "write_config"]


def compare(
    config: Config,
    *,
    out: Path,
    report: Callable[[Job, int, str], None] = lambda _job, _steps, _state: None,
) -> dict[str, Any]:
    """Run what is not yet complete, one process a core; then summarise and write the report.

    Parameters
    ----------
    config : Config
        What to compare.
    out : Path
        Folder of the comparison; a killed comparison continues in it.
    report : callable
        Called with a job, its property steps so far and its state: waiting, running, done.

    Returns
    -------
    dict
        The content of ``summary.json``.

    Raises
    ------
    TetherError
        For bad input, before anything is written; a run that fails later stops the comparison.
    """
    jobs = plan(config, out)
    check_jobs(jobs, structures=not all(job.is_complete for job in jobs))
    write_config(config, out)
    run_jobs(jobs, report, workers=config.workers)
    return summarise_comparison(config, out)


def write_config(config: Config, out: Path) -> None:
    """Say what is compared, in the folder of the comparison.

    Parameters
    ----------
    config : Config
        Written to ``config.yaml``, defaults included.
    out : Path
        The folder; made if it is not there.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "config.yaml", config.to_yaml())


def summarise_comparison(config: Config, out: Path) -> dict[str, Any]:
    """Write ``summary.json`` and ``report.html`` from the runs that are complete.

    Parameters
    ----------
    config : Config
        What is compared.
    out : Path
        Folder of the comparison.

    Returns
    -------
    dict
        The content of ``summary.json``.
    """
    summary = summarise(out, config=config)
    write_json(out / "summary.json", summary)
    build_report(out)
    return summary

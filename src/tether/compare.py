"""`compare`: recipes × seeds → run folders, one table, one report."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tether.adapt import adapt, check_run
from tether.atomic import atomic_path
from tether.errors import TetherError
from tether.report.build import build_report
from tether.run import Run
from tether.serialization import write_json
from tether.summary import summarise
from tether.training.log import read_log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from tether.config import Config
    from tether.recipe import Recipe
    from tether.training.settings import TrainingSettings

__all__ = ["Job", "check_comparison", "compare", "plan", "start_order"]

#: Seconds between looks at the runs' logs.
POLL = 1.0
#: Steps on the property that a step of distillation costs: one of its own, and the teacher's
#: forward pass.
DISTILLATION_COST = 1.4


@dataclass(frozen=True)
class Job:
    """One run of a comparison.

    Attributes
    ----------
    recipe : Recipe
        What is done.
    seed : int
        With which seed.
    settings : TrainingSettings
        Length and optimiser, after the budget was applied.
    out : Path
        Its folder.
    """

    recipe: Recipe
    seed: int
    settings: TrainingSettings
    out: Path


def plan(config: Config, out: Path) -> list[Job]:
    """The runs of a comparison, seed by seed so that every recipe has a first result early.

    Parameters
    ----------
    config : Config
        What to compare.
    out : Path
        Folder of the comparison.

    Returns
    -------
    list of Job
        Recipes in the order of the config.
    """
    settings = config.settings()
    return [
        Job(
            recipe,
            seed,
            replace(settings, property_steps=_property_steps(config, recipe)),
            out / "runs" / f"{recipe.name}-s{seed}",
        )
        for seed in config.seeds
        for recipe in config.points()
    ]


def _property_steps(config: Config, recipe: Recipe) -> int:
    """Matched steps, or as many as the cost of `property_steps` plain property steps pays for."""
    steps = config.settings().property_steps
    return steps if config.budget == "steps" else max(1, round(steps / _step_cost(config, recipe)))


def _step_cost(config: Config, recipe: Recipe) -> float:
    """Cost of a property step and of what goes with it, in plain property steps."""
    settings = config.settings()
    derivative = config.forcefield_cost * settings.forcefield_batch_size / settings.batch_size
    per_step = 0.0
    if recipe.forcefield:
        per_step += derivative
    if recipe.balance == "sampled":
        per_step *= (1.0 - recipe.property_probability) / recipe.property_probability
    if recipe.denoising:
        per_step += derivative  # forces or noise: the same derivatives of the same features
    if recipe.distillation:
        per_step += DISTILLATION_COST
    return 1.0 + per_step


def start_order(config: Config, jobs: Sequence[Job]) -> list[Job]:
    """Runs in the order in which they start: seed by seed, the dearest steps first.

    Left to the end, the longest run would keep one core busy while the others are idle.

    Parameters
    ----------
    config : Config
        What is compared.
    jobs : sequence of Job
        Of `plan`.

    Returns
    -------
    list of Job
        The same; equal ones in the order of the config.
    """
    costs = {recipe.name: _step_cost(config, recipe) for recipe in config.points()}
    return sorted(jobs, key=lambda job: (config.seeds.index(job.seed), -costs[job.recipe.name]))


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
    if not all(Run(job.out).is_complete for job in jobs):
        check_comparison(config, out)
    else:
        _check_jobs(config, jobs)
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "config.yaml") as temporary:
        temporary.write_text(config.to_yaml())
    _run_all(jobs, config, report)
    summary = summarise(out, config=config)
    write_json(out / "summary.json", summary)
    build_report(out)
    return summary


def check_comparison(config: Config, out: Path) -> None:
    """Refuse what `compare` would refuse, without running or writing.

    Parameters
    ----------
    config : Config
        What to compare.
    out : Path
        Folder of the comparison.

    Raises
    ------
    TetherError
        For bad input, or a run folder that holds another run.
    """
    jobs = plan(config, out)
    _check_jobs(config, jobs)
    # Structures are the same for all; a force-field task reads the most, so it is tried.
    hardest = max(jobs, key=lambda job: job.recipe.forcefield)
    _check(config, hardest, structures=True)


def _check_jobs(config: Config, jobs: list[Job]) -> None:
    for job in jobs:
        _check(config, job, structures=False)


def _check(config: Config, job: Job, *, structures: bool) -> None:
    check_run(
        config.inputs(),
        job.recipe,
        job.settings,
        out=job.out,
        seed=job.seed,
        backbone=config.backbone_choice(),
        head=config.head_choice(),
        structures=structures,
    )


def _run_all(jobs: list[Job], config: Config, report: Callable[[Job, int, str], None]) -> None:
    waiting = [job for job in jobs if not Run(job.out).is_complete]
    for job in jobs:
        report(job, job.settings.property_steps if job not in waiting else 0, "waiting")
    if not waiting:
        return
    n_workers = min(config.workers or os.cpu_count() or 1, len(waiting))
    # A number that the user set is a promise to other processes: two that both take all cores
    # spend their time waiting for each other.
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // n_workers))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_workers, mp_context=context) as pool:
        queue = start_order(config, waiting)
        futures: dict[Future[None], Job] = {}
        try:
            while queue or futures:
                # One job a worker: a pool calls a job that waits in its own queue running.
                while queue and len(futures) < n_workers:
                    job = queue.pop(0)
                    futures[pool.submit(_run_one, config, job, threads)] = job
                for future in [f for f in futures if f.done()]:
                    job = futures.pop(future)
                    future.result()
                    report(job, job.settings.property_steps, "done")
                for job in futures.values():
                    report(job, _steps_so_far(job), "running")
                time.sleep(POLL)
        except BaseException:
            # Do not wait for runs that are still going: they resume from their checkpoints.
            for process in list(pool._processes.values()):  # noqa: SLF001
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_one(config: Config, job: Job, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    run = adapt(
        config.inputs(),
        job.recipe,
        job.settings,
        out=job.out,
        seed=job.seed,
        backbone=config.backbone_choice(),
        head=config.head_choice(),
        watch_collapse=config.watch_collapse,
    )
    if not run.is_complete:
        raise TetherError(
            f"run {job.out} ended without metrics", expected="a complete run", fix="run it again"
        )
    single = config.single(job.recipe.name, job.seed)
    with atomic_path(run.config) as temporary:
        temporary.write_text(single.to_yaml())


def _steps_so_far(job: Job) -> int:
    events = read_log(Run(job.out).log)
    return int(events[-1]["property_steps"]) if events else 0

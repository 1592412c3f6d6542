"""`Job`: one run of a comparison. Which there are, and how they run: one process a core."""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tether.adapt import adapt, check_run
from tether.errors import OccupiedError
from tether.outside.fit import check_fingerprint, fit_fingerprint
from tether.run import Run
from tether.training.log import read_log
from tether.workers import end_with_parent, unheard_interrupts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from multiprocessing.queues import Queue
    from pathlib import Path

    from tether.config import Config
    from tether.recipe import Recipe
    from tether.training.settings import TrainingSettings

__all__ = ["Job", "check_jobs", "plan", "run_jobs", "start_order"]

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
    config : Config
        Of this run alone: one recipe, its backbone, one seed. That of the comparison for an
        outside model.
    method : str
        Name of its row: of the recipe, or of a model that has none.
    recipe : Recipe or None
        What is done; None for an outside model.
    seed, nth_seed : int
        With which seed; its place among those of the comparison.
    settings : TrainingSettings
        Length and optimiser, after the budget was applied.
    out : Path
        Its folder.
    label : str
        What tells it from the others on a screen.
    """

    config: Config
    method: str
    recipe: Recipe | None
    seed: int
    nth_seed: int
    settings: TrainingSettings
    out: Path
    label: str

    @property
    def is_complete(self) -> bool:
        """Whether its folder holds a finished run."""
        return Run(self.out).is_complete

    @property
    def steps_so_far(self) -> int:
        """Property steps in its log."""
        events = read_log(Run(self.out).log)
        return int(events[-1]["property_steps"]) if events else 0


def plan(config: Config, out: Path, *, task: str = "") -> list[Job]:
    """The runs of a comparison, seed by seed so that every recipe has a first result early.

    Parameters
    ----------
    config : Config
        What to compare.
    out : Path
        Folder of the comparison.
    task : str
        Its name among several comparisons, for the labels.

    Returns
    -------
    list of Job
        Recipes in the order of the config.
    """
    settings = config.settings()
    jobs = []
    for nth_seed, seed in enumerate(config.seeds):
        methods = [(recipe.name, recipe) for recipe in config.points()]
        for method, recipe in [*methods, *((name, None) for name in config.outside)]:
            folder = f"{method}-s{seed}"
            jobs.append(
                Job(
                    config if recipe is None else config.single(method, seed),
                    method,
                    recipe,
                    seed,
                    nth_seed,
                    replace(settings, property_steps=_property_steps(config, recipe)),
                    out / "runs" / folder,
                    f"{task}/{folder}" if task else folder,
                )
            )
    return jobs


def _property_steps(config: Config, recipe: Recipe | None) -> int:
    """Matched steps, or as many as the cost of `property_steps` plain property steps pays for."""
    if recipe is None:
        return 1  # a fit is one piece of work
    steps = config.settings().property_steps
    return steps if config.budget == "steps" else max(1, round(steps / _step_cost(config, recipe)))


def _step_cost(config: Config, recipe: Recipe | None) -> float:
    """Cost of a property step and of what goes with it, in plain property steps."""
    if recipe is None:
        return 0.0  # minutes, whatever the number of steps
    settings = config.settings()
    derivative = config.forcefield_cost * settings.forcefield_batch_size / settings.batch_size
    per_step = 0.0
    if recipe.forcefield:
        per_step += derivative
    if recipe.balance == "sampled":
        per_step *= (1.0 - recipe.property_probability) / recipe.property_probability
    if recipe.movement == "lp-ft":
        per_step *= 1.0 - recipe.unfreeze_by  # not computed while the backbone is frozen
    if recipe.denoising:
        per_step += derivative  # forces or noise: the same derivatives of the same features
    if recipe.distillation:
        per_step += DISTILLATION_COST
    return 1.0 + per_step


def start_order(jobs: Sequence[Job]) -> list[Job]:
    """Runs in the order in which they start: seed by seed, task by task, the dearest steps first.

    Left to the end, the longest run would keep one core busy while the others are idle.

    Parameters
    ----------
    jobs : sequence of Job
        Of `plan`, for one comparison after the other.

    Returns
    -------
    list of Job
        The same; equal ones in the order of the config.
    """
    folders = list(dict.fromkeys(job.out.parent for job in jobs))

    def place(job: Job) -> tuple[int, int, float]:
        cost = _step_cost(job.config, job.recipe)
        return job.nth_seed, folders.index(job.out.parent), -cost

    return sorted(jobs, key=place)


def check_jobs(jobs: Sequence[Job], *, structures: bool = True) -> None:
    """Refuse what would be refused when they run, without running or writing.

    Parameters
    ----------
    jobs : sequence of Job
        Of one comparison.
    structures : bool
        Whether to read structures, too.

    Raises
    ------
    TetherError
        For bad input, or a run folder that holds another run.
    """
    for job in jobs:
        _check(job, structures=False)
    if structures:
        # Structures are the same for all; a force-field task reads the most, so it is tried.
        hardest = max(jobs, key=lambda job: bool(job.recipe and job.recipe.forcefield))
        _check(hardest, structures=True)


def _check(job: Job, *, structures: bool) -> None:
    if job.recipe is None:
        check_fingerprint(job.config.inputs(), out=job.out, seed=job.seed, structures=structures)
        return
    check_run(
        job.config.inputs(),
        job.recipe,
        job.settings,
        out=job.out,
        seed=job.seed,
        backbone=job.config.backbone_choice(),
        head=job.config.head_choice(),
        structures=structures,
    )


def run_jobs(
    jobs: Sequence[Job],
    report: Callable[[Job, int, str], None] = lambda _job, _steps, _state: None,
    *,
    workers: int | None = None,
) -> None:
    """Run what is not yet complete, one process a core.

    Parameters
    ----------
    jobs : sequence of Job
        Of one or more comparisons.
    report : callable
        Called with a job, its property steps so far and its state: waiting, running, done.
    workers : int, optional
        Runs at a time; default one a core, or one a CUDA device where they use those.

    Raises
    ------
    TetherError
        From a run that fails; the others stop, and resume when this is called again. A run that
        another process holds stops nothing: it is raised at the end, if it is not finished by then.
    """
    waiting = [job for job in jobs if not job.is_complete]
    for job in jobs:
        report(job, job.settings.property_steps if job not in waiting else 0, "waiting")
    if not waiting:
        return
    devices = _cuda_devices(waiting)
    n_workers = min(workers or len(devices) or os.cpu_count() or 1, len(waiting))
    # A number that the user set is a promise to other processes: two that both take all cores
    # spend their time waiting for each other.
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // n_workers))
    context = multiprocessing.get_context("spawn")
    places = context.Queue()
    for place in range(n_workers):
        places.put(devices[place % len(devices)] if devices else None)
    with ProcessPoolExecutor(
        n_workers, mp_context=context, initializer=_start_worker, initargs=(places,)
    ) as pool:
        queue = start_order(waiting)
        futures: dict[Future[None], Job] = {}
        occupied: dict[Path, OccupiedError] = {}
        try:
            while queue or futures:
                # One job a worker: a pool calls a job that waits in its own queue running.
                while queue and len(futures) < n_workers:
                    job = queue.pop(0)
                    with unheard_interrupts():
                        futures[pool.submit(_run_one, job, threads)] = job
                occupied |= _take_finished(futures, report)
                for job in futures.values():
                    report(job, job.steps_so_far, "running")
                time.sleep(POLL)
        except BaseException:
            # Do not wait for runs that are still going: they resume from their checkpoints.
            for process in list(pool._processes.values()):  # noqa: SLF001
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    unfinished = [error for folder, error in occupied.items() if not Run(folder).is_complete]
    if unfinished:
        raise unfinished[0]


def _take_finished(
    futures: dict[Future[None], Job], report: Callable[[Job, int, str], None]
) -> dict[Path, OccupiedError]:
    """Take out what has ended; folders that another process is at."""
    occupied = {}
    for future in [f for f in futures if f.done()]:
        job = futures.pop(future)
        try:
            future.result()
        except OccupiedError as error:
            occupied[job.out] = error
        else:
            report(job, job.settings.property_steps, "done")
    return occupied


def _cuda_devices(jobs: Sequence[Job]) -> list[str]:
    """Devices that the jobs are to be spread over, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if all(job.settings.device != "auto" for job in jobs) or not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(k) for k in range(torch.cuda.device_count())]


def _start_worker(places: Queue[str | None]) -> None:
    end_with_parent()
    device = places.get()
    if device is not None:
        # Before torch looks for devices: each worker then has one, and calls it the first.
        os.environ["CUDA_VISIBLE_DEVICES"] = device


def _run_one(job: Job, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    config = job.config
    if job.recipe is None:
        fit_fingerprint(config.inputs(), out=job.out, seed=job.seed)
        return
    adapt(
        config.inputs(),
        job.recipe,
        job.settings,
        out=job.out,
        seed=job.seed,
        backbone=config.backbone_choice(),
        head=config.head_choice(),
        watch_collapse=config.watch_collapse,
    )

"""Where chunks are labelled by Ray: the cores of this machine, or of a whole cluster."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from tether.errors import TetherError
from tether.labels.pool import ONE_THREAD, environment, n_cores
from tether.labels.worker import ChunkResult, ChunkTask, run_task, start_worker
from tether.packages import require

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

__all__ = ["LOCAL", "RayWorkers", "ray_workers"]

#: The address that stands for a Ray of our own on this machine.
LOCAL = "local"
#: Bytes of a local Ray's store of objects; a chunk and its labels are some 100 kB.
_OBJECT_STORE = 256 * 2**20
#: Without the second, `ray.init` waits for ever where workers die before it is done.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
    **ONE_THREAD,
}


class RayWorkers:
    """Ray's worker processes, wherever it starts them; each chunk is a task on one core.

    Parameters
    ----------
    n : int or None
        Chunks out at a time; None: two for each core that the cluster has at the moment.
    backbone : bytes, str or None
        See `start_worker`.
    """

    def __init__(self, n: int | None, backbone: bytes | str | None) -> None:
        import ray
        from ray import exceptions

        # Ray does not retry by itself: it would repeat a chunk that kills its worker as a whole.
        self._run: Any = ray.remote(_run).options(num_cpus=1, max_retries=0)
        self._resources: Any = ray.cluster_resources
        self._n = n
        self._backbone = ray.put(backbone)
        self.deaths: tuple[type[Exception], ...] = (
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.OutOfMemoryError,
            exceptions.ObjectLostError,  # a result, on a node that died before it was fetched
        )

    @property
    def capacity(self) -> int:
        """Chunks that may be out at a time; follows the nodes that come and go."""
        return self._n or max(1, 2 * int(self._resources().get("CPU", 0)))

    def submit(self, task: ChunkTask) -> Future[ChunkResult]:
        """Queue the chunk; see `Workers`."""
        future: Future[ChunkResult] = self._run.remote(task, self._backbone).future()
        return future


# Ray chooses the process of a task, so each sees to its own start.
_started = lru_cache(maxsize=1)(start_worker)


def _run(task: ChunkTask, backbone: bytes | str | None) -> ChunkResult:
    _started(backbone)
    return run_task(task)


@contextmanager
def ray_workers(
    address: str, *, n: int | None, backbone: bytes | str | None
) -> Iterator[RayWorkers]:
    """Workers of a Ray cluster; a Ray that was started here ends with the block.

    Parameters
    ----------
    address : str
        "local": a Ray on this machine, for this call; "auto": the one that runs here or that
        ``RAY_ADDRESS`` names; else the address of a cluster. Each of its nodes needs this
        package. Where the program is connected already, that connection is used.
    n : int or None
        Chunks at a time, for "local" also the processes; default: as many as there are cores.
    backbone : bytes, str or None
        See `start_worker`.

    Yields
    ------
    RayWorkers
        Connected.

    Raises
    ------
    TetherError
        When Ray is not installed, does not start, or does not answer.
    """
    require("ray", "labelling by Ray", extra="ray")
    import ray

    if ray.is_initialized():
        yield RayWorkers(n, backbone)
        return
    local = address == LOCAL
    with environment(_ENVIRONMENT if local else {}):
        _connect(address, n_cpus=(n or n_cores()) if local else None)
        try:
            yield RayWorkers(n, backbone)
        finally:
            ray.shutdown()


def _connect(address: str, *, n_cpus: int | None) -> None:
    import ray

    own: dict[str, Any] = {}
    if n_cpus is not None:
        own = {
            "num_cpus": n_cpus,
            "num_gpus": 0,
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE,
            "_node_ip_address": "127.0.0.1",  # nobody else is to reach it
        }
    logging.getLogger("ray").setLevel(logging.ERROR)  # what it says before it reads its options
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            **own,
        )
    except Exception as error:  # Ray raises bare ones, too
        reason = (str(error).splitlines() or [""])[0]
        raise TetherError(
            f"no Ray at {address!r}: {reason}",
            expected=f"{LOCAL}, auto, or the address of a cluster that runs",
            fix="start one with `ray start --head`, or set --ray local",
        ) from error

"""Units labelled by Ray actors, on this machine or on a cluster that shares its disk.

Only numbers of units travel: actors read images and write outputs themselves. A death is told by
Ray and handled by `Pool`, which begins its unit again; so nothing here is restarted by Ray.
"""

import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ....errors import ConfigError, MissingDependencyError
from ..plan import Plan
from .pool import (
    Death,
    Message,
    Pool,
    Watcher,
    Worker,
    environment,
    message_of,
    outcomes,
    worker_environment,
)
from .unit import Task, UnitLabeller, UnitOutcome

_OBJECT_STORE_BYTES = 100 << 20
"""Of a local cluster: outcomes are all that goes through it."""

_ANSWER_S = 10.0
_ANY = {"RAY_USAGE_STATS_ENABLED": "0"}
_HERE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Whatever its name says, on Linux too it makes a local cluster listen on 127.0.0.1 alone."""


def label_in_ray(
    plan: Plan,
    tasks: Sequence[Task],
    num_workers: int | None,
    watcher: Watcher,
    *,
    address: str | None = None,
) -> Iterator[UnitOutcome]:
    """Outcomes of units, as they are done; see `label_in_processes`.

    Args:
        num_workers: actors; None: as many as the cluster has cores, or GPUs for a model that
            computes on one.
        address: of a running cluster, `auto` or HOST:PORT; None: one is started here, for this
            job alone, and listens on the loopback address.

    Raises:
        MissingDependencyError: Ray is not installed; ConfigError: no cluster at the address.
    """
    with _connected(address, num_workers) as ray:
        resource = "GPU" if plan.model.on_gpu else "CPU"
        there = int(ray.cluster_resources().get(resource, 0))
        if there < 1:
            raise ConfigError(f"the Ray cluster has no {resource}: add a node that has one")
        count = min(there if num_workers is None else num_workers, there, len(tasks))
        pool = _RayPool(ray, plan, count, watcher)
        yield from outcomes(pool, tasks)


class _Labeller:
    """What runs in an actor."""

    def open(self, plan: Plan) -> Exception | None:
        """Before any unit; what is wrong is told, not raised, because Ray would wrap it."""
        try:
            self._labeller = UnitLabeller(plan)
        except Exception as error:
            return message_of(error)
        return None

    def label(self, task: Task) -> Message:
        """See `UnitLabeller.label`."""
        try:
            return self._labeller.label(task)
        except Exception as error:
            return message_of(error)


@dataclass
class _Actor(Worker):
    handle: Any = field(kw_only=True)
    answer: Any = field(kw_only=True)
    """What is awaited of it: at first that it is open, then a unit."""
    is_open: bool = False


class _RayPool(Pool[_Actor]):
    def __init__(self, ray: Any, plan: Plan, num_workers: int, watcher: Watcher) -> None:
        super().__init__(plan, num_workers, watcher)
        self._ray = ray
        variables = {"env_vars": worker_environment(plan.settings)}
        self._class = ray.remote(_Labeller).options(
            num_cpus=1,
            num_gpus=int(plan.model.on_gpu),
            max_restarts=0,
            scheduling_strategy="SPREAD",
            runtime_env=variables,
        )

    def start(self) -> _Actor:
        """See `Pool.start`; Ray begins it as soon as a node has room, which may be never."""
        handle = self._class.remote()
        return _Actor(handle=handle, answer=handle.open.remote(self.plan))

    def can_begin(self, worker: _Actor) -> bool:
        """See `Pool.can_begin`."""
        return worker.is_open and worker.attempt is None

    def send(self, worker: _Actor, task: Task) -> None:
        """See `Pool.send`."""
        worker.answer = worker.handle.label.remote(task)

    def hear(self, seconds: float) -> Iterator[tuple[_Actor, Message | Death]]:
        """See `Pool.hear`."""
        awaited = {worker.answer: worker for worker in self.workers if not self.can_begin(worker)}
        ready, _ = self._ray.wait(list(awaited), timeout=seconds)
        for answer in ready:
            worker = awaited[answer]
            try:
                message = self._ray.get(answer)
            except self._ray.exceptions.RayTaskError as error:  # our code tells its own errors
                message = message_of(error)
            except self._ray.exceptions.RayError as error:
                yield worker, Death(str(error).splitlines()[0])
                continue
            if worker.attempt is None:
                worker.is_open = message is None
            if message is not None:
                yield worker, message

    def kill(self, workers: Sequence[_Actor]) -> None:
        """See `Pool.kill`."""
        for worker in workers:
            self._ray.kill(worker.handle)


@contextmanager
def _connected(address: str | None, num_workers: int | None) -> Iterator[Any]:
    """Ray, connected to a cluster; one that was started here ends here."""
    variables = _ANY if address else _ANY | _HERE
    with environment(variables), _own_signals():
        try:
            import ray
        except ImportError as error:
            raise MissingDependencyError(
                "Ray is not installed: pip install 'wsss[ray]', or use `engine` local"
            ) from error
        options: dict[str, Any] = {"address": address or "local"}
        if address is None:
            options |= {
                "num_cpus": num_workers,
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
            }
        try:
            _require_listener(address)
            ray.init(log_to_driver=False, logging_level="error", **options)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"no Ray cluster at '{address}' ({str(error).splitlines()[0]}): start one by "
                "`ray start --head`, or leave `ray_address` out"
            ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_listener(address: str | None) -> None:
    """Ray itself would try for minutes to reach a machine that does not answer."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host, int(port)), _ANSWER_S).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it is imported; it stays ours."""
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)

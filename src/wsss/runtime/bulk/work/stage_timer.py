"""Where the time of a unit goes, over several threads, and how long nothing was computed."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

STAGES = ("read", "network", "encode", "write", "commit")
"""Those that are work; another one is waiting."""


class StageTimer:
    """Adds up stages; its gate lets only so many threads compute at once."""

    def __init__(self, in_network: int) -> None:
        """
        Args:
            in_network: threads that the gate lets in.
        """
        self._gate = threading.Semaphore(in_network)
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._started = self._quiet_since = time.perf_counter()
        self._inside = 0
        self._idle = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Work that counts as `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            with self._lock:
                self._seconds[name] += seconds

    @contextmanager
    def network(self) -> Iterator[None]:
        """Waits for the gate (stage `wait`), then counts as `network`."""
        with self.stage("wait"):
            self._gate.acquire()
        try:
            with self._lock:
                if self._inside == 0:
                    self._idle += time.perf_counter() - self._quiet_since
                self._inside += 1
            with self.stage("network"):
                yield
        finally:
            with self._lock:
                self._inside -= 1
                self._quiet_since = time.perf_counter()
            self._gate.release()

    def seconds(self) -> dict[str, float]:
        """Of each stage, summed over threads; `all` since the beginning; `idle` of the network."""
        now = time.perf_counter()
        with self._lock:
            idle = self._idle + (now - self._quiet_since if self._inside == 0 else 0)
            return {**self._seconds, "all": now - self._started, "idle": idle}

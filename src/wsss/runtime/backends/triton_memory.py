"""System shared memory between this process and a Triton server on the same host.

One region serves one request at a time: inputs in front, outputs behind. A region whose request
ended in doubt (deadline, broken connection) may still be written to by the server. It is given up
rather than used again, and the server is told to forget it only when it must have finished.
"""

import contextlib
import os
import secrets
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from .contract import Array, one_line
from .triton.faults import SETTLED, FaultKind
from .triton.messages import Transport
from .triton.retry import GaveUp, Retrier, RetryPolicy

FOLDER = "/dev/shm"
PREFIX = "wsss_client_"
"""Of the names of our files there; the id of the process and a random part follow."""
_ALIGN = 64
_STEP = 1 << 20
"""Regions are multiples of this many bytes, so that images of like size share one."""
_GRACE_S = 120.0
"""Seconds after which a server has finished with a request that it was not heard of again."""
_GOODBYE_S = 2.0
"""Seconds for the server to forget a region."""
_IN_USE = frozenset({FaultKind.IN_USE})
_PATIENT = Retrier(RetryPolicy(retries=20, total_s=_GOODBYE_S, first_s=0.01, longest_s=0.2))


class NoMemoryError(Exception):
    """Shared memory cannot be had; bytes have to be sent."""


@dataclass(eq=False)
class Region:
    """A block of shared memory.

    Attributes:
        is_registered: whether the server was told; it forgets when it restarts.
    """

    name: str
    num_bytes: int
    block: SharedMemory
    is_registered: bool = False
    retired_at: float = 0.0

    def write(self, offset: int, array: Array) -> None:
        """Copy an array, which must be contiguous, into the block.

        Raises:
            NoMemoryError: the block was removed.
        """
        flat = self._view(offset, "uint8", (array.nbytes,))
        flat[:] = array.reshape(-1).view(np.uint8)

    def read(self, offset: int, dtype: str, shape: tuple[int, ...]) -> Array:
        """A copy of what the server wrote.

        Raises:
            NoMemoryError: the block was removed.
        """
        return self._view(offset, dtype, shape).copy()

    def _view(self, offset: int, dtype: str, shape: tuple[int, ...]) -> Array:
        try:
            if (buffer := self.block.buf) is not None:
                return np.ndarray(shape, dtype, buffer=buffer, offset=offset)
        except ValueError:  # released since the line before
            pass
        raise NoMemoryError("closed")


def aligned(num_bytes: int) -> int:
    """The next offset at which a tensor may begin."""
    return -(-num_bytes // _ALIGN) * _ALIGN


def is_possible() -> bool:
    """Whether this system has shared memory under names that a server can open."""
    return sys.platform == "linux" and os.path.isdir(FOLDER)


@dataclass
class _Held:
    """What must not outlive the process; apart from the pool, so that its end can be noticed."""

    transport: Transport
    lock: threading.Lock = field(default_factory=threading.Lock)
    regions: set[Region] = field(default_factory=set)
    """Blocks that exist."""
    free: list[Region] = field(default_factory=list)
    """Of these the ones that no request uses."""
    retired: list[Region] = field(default_factory=list)
    """Of which only the server's side is left."""

    def destroy(self, region: Region) -> None:
        """Remove a block, once: the second time its file number would be another file's."""
        with self.lock:
            if region not in self.regions:
                return
            self.regions.remove(region)
        _destroy(region)


class RegionPool:
    """The regions of one graph; safe to use from several threads.

    Everything is undone by `close`, when the pool is dropped, or when the interpreter ends. If the
    process is killed, Python's resource tracker removes the files.
    """

    def __init__(self, transport: Transport, clock: Callable[[], float] = time.monotonic) -> None:
        self._transport = transport
        self._clock = clock
        self._held = _Held(transport)
        self._lock = self._held.lock
        self._end = weakref.finalize(self, _release, self._held)

    def take(self, num_bytes: int) -> Region:
        """A region of at least this size for one request.

        Raises:
            NoMemoryError: there is no room for it.
        """
        with self._lock:
            fitting = [region for region in self._held.free if region.num_bytes >= num_bytes]
            if fitting:
                region = min(fitting, key=lambda found: found.num_bytes)
                self._held.free.remove(region)
                return region
            smaller = self._held.free.pop() if self._held.free else None
        if smaller is not None:  # in its stead, or there would be more regions than requests
            self._remove(smaller)
        self._forget_retired()
        region = _new_region(num_bytes)
        with self._lock:
            if self._end.alive:
                self._held.regions.add(region)
                return region
        _destroy(region)
        raise NoMemoryError("closed")

    def register(self, region: Region, deadline_s: float) -> None:
        """Tell the server of a region.

        Raises:
            Fault: no connection, or it refuses.
        """
        self._transport.register(region.name, f"/{region.name}", region.num_bytes, deadline_s)
        region.is_registered = True

    def give_back(self, region: Region) -> None:
        """The request is done: the region serves another one."""
        with self._lock:
            if self._end.alive:
                self._held.free.append(region)
                return
        self._remove(region)

    def retire(self, region: Region) -> None:
        """The request ended in doubt: nobody else gets the region."""
        if region.is_registered:
            region.retired_at = self._clock()
            with self._lock:
                self._held.retired.append(region)
        self._held.destroy(region)

    def close(self) -> None:
        """Unregister and remove all regions; requests under way then fail.

        The server keeps its side of the regions of these until their requests end; over gRPC, which
        says nothing more after its end, until the server itself ends.
        """
        self._end()

    def _remove(self, region: Region) -> None:
        _unregister(self._transport, region)
        self._held.destroy(region)

    def _forget_retired(self) -> None:
        with self._lock:
            limit = self._clock() - _GRACE_S
            old = [region for region in self._held.retired if region.retired_at < limit]
            self._held.retired = [r for r in self._held.retired if r not in old]
        for region in old:
            _unregister(self._transport, region)


def _new_region(num_bytes: int) -> Region:
    size = -(-max(num_bytes, 1) // _STEP) * _STEP
    name = f"{PREFIX}{os.getpid()}_{secrets.token_hex(6)}"
    try:
        block = SharedMemory(name, create=True, size=size)
    except OSError as error:
        raise NoMemoryError(f"{FOLDER}: {error.strerror or one_line(error)}") from error
    region = Region(name, size, block)
    try:
        # Where the file system is full the first write would kill the process (SIGBUS).
        with open(os.path.join(FOLDER, name), "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        _destroy(region)
        raise NoMemoryError(f"{FOLDER} has no room for {size} bytes ({error.strerror})") from error
    return region


def _release(held: _Held) -> None:
    with held.lock:
        regions, known = list(held.regions), [*held.free, *held.retired]
        held.free.clear()
        held.retired.clear()
    for region in known:  # not those in use, which the server would not forget
        if not _unregister(held.transport, region):
            break  # a server that hangs would hold up the end once for each region
    for region in regions:
        held.destroy(region)


def _unregister(transport: Transport, region: Region) -> bool:
    """Whether the server can be spoken to, as far as this call shows."""
    if region.is_registered:
        region.is_registered = False
        try:
            # The server has answered a request a moment before it lets go of its memory.
            _PATIENT.call(lambda: transport.unregister(region.name, _GOODBYE_S), _IN_USE)
        except GaveUp as outcome:
            # A server that was restarted has forgotten it, and says so.
            return outcome.fault.kind in SETTLED
        except (RuntimeError, ValueError):  # of gRPC after its own end
            return False
    return True


def _destroy(region: Region) -> None:
    with contextlib.suppress(FileNotFoundError):
        region.block.unlink()
    # Another thread is just copying: the memory goes with the last view of it.
    with contextlib.suppress(BufferError):
        region.block.close()

"""Trying again, ever more slowly and not for ever."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ....errors import ConfigError
from .faults import Fault, FaultKind

T = TypeVar("T")
RETRIED = frozenset({FaultKind.AWAY, FaultKind.LOST, FaultKind.BUSY})
"""Faults that time can heal; a request that is wrong stays so."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a request is tried.

    Raises:
        ConfigError: a negative number.
    """

    retries: int = 5
    """Tries after the first one."""
    total_s: float = 60.0
    """Seconds from the first failure to the last try."""
    first_s: float = 0.1
    """The first pause; each further one is twice as long."""
    longest_s: float = 2.0
    """No pause is longer."""

    def __post_init__(self) -> None:
        for name in ("retries", "total_s", "first_s", "longest_s"):
            if not getattr(self, name) >= 0:  # NaN is refused, too
                raise ConfigError(f"`{name}` is {getattr(self, name)}, must be 0 or more")

    def pause(self, retry: int, share: float) -> float:
        """Seconds before a retry.

        Args:
            retry: 0 for the first one.
            share: random number in [0, 1): half of a pause is left to chance, so that clients
                which failed together do not come back together.
        """
        # 2.0 ** 1024 would be too large for a float.
        whole = min(self.longest_s, self.first_s * 2.0 ** min(retry, 60))
        return whole * (0.5 + 0.5 * share)


class GaveUp(Exception):
    """The last fault of a request that was tried as often as allowed."""

    def __init__(self, fault: Fault, tries: int, seconds: float) -> None:
        super().__init__(fault.text)
        self.fault, self.tries, self.seconds = fault, tries, seconds


class Stopped(Exception):
    """Somebody closed the graph during a pause."""


@dataclass
class Retrier:
    """Applies a policy; the clock, the waiting and chance can be replaced."""

    policy: RetryPolicy
    stop: threading.Event = field(default_factory=threading.Event)
    """Ends every pause and all further tries."""
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[float], bool] | None = None
    """Waits seconds and says whether to stop; None: `stop.wait`."""
    chance: Callable[[], float] = random.random

    def call(self, attempt: Callable[[], T], retried: frozenset[FaultKind] = RETRIED) -> T:
        """What an attempt returns, tried again after the faults in `retried`.

        Raises:
            GaveUp: a fault that is not retried, or once too often or too late.
            Stopped: see `stop`.
        """
        first_failure: float | None = None
        tries = 0
        while True:
            if self.stop.is_set():
                raise Stopped
            try:
                return attempt()
            except Fault as fault:
                now = self.clock()
                first_failure = now if first_failure is None else first_failure
                spent = now - first_failure
                tries += 1
                pause = self.policy.pause(tries - 1, self.chance())
                is_over = tries > self.policy.retries or spent + pause > self.policy.total_s
                if fault.kind not in retried or is_over:
                    raise GaveUp(fault, tries, spent) from fault
            if (self.wait or self.stop.wait)(pause):
                raise Stopped

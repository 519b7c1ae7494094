"""Requests pass it until it is closed, and whoever closes it can wait for those under way."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..contract import closed


class Gate:
    """Safe to use from several threads.

    Attributes:
        is_closed: set as soon as somebody closes it; ends the pauses between tries.
    """

    def __init__(self) -> None:
        self.is_closed = threading.Event()
        self._changed = threading.Condition()
        self._num_inside = 0

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Around one request.

        Raises:
            RuntimeError: it is closed, or was closed before the request failed.
        """
        with self._changed:
            if self.is_closed.is_set():
                raise closed()
            self._num_inside += 1
        try:
            yield
        except Exception as error:
            # A client that is cut off, or memory that is gone, says anything.
            if self.is_closed.is_set():
                raise closed() from error
            raise
        finally:
            with self._changed:
                self._num_inside -= 1
                self._changed.notify_all()

    def close(self, seconds: float) -> bool:
        """Let nobody in, and wait for those inside; whether all of them have left in time."""
        with self._changed:
            self.is_closed.set()
            return self._changed.wait_for(lambda: self._num_inside == 0, seconds)

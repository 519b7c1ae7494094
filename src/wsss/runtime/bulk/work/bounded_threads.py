"""Work on many items in a few threads, with a bounded number of items under way."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

GOODBYE_S = 10.0
"""Seconds that work under way gets to finish when the rest is given up."""


def in_threads(
    items: Iterable[Item],
    work: Callable[[Item], Result],
    num_threads: int,
    on_stop: Callable[[], object] = lambda: None,
) -> Iterator[tuple[Item, Result]]:
    """Items with their results, as they are done.

    Items are taken only when a thread is about to be free, so that memory stays bounded. When the
    work on one fails, or the caller stops (an exception of its own, Ctrl-C), no further item is
    begun; those under way are finished, for at most `GOODBYE_S`.

    Args:
        num_threads: >= 1.
        on_stop: called once where the rest is given up, before the wait for those under way: it
            ends what they would only wait for.

    Raises:
        BaseException: the first that `work` raised, after all results that came before it.
    """
    todo: SimpleQueue[Item | None] = SimpleQueue()
    done: SimpleQueue[tuple[Item, Result] | BaseException] = SimpleQueue()

    def loop() -> None:
        while (item := todo.get()) is not None:
            try:
                done.put((item, work(item)))
            except BaseException as error:
                done.put(error)

    # Daemons: one that hangs in a request must not hold up the end of the program.
    threads = [threading.Thread(target=loop, daemon=True) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    waiting = iter(items)
    num_open = 0
    try:
        is_more = True
        while is_more or num_open:
            # One more than there are threads: it is ready when one gets free.
            while is_more and num_open <= num_threads:
                item = next(waiting, None)
                is_more = item is not None
                if item is not None:
                    todo.put(item)
                    num_open += 1
            if num_open:
                outcome = done.get()
                num_open -= 1
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
    except BaseException:
        _empty(todo)
        on_stop()
        raise
    finally:
        for _ in threads:
            todo.put(None)
        end = time.monotonic() + GOODBYE_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))


def _empty(queue: SimpleQueue[Item | None]) -> None:
    while True:
        try:
            queue.get_nowait()
        except Empty:
            return

"""Work in threads: bounded, complete, and stopped without leaving anything half done."""

import threading
import time

import pytest

from wsss.runtime.backends.triton.faults import Fault, FaultKind, Retrier, RetryPolicy, Stopped
from wsss.runtime.bulk.work import bounded_threads
from wsss.runtime.bulk.work.bounded_threads import in_threads


@pytest.mark.parametrize("num_threads", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_every_item_once(num_threads: int, count: int) -> None:
    found = dict(in_threads(range(1, count + 1), lambda item: item * item, num_threads))
    assert found == {item: item * item for item in range(1, count + 1)}


def test_number_under_way_and_taken_is_bounded() -> None:
    lock = threading.Lock()
    running = greatest = taken = finished = 0
    ahead: list[int] = []

    def items():
        nonlocal taken
        for item in range(1, 41):
            taken += 1
            ahead.append(taken - finished)
            yield item

    def work(item: int) -> int:
        nonlocal running, greatest
        with lock:
            running += 1
            greatest = max(greatest, running)
        time.sleep(0.001)
        with lock:
            running -= 1
        return item

    for _ in in_threads(items(), work, 3):
        finished += 1
    assert greatest <= 3
    assert max(ahead) <= 3 + 2


def test_an_error_lets_others_finish_and_begins_nothing() -> None:
    begun: list[int] = []
    finished: list[int] = []
    is_broken = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 2:
            is_broken.set()
            raise ValueError("item 2")
        is_broken.wait(10)
        time.sleep(0.05)
        finished.append(item)
        return item

    with pytest.raises(ValueError, match="item 2"):
        list(in_threads(range(1, 100), work, 3))
    assert sorted(begun) == sorted([*finished, 2])
    assert len(begun) <= 3 + 2


def test_interrupted_by_its_caller() -> None:
    finished: list[int] = []

    def work(item: int) -> int:
        time.sleep(0.01)
        finished.append(item)
        return item

    def read() -> None:
        for number, _ in enumerate(in_threads(range(1, 1000), work, 4)):
            if number == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read()
    count = len(finished)
    assert count <= 6 + 5
    time.sleep(0.05)
    assert len(finished) == count


def test_a_thread_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_threads, "GOODBYE_S", 0.05)
    release = threading.Event()

    def work(item: int) -> int:
        if item == 1:
            release.wait(60)
            return item
        raise ValueError("the other one")

    with pytest.raises(ValueError, match="the other one"):
        list(in_threads([1, 2], work, 2))
    assert not release.is_set()
    release.set()


def test_what_waits_is_ended_when_its_caller_stops() -> None:
    """As requests that are tried again: here with pauses that nothing but the stop can end."""
    retrier = Retrier(RetryPolicy(retries=10, total_s=1e9, first_s=1e6, longest_s=1e6))
    num_failed = threading.Semaphore(0)
    ended: list[type[BaseException]] = []

    def attempt() -> int:
        num_failed.release()
        raise Fault(FaultKind.AWAY, "nobody there")

    def work(item: int) -> int:
        if item == 1:
            assert num_failed.acquire(timeout=60) and num_failed.acquire(timeout=60)
            return item
        try:
            return retrier.call(attempt)
        except Stopped as error:
            ended.append(type(error))
            raise

    def read() -> None:
        for _ in in_threads(range(1, 100), work, 3, on_stop=retrier.stop.set):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read()
    assert len(ended) >= 2


def test_the_end_of_all_work_stops_nothing() -> None:
    stops: list[bool] = []
    assert len(list(in_threads(range(1, 9), abs, 3, on_stop=lambda: stops.append(True)))) == 8
    assert stops == []

"""Stages that write one file for each training image."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ....runtime.io.image_io import read_image
from ...data.image_set import Sample
from ...engine import distributed
from ...engine.run import Run

Result = TypeVar("Result")


def make_image_files(
    run: Run,
    name: str,
    folder: Path,
    suffix: str,
    make: Callable[[Sample, NDArray[np.uint8], Path], None],
) -> None:
    """`make_files` from the image alone: (H, W, 3) uint8 RGB is what `make` gets."""
    make_files(run, name, folder, suffix, lambda sample: read_image(sample.image_path), make)


def make_files(
    run: Run,
    name: str,
    folder: Path,
    suffix: str,
    load: Callable[[Sample], Result],
    make: Callable[[Sample, Result, Path], None],
) -> None:
    """Write `folder / NAME.suffix` of each training image once: finished ones are kept.

    Processes share the rest.

    Args:
        name: what the progress is called.
        suffix: with its dot.
        load: reads what the sample needs; runs ahead in a thread.
        make: computes the result and writes it atomically.
    """

    def target(sample: Sample) -> Path:
        return folder / f"{sample.name}{suffix}"

    samples = run.train_set.samples
    todo = [sample for sample in samples if not target(sample).is_file()]
    distributed.barrier()  # all processes must share out the same list
    share = distributed.own_share(todo)
    done = len(samples) - len(todo)
    with run.progress.task(name, len(share) + done, done=done) as task:
        for sample, loaded in _ahead(share, load):
            path = target(sample)
            path.parent.mkdir(parents=True, exist_ok=True)
            make(sample, loaded, path)
            task.advance()
    distributed.barrier()


def _ahead(
    samples: Sequence[Sample], load: Callable[[Sample], Result]
) -> Iterator[tuple[Sample, Result]]:
    pending: list[tuple[Sample, Future[Result]]] = []
    with ThreadPoolExecutor(1) as pool:
        for sample in samples:
            pending.append((sample, pool.submit(load, sample)))
            if len(pending) > 3:
                first, future = pending.pop(0)
                yield first, future.result()
        for first, future in pending:
            yield first, future.result()

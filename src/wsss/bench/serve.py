"""A load client: label maps from a running Triton server, against onnxruntime in this process."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import WsssError
from ..runtime.backends.contract import Array
from ..runtime.backends.registry import open_graph
from ..runtime.backends.triton.backend import TritonGraph
from ..runtime.backends.triton.options import TritonOptions, parse_url
from ..runtime.bundle.graph_files import open_served
from ..runtime.bundle.inputs import label_inputs
from ..runtime.bundle.open import Bundle, check_again
from ..runtime.io.progress import SILENT, Progress

IN_PROCESS = "in process"
LEAST_EQUAL = 0.999
"""Share of pixels: batches add in another order than single images."""
_STATISTICS_SECONDS = 5.0
"""A server counts a request a moment after it has answered it."""


@dataclass(frozen=True)
class ServeRow:
    """One client and one concurrency.

    Attributes:
        client: in process, http or grpc.
        concurrency: requests under way at once, of one image each.
        times_in_process: images a second over those in this process with `threads` of
            `bench_serve`; a server has as many only where it was started so.
        p50_ms, p95_ms, p99_ms: of a request, from sending to the whole answer.
        executions: runs of the graph on the server, of an ensemble its first step; None in process.
        mean_batch: images in each of these.
        labels_equal: share of pixels labelled as in process.
    """

    model: str
    client: str
    concurrency: int
    size: tuple[int, int]
    requests: int
    images_per_second: float
    times_in_process: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    executions: int | None
    mean_batch: float | None
    labels_equal: float


Ask = Callable[[dict[str, Array]], NDArray[np.uint8]]


def bench_serve(
    bundle: Bundle,
    graph: str,
    servers: Sequence[TritonOptions],
    images: Sequence[NDArray[np.uint8]],
    *,
    concurrencies: Sequence[int],
    requests: int,
    threads: int,
    progress: Progress = SILENT,
) -> list[ServeRow]:
    """Ask for the label map of every image, again and again, at each concurrency.

    Args:
        graph: label or segmenter, which runs in this process; servers may have it as an ensemble.
        servers: ways to reach a server that serves this bundle.
        images: (H, W, 3) uint8 of one size, or the server could join none of them.
        requests: of each row.
        threads: of onnxruntime in this process.

    Raises:
        WsssError: a server labels otherwise; ServerError, ConfigError, ArtifactError: see
        `open_served`.
    """
    takes_classes = graph == "label"
    feeds = [
        label_inputs(
            image[None], [None], len(bundle.classes), bundle.layout, takes_classes=takes_classes
        )
        for image in images
    ]
    path = check_again(bundle, bundle.graph_path(graph).name)
    rows = []
    with progress.task("serve", 1 + len(servers) * len(concurrencies)) as task:
        with closing(
            open_graph(path, backend="onnxruntime", device="cpu", threads=threads)
        ) as local:

            def ask_here(inputs: dict[str, Array]) -> NDArray[np.uint8]:
                return _label(local.run(inputs, ["label"])["label"])

            expected = [ask_here(inputs) for inputs in feeds]
            base = _load(ask_here, feeds, expected, 1, requests)
        size = (images[0].shape[0], images[0].shape[1])
        rows.append(_row(graph, IN_PROCESS, 1, size, base, base, None))
        task.advance()
        for options in servers:
            with closing(open_served(bundle, graph, options)) as served:
                for concurrency in concurrencies:

                    def ask_there(inputs: dict[str, Array]) -> NDArray[np.uint8]:
                        return _label(served.run(inputs, ["label"])["label"])

                    started = served.statistics()
                    _load(ask_there, feeds, expected, concurrency, concurrency)  # warm-up
                    before = _settled(served, started, concurrency)
                    load = _load(ask_there, feeds, expected, concurrency, requests)
                    after = _settled(served, before, requests)
                    ran = (after[0] - before[0], after[1] - before[1])
                    client = parse_url(options.url).protocol
                    name = options.model or graph
                    rows.append(_row(name, client, concurrency, size, load, base, ran))
                    task.advance()
    return rows


def _label(batch: Array) -> NDArray[np.uint8]:
    return np.asarray(batch[0], np.uint8)


@dataclass(frozen=True)
class _Load:
    """Seconds of each request, of all together, and the share of equal pixels."""

    latencies: list[float]
    seconds: float
    equal: float


def _load(
    ask: Ask,
    feeds: Sequence[dict[str, Array]],
    expected: Sequence[NDArray[np.uint8]],
    concurrency: int,
    requests: int,
) -> _Load:
    def one(number: int) -> tuple[float, float]:
        place = number % len(feeds)
        started = time.perf_counter()
        label = ask(feeds[place])
        seconds = time.perf_counter() - started
        return seconds, float((label == expected[place]).mean())

    started = time.perf_counter()
    if concurrency == 1:
        answers = [one(number) for number in range(requests)]
    else:
        with ThreadPoolExecutor(concurrency) as pool:
            answers = list(pool.map(one, range(requests)))
    seconds = time.perf_counter() - started
    equal = min(share for _, share in answers)
    if equal < LEAST_EQUAL:
        raise WsssError(
            f"a label from the server agrees with onnxruntime here in {equal:.4%} of its pixels, "
            f"expected at least {LEAST_EQUAL:.1%}: no speed of wrong labels"
        )
    return _Load([latency for latency, _ in answers], seconds, equal)


def _settled(served: TritonGraph, before: tuple[int, int], requests: int) -> tuple[int, int]:
    """The server's statistics, once it has counted these requests since `before`.

    Triton answers a request before it counts it.
    """
    end = time.monotonic() + _STATISTICS_SECONDS
    while True:
        now = served.statistics()
        if now[0] - before[0] >= requests or time.monotonic() > end:
            return now
        time.sleep(0.05)


def _row(
    model: str,
    client: str,
    concurrency: int,
    size: tuple[int, int],
    load: _Load,
    base: _Load,
    counted: tuple[int, int] | None,
) -> ServeRow:
    requests = len(load.latencies)
    p50, p95, p99 = (1000 * value for value in np.percentile(load.latencies, (50, 95, 99)))
    speed = requests / load.seconds
    return ServeRow(
        model,
        client,
        concurrency,
        size,
        requests,
        speed,
        speed / (len(base.latencies) / base.seconds),
        float(p50),
        float(p95),
        float(p99),
        counted[1] if counted else None,
        counted[0] / counted[1] if counted and counted[1] else None,
        load.equal,
    )

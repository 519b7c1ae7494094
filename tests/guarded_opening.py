"""Files of strangers opened in processes of their own, with a limit of time and of memory.

What a file does to its process (a crash, a hang, a Python error that is no refusal) is an outcome
like another, and the next file gets a fresh process where that is needed.
"""

import multiprocessing
import resource
import signal
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal, NamedTuple

SLOW_S = 10.0
MORE_MEMORY = 2 << 30
"""Bytes of address space that a file may take, beside what the program has before."""
_START_S = 300.0

Kind = Literal["bundle", "checkpoint", "weights"]
CONTEXT = multiprocessing.get_context("spawn")


class Outcome(NamedTuple):
    """What became of a file.

    Attributes:
        what: opened, refused (by a WsssError of one line), traceback, crash or hang.
        told: the message, the traceback, or how the process ended.
        grown: bytes by which the largest memory of the process grew.
    """

    what: Literal["opened", "refused", "traceback", "crash", "hang"]
    told: str = ""
    grown: int = 0


def outcomes(
    files: Iterable[tuple[Kind, Path]], num_processes: int = 1, slow_s: float = SLOW_S
) -> Iterator[tuple[Path, Outcome]]:
    """Open files; in any order if there are several processes."""
    waiting = iter(files)
    processes = [_Process(slow_s) for _ in range(num_processes)]
    try:
        while True:
            for process in processes:
                if process.path is None and (file := next(waiting, None)) is not None:
                    process.give(*file)
            busy = {process.pipe: process for process in processes if process.path is not None}
            if not busy:
                return
            for pipe in wait(list(busy), slow_s) or list(busy):
                process = busy[pipe]  # type: ignore[index]
                assert process.path is not None
                path = process.path
                yield path, process.take()
    finally:
        for process in processes:
            process.end()


class _Process:
    def __init__(self, slow_s: float) -> None:
        self._slow_s = slow_s
        self.path: Path | None = None
        self._start()

    def _start(self) -> None:
        self.pipe, there = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_open_all, args=(there,), daemon=True)
        self._process.start()
        there.close()
        self._is_ready = False

    def give(self, kind: Kind, path: Path) -> None:
        if not self._is_ready:  # the time that the imports take is not the file's
            assert self.pipe.poll(_START_S), "a process for files did not start"
            assert self.pipe.recv() is None
            self._is_ready = True
        self.path = path
        self.pipe.send((kind, path))

    def take(self) -> Outcome:
        """Waits for the outcome of what was given, for as long as it may take."""
        self.path = None
        try:
            if self.pipe.poll(self._slow_s):
                outcome: Outcome = self.pipe.recv()
                return outcome
            outcome = Outcome("hang", f"more than {self._slow_s} s")
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            ended = signal.Signals(-code).name if code < 0 else f"exit {code}"
            outcome = Outcome("crash", ended)
        self.end()
        self._start()
        return outcome

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _open_all(pipe: Connection) -> None:
    import onnx.checker  # noqa: F401
    import onnxruntime  # noqa: F401

    from wsss.training.methods import METHODS, open_method

    for name in METHODS:  # whose networks can then be opened
        open_method(name)

    # A crash is told by its signal; a core file would be as large as the memory.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MORE_MEMORY,) * 2)
    pipe.send(None)
    with suppress(EOFError):
        while True:
            pipe.send(_attempt(*pipe.recv()))


def _attempt(kind: Kind, path: Path) -> Outcome:
    from wsss.errors import WsssError

    before = _peak()
    try:
        _open(kind, path)
        outcome = Outcome("opened")
    except WsssError as error:
        text = str(error)
        is_line = len(text.splitlines()) == 1 and text.isprintable() and len(text) < 2000
        outcome = Outcome("refused" if is_line else "traceback", text)
    except BaseException:
        outcome = Outcome("traceback", traceback.format_exc())
    return outcome._replace(grown=_peak() - before)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _open(kind: Kind, path: Path) -> None:
    """As training, labelling and serving do."""
    import torch

    from wsss.runtime.backends.onnxruntime_backend import open_onnx
    from wsss.runtime.bundle.open import check_again, open_bundle
    from wsss.training.backbones.foreign_weights import load_backbone_weights
    from wsss.training.engine.networks import Network, open_network

    if kind == "checkpoint":
        open_network(Network, path, torch.device("cpu"))
    elif kind == "weights":
        from wsss.training.backbones.build import build_backbone

        load_backbone_weights(build_backbone("small"), path)
    else:
        bundle = open_bundle(path)
        for entry in bundle.graphs.values():
            graph = open_onnx(check_again(bundle, entry.file), threads=1)
            try:
                _run(graph)
            finally:
                graph.close()


_SIZE = 4
"""Of each axis that only the run tells; `pairs` and the like have theirs."""
_MOST_ELEMENTS = 1 << 20


def _run(graph: "OpenGraph") -> None:  # type: ignore[name-defined]  # noqa: F821
    """One small image through a graph."""
    import numpy as np

    inputs = {}
    for spec in graph.describe().inputs:
        shape = tuple(_SIZE if isinstance(size, str) else size for size in spec.shape)
        if np.prod([float(size) for size in shape]) > _MOST_ELEMENTS:
            return
        if not spec.is_optional:
            inputs[spec.name] = np.ones(shape, spec.dtype)
    graph.run(inputs)

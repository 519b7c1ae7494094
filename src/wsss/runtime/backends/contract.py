"""What every backend offers: open a graph, describe it, run it, close it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, ShapeError, one_line

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """An input or an output of a graph.

    Attributes:
        dtype: numpy's name: uint8, float32, int64.
        shape: sizes, and names of those that are known only when the graph runs.
        is_optional: an input with a default inside of the graph.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    is_optional: bool = False


@dataclass(frozen=True)
class GraphDescription:
    """An opened graph.

    Attributes:
        backend: what computes: onnxruntime, tensorrt, or the backend of a server.
        device: cpu or cuda: what was obtained, not what was asked for.
    """

    backend: str
    device: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class OpenGraph(Protocol):
    """A graph that is ready to run."""

    def describe(self) -> GraphDescription:
        """Inputs, outputs and where it runs."""

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Compute outputs, all of them by default.

        Raises:
            ShapeError, DataError: see `check_inputs`; or the graph fails on these inputs, for
                instance because memory runs out.
            RuntimeError: it was closed.
        """

    def close(self) -> None:
        """Give memory back; the graph cannot run afterwards."""


class OpenFile(Protocol):
    """The function of a backend that opens a file; `registry.BACKENDS` names it."""

    def __call__(
        self, path: Path, *, device: str, threads: int | None, allow_host_code: bool
    ) -> OpenGraph:
        """Open a file; see `registry.open_graph`.

        Args:
            device: auto, or one of the devices in the backend's row.
            threads, allow_host_code: ignored by a backend that has no use for them.
        """


def check_inputs(
    description: GraphDescription, inputs: Mapping[str, Array], outputs: Sequence[str] | None
) -> None:
    """Refuse what a graph cannot take, before a backend fails in words of its own.

    Raises:
        DataError: an input is missing, unknown or of another type; an output is unknown.
        ShapeError: another number of axes, another size of a fixed axis, an empty axis, or two
            sizes for one name.
    """
    expected = {spec.name: spec for spec in description.inputs}
    for name in inputs:
        if name not in expected:
            raise DataError(f"unknown input `{name}`: the graph takes {', '.join(expected)}")
    sizes: dict[str, int] = {}
    for name, spec in expected.items():
        if name in inputs:
            _check_input(spec, inputs[name], sizes)
        elif not spec.is_optional:
            raise DataError(f"input `{name}` is missing: expected {spec.dtype} {_text(spec)}")
    known = [spec.name for spec in description.outputs]
    for name in outputs or ():
        if name not in known:
            raise DataError(f"unknown output `{name}`: the graph gives {', '.join(known)}")


def axis_sizes(tensor: str, axes: Iterable[int | str | None]) -> tuple[int | str, ...]:
    """A shape in which every axis has a size or a name; one without either gets its own."""
    return tuple(
        axis if axis is not None and axis != "" else f"{tensor}_{place}"
        for place, axis in enumerate(axes)
    )


def run_failure(place: str, error: BaseException) -> DataError:
    """The error of a graph that stops in the middle.

    Args:
        place: what stopped, as far as the backend knows.
        error: what the library of the backend says.
    """
    text = one_line(error)
    is_memory = "alloc" in text or "memory" in text
    remedy = "take smaller images or batches" if is_memory else "check the sizes of the inputs"
    return DataError(f"{place} failed: {text}; {remedy}")


def closed() -> RuntimeError:
    """The error of a graph that runs after it was closed: a mistake of the program around it."""
    return RuntimeError("this graph was closed: open it again to run it")


def _check_input(spec: TensorSpec, array: Array, sizes: dict[str, int]) -> None:
    if array.dtype != np.dtype(spec.dtype):
        raise DataError(f"input `{spec.name}` is {array.dtype}, expected {spec.dtype}")
    fits = len(array.shape) == len(spec.shape) and all(
        found > 0 and found == (sizes.setdefault(size, found) if isinstance(size, str) else size)
        for found, size in zip(array.shape, spec.shape, strict=True)
    )
    if not fits:
        named = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ShapeError(
            f"input `{spec.name}` is {array.shape}, expected {_text(spec)}"
            + (f" with {named}" if named else "")
        )


def _text(spec: TensorSpec) -> str:
    return f"({', '.join(map(str, spec.shape))})"

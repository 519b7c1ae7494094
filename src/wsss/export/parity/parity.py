"""Every graph against torch, before a bundle counts as written, and the place where they part.

Errors of `cam` count in units of the image's strongest activation: a class without any evidence
is divided by a tiny maximum, which magnifies rounding alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError
from ...runtime.backends.registry import open_graph
from ...training.demo.scenes import draw_scene
from ..graphs.graph_context import GraphSettings
from ..precision import LEAST_AGREEMENT
from ..source import ExportSource
from .agreement import Photo
from .first_difference import first_difference
from .reference import Arrays, ParityCase, feeds, reference_outputs

SIZES = ((1, (97, 129)), (2, (113, 74)), (1, (160, 203)), (3, (64, 81)))
"""Batch and (height, width) of the drawn cases: even, odd, upright, narrow."""
TOLERANCE = 1e-4
"""Largest error of a float32 output."""
_CELLS = 30.0
"""How far a displacement may reach, in the cells it is counted in."""


@dataclass(frozen=True)
class GraphParity:
    """How far a graph is from torch over all cases.

    Attributes:
        max_error: by output.
        labels_equal: share of pixels, or None where the graph gives no labels.
        change_error: of an image's share of cells that the walk changed; None as before. It is
            made of labels, too, so that a tie moves it by a whole cell.
    """

    max_error: dict[str, float]
    labels_equal: float | None
    change_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self)


def drawn_cases(num_classes: int, seed: int = 0) -> list[ParityCase]:
    """Scenes of several sizes and batches; classes named in some, left to the classifier in
    others, and one image without any."""
    generator = np.random.default_rng(seed)
    cases = []
    for number, (batch, size) in enumerate(SIZES):
        images = np.stack([draw_scene(generator, size, index % 6).image for index in range(batch)])
        classes = [tuple(_some_classes(generator, num_classes)) for _ in range(batch)]
        if batch > 2:
            classes[-1] = ()
        cases.append(ParityCase(images, None if number == 0 else tuple(classes)))
    return cases


def _some_classes(generator: np.random.Generator, num_classes: int) -> list[int]:
    count = int(generator.integers(1, min(3, num_classes) + 1))
    return sorted(int(index) for index in generator.choice(num_classes, count, replace=False))


def photo_cases(photos: Sequence[Photo]) -> list[ParityCase]:
    """Two photographs at full size: one with its classes, one left to the classifier."""
    cases = []
    for number, photo in enumerate(photos[:2]):
        classes = (photo.classes,) if number == 0 and photo.classes is not None else None
        cases.append(ParityCase(photo.image[None], classes))
    return cases


def check_parity(
    source: ExportSource,
    folder: Path,
    cases: Sequence[ParityCase],
    *,
    tolerance: float = TOLERANCE,
) -> dict[str, GraphParity]:
    """Run every float32 graph of a folder in onnxruntime and compare it with torch.

    Raises:
        ArtifactError: beyond the tolerance; names the node at which graph and torch part.
    """
    references = [reference_outputs(source, case) for case in cases]
    found = {}
    for name in source.graphs:
        path = folder / f"{name}.onnx"
        measured = list(_measure(source, path, name, cases, references))
        for case, reference, parity in zip(cases, references, measured, strict=True):
            _require_close(source, path, case, reference, parity, tolerance)
        found[name] = _worst(measured)
    return found


def _measure(
    source: ExportSource,
    path: Path,
    name: str,
    cases: Sequence[ParityCase],
    references: Sequence[Mapping[str, Arrays]],
) -> Iterator[GraphParity]:
    with closing(open_graph(path, backend="onnxruntime", device="cpu")) as graph:
        for case, reference in zip(cases, references, strict=True):
            outputs = graph.run(feeds(source, case, name, reference))
            yield compare(outputs, reference[name])


def compare(outputs: Mapping[str, NDArray[Any]], reference: Arrays) -> GraphParity:
    """Largest errors of float outputs and of `change`, and the share of equal labels."""
    errors, equal, change_error = {}, None, None
    for name, values in outputs.items():
        expected = reference[name]
        if values.shape != expected.shape:
            errors[name] = float("inf")
        elif name == "label":
            equal = float((values == expected).mean())
        elif name == "change":
            change_error = float(np.abs(values - expected).max())
        else:
            errors[name] = _error(name, values, expected, reference)
    return GraphParity(errors, equal, change_error)


def _error(name: str, values: NDArray[Any], expected: NDArray[Any], reference: Arrays) -> float:
    difference = np.abs(values.astype(np.float64) - expected)
    if name == "cam":
        peaks = reference["peaks"].astype(np.float64)
        strongest = peaks.max(axis=1, keepdims=True)
        difference = difference * (peaks / np.maximum(strongest, 1e-5))[:, :, None, None]
    return float(difference.max(initial=0)) if np.isfinite(values).all() else float("inf")


def _worst(measured: Sequence[GraphParity]) -> GraphParity:
    names = measured[0].max_error
    errors = {name: max(parity.max_error[name] for parity in measured) for name in names}
    equal = [parity.labels_equal for parity in measured if parity.labels_equal is not None]
    changes = [parity.change_error for parity in measured if parity.change_error is not None]
    return GraphParity(errors, min(equal) if equal else None, max(changes) if changes else None)


def _magnification(name: str, output: str, settings: GraphSettings) -> float:
    """What the exponents of the method make of rounding: beta in affinities, alpha in labels; and
    displacements are many cells long."""
    if output == "displacement":
        return _CELLS
    if output == "affinity":
        return max(1.0, settings.walk.beta)
    if name == "label" and settings.walk.background == "power":
        return max(1.0, settings.walk.alpha)
    return 1.0


def _fault(parity: GraphParity, reference: Arrays, worst: str, tolerance: float) -> str:
    """What is beyond its bound; empty: nothing.

    Args:
        worst: the output that is nearest to its bound, or farthest beyond it.
        tolerance: of that output.
    """
    error, least = parity.max_error[worst], LEAST_AGREEMENT["fp32"]
    if not error <= tolerance:
        return f"`{worst}` is {error:.2g} off, allowed {tolerance:g}"
    if parity.labels_equal is not None and parity.labels_equal < least:
        return f"{parity.labels_equal:.4%} of the labels agree, expected {least:.1%}"
    if parity.change_error is not None:
        height, width = reference["scores"].shape[-2:]
        # One cell at a tie must pass on any grid; half of another one stands for rounding.
        allowed = max(1 - least, 1.5 / (height * width))
        if not parity.change_error <= allowed:
            return f"`change` is {parity.change_error:.2g} off, allowed {allowed:.2g}"
    return ""


def _require_close(
    source: ExportSource,
    path: Path,
    case: ParityCase,
    reference: Mapping[str, Arrays],
    parity: GraphParity,
    tolerance: float,
) -> None:
    """Raises ArtifactError where a case is beyond the tolerance."""
    name = path.stem
    allowed = {
        output: tolerance * _magnification(name, output, source.settings)
        for output in parity.max_error
    }
    worst = max(allowed, key=lambda output: parity.max_error[output] / allowed[output])
    what = _fault(parity, reference[name], worst, allowed[worst])
    if not what:
        return
    height, width = case.images.shape[1:3]
    place = first_difference(
        source, path, case, feeds(source, case, name, reference), allowed[worst]
    )
    raise ArtifactError(
        f"graph '{name}' differs from torch on {len(case.images)} image(s) of {height} x {width}: "
        f"{what}; {place}"
    )

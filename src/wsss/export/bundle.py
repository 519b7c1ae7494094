"""`wsss export`: from a run to a bundle that was measured against torch before it got its name."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from ..errors import ArtifactError, ConfigError
from ..runtime.backends.registry import open_graph
from ..runtime.bundle.graph_tensors import MAX_GRAPH_BYTES
from ..runtime.bundle.inputs import Layout
from ..runtime.bundle.open import (
    MANIFEST,
    SCHEMA,
    Bundle,
    file_entry,
    is_bundle,
    named_files,
    open_bundle,
    seal,
)
from ..runtime.io.files import atomic_write_bytes, make_folder, replace_folder, write_error
from ..runtime.io.palette import voc_palette
from ..runtime.io.progress import SILENT, Progress
from ..training.data.image_set import ImageSet
from ..version import __version__
from .graphs.builder import OPSET
from .graphs.graph_io import AFFINITY_OUTPUTS
from .graphs.models import MODELS
from .graphs.trace import NetworkGraph
from .parity.agreement import (
    Agreement,
    Photo,
    drawn_photos,
    measure_agreement,
    photos_of,
    require_agreement,
)
from .parity.parity import TOLERANCE, GraphParity, check_parity, drawn_cases, photo_cases
from .precision import Precision, to_precision
from .source import ExportSource, open_source

MAX_CALIBRATION = 12
"""Images that set the ranges of int8; labels are compared on the others."""
_LABELLING = frozenset({"label", "segmenter"})
"""Graphs that give labels, by which a precision is judged."""
_PADDING = {
    "corners": "none: sides are resized to k * stride + 1, so that cell i lies on pixel i * stride",
    "reference": "right and below to a multiple of the stride, with the mean colour (affinity)",
}


@dataclass(frozen=True)
class ExportSettings:
    """What `wsss export` was asked for.

    Attributes:
        names: of the graphs; None for all whose networks are trained.
        tolerance: largest error of a float32 graph against torch.
        symmetric: int8 with zero points of 0, as TensorRT demands.
        max_batch, max_side: largest shapes that engines are built for.
        force: write a precision in spite of too many changed labels.
    """

    precision: Precision = "fp32"
    layout: Layout = "nhwc"
    names: tuple[str, ...] | None = None
    tolerance: float = TOLERANCE
    symmetric: bool = False
    max_batch: int = 8
    max_side: int = 1024
    force: bool = False

    @property
    def sizes(self) -> dict[str, tuple[int, int, int]]:
        """Least, usual and greatest size of each named axis of an image."""
        side = self.max_side
        usual = (min(375, side), min(500, side))
        return {
            "batch": (1, 1, self.max_batch),
            "height": (min(64, side), usual[0], side),
            "width": (min(64, side), usual[1], side),
        }


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote and measured; `bundle.json` holds the same figures."""

    bundle: Bundle
    """The bundle; its `folder` is what `open_model` and `label_images` take."""
    parity: dict[str, GraphParity]
    """Difference of each float32 graph from torch."""
    agreement: dict[str, Agreement]
    """For a lower precision: how the labels of each graph differ from those of float32."""

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {
            "bundle": str(self.bundle.folder),
            "digest": self.bundle.digest,
            "precision": self.bundle.precision,
            "graphs": {
                name: (self.bundle.folder / entry.file).stat().st_size
                for name, entry in self.bundle.graphs.items()
            },
            "parity": {name: parity.to_json() for name, parity in self.parity.items()},
            "agreement": {name: each.to_json() for name, each in self.agreement.items()},
        }


def export(
    run: str | Path,
    out: str | Path,
    *,
    precision: Precision = "fp32",
    layout: Layout = "nhwc",
    graphs: Sequence[str] | None = None,
    images: ImageSet | None = None,
    tolerance: float = TOLERANCE,
    symmetric: bool = False,
    max_batch: int = 8,
    max_side: int = 1024,
    force: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> ExportResult:
    """Export a run to a bundle of ONNX graphs that need neither torch nor training code.

    Every float32 graph is compared with torch, and a lower precision with float32. Nothing is
    written if they do not agree.

    Args:
        run: folder of a run that `train` made.
        out: folder of the bundle; it is created.
        precision: precision of the networks: fp32, fp16 or int8; inputs, outputs and the random
            walk do not change.
        layout: axes of an input image: nhwc for (B, H, W, 3), nchw for (B, 3, H, W).
        graphs: names of the graphs to export, such as label or segmenter; default: all whose
            networks are trained.
        images: image set that calibrates int8 and on which lower precisions are measured; required
            for int8. Default: drawn scenes.
        tolerance: largest difference allowed between a float32 graph and torch.
        symmetric: quantise int8 with zero points of 0, as TensorRT requires.
        max_batch: largest batch that TensorRT engines of the bundle take.
        max_side: longest side of an image that they take, in pixels.
        force: write a lower precision even if it changes more labels than allowed.
        overwrite: replace an existing bundle in `out`; anything else there is refused.
        progress: receives the progress; the default shows nothing.

    Returns:
        ExportResult: the bundle, and the differences that were measured.

    Raises:
        ArtifactError: `run` is not a trained run, a graph differs from torch, a precision changes
            too many labels, or `out` is in use.
        ConfigError: the arguments do not fit each other or the run.
        MissingDependencyError: onnxscript or onnxruntime is not installed.
    """
    settings = ExportSettings(
        precision=precision,
        layout=layout,
        names=None if graphs is None else tuple(graphs),
        tolerance=tolerance,
        symmetric=symmetric,
        max_batch=max_batch,
        max_side=max_side,
        force=force,
    )
    return export_run(
        Path(run), Path(out), settings, images=images, overwrite=overwrite, progress=progress
    )


def export_run(
    run_folder: Path,
    out: Path,
    settings: ExportSettings,
    *,
    images: ImageSet | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> ExportResult:
    """Write a bundle, or nothing; see `export`.

    Args:
        images: photographs of the user: they calibrate int8, and lower precisions are measured on
            them; drawn scenes serve otherwise.
        overwrite: replace a bundle at `out`; anything else there is refused.

    Raises:
        ArtifactError: no trained run, a graph that differs from torch, a precision that changes
            too many labels, or `out` is in use; ConfigError, MissingDependencyError.
    """
    _require_free(out, overwrite)
    if settings.precision == "int8" and images is None:
        raise ConfigError("int8 is calibrated on images: give an image set as `images`")
    measured = settings.names is None or not _LABELLING.isdisjoint(settings.names)
    if settings.precision != "fp32" and not (measured or settings.force):
        raise ConfigError(
            f"`precision` {settings.precision} is judged by its labels: add label or segmenter to "
            "`graphs`, or `force` it"
        )
    with progress.task("export", 4) as task:
        source = open_source(run_folder, settings.names, settings.layout, images)
        photos = drawn_photos()
        if images is not None:
            photos = photos_of(images, source.recipe.data.val_split)
            if settings.precision == "int8" and len(photos) < 2:
                raise ConfigError(
                    "int8 needs two images at least, one that sets its ranges and one to compare "
                    "labels on: `images` has one"
                )
        task.advance()
        make_folder(out.parent)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            write_graphs(source, source.networks, work, "fp32")
            cases = drawn_cases(source.settings.num_classes)
            cases += photo_cases(photos if images is not None else [])
            parity = check_parity(source, work, cases, tolerance=settings.tolerance)
            task.advance()
            agreement = {}
            if settings.precision != "fp32":
                agreement = _lower(source, settings, photos, work)
            task.advance()
            manifest = _manifest(source, settings, work, parity, agreement, images)
            atomic_write_bytes(work / MANIFEST, seal(manifest))
            open_bundle(work)  # by the eyes of those who will use it
            replace_folder(work, out)
            task.advance()
        except OSError as error:
            raise write_error(out, error) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return ExportResult(open_bundle(out), parity, agreement)


def _require_free(out: Path, overwrite: bool) -> None:
    """Refuse to write over what is not ours, before any work."""
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"'{out}' is a file: choose a folder for `out`")
    if out.is_dir() and out.samefile("."):
        raise ArtifactError(f"'{out}' is the working directory: choose another `out`")
    if out.is_dir() and any(out.iterdir()):
        if not is_bundle(out):
            raise ArtifactError(f"'{out}' is not empty and no bundle: choose another `out`")
        if not overwrite:
            raise ArtifactError(f"'{out}' is a bundle: choose another `out`, or `overwrite` it")
        foreign = sorted({path.name for path in out.iterdir()} - named_files(out))
        if foreign:
            raise ArtifactError(
                f"'{out}' holds '{foreign[0]}', which is no part of the bundle there: move it "
                "away, or choose another `out`"
            )


def write_graphs(
    source: ExportSource, networks: Mapping[str, NetworkGraph], folder: Path, precision: Precision
) -> None:
    """`NAME.onnx` of every graph of the source, with what a stranger needs to know inside."""
    for name in source.graphs:
        inside = (networks[stage] for stage in source.networks_of[name])
        model = MODELS[source.part_of(name)](*inside, source.settings)
        helper.set_model_props(model, _metadata(source, name, precision))
        if model.ByteSize() > MAX_GRAPH_BYTES:
            raise ArtifactError(
                f"graph '{name}' takes {model.ByteSize()} bytes, a file holds {MAX_GRAPH_BYTES}: "
                "export in fp16, or leave it out of `graphs`"
            )
        atomic_write_bytes(folder / f"{name}.onnx", model.SerializeToString(deterministic=True))


def _metadata(source: ExportSource, name: str, precision: Precision) -> dict[str, str]:
    """Inside of each ONNX file, for those who have lost `bundle.json`."""
    normalisations = {key: n.to_dict() for key, n in source.normalisations().items()}
    content: dict[str, Any] = {
        "graph": name,
        "classes": ["background", *source.predictor.classes],
        "palette": _palette(source),
        "normalisation": {stage: normalisations[stage] for stage in source.networks_of[name]},
        "method": source.recipe.method,
        "precision": precision if source.networks_of[name] else "fp32",
        "version": __version__,
    }
    return {
        f"wsss.{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in content.items()
    }


def _palette(source: ExportSource) -> list[list[int]]:
    return [[int(v) for v in row] for row in voc_palette()[: source.settings.num_classes + 1]]


def _lower(
    source: ExportSource, settings: ExportSettings, photos: list[Photo], folder: Path
) -> dict[str, Agreement]:
    """Replace the float32 graphs of a folder, and measure what that changed."""
    float32 = folder / "float32"
    make_folder(float32)
    for name in source.graphs:
        (folder / f"{name}.onnx").rename(float32 / f"{name}.onnx")
    calibration, measured = [photo.image for photo in photos], photos
    if settings.precision == "int8":
        count = min(MAX_CALIBRATION, len(photos) // 2)
        calibration, measured = calibration[:count], photos[count:]
    networks = {
        stage: to_precision(
            network,
            settings.precision,
            calibration,
            source.settings.align,
            symmetric=settings.symmetric,
        )
        for stage, network in source.networks.items()
    }
    write_graphs(source, networks, folder, settings.precision)
    found = {}
    for name in sorted(_LABELLING):
        if name in source.graphs:
            found[name] = measure_agreement(
                folder / f"{name}.onnx",
                float32 / f"{name}.onnx",
                measured,
                source.settings.num_classes,
                settings.layout,
            )
            if not settings.force:
                require_agreement(name, settings.precision, found[name])
    shutil.rmtree(float32)
    return found


def _manifest(
    source: ExportSource,
    settings: ExportSettings,
    folder: Path,
    parity: Mapping[str, GraphParity],
    agreement: Mapping[str, Agreement],
    images: ImageSet | None,
) -> dict[str, Any]:
    files = {f"{name}.onnx": file_entry(folder / f"{name}.onnx") for name in source.graphs}
    return {
        "schema": SCHEMA,
        "wsss": __version__,
        "method": source.recipe.method,
        "name": source.recipe.name,
        "classes": list(source.predictor.classes),
        "palette": _palette(source),
        "layout": settings.layout,
        "precision": settings.precision,
        "opset": OPSET,
        "align": source.settings.align,
        "padding": _PADDING[source.settings.align],
        "strides": source.strides(),
        "normalisation": {name: n.to_dict() for name, n in source.normalisations().items()},
        "settings": source.bundle_settings(),
        "sizes": {axis: list(values) for axis, values in settings.sizes.items()},
        "graphs": {
            name: _graph_entry(
                folder / f"{name}.onnx", settings.precision if source.networks_of[name] else "fp32"
            )
            for name in source.graphs
        },
        **_method_fields(source),
        "engines": [],
        "files": files,
        "parity": {
            "tolerance": settings.tolerance,
            "images": "drawn scenes" if images is None else f"drawn scenes and {images.root.name}",
            "onnx": onnx.__version__,
            "graphs": {name: each.to_json() for name, each in parity.items()},
            "precision": {name: each.to_json() for name, each in agreement.items()},
        },
    }


def _method_fields(source: ExportSource) -> dict[str, Any]:
    """What a reader needs to know of the method, whether or not all graphs are written."""
    modes: dict[str, Any] = {}
    affinity, instances = None, list[str]()
    if source.settings.walking is not None:
        stage = source.settings.affinity_stage
        walk = {"graph": "label", "settings": "walk"}
        modes |= {"walk": {**walk, "crf": False}, "labels": {**walk, "crf": True}}
        affinity = {"graph": stage, "output": AFFINITY_OUTPUTS[source.settings.affinity_kind]}
        if source.predictor.has_instances:
            instances = ["cam", stage, "refine"]
    modes["segmenter"] = {"graph": "segmenter", "settings": "segmenter", "crf": False}
    return {"modes": modes, "affinity": affinity, "instances": instances}


def _graph_entry(path: Path, precision: Precision) -> dict[str, Any]:
    """Names, types and shapes as the backend reads them from the file."""
    with closing(open_graph(path, backend="onnxruntime", device="cpu")) as graph:
        description = graph.describe()
    return {
        "file": path.name,
        "precision": precision,
        "inputs": [{**asdict(s), "shape": list(s.shape)} for s in description.inputs],
        "outputs": [{**asdict(s), "shape": list(s.shape)} for s in description.outputs],
    }

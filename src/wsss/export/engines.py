"""TensorRT engines of a bundle: built on the machine that runs them, entered into its manifest."""

import json
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ..errors import ConfigError
from ..runtime.bundle.open import MANIFEST, Bundle, file_entry, open_bundle, seal
from ..runtime.io.files import atomic_write_bytes
from ..runtime.io.progress import SILENT, Progress
from .graphs.refinement import CLASSES
from .graphs.subgraph import drop_defaults, keep_outputs
from .tensorrt import (
    EngineInfo,
    EngineSettings,
    ShapeRange,
    Sizes,
    build_engine,
    profile_from_sizes,
    trtexec_command,
)

_SCRIPT = "from wsss.export.engines import write_engine_graph; write_engine_graph({!r}, {!r})"


def add_engines(
    folder: Path,
    settings: EngineSettings,
    names: Sequence[str] | None = None,
    *,
    progress: Progress = SILENT,
) -> list[str]:
    """Build engines for this machine's GPU and enter them into the bundle; returns their files.

    Args:
        names: of the graphs; None for all of the bundle.

    Raises:
        ConfigError: the bundle has no such graph; further as in `build_engine`.
    """
    bundle = open_bundle(folder)
    built: dict[str, EngineInfo] = {}
    with tempfile.TemporaryDirectory() as work:
        for name in _names(bundle, names):
            graph = Path(work, f"{name}.onnx")
            write_engine_graph(bundle.graph_path(name), graph)
            built[name] = build_engine(
                graph,
                folder,
                profile=engine_profile(bundle, graph),
                settings=settings,
                progress=progress,
            )
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    entries = [_entry(name, info, settings) for name, info in built.items()]
    replaced = {entry["file"] for entry in entries}
    kept = [entry for entry in manifest["engines"] if entry["file"] not in replaced]
    manifest["engines"] = kept + entries
    for info in built.values():
        manifest["files"][info.path.name] = file_entry(info.path)
    manifest.pop("digest")
    atomic_write_bytes(folder / MANIFEST, seal(manifest))
    return [info.path.name for info in built.values()]


def _entry(name: str, info: EngineInfo, settings: EngineSettings) -> dict[str, Any]:
    import torch

    major, minor = torch.cuda.get_device_capability()
    return {
        "file": info.path.name,
        "graph": name,
        "tensorrt": info.tensorrt,
        "compute_capability": f"{major}.{minor}",
        "gpu": torch.cuda.get_device_name(),
        "version_compatible": settings.version_compatible,
        "hardware_compatible": settings.hardware_compatible,
    }


def engine_commands(
    folder: Path, settings: EngineSettings, names: Sequence[str] | None = None
) -> list[str]:
    """Shell lines that build the same engines by NVIDIA's trtexec, on a machine that has it."""
    bundle, lines = open_bundle(folder), []
    with tempfile.TemporaryDirectory() as work:
        for name in _names(bundle, names):
            graph = Path(work, f"{name}.tensorrt.onnx")
            has_changed = write_engine_graph(bundle.graph_path(name), graph)
            profile = engine_profile(bundle, graph)
            plan = folder / f"{name}.plan"
            command = trtexec_command(graph, plan, profile, settings)
            shown = graph.name if has_changed else str(bundle.graph_path(name))
            command = [part.replace(str(graph), shown) for part in command]
            line = shlex.join(command)
            if has_changed:
                script = _SCRIPT.format(str(bundle.graph_path(name)), shown)
                line = f"{shlex.join(['python', '-c', script])} && {line}"
            lines.append(line)
    return lines


def write_engine_graph(source: str | Path, target: str | Path) -> bool:
    """Write a graph as TensorRT takes it, and tell whether that changed it.

    Defaults of inputs go (`drop_defaults`). And as sizes that depend on values are trouble within
    loops, all classes walk instead of those in the batch; the others have scores of 0, so the
    result is the same.
    """
    model = onnx.load(source)
    drop_defaults(model)
    inputs = {value.name: value for value in model.graph.input}
    takes_classes = "present" in inputs
    if takes_classes:
        count = inputs["present"].type.tensor_type.shape.dim[1].dim_value
        everything = numpy_helper.from_array(np.arange(count), CLASSES)
        keep_outputs(model, [output.name for output in model.graph.output], [everything])
    onnx.save(model, target)
    return takes_classes


def engine_profile(bundle: Bundle, graph: Path) -> dict[str, ShapeRange]:
    """Shapes of every input for the range of image sizes that the bundle states."""
    sizes, axes = bundle.sizes, dict[str, Sizes]()
    axes["present_batch"] = sizes["batch"]
    for axis in ("height", "width"):
        axes[f"cam_{axis}"] = _cells(sizes[axis], bundle.strides.get("cam_map", 1))
        axes[f"grid_{axis}"] = _cells(sizes[axis], _grid_stride(bundle))
    return profile_from_sizes(graph, sizes, axes)


def _grid_stride(bundle: Bundle) -> int:
    """Pixels per cell of the walk's grid."""
    return bundle.strides.get(bundle.affinity.graph, 1) if bundle.affinity is not None else 1


def _cells(sides: Sequence[int], stride: int) -> Sizes:
    """Cells of a grid over images of these sides; a corner grid may have one more."""
    least, usual, most = sides
    return max(1, least // stride), -(-usual // stride), -(-most // stride) + 1


def _names(bundle: Bundle, names: Sequence[str] | None) -> Sequence[str]:
    if names is None:
        return tuple(bundle.graphs)
    for name in names:
        if name not in bundle.graphs:
            raise ConfigError(
                f"bundle '{bundle.folder}' has no graph '{name}': choose of "
                f"{', '.join(bundle.graphs)}"
            )
    return names

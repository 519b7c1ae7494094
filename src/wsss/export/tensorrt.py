"""ONNX -> TensorRT plan: a profile of sizes, a build, and the same build as a line for trtexec.

Written from the documented API of TensorRT 11, which 10.12 and later share. Precision lives in the
graph: networks are strongly typed, so nothing here makes a float32 graph into a float16 one.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from ..errors import ArtifactError, ConfigError, WsssError, one_line
from ..runtime.backends.tensorrt_backend import (
    import_cuda_torch,
    import_tensorrt,
    message_log,
    started,
    version_of,
)
from ..runtime.bundle.graph_tensors import MAX_GRAPH_BYTES
from ..runtime.io.files import atomic_write_bytes, read_file
from ..runtime.io.progress import SILENT, Progress

Shape = tuple[int, ...]
ShapeRange = tuple[Shape, Shape, Shape]
"""Smallest, best and largest shape of an input: TensorRT is fastest at the middle one."""
Sizes = tuple[int, int, int]
"""Smallest, best and largest length of an axis."""
IMAGE_AXES = ("batch", "height", "width")
_MIB = 1 << 20
_MAX_CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class EngineSettings:
    """How TensorRT builds.

    Raises:
        ConfigError: a value out of its range; all of them at once.
    """

    workspace_bytes: int = 2 << 30
    """Device memory that a layer may take while it computes, in bytes, from 1 MiB."""
    timing_cache: Path | None = None
    """File of measured kernels, read before and written after a build: the next one is faster. It
    fits one kind of GPU and one TensorRT version. Level 0 takes no notice of it."""
    version_compatible: bool = False
    """The plan also opens in later TensorRT versions; it may be slower, and holds host code, which
    `open_plan` has to be allowed to run."""
    hardware_compatible: bool = False
    """The plan runs on Ampere and all later GPUs, not only on this kind; it may be slower."""
    builder_optimization_level: int = 3
    """0 (fastest build) to 5 (fastest plan)."""
    tf32: bool = False
    """Round factors of float32 products to 10 bits of mantissa on Ampere and later: faster, less
    exact. TensorRT's default is on; ours is off, as the walk multiplies dozens of times in
    sequence."""

    def __post_init__(self) -> None:
        faults = []
        if self.workspace_bytes < _MIB:
            faults.append(f"`workspace_bytes` is {self.workspace_bytes}, must be at least {_MIB}")
        if self.builder_optimization_level not in range(6):
            level = self.builder_optimization_level
            faults.append(f"`builder_optimization_level` is {level}, must be 0 to 5")
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True)
class EngineInfo:
    """A plan that was built.

    Attributes:
        target: GPUs that it runs on: sm90 is compute capability 9.0 alone, ampere_plus is 8.0 and
            all later ones.
        tensorrt: version that built it; no other opens it, unless it is version-compatible.
        seconds: that the build took.
    """

    path: Path
    num_bytes: int
    target: str
    tensorrt: str
    seconds: float


def build_engine(
    graph: Path,
    out: Path,
    *,
    profile: Mapping[str, ShapeRange],
    settings: EngineSettings | None = None,
    progress: Progress = SILENT,
) -> EngineInfo:
    """Build a plan on this machine's GPU; it takes minutes.

    The file is named after the graph, the GPU and TensorRT, such as `label.sm90.trt11.4.0.plan`,
    or `label.ampere_plus.trt11.4.0.plan` when hardware-compatible.

    Args:
        graph: ONNX file; weights beside it are found.
        out: folder of the plan; made if missing. A plan of the same name is replaced.
        profile: of every input with a dynamic axis. An input with a default (an initializer of its
            name) is a constant to TensorRT: it has no profile, and the plan no such input.
        settings: None takes the defaults.
        progress: told TensorRT's warnings.

    Raises:
        ConfigError: the profile does not fit the graph.
        MissingDependencyError: TensorRT, torch or a CUDA device is missing.
        ArtifactError: the graph cannot be read, or the timing cache is of another machine.
        WsssError: TensorRT refuses the graph (every operator that it refuses is named) or fails.
    """
    settings = settings or EngineSettings()
    check_profile(graph, profile)
    trt = import_tensorrt()
    target = _target(settings)
    path = out / f"{graph.stem}.{target}.trt{version_of(trt)}.plan"
    log, start = message_log(trt, progress.note), time.monotonic()
    with progress.task(f"build {path.name}", 1) as task:
        builder = started(trt.Builder, log)
        # 11 ignores the flag, 10.12 and later need it.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(graph)):
            raise WsssError(_parser_message(graph, parser, log))
        _refuse_shape_inputs(network)
        config = builder.create_builder_config()
        _configure(trt, config, settings)
        _add_profile(builder, config, profile, log)
        # Named, because it has to live until the build is over.
        cache = _attach_timing_cache(config, settings.timing_cache, log)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise WsssError(f"TensorRT could not build '{graph.name}'{log.take()}")
        data = bytes(plan)
        atomic_write_bytes(path, data)
        if settings.timing_cache is not None:
            cache = config.get_timing_cache()
            atomic_write_bytes(settings.timing_cache, bytes(cache.serialize()))
        task.advance()
    return EngineInfo(path, len(data), target, version_of(trt), time.monotonic() - start)


def _target(settings: EngineSettings) -> str:
    """Which GPUs the plan will run on, as in its name."""
    if settings.hardware_compatible:
        return "ampere_plus"
    torch = import_cuda_torch("it tells the compute capability of this GPU")
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def _parser_message(graph: Path, parser: Any, log: Any) -> str:
    """All errors in one line, in the order of the nodes."""
    faults = [parser.get_error(index) for index in range(parser.num_errors)]
    # Those of the file as a whole have node -1; they stand last, they seldom help.
    faults.sort(key=lambda fault: (fault.node() < 0, fault.node()))
    told = [
        f"{fault.node_operator() or 'graph'} '{fault.node_name()}': {one_line(fault.desc())}"
        for fault in faults
    ]
    hint = "" if told else log.take()
    return f"TensorRT cannot take '{graph.name}': {'; '.join(told) or 'no reason given'}{hint}"


def _refuse_shape_inputs(network: Any) -> None:
    for index in range(network.num_inputs):
        network_input = network.get_input(index)
        if network_input.is_shape_tensor:
            raise WsssError(
                f"input `{network_input.name}` decides over shapes, which a plan of ours does not "
                "support: export the graph so that it computes sizes from its images"
            )


def _configure(trt: Any, config: Any, settings: EngineSettings) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
    config.builder_optimization_level = settings.builder_optimization_level
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if not settings.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)


def _add_profile(builder: Any, config: Any, profile: Mapping[str, ShapeRange], log: Any) -> None:
    if not profile:
        return
    optimization = builder.create_optimization_profile()
    try:
        for name, (smallest, best, largest) in profile.items():
            optimization.set_shape(name, smallest, best, largest)
        index = config.add_optimization_profile(optimization)
    except ValueError as error:
        raise ConfigError(f"TensorRT refuses the profile: {one_line(error)}{log.take()}") from None
    if index < 0:
        raise ConfigError(f"TensorRT refuses the profile{log.take() or ' without a reason'}")


def _attach_timing_cache(config: Any, path: Path | None, log: Any) -> Any:
    """Start from a cache file; one that is not there yet is empty."""
    if path is None:
        return None
    known = read_file(path, max_bytes=_MAX_CACHE_BYTES) if path.exists() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise ArtifactError(
            f"timing cache '{path}' was written with another GPU, driver or TensorRT version: "
            f"delete it, or name another file{log.take()}"
        )
    return cache


def check_profile(graph: Path, profile: Mapping[str, ShapeRange]) -> None:
    """Refuse a profile that does not fit a graph, all faults at once, without TensorRT.

    Raises:
        ConfigError: an input is unknown or has none, shapes disagree in their number of axes, are
            not min <= best <= max, contradict a fixed axis, or give one named axis two ranges.
        ArtifactError, DataError: the graph cannot be read.
    """
    inputs, defaults = _graph_inputs(graph)
    faults = [_unknown(name, inputs, defaults) for name in profile if name not in inputs]
    named: dict[str, tuple[str, Sizes]] = {}
    for name, axes in inputs.items():
        if name in profile:
            faults.extend(_range_faults(name, axes, profile[name], named))
        elif not all(isinstance(axis, int) for axis in axes):
            faults.append(f"input `{name}` {_text(axes)} has dynamic axes and no shapes")
    if faults:
        raise ConfigError(f"profile of '{graph.name}': {'; '.join(faults)}")


def _unknown(name: str, inputs: Mapping[str, Sequence[object]], defaults: Sequence[str]) -> str:
    if name in defaults:
        return f"input `{name}` has a default, which is a constant to TensorRT: leave it out"
    return f"unknown input `{name}`: the graph takes {', '.join(inputs) or 'none'}"


def _range_faults(
    name: str,
    axes: Sequence[int | str],
    shapes: ShapeRange,
    named: dict[str, tuple[str, Sizes]],
) -> Iterator[str]:
    """What is wrong with the shapes of an input; `named` collects ranges of named axes."""
    if len(shapes) != 3 or any(len(shape) != len(axes) for shape in shapes):
        yield f"input `{name}` needs three shapes of {len(axes)} axes, found {_text(shapes)}"
        return
    for position, (axis, sizes) in enumerate(zip(axes, zip(*shapes, strict=True), strict=True)):
        fault = _sizes_fault(sizes)
        if fault:
            yield f"axis {position} of `{name}` {fault}"
        elif isinstance(axis, int):
            if set(sizes) != {axis}:
                yield f"axis {position} of `{name}` is fixed at {axis}, found {_text(sizes)}"
        elif axis:
            other, known = named.setdefault(axis, (name, sizes))
            if known != sizes:
                yield (
                    f"axis `{axis}` is {_text(known)} in `{other}` and {_text(sizes)} in `{name}`"
                )


def _sizes_fault(sizes: Sequence[object]) -> str:
    """What is wrong with the smallest, best and largest length of an axis; nothing if empty."""
    numbers = [size for size in sizes if isinstance(size, int) and size >= 1]
    if len(numbers) != 3 or len(sizes) != 3:
        return f"needs three whole numbers from 1, found {_text(sizes)}"
    if numbers != sorted(numbers):
        return f"must be min <= best <= max, found {_text(sizes)}"
    return ""


def _text(values: Sequence[object]) -> str:
    return f"({', '.join(str(value) for value in values)})"


def profile_from_sizes(
    graph: Path, sizes: Mapping[str, Sequence[int]], axes: Mapping[str, Sizes] | None = None
) -> dict[str, ShapeRange]:
    """The profile of a graph whose dynamic axes have names.

    Args:
        graph: ONNX file.
        sizes: [min, best, max] of `batch`, `height` and `width`; those that the graph has not got
            are left unused, so that one mapping does for all graphs of a bundle.
        axes: likewise of axes with other names, such as `cam_height`.

    Returns:
        Input -> shapes, for every input with a dynamic axis and without a default.

    Raises:
        ConfigError: a name is unknown or missing, or sizes are not three rising numbers.
        ArtifactError, DataError: the graph cannot be read.
    """
    known = {name: tuple(values) for name, values in {**sizes, **(axes or {})}.items()}
    faults = [
        f"unknown size `{name}`: choose of {', '.join(IMAGE_AXES)}, or give it in `axes`"
        for name in sizes
        if name not in IMAGE_AXES
    ]
    faults += [f"axis `{name}` {found}" for name in known if (found := _sizes_fault(known[name]))]
    profile: dict[str, ShapeRange] = {}
    for name, shape in _graph_inputs(graph)[0].items():
        if all(isinstance(axis, int) for axis in shape):
            continue
        absent = [axis for axis in shape if isinstance(axis, str) and axis not in known]
        if absent:
            listed = ", ".join(f"`{axis}`" if axis else "an axis without a name" for axis in absent)
            faults.append(f"input `{name}` {_text(shape)}: no sizes for {listed}")
        elif not faults:
            ranges = [(axis,) * 3 if isinstance(axis, int) else known[axis] for axis in shape]
            smallest, best, largest = zip(*ranges, strict=True)
            profile[name] = (smallest, best, largest)
    if faults:
        raise ConfigError(f"sizes for '{graph.name}': {'; '.join(faults)}")
    return profile


def _graph_inputs(graph: Path) -> tuple[dict[str, tuple[int | str, ...]], list[str]]:
    """Inputs -> axes (a length, a name, or "" for one without a name); inputs with a default."""
    try:
        model = onnx.load_model_from_string(read_file(graph, max_bytes=MAX_GRAPH_BYTES))
    except DecodeError:
        raise ArtifactError(f"'{graph}' is not an ONNX file: export it again") from None
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = {
        value.name: tuple(
            axis.dim_value if axis.HasField("dim_value") else str(axis.dim_param)
            for axis in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
        if value.name not in constants
    }
    if not model.graph.output:
        raise ArtifactError(f"'{graph}' is not an ONNX file with outputs: export it again")
    return inputs, [value.name for value in model.graph.input if value.name in constants]


def trtexec_command(
    graph: Path,
    out: Path,
    profile: Mapping[str, ShapeRange],
    settings: EngineSettings | None = None,
) -> list[str]:
    """The build as a line for NVIDIA's `trtexec`, for machines where only its container runs.

    TensorRT need not be installed here. Unlike `build_engine`, trtexec also times the plan.

    Args:
        graph: ONNX file.
        out: file of the plan: its GPU and TensorRT version are not known here.
        profile, settings: as in `build_engine`.

    Raises:
        ConfigError: the profile does not fit the graph, or trtexec cannot express a name.
        ArtifactError, DataError: the graph cannot be read.
    """
    settings = settings or EngineSettings()
    check_profile(graph, profile)
    for name in profile:
        if set(name) & set(",'"):  # it separates inputs and quotes names with them
            raise ConfigError(f"input {name!r}: trtexec takes no comma or quote in a name")
    # For 10.x; a no-op on 11, where networks are always strongly typed (NVIDIA's migration guide).
    command = ["trtexec", f"--onnx={graph}", f"--saveEngine={out}", "--stronglyTyped"]
    for position, kind in enumerate(("min", "opt", "max") if profile else ()):
        shapes = (
            f"{name}:{'x'.join(map(str, shapes[position]))}" for name, shapes in profile.items()
        )
        command.append(f"--{kind}Shapes={','.join(shapes)}")
    return command + list(_options(settings))


def _options(settings: EngineSettings) -> Iterator[str]:
    mebibytes, rest = divmod(settings.workspace_bytes, _MIB)
    # Without a unit it reads MiB.
    size = f"{settings.workspace_bytes}B" if rest else str(mebibytes)
    yield f"--memPoolSize=workspace:{size}"
    yield f"--builderOptimizationLevel={settings.builder_optimization_level}"
    if settings.timing_cache is not None:
        yield f"--timingCacheFile={settings.timing_cache}"
    if settings.version_compatible:
        yield "--versionCompatible"
    if settings.hardware_compatible:
        yield "--hardwareCompatibilityLevel=ampere+"
    if not settings.tf32:
        yield "--noTF32"

"""Configurations of the models of a repository, as protobuf messages and as their text.

There is one for each graph, and one for `decode`.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import ArtifactError, MissingDependencyError
from ...runtime.backends.contract import TensorSpec
from ...runtime.bundle.open import Bundle
from .options import RepositoryOptions

CONFIG = "config.pbtxt"
TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
}
"""Triton's names of numpy's types."""


def model_config_pb2() -> Any:
    """The module of the messages.

    Raises:
        MissingDependencyError: tritonclient is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError:
        raise MissingDependencyError(
            "tritonclient is not installed: pip install 'wsss[triton]'"
        ) from None
    return model_config_pb2


def config_text(config: Any) -> str:
    """A configuration as `config.pbtxt` holds it; equal messages, equal text."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))


def read_config(path: Path) -> Any:
    """A configuration from its file.

    Raises:
        ArtifactError: absent, unreadable, or not a configuration; with line and column.
    """
    from google.protobuf import text_format

    message = model_config_pb2().ModelConfig()
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), message)
    except OSError as error:
        raise ArtifactError(
            f"cannot read '{path}': {error.strerror}: give a repository of `wsss export --triton`"
        ) from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ArtifactError(f"'{path}' is no model configuration: {error}") from None


def add_tensor(tensors: Any, spec: TensorSpec, *, batched: bool = True, **more: Any) -> None:
    """Append an input or output.

    Args:
        tensors: the repeated field.
        spec: of the graph, with the batch first.
        batched: the server adds the batch itself, so its axis is left out.
    """
    axes = spec.shape[1:] if batched else spec.shape
    dims = [axis if isinstance(axis, int) else -1 for axis in axes]
    tensors.add(name=spec.name, data_type=data_type(spec.dtype), dims=dims, **more)


def data_type(dtype: str) -> int:
    """Triton's number of a numpy type."""
    return int(model_config_pb2().DataType.Value(TYPES[dtype]))


def full_dims(config: Any, tensor: Any) -> list[int]:
    """Shape of an input or output with the batch where there is one; -1 where it varies."""
    return [-1, *tensor.dims] if config.max_batch_size else list(tensor.dims)


DECODE = "decode"
RELAY = "relay"
NEVER = 3_600_000_000
"""Microseconds: an hour."""
RELAYED, FILLED = "relayed", "filled"
"""Outputs of `relay`: the image as it came; classes as told, or -1 for all of them."""
ENCODED = "encoded"
SHRINKAGE = "memory.enable_memory_arena_shrinkage"
"""Parameter of the ONNX Runtime backend, after the key of ONNX Runtime's run options."""
ONNX_FILE, PLAN_FILE, PYTHON_FILE = "model.onnx", "model.plan", "model.py"


def graph_config(
    bundle: Bundle, name: str, options: RepositoryOptions, digests: Mapping[int, str]
) -> Any:
    """Configuration of a graph of the bundle.

    `present` is a required input, in which -1 leaves a class to the classifier: the ONNX Runtime
    backend of Triton refuses optional inputs of models that take batches (its
    `ModelInstanceState::ValidateInputs`, read in its source), and TensorRT has none.
    """
    backend, entry = options.backend_of(name), bundle.graphs[name]
    config = model_config_pb2().ModelConfig(
        name=name, backend=backend, max_batch_size=options.max_batch_size
    )
    if backend == "tensorrt":
        config.default_model_filename = PLAN_FILE
        for capability, file in plan_files(bundle, name).items():
            config.cc_model_filenames[capability] = file
    for spec in entry.inputs:
        add_tensor(config.input, spec)
    for spec in entry.outputs:
        add_tensor(config.output, spec)
    _add_instances(config, options, on_gpu=backend == "tensorrt" or options.device == "gpu")
    _add_batching(config, options)
    _add_warmup(config, bundle, options)
    if backend == "onnxruntime" and options.intra_op_threads is not None:
        config.parameters["intra_op_thread_count"].string_value = str(options.intra_op_threads)
    if backend == "onnxruntime" and options.shrink_memory:
        config.parameters[SHRINKAGE].string_value = "cpu:0"
    config.version_policy.latest.num_versions = options.versions_served
    add_identity(config, bundle, digests)
    return config


def plan_files(bundle: Bundle, name: str) -> dict[str, str]:
    """Compute capability -> name of the plan in a version folder."""
    return {
        engine.compute_capability: f"model.sm{engine.compute_capability.replace('.', '')}.plan"
        for engine in bundle.engines_of(name)
    }


def relay_config(bundle: Bundle, options: RepositoryOptions, digests: Mapping[int, str]) -> Any:
    """Configuration of the graph between `cam` and `affinity` of an ensemble.

    It makes `present` optional there: it takes no batches, so the backend lets its input be
    optional, and the server joins it with steps that do, because whole shapes agree: (B, C) here,
    (C) and a batch there.
    """
    image, classes = image_spec(bundle), ("batch", len(bundle.classes))
    config = model_config_pb2().ModelConfig(name=RELAY, backend="onnxruntime")
    add_tensor(config.input, image, batched=False)
    add_tensor(config.input, TensorSpec("probabilities", "float32", classes), batched=False)
    present = TensorSpec("present", "float32", classes)
    add_tensor(config.input, present, batched=False, optional=True)
    add_tensor(config.output, replace(image, name=RELAYED), batched=False)
    add_tensor(config.output, TensorSpec(FILLED, "float32", classes), batched=False)
    _add_instances(config, options, on_gpu=False)  # it only copies: a GPU would be a detour
    config.parameters["intra_op_thread_count"].string_value = "1"
    config.version_policy.latest.num_versions = options.versions_served
    add_identity(config, bundle, digests)
    return config


def decode_config(bundle: Bundle, options: RepositoryOptions, digests: Mapping[int, str]) -> Any:
    """Configuration of the Python model that turns JPEG or PNG bytes into an image."""
    messages = model_config_pb2()
    # One image a request: images of different size cannot share a batch. Later steps join them.
    config = messages.ModelConfig(name=DECODE, backend="python", max_batch_size=1)
    config.input.add(name=ENCODED, data_type=messages.TYPE_STRING, dims=[1])
    image = image_spec(bundle)
    add_tensor(config.output, image)
    _add_instances(config, options, on_gpu=False)
    _add_batching(config, options)
    config.parameters["max_pixels"].string_value = str(options.max_pixels)
    config.parameters["layout"].string_value = bundle.layout
    config.version_policy.latest.num_versions = options.versions_served
    add_identity(config, bundle, digests)
    return config


def image_spec(bundle: Bundle) -> TensorSpec:
    """The input `image` of all graphs."""
    axes = ("height", "width", 3) if bundle.layout == "nhwc" else (3, "height", "width")
    return TensorSpec("image", "uint8", ("batch", *axes))


def add_identity(config: Any, bundle: Bundle, digests: Mapping[int, str]) -> None:
    """What a client needs to know to label with this server, and to know which bundle answers.

    Args:
        digests: version -> digest of its bundle; a configuration stands for all its versions.
    """
    content = {
        "wsss.digest": digests[max(digests)],
        "wsss.digests": json.dumps({str(number): digests[number] for number in sorted(digests)}),
        "wsss.classes": json.dumps(list(bundle.classes)),
        "wsss.palette": json.dumps([list(row) for row in bundle.palette]),
        "wsss.layout": bundle.layout,
        "wsss.method": bundle.method,
        "wsss.precision": bundle.precision,
        "wsss.version": bundle.version,
    }
    for key, value in content.items():
        config.parameters[key].string_value = value


def _add_instances(config: Any, options: RepositoryOptions, *, on_gpu: bool) -> None:
    kinds = model_config_pb2().ModelInstanceGroup
    # Said even where it is 1: the ONNX Runtime backend would start two on a CPU.
    group = config.instance_group.add(count=options.instances)
    group.kind = kinds.KIND_GPU if on_gpu else kinds.KIND_CPU
    if on_gpu:
        group.gpus.extend(options.gpus)


def _add_batching(config: Any, options: RepositoryOptions) -> None:
    batching = config.dynamic_batching
    batching.SetInParent()
    if config.max_batch_size > 1:
        batching.preferred_batch_size.extend(options.preferred_batch_sizes)
        batching.max_queue_delay_microseconds = options.max_queue_delay
    policy = batching.default_queue_policy
    policy.timeout_action = model_config_pb2().ModelQueuePolicy.REJECT
    # A request's own timeout counts only where it is below this one, so never is very late.
    policy.default_timeout_microseconds = options.default_timeout or NEVER
    policy.allow_timeout_override = True
    policy.max_queue_size = options.max_queue_size
    if options.priority_levels:
        batching.priority_levels = options.priority_levels
        batching.default_priority_level = (options.priority_levels + 1) // 2


def _add_warmup(config: Any, bundle: Bundle, options: RepositoryOptions) -> None:
    """Noise as images, zeros as everything else: random bytes as floats would hold NaN."""
    for height, width in options.warmup:
        sample = config.model_warmup.add(name=f"{height}x{width}", batch_size=1)
        for tensor in config.input:
            value = sample.inputs[tensor.name]
            value.data_type = tensor.data_type
            dims = list(tensor.dims)
            if -1 in dims:
                place, stride = dims.index(-1), _stride(bundle, tensor.name)
                dims[place : place + 2] = [-(-height // stride), -(-width // stride)]
            value.dims.extend(dims)
            if tensor.name == "image":
                value.random_data = True
            else:
                value.zero_data = True


def _stride(bundle: Bundle, tensor: str) -> int:
    """Pixels per cell; a corner grid may have one more cell, which no graph minds."""
    affinity = bundle.affinity
    if tensor == "cam":
        return bundle.strides["cam_map"]
    return bundle.strides[affinity.graph] if affinity and tensor == affinity.output else 1

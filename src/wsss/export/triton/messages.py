"""Triton's model configurations as protobuf messages: where they come from, how they are spelt."""

from pathlib import Path
from typing import Any

from ...errors import ArtifactError, MissingDependencyError
from ...runtime.backends.contract import TensorSpec

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

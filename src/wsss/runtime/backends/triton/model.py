"""What a Triton server says of a model, as the description that every backend gives."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....errors import ArtifactError
from ..contract import GraphDescription, TensorSpec, axis_sizes

DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
"""Triton's name of a type -> numpy's. BF16 has none there, BYTES no fixed size."""
DIGESTS = "wsss.digests"
"""Parameter of a configuration that `wsss export --triton` wrote: JSON, see `digests`."""
BATCH = "batch"
"""Name of the first axis of all tensors of a model that Triton makes batches for."""


@dataclass(frozen=True)
class ServedModel:
    """A model on a server.

    Attributes:
        name: on the server.
        datatypes: Triton's names of the types of its inputs.
        max_batch_size: 0 where Triton makes no batches.
        parameters: of its configuration, which all versions of the model share.
        steps: models that an ensemble is made of.
    """

    name: str
    description: GraphDescription
    datatypes: dict[str, str]
    max_batch_size: int
    parameters: dict[str, str]
    steps: tuple[str, ...] = ()

    def digests(self) -> dict[str, str]:
        """Version -> digest of the bundle that it was made of; empty for models that are not ours.

        Raises:
            ArtifactError: the parameter is damaged.
        """
        text = self.parameters.get(DIGESTS)
        if text is None:
            return {}
        try:
            return {str(version): str(digest) for version, digest in json.loads(text).items()}
        except (ValueError, AttributeError):
            raise ArtifactError(
                f"parameter `{DIGESTS}` of model '{self.name}' is damaged: serve a repository that "
                "`wsss export --triton` wrote"
            ) from None

    def identity(self, version: str) -> tuple[object, ...]:
        """Equal for models that compute the same from the same inputs, as far as servers tell.

        Args:
            version: the one that is asked for; empty: the newest.
        """
        digests = self.digests()
        newest = max(digests, key=int, default="")
        bundle = digests.get(version or newest)
        return (self.description, self.max_batch_size, bundle)


def read_model(
    metadata: Mapping[str, Any], config: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]
) -> ServedModel:
    """Metadata and configuration, in the form of JSON over HTTP or gRPC.

    Args:
        steps: configurations of the models that an ensemble is made of.

    Raises:
        ArtifactError: a tensor of a type that no array has.
    """
    max_batch_size = int(config.get("max_batch_size") or 0)
    optional = {
        tensor["name"] for tensor in config.get("input") or () if tensor.get("optional", False)
    }
    model = str(metadata.get("name"))
    inputs = tuple(
        _spec(model, tensor, max_batch_size > 0, tensor["name"] in optional)
        for tensor in metadata.get("inputs") or ()
    )
    outputs = tuple(
        _spec(model, tensor, max_batch_size > 0, False) for tensor in metadata.get("outputs") or ()
    )
    description = GraphDescription(_backend(config, steps), _device(config, steps), inputs, outputs)
    datatypes = {tensor["name"]: str(tensor["datatype"]) for tensor in metadata.get("inputs") or ()}
    names = tuple(str(step.get("name")) for step in steps)
    return ServedModel(model, description, datatypes, max_batch_size, parameters_of(config), names)


def _spec(model: str, tensor: Mapping[str, Any], has_batch: bool, is_optional: bool) -> TensorSpec:
    name, datatype = str(tensor["name"]), str(tensor["datatype"])
    if datatype not in DTYPES:
        raise ArtifactError(
            f"tensor '{name}' of model '{model}' is {datatype}, which no array holds: choose a "
            "model with numbers"
        )
    sizes = [int(size) for size in tensor["shape"]]
    axes = axis_sizes(name, [size if size >= 0 else None for size in sizes])
    if has_batch:  # the metadata has it already as an axis of any size
        axes = (BATCH, *axes[1:])
    return TensorSpec(name, DTYPES[datatype], axes, is_optional)


def _backend(config: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> str:
    """The library that computes, under the name of our own backend for it.

    Labels depend on it and on nothing else about a server, so that a job may continue elsewhere.
    """
    if steps:
        parts = sorted({_backend(step, ()) for step in steps})
        return f"ensemble of {', '.join(parts)}"
    name = str(config.get("backend") or config.get("platform") or "unknown")
    return {"onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt"}.get(name, name)


def _device(config: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> str:
    kinds = {
        str(group.get("kind"))
        for part in (config, *steps)
        for group in part.get("instance_group") or ()
    }
    return "cuda" if "KIND_GPU" in kinds else "cpu"


def parameters_of(config: Mapping[str, Any]) -> dict[str, str]:
    """`parameters` of a configuration, which wraps each value."""
    found = config.get("parameters") or {}
    return {name: str(value.get("string_value", "")) for name, value in found.items()}

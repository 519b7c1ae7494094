"""Ensembles: `label_ensemble` runs CAM, affinity and walk, `label_encoded` decodes first.

Where affinities are made of boundaries, these stand where affinities are drawn.

    image ---> cam ---> probabilities ---> relay ---> image ---> affinity ---> refine ---> label,
                 +--> cam --> refine         ^  +--> present --> refine        confidence, scores,
                                          present                              used_classes, change

One step runs at a time: where two fail side by side, as with full queues, the server (2.51) loses
the request or crashes. Hence `relay`, by which the affinity waits for the CAMs. No tensor is both
read by a later step and exposed: the server (2.51, issue 7482) fails requests that leave such an
output out. Steps name their version, so that no answer mixes two bundles while a new version is
being loaded.
"""

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import TensorProto, helper

from ...runtime.backends.contract import TensorSpec
from ...runtime.bundle.open import Bundle
from ..graphs.builder import IR_VERSION, OPSET
from ..graphs.graph_io import unknown_classes
from .configs import (
    DECODE,
    ENCODED,
    FILLED,
    RELAY,
    RELAYED,
    add_identity,
    add_tensor,
    image_spec,
    model_config_pb2,
)
from .options import RepositoryOptions

ENSEMBLE, ENCODED_ENSEMBLE = "label_ensemble", "label_encoded"


def has_ensemble(bundle: Bundle) -> bool:
    """Whether the bundle has the graphs of `label_ensemble`."""
    affinity = bundle.affinity
    return affinity is not None and {"cam", "refine", affinity.graph} <= bundle.graphs.keys()


def ensemble_config(bundle: Bundle, options: RepositoryOptions, digests: Mapping[int, str]) -> Any:
    """Configuration of `label_ensemble`: image, optional present -> what `refine` gives."""
    config = model_config_pb2().ModelConfig(
        name=ENSEMBLE, platform="ensemble", max_batch_size=options.max_batch_size
    )
    add_tensor(config.input, image_spec(bundle))
    present = TensorSpec("present", "float32", ("batch", len(bundle.classes)))
    add_tensor(config.input, present, optional=True)
    outputs = [spec.name for spec in bundle.graphs["refine"].outputs]
    for spec in bundle.graphs["refine"].outputs:
        add_tensor(config.output, spec)
    version = max(digests)
    _add_step(config, "cam", version, ["image"], ["cam", "probabilities"])
    _add_step(config, RELAY, version, ["image", "probabilities", "present"], [RELAYED, FILLED])
    affinity = bundle.affinity
    assert affinity is not None  # see `has_ensemble`
    _add_step(config, affinity.graph, version, {"image": RELAYED}, [affinity.output])
    inputs = {spec.name: spec.name for spec in bundle.graphs["refine"].inputs}
    _add_step(config, "refine", version, inputs | {"present": FILLED}, outputs)
    return _finished(config, bundle, digests)


def encoded_config(
    bundle: Bundle, target: Any, options: RepositoryOptions, digests: Mapping[int, str]
) -> Any:
    """Configuration of `label_encoded`: JPEG or PNG bytes -> what the target gives.

    Args:
        target: configuration of `label_ensemble`, `label` or `segmenter`.
    """
    messages = model_config_pb2()
    config = messages.ModelConfig(name=ENCODED_ENSEMBLE, platform="ensemble", max_batch_size=1)
    config.input.add(name=ENCODED, data_type=messages.TYPE_STRING, dims=[1])
    for tensor in target.input:
        if tensor.name != "image":
            config.input.add().CopyFrom(tensor)
    for tensor in target.output:
        config.output.add().CopyFrom(tensor)
    version = max(digests)
    _add_step(config, DECODE, version, [ENCODED], ["image"])
    inputs, outputs = ([t.name for t in side] for side in (target.input, target.output))
    _add_step(config, target.name, version, inputs, outputs)
    return _finished(config, bundle, digests)


def relay_model(image: TensorSpec, num_classes: int) -> onnx.ModelProto:
    """The graph of `relay`: the image as it came, and (B, C) of classes, all -1 where none is told.

    `probabilities` tell how large the batch is, and make the step wait for those of `cam`.
    """
    shape: list[str | int] = ["batch", num_classes]
    told: list[str | int] = ["present_batch", num_classes]
    nodes = [
        helper.make_node("Identity", ["image"], [RELAYED], "hand_on"),
        helper.make_node("Shape", ["probabilities"], ["shape"], "shape"),
        helper.make_node("Expand", ["present", "shape"], [FILLED], "fill"),
    ]
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, image.shape),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("present", TensorProto.FLOAT, told),
    ]
    outputs = [
        helper.make_tensor_value_info(RELAYED, TensorProto.UINT8, image.shape),
        helper.make_tensor_value_info(FILLED, TensorProto.FLOAT, shape),
    ]
    defaults = [unknown_classes(num_classes)]
    graph = helper.make_graph(nodes, RELAY, inputs, outputs, defaults)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="wsss"
    )


def _add_step(
    config: Any,
    model: str,
    version: int,
    inputs: Mapping[str, str] | list[str],
    outputs: Mapping[str, str] | list[str],
) -> None:
    """A step; names of its tensors -> names within the ensemble, or equal ones as a list."""
    step = config.ensemble_scheduling.step.add(model_name=model, model_version=version)
    for name in inputs:
        step.input_map[name] = inputs[name] if isinstance(inputs, Mapping) else name
    for name in outputs:
        step.output_map[name] = outputs[name] if isinstance(outputs, Mapping) else name


def _finished(config: Any, bundle: Bundle, digests: Mapping[int, str]) -> Any:
    # One version alone: its steps are those of the newest bundle.
    config.version_policy.latest.num_versions = 1
    add_identity(config, bundle, digests)
    return config

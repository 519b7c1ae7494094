"""A model repository, checked before a server sees it.

A server finds most of this too, but late, in many words, and not all of it: a Python model without
its file makes it wait for ever (2.51), and wrong dims of an ensemble fail request by request.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

from ...errors import ArtifactError
from .configs import (
    CONFIG,
    ONNX_FILE,
    PLAN_FILE,
    PYTHON_FILE,
    TYPES,
    full_dims,
    model_config_pb2,
    read_config,
)

FILES = {"onnxruntime": ONNX_FILE, "tensorrt": PLAN_FILE, "python": PYTHON_FILE}


def check_repository(repository: Path) -> dict[str, Any]:
    """Every configuration, the files it needs, its graph, and how ensembles are wired.

    Returns:
        Model -> configuration.

    Raises:
        ArtifactError: no repository, or faults, all in one line; MissingDependencyError.
    """
    if not repository.is_dir():
        raise ArtifactError(f"'{repository}' is no folder: expected a Triton model repository")
    folders = sorted(path for path in repository.iterdir() if path.is_dir())
    if not folders:
        raise ArtifactError(f"'{repository}' holds no model: expected a folder for each")
    configs = {folder.name: read_config(folder / CONFIG) for folder in folders}
    faults: list[str] = []
    for folder in folders:
        config = configs[folder.name]
        if config.name != folder.name:
            faults.append(f"folder '{folder.name}' holds the model '{config.name}'")
        found = _versions(folder)
        if not found:
            faults.append(f"model '{folder.name}' has no version folder")
        for version in found:
            faults += _file_faults(folder / str(version), config)
        if config.platform == "ensemble":
            faults += _ensemble_faults(config, configs, repository)
    if faults:
        raise ArtifactError(f"Triton repository '{repository}': {'; '.join(faults)}")
    return configs


def _versions(folder: Path) -> list[int]:
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _file_faults(folder: Path, config: Any) -> Iterator[str]:
    """Missing files of a version, and a graph that is not what the configuration says."""
    if config.platform == "ensemble":
        return
    names = sorted(config.cc_model_filenames.values())
    default = config.default_model_filename or FILES.get(config.backend)
    if default is None:
        yield f"model '{config.name}' has the backend '{config.backend}', which is not ours"
        return
    for name in names or [default]:
        path = folder / name
        if not path.is_file():
            yield f"model '{config.name}' lacks '{folder.name}/{name}'"
        elif config.backend == "onnxruntime":
            yield from _graph_faults(path, config)


def _graph_faults(path: Path, config: Any) -> Iterator[str]:
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # of protobuf, in several versions of several types
        yield f"model '{config.name}': '{path.name}' is no ONNX graph ({error})"
        return
    defaults = {tensor.name for tensor in graph.initializer}
    inputs = {value.name: value for value in graph.input}
    outputs = {value.name: value for value in graph.output}
    for name in inputs.keys() - defaults - {each.name for each in config.input}:
        yield f"model '{config.name}': input '{name}' of the graph is not configured"
    for each in config.input:
        where = f"model '{config.name}': input '{each.name}'"
        if each.optional and config.max_batch_size:
            yield f"{where} is optional, which the backend refuses with batches"
        elif each.optional != (each.name in defaults):
            yield f"{where} is optional in one of configuration and graph only"
        yield from _tensor_faults(where, config, each, inputs)
    for each in config.output:
        where = f"model '{config.name}': output '{each.name}'"
        yield from _tensor_faults(where, config, each, outputs)


def _tensor_faults(
    where: str, config: Any, tensor: Any, values: Mapping[str, onnx.ValueInfoProto]
) -> Iterator[str]:
    value = values.get(tensor.name)
    if value is None:
        yield f"{where} is none of the graph's: {', '.join(values)}"
        return
    kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
    found = TYPES.get(kind, kind)
    wanted = model_config_pb2().DataType.Name(tensor.data_type)
    if found != wanted:
        yield f"{where} is {wanted}, the graph has {found}"
    sizes = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]
    if sizes != full_dims(config, tensor):
        yield f"{where} is {full_dims(config, tensor)} with the batch, the graph has {sizes}"


def _ensemble_faults(config: Any, configs: Mapping[str, Any], repository: Path) -> Iterator[str]:
    """Steps, tensors between them, and what is exposed."""
    where = f"ensemble '{config.name}'"
    given = {tensor.name: (config, tensor) for tensor in config.input}
    read, made = set[str](), dict[str, tuple[Any, Any]]()
    for step in config.ensemble_scheduling.step:
        model = configs.get(step.model_name)
        if model is None:
            yield f"{where} has the step '{step.model_name}', which is no model of the repository"
            continue
        if step.model_version not in (-1, *_versions(repository / step.model_name)):
            yield f"{where} wants version {step.model_version} of '{step.model_name}'"
        if config.max_batch_size > model.max_batch_size > 0:
            yield f"{where} takes larger batches than its step '{step.model_name}'"
        outputs = {tensor.name: tensor for tensor in model.output}
        for name, tensor in step.output_map.items():
            if name not in outputs:
                yield f"{where}: '{step.model_name}' has no output '{name}'"
            elif tensor in made or tensor in given:
                yield f"{where}: two steps give '{tensor}'"
            else:
                made[tensor] = (model, outputs[name])
    for step in config.ensemble_scheduling.step:
        if step.model_name in configs:
            model = configs[step.model_name]
            read |= set(step.input_map.values())
            yield from _input_faults(
                f"{where}, step '{step.model_name}'", step, model, given | made
            )
    yield from _side_by_side(config, where)
    for name in given.keys() - read:
        yield f"{where}: nobody reads the input '{name}'"
    for tensor in config.output:
        if tensor.name not in made:
            yield f"{where}: nobody makes the output '{tensor.name}'"
            continue
        yield from _difference(
            f"{where}: output '{tensor.name}'", config, tensor, made[tensor.name]
        )
        if tensor.name in read:
            # The server fails requests that do not ask for such an output (issue 7482).
            yield f"{where}: '{tensor.name}' is an output and read by a step"


def _side_by_side(config: Any, where: str) -> Iterator[str]:
    """Steps that run at the same time: where both fail, the server (2.51) crashes or waits."""
    known = {tensor.name for tensor in config.input}
    waiting = list(config.ensemble_scheduling.step)
    while ready := [step for step in waiting if set(step.input_map.values()) <= known]:
        if len(ready) > 1:
            names = " and ".join(f"'{step.model_name}'" for step in ready)
            yield f"{where}: {names} run side by side, and the server may crash when both fail"
        for step in ready:
            known |= set(step.output_map.values())
            waiting.remove(step)


def _input_faults(
    where: str, step: Any, model: Any, sources: Mapping[str, tuple[Any, Any]]
) -> Iterator[str]:
    inputs = {tensor.name: tensor for tensor in model.input}
    for name, tensor in inputs.items():
        if name not in step.input_map and not tensor.optional:
            yield f"{where}: input '{name}' has no source"
    for name, source in step.input_map.items():
        if name not in inputs:
            yield f"{where}: there is no input '{name}'"
        elif source not in sources:
            yield f"{where}: nobody makes '{source}'"
        else:
            other = sources[source][1]
            # Outputs have no such field.
            if getattr(other, "optional", False) and not inputs[name].optional:
                yield f"{where}: input '{name}' is required, its source is optional"
            yield from _difference(f"{where}: input '{name}'", model, inputs[name], sources[source])


def _difference(where: str, config: Any, tensor: Any, source: tuple[Any, Any]) -> Iterator[str]:
    """Types must be equal, whole shapes may differ where one of them varies."""
    names = model_config_pb2().DataType.Name
    if tensor.data_type != source[1].data_type:
        yield f"{where} is {names(tensor.data_type)}, its source {names(source[1].data_type)}"
    dims, others = full_dims(config, tensor), full_dims(*source)
    if len(dims) != len(others) or any(
        a != b and -1 not in (a, b) for a, b in zip(dims, others, strict=True)
    ):
        yield f"{where} is {dims} with the batch, its source {others}"

"""Weights from elsewhere, put into a backbone: every tensor fits by name and shape, or is named."""

import json
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import ArtifactError, one_line, short_repr
from .backbone import SYMMETRIC, Backbone, Normalisation
from .build import BACKBONES, build_backbone
from .layers import FrozenBatchNorm2d

MAX_BYTES = 4 * 2**30
"""The largest known file, VGG16 with its fully connected layers, has 0.5 GiB."""
SAFETENSORS = ".safetensors"
PICKLE_SUFFIXES = (".pth", ".pt")

_log = logging.getLogger(__name__)
COUNTER = "num_batches_tracked"
"""Buffer of `nn.BatchNorm2d` that frozen normalisation has no use for."""
_OWN_CHECKPOINT = "backbone."
_WRAPPER = "module."
Value = TypeVar("Value")


@dataclass(frozen=True)
class Translated(Generic[Value]):
    """Entries of a file under our names.

    Attributes:
        entries: our name -> (name in the file, value); may hold names that no layer has.
        head: names in the file that belong to the classification head or to other networks.
        duplicates: names in the file of layers that another entry names as well.
    """

    entries: dict[str, tuple[str, Value]]
    head: list[str]
    duplicates: list[str]


def load_backbone_weights(backbone: Backbone, path: Path) -> None:
    """Fill a backbone with pretrained weights and set the normalisation that they expect.

    Taken are `.safetensors`, a checkpoint of ours among them, and `.pth` or `.pt` as torchvision
    publishes them; see `translate` for the layer names. The classification head is left out,
    and said so. Layers that get weights are no longer marked as new.

    The metadata of a `.safetensors` file may hold `normalisation` (JSON of
    `Normalisation.to_dict`) or `input` ("RGB, x/127.5-1"), and `batch_norm_eps`. Without them the
    backbone's `published_normalisation` is assumed, and eps 1e-5.

    Raises:
        ArtifactError: absent, unreadable, running code, of another architecture, with a tensor
            that is missing, left over, of another shape or not finite.
    """
    tensors, metadata = _read(path)
    _check_architecture(backbone, metadata, path)
    translated = translate(type(backbone), tensors)
    new_layers = _layers_that_stay_new(backbone, tensors)
    _check_fit(backbone, translated, tensors, new_layers, path)
    normalisation = _normalisation(backbone, tensors, metadata, path)
    eps = _batch_norm_eps(metadata, path)

    own = {name: tensor for name, (_, tensor) in translated.entries.items()}
    backbone.load_state_dict(own, strict=not new_layers)
    if eps is not None:
        _absorb_eps(backbone, eps)
    backbone.normalisation = normalisation
    backbone.mark_pretrained(new_layers)
    if translated.head:
        _log.info("weights '%s': left out %s", path, ", ".join(sorted(translated.head)))
    if new_layers:
        _log.warning(
            "weights '%s' hold no %s of the width of backbone `%s`: these layers start anew",
            path,
            " and ".join(new_layers),
            backbone.name,
        )


def check_weights_file(path: Path) -> None:
    """Look at a file from outside, before anything depends on it.

    Raises:
        ArtifactError: it is not there, too large, or of another kind.
    """
    if not path.is_file():
        raise ArtifactError(f"weights '{path}' do not exist or are no file: check the path")
    if path.stat().st_size > MAX_BYTES:
        raise ArtifactError(f"weights '{path}' are larger than {MAX_BYTES >> 30} GiB")
    if path.suffix not in (SAFETENSORS, *PICKLE_SUFFIXES):
        raise ArtifactError(
            f"weights '{path}' end in '{path.suffix}', expected .safetensors, .pth or .pt"
        )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the metadata, which only .safetensors files have."""
    check_weights_file(path)
    return _read_safetensors(path) if path.suffix == SAFETENSORS else (_read_pickle(path), {})


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"weights '{path}' cannot be read: {one_line(error)}") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """A state dict, plain or under `state_dict` or `model`."""
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _check_unpacked_size(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual protocols, before it refuses them
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except ArtifactError:
        raise
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        what = f"`{culprit[1]}`, which" if culprit else "more than tensors, which"
        raise ArtifactError(
            f"weights '{path}' are damaged or hold {what} could run code: refused; save only the "
            "state dict, or give .safetensors"
        ) from None
    except Exception as error:  # Damaged pickles raise almost anything.
        raise ArtifactError(f"weights '{path}' cannot be read: {one_line(error)}") from None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    return _only_tensors(content, path)


def _check_unpacked_size(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
            raise ArtifactError(f"weights '{path}' unpack to more than {MAX_BYTES >> 30} GiB")


def _only_tensors(content: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ArtifactError(
            f"weights '{path}' hold a {type(content).__name__}, expected a dictionary of tensors"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ArtifactError(
                f"weights '{path}': entry {name!r} is a {type(value).__name__}, expected a tensor"
            )
    return dict(content)


def _own_header(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Header of a checkpoint of ours; empty for other files."""
    if "wsss" not in metadata:
        return {}
    try:
        header = json.loads(metadata["wsss"])
        # Checkpoints of format 1 call the network `architecture`.
        network = header["architecture"] if "architecture" in header else header["network"]
        backbone = str(network["backbone"])
        if not backbone.isprintable():
            raise ValueError(f"backbone is {backbone!r}")
        return {
            "backbone": backbone,
            "normalisation": dict(header["normalisation"]),
        }
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"checkpoint '{path}' has a damaged header: {short_repr(error)}"
        ) from None


def _check_architecture(backbone: Backbone, metadata: Mapping[str, str], path: Path) -> None:
    found = _own_header(metadata, path).get("backbone", backbone.name)
    if found != backbone.name:
        raise ArtifactError(
            f"checkpoint '{path}' holds backbone `{found}`, expected `{backbone.name}`"
        )


def _layers_that_stay_new(backbone: Backbone, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    return backbone.layers_that_stay_new([unwrapped(name) for name in tensors])


def _check_fit(
    backbone: Backbone,
    translated: Translated[Tensor],
    tensors: Mapping[str, Tensor],
    new_layers: tuple[str, ...],
    path: Path,
) -> None:
    fault = _first_misfit(backbone, translated, new_layers)
    if fault is None:
        return
    message = f"weights '{path}' do not fit backbone `{backbone.name}`: {fault}"
    other = _recognise(tensors, besides=backbone.name)
    if other is not None:
        message += f"; they look like `{other}`, set backbone.name to it or give other weights"
    raise ArtifactError(message)


def _first_misfit(
    backbone: Backbone, translated: Translated[Tensor], new_layers: tuple[str, ...]
) -> str | None:
    if translated.duplicates:
        return f"tensor '{translated.duplicates[0]}' is there again under another name"
    entries = translated.entries
    expected = backbone.state_dict()
    for name, wanted in expected.items():
        if name not in entries:
            if name.split(".")[0] in new_layers:
                continue
            return f"tensor '{name}' {tuple(wanted.shape)} is missing"
        file_name, tensor = entries[name]
        if tensor.shape != wanted.shape:
            return f"tensor '{file_name}' is {tuple(tensor.shape)}, expected {tuple(wanted.shape)}"
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            return f"tensor '{file_name}' is {tensor.layout} {tensor.dtype}, expected dense floats"
        if not tensor.is_meta and not torch.isfinite(tensor).all():
            return f"tensor '{file_name}' holds NaN or infinity"
    left_over = [entries[name][0] for name in entries if name not in expected]
    return f"no layer takes tensor '{left_over[0]}'" if left_over else None


def _recognise(tensors: Mapping[str, Tensor], besides: str) -> str | None:
    """Another of our backbones that the weights fit by name and shape."""
    shapes = {name: torch.empty(value.shape, device="meta") for name, value in tensors.items()}
    for name, kind in BACKBONES.items():
        if name == besides:
            continue
        with torch.device("meta"):
            candidate = build_backbone(name)
        translated = translate(kind, shapes)
        new_layers = _layers_that_stay_new(candidate, shapes)
        if _first_misfit(candidate, translated, new_layers) is None:
            return name
    return None


def _normalisation(
    backbone: Backbone,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    path: Path,
) -> Normalisation:
    header = _own_header(metadata, path)
    if header:
        return Normalisation.from_dict(header["normalisation"])
    if "normalisation" in metadata:
        return Normalisation.from_dict(_json_object(metadata, "normalisation", path))
    described = metadata.get("input", "").lower().replace(" ", "")
    if described == "rgb,x/127.5-1":
        return SYMMETRIC
    default = backbone.published_normalisation(
        {unwrapped(name): tensor for name, tensor in tensors.items()}
    )
    if described:
        _log.warning(
            "weights '%s' describe their input as %r, which is not understood: %s is assumed; "
            "say otherwise by metadata `normalisation`",
            path,
            metadata["input"],
            default,
        )
    return default


def _json_object(metadata: Mapping[str, str], key: str, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(metadata[key]))
    except (TypeError, ValueError, RecursionError):
        raise ArtifactError(f"weights '{path}': metadata `{key}` is no JSON object") from None


def _batch_norm_eps(metadata: Mapping[str, str], path: Path) -> float | None:
    value = metadata.get("batch_norm_eps")
    if value is None:
        return None
    try:
        eps = float(value)
    except ValueError:
        eps = float("nan")
    if not 0 < eps < 1:
        raise ArtifactError(
            f"weights '{path}': metadata `batch_norm_eps` is {value!r}, must be in (0, 1)"
        )
    return eps


def _absorb_eps(backbone: Backbone, eps: float) -> None:
    """Move a foreign eps into the variances, so that our checkpoints need not carry it."""
    for part in backbone.modules():
        if isinstance(part, FrozenBatchNorm2d):
            part.running_var += eps - part.eps


def translate(kind: type[Backbone], named: Mapping[str, Value]) -> Translated[Value]:
    """Rename the entries of a file for one of our backbones, by its `own_name`.

    Of a checkpoint of ours the backbone is taken.
    """
    heads = tuple(f"{part}." for part in kind.head_names)
    is_checkpoint = any(unwrapped(name).startswith(_OWN_CHECKPOINT) for name in named)
    found: Translated[Value] = Translated({}, [], [])
    for name, value in named.items():
        layer = unwrapped(name)
        own = kind.own_name(layer.removeprefix(_OWN_CHECKPOINT))
        if name.endswith(f".{COUNTER}"):
            continue
        if own.startswith(heads) or (is_checkpoint and not layer.startswith(_OWN_CHECKPOINT)):
            found.head.append(name)
        elif own in found.entries:
            found.duplicates.append(name)
        else:
            found.entries[own] = (name, value)
    return found


def unwrapped(name: str) -> str:
    """A layer's name without what data-parallel wrappers put before it."""
    return name.removeprefix(_WRAPPER)

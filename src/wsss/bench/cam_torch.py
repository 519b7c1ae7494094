"""What `wsss bench cam` measures in torch: a network, photographs of one size, and the forms."""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..errors import ConfigError
from ..runtime.io.image_io import image_size, read_image
from ..runtime.refine.cam import normalise_cam
from ..runtime.refine.geometry import grid_size, image_tensor, resize, scaled_size
from ..training.backbones.build import BACKBONES, build_backbone
from ..training.data.image_set import ImageSet, spread
from ..training.data.readers import read_image_set
from ..training.engine.networks import AnyNetwork
from ..training.methods import METHODS
from ..training.methods.shared.classifier import CamClassifier, image_activation
from ..training.predict.run_predictor import RunPredictor
from ..training.recipe.recipe import Recipe
from ..training.recipe.sections import CamSection
from ..training.recipes import load_recipe
from . import stages
from .cases import SIZE, draw_photo
from .machine import has_bfloat16
from .published_pipeline import as_published, published_activation
from .stages import Form, StageClock, charged

PUBLISHED, TORCH, BATCHED, BFLOAT16 = "published", "torch", "torch batched", "torch bfloat16"
RANDOM_RECIPE, RANDOM_CLASSES = f"{METHODS[0]}_resnet50_voc12", 20
"""Scales and sizes of a network without a run: those of VOC."""
MAP_STRIDE = 4
"""Pixels per cell of its maps, as IRNet stores them."""
LEAST_SIDE = 16
CALIBRATION = 8
"""Images on which int8 finds its ranges."""

Cams = NDArray[np.float32]
"""(B, C, h, w) maps of all classes, each divided by its maximum."""
CamForm = Form[Cams]


@dataclass(frozen=True)
class CamCase:
    """One network, and photographs of one size.

    Attributes:
        photos: (B, H, W, 3) uint8 RGB.
        source: of network and photographs, in words.
        calibration: (H, W, 3) other images, on which int8 finds its ranges.
    """

    network: CamClassifier
    recipe: Recipe
    photos: NDArray[np.uint8]
    source: str
    calibration: Sequence[NDArray[np.uint8]]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the photographs."""
        return self.photos.shape[1], self.photos.shape[2]

    def on(self, device: torch.device) -> CamClassifier:
        """The network there."""
        return self.network.to(device)


@dataclass(frozen=True)
class CamReference:
    """CAMs of a photograph by the code that everybody uses, in float32.

    Attributes:
        cams: (C, h, w) normalised.
        peaks: (C,) that they were divided by.
    """

    cams: NDArray[np.float32]
    peaks: NDArray[np.float32]


def cam_case(
    model: Path | None,
    backbone: str,
    photos: NDArray[np.uint8],
    described: str,
    calibration: Sequence[NDArray[np.uint8]],
) -> CamCase:
    """The classifier of a run, or an architecture with random weights, which is as fast.

    Raises:
        ArtifactError: no run; ConfigError: unknown architecture.
    """
    if model is not None:
        predictor = RunPredictor(model, "cpu")
        network = predictor.network("cam", CamClassifier)
        source = f"run {model}, {described}"
        return CamCase(network, predictor.recipe, photos, source, calibration)
    if backbone not in BACKBONES:
        raise ConfigError(f"unknown backbone '{backbone}': choose one of {', '.join(BACKBONES)}")
    torch.manual_seed(0)
    network = CamClassifier(build_backbone(backbone), RANDOM_CLASSES).eval()
    _bring_to_one(network, photos[0])
    recipe = load_recipe(RANDOM_RECIPE, [f"cam.map_stride={MAP_STRIDE}"])
    source = f"{backbone} with random weights, {described}"
    return CamCase(network, recipe, photos, source, calibration)


@torch.no_grad()
def _bring_to_one(network: CamClassifier, photo: NDArray[np.uint8]) -> None:
    """Scale the classifier: behind many random layers nothing but rounding might be left of maps,
    and errors could not be told."""
    maps = network.classifier(network.features(image_tensor(photo)))
    network.classifier.weight /= maps.abs().amax().clamp(min=1e-30)


def same_size_photos(
    data: Path | None, size: tuple[int, int] | None, count: int
) -> tuple[NDArray[np.uint8], str]:
    """Photographs of one size, and what they are in words.

    Args:
        data: image set; None for drawn photographs.
        size: height and width; None takes the commonest of the set, or that of VOC's photographs.

    Returns:
        (B, H, W, 3) uint8 with 1 <= B <= count, and a description.

    Raises:
        ConfigError: a side that is too short; DataError: no image set.
    """
    if size is not None and min(size) < LEAST_SIDE:
        raise ConfigError(f"`size` is {size[0]} {size[1]}, must be at least {LEAST_SIDE} each")
    if data is None:
        images = [draw_photo(seed, size or SIZE)[0] for seed in range(count)]
        return np.stack(images), "drawn photographs"
    images_set = read_image_set(data)
    paths = spread([sample.image_path for sample in images_set.samples], count)
    if size is not None:
        # Photographs are made smaller as a rule, and averaging leaves no patterns then.
        shape = (size[1], size[0])
        photos = [cv2.resize(read_image(p), shape, interpolation=cv2.INTER_AREA) for p in paths]
        return np.stack(photos).astype(np.uint8), f"photographs of {data}, resized"
    paths = spread(_commonest(images_set), count)
    return np.stack([read_image(path) for path in paths]), f"photographs of {data}"


def calibration_photos(data: Path | None, measured: int) -> list[NDArray[np.uint8]]:
    """Images that `same_size_photos` does not take, for int8.

    Args:
        data: image set; None for drawn photographs.
        measured: how many it takes.
    """
    if data is None:
        return [draw_photo(seed, SIZE)[0] for seed in range(measured, measured + CALIBRATION)]
    images = read_image_set(data)
    paths = [sample.image_path for sample in images.samples]
    taken = {*spread(paths, measured), *spread(_commonest(images), measured)}
    return images_apart(paths, taken)


def images_apart(paths: Sequence[Path], taken: Collection[Path]) -> list[NDArray[np.uint8]]:
    """`CALIBRATION` images out of those that are not taken; of all where none is left."""
    others = [path for path in paths if path not in taken]
    return [read_image(path) for path in spread(others or list(paths), CALIBRATION)]


def _commonest(images: ImageSet) -> list[Path]:
    sizes = {sample.image_path: image_size(sample.image_path) for sample in images.samples}
    size, _ = Counter(sizes.values()).most_common(1)[0]
    return [path for path, found in sizes.items() if found == size]


def torch_forms(case: CamCase, device: torch.device) -> dict[str, CamForm]:
    """The forms that this device can run, by name; each computes the CAMs of all photographs."""
    network, section = case.on(device), case.recipe.cam
    fast = channels_last(network)
    apart = as_published(network)
    forms: dict[str, CamForm] = {
        PUBLISHED: _each(case, lambda i, c: published_activation(apart, i, section, c, device)),
        TORCH: _each(case, lambda i, c: _activation(network, i, section, c, device)),
        BATCHED: lambda clock: _batch(network, case, clock, device),
    }
    if has_bfloat16(device):
        forms[BFLOAT16] = in_bfloat16(
            _each(case, lambda i, c: _activation(fast, i, section, c, device)), device
        )
    return forms


def channels_last(network: AnyNetwork) -> AnyNetwork:
    """A copy that computes in the layout in which bfloat16 convolutions are fast."""
    fast = copy.deepcopy(network)
    fast.backbone.memory_format = torch.channels_last
    return fast


def in_bfloat16(form: CamForm, device: torch.device) -> CamForm:
    """The same form with convolutions in bfloat16."""

    def run(clock: StageClock) -> Cams:
        with torch.autocast(device.type, torch.bfloat16):
            return form(clock)

    return run


def _each(case: CamCase, activation: Callable[[NDArray[np.uint8], StageClock], Tensor]) -> CamForm:
    """One photograph after the other."""

    def run(clock: StageClock) -> Cams:
        found = []
        for image in case.photos:
            maps = activation(image, clock)
            with clock.stage(stages.MERGE):
                found.append(_normalised(maps, case.size))
        return np.stack(found)

    return run


def _activation(
    network: CamClassifier,
    image: NDArray[np.uint8],
    section: CamSection,
    clock: StageClock,
    device: torch.device,
) -> Tensor:
    modules = (network.backbone, network.classifier)
    with clock.stage(stages.RESIZE_AND_MERGE), charged(clock, stages.CAM_NETWORK, modules):
        return image_activation(network, image, section, device)


@torch.no_grad()
def _batch(network: CamClassifier, case: CamCase, clock: StageClock, device: torch.device) -> Cams:
    """All photographs at once: `multi_scale_cam` with a batch."""
    section = case.recipe.cam
    target = grid_size(case.size, section.map_stride, section.align)
    total = torch.zeros(1, device=device)
    with clock.stage(stages.RESIZE):
        pixels = torch.cat([image_tensor(image, device) for image in case.photos])
    for scale in section.scales:
        with clock.stage(stages.RESIZE):
            size = scaled_size(case.size, scale, section.align, network.backbone.output_stride)
            scaled = resize(pixels, size, section.align)
            batch = torch.cat([scaled, scaled.flip(-1)]) if section.flip else scaled
        with clock.stage(stages.CAM_NETWORK):
            maps = network.cam(batch)
        with clock.stage(stages.MERGE):
            if section.flip:
                upright, mirrored = maps.chunk(2)
                maps = upright + mirrored.flip(-1)
            total = total + resize(maps.float(), target, section.align)
    with clock.stage(stages.MERGE):
        return np.stack([_normalised(activation, case.size) for activation in total])


def _normalised(activation: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    return normalise_cam(activation.float(), range(len(activation)), size).scores


def references(case: CamCase, device: torch.device) -> list[CamReference]:
    """Of every photograph."""
    found = []
    for image in case.photos:
        activation = image_activation(case.on(device), image, case.recipe.cam, device)
        peaks = activation.amax(dim=(1, 2)).cpu().numpy()
        found.append(CamReference(_normalised(activation, case.size), peaks))
    return found


@torch.no_grad()
def published_network_error(case: CamCase, device: torch.device) -> float:
    """Largest difference of the published network to ours on the same pixels.

    The CAMs themselves differ by the way in which images are resized. In units of the strongest
    activation.
    """
    network = case.on(device)
    pixels = image_tensor(case.photos[0], device)
    expected = network.cam(pixels)
    difference = as_published(network).cam(pixels) - expected
    return float(difference.abs().amax() / expected.amax().clamp(min=1e-5))


def cam_operations(network: CamClassifier, size: tuple[int, int], section: CamSection) -> float:
    """Of the network for one photograph, over all scales and mirrors; a multiply-add counts as two.

    Counted on tensors without content, so that nothing is computed.
    """
    place = torch.device("meta")
    hollow = copy.deepcopy(network).to(place)
    image = np.zeros((*size, 3), np.uint8)
    with FlopCounterMode(display=False) as counter:
        image_activation(hollow, image, section, place)
    return float(counter.get_total_flops())


def compare(cams: Cams, expected: Sequence[CamReference], threshold: float) -> tuple[float, float]:
    """Largest error, and the share of cells with the same label.

    Errors count in units of the photograph's strongest activation: a class without evidence is
    divided by a tiny maximum, which magnifies rounding alone. Labels are the strongest class, or
    background below the threshold.
    """
    errors, equal = [], []
    for found, reference in zip(cams, expected, strict=True):
        scale = (reference.peaks / max(float(reference.peaks.max()), 1e-5))[:, None, None]
        difference = np.abs(found.astype(np.float64) - reference.cams) * scale
        errors.append(float(difference.max()) if np.isfinite(found).all() else float("inf"))
        labels = [_labels(maps * scale, threshold) for maps in (found, reference.cams)]
        equal.append(float((labels[0] == labels[1]).mean()))
    return max(errors), float(np.mean(equal))


def _labels(maps: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    background = np.full((1, *maps.shape[1:]), threshold, maps.dtype)
    return np.asarray(np.concatenate([background, maps]).argmax(0))

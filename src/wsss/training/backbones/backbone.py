"""What every backbone has in common: input normalisation, named taps, strides, frozen parts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import ArtifactError, ConfigError, ShapeError
from .parameters import mark_new

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Normalisation:
    """How pixels become network input; belongs to the weights, not to the architecture.

    Input = (pixel * scale - mean) / std, with `mean` and `std` in the order of `channel_order`.
    """

    scale: float
    mean: Triple
    std: Triple
    channel_order: Literal["rgb", "bgr"] = "rgb"

    def apply(self, image: Tensor) -> Tensor:
        """Normalise images.

        Args:
            image: (B, 3, H, W) RGB in 0..255, usually uint8.

        Returns:
            (B, 3, H, W) float32.

        Raises:
            ShapeError: not four dimensions, or not three channels.
        """
        normalised: Tensor = Normaliser(self)(image)
        return normalised

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible form for `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Normalisation":
        """Inverse of `to_dict`.

        Raises:
            ArtifactError: a field is missing, of the wrong type or out of range.
        """
        try:
            mean, std = (_triple(values[key]) for key in ("mean", "std"))
            scale, order = float(values["scale"]), values["channel_order"]
        except (KeyError, TypeError, ValueError):
            raise ArtifactError(
                f"normalisation is {values!r}, expected `scale`, `channel_order` and three "
                "numbers each for `mean` and `std`"
            ) from None
        finite = all(map(math.isfinite, (scale, *mean, *std)))
        if order not in ("rgb", "bgr") or not finite or scale <= 0 or min(std) <= 0:
            raise ArtifactError(
                f"normalisation is {values!r}: `channel_order` must be 'rgb' or 'bgr', "
                "`scale` and `std` positive, all numbers finite"
            )
        return cls(scale, mean, std, order)


def _triple(values: Sequence[Any]) -> Triple:
    first, second, third = (float(value) for value in values)
    return first, second, third


IMAGENET = Normalisation(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""torchvision's classification weights, and ResNet38."""
SYMMETRIC = Normalisation(1 / 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
"""Pixels to [-1, 1], as networks converted from TensorFlow expect."""
CAFFE_BGR = Normalisation(1.0, (104.008, 116.669, 122.675), (1.0, 1.0, 1.0), "bgr")
"""VGG16 and DeepLab of the Caffe era."""
CAFFE_RGB = Normalisation(1.0, (122.99925, 116.9991, 103.9992), (1.0, 1.0, 1.0))
"""torchvision's `VGG16_Weights.IMAGENET1K_FEATURES`: Caffe weights with the channels turned."""


class Normaliser(nn.Module):
    """The first layer of every backbone: pixels become network input, in float32 at least.

    Its buffers are not saved: a checkpoint holds the `Normalisation` in its header.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, rule: Normalisation) -> None:
        super().__init__()
        self.rule = rule
        # On the CPU even where a network is built without memory: no weights bring these.
        for name, values in (("mean", rule.mean), ("std", rule.std)):
            tensor = torch.tensor(values, device="cpu").view(1, 3, 1, 1)
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, pixels: Tensor, inside: Tensor | None = None) -> Tensor:
        """Normalise images.

        Args:
            pixels: (B, 3, H, W) RGB in 0..255, uint8 or float.
            inside: (B or 1, 1, H, W) bool, which pixels show the image; the others become 0, which
                is the mean colour. None: all of them.

        Returns:
            (B, 3, H, W) float32; float64 for float64.

        Raises:
            ShapeError: not four dimensions, or not three channels.
        """
        if pixels.dim() != 4 or pixels.shape[1] != 3:
            raise ShapeError(f"image tensor is {tuple(pixels.shape)}, expected (B, 3, H, W) RGB")
        if self.rule.channel_order == "bgr":
            pixels = pixels.flip(1)
        if pixels.dtype != torch.float64:
            pixels = pixels.float()
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        normalised = (pixels * self.rule.scale - mean) / std
        return normalised if inside is None else normalised.masked_fill(~inside, 0.0)


class Tap(NamedTuple):
    """A feature map that a backbone hands out."""

    channels: int
    stride: int


class StageGeometry(NamedTuple):
    """Stride and dilation of one stage; its first unit keeps the dilation of the stage before."""

    stride: int
    first_dilation: int
    dilation: int
    total_stride: int


def stage_geometry(
    strides: Sequence[int], output_stride: int, *, stem_stride: int
) -> list[StageGeometry]:
    """Turn the strides beyond `output_stride` into dilation (Yu et al., CVPR 2017; torchvision)."""
    stages = []
    total, dilation = stem_stride, 1
    for stride in strides:
        first_dilation = dilation
        if total * stride > output_stride:
            dilation *= stride
            stride = 1
        total *= stride
        stages.append(StageGeometry(stride, first_dilation, dilation, total))
    return stages


class Backbone(nn.Module):
    """A network from RGB images to named feature maps. A subclass declares all that is asked of it.

    A map of stride s has ceil(H / s) x ceil(W / s) cells for any image, so a network of patches
    pads the image itself. Any stride is possible, and all taps may have the same one; a network
    that needs taps which a backbone does not have refuses that backbone.

    Strides and padding decide where cells are: `cam.align = "corners"` expects cell i at pixel
    i * stride, as convolutions with zero padding have it, `reference` in the middle of its pixels.

    Attributes:
        name: what recipes call it.
        output_strides: strides of the last map that `__init__` takes, the default first.
        default_normalisation: what its usual weights expect.
        default_frozen: layers the papers do not train, as prefixes of parameter names.
        affinity_taps: the three taps that AffinityNet reads, from fine to coarse.
        boundary_taps: the five taps that IRNet reads, from fine to coarse, of which the second has
            stride 4 and the third stride 8; () where there are none.
        from_scratch: whether it can learn from random weights on small image sets.
        cam_square_root: whether the method takes the square root of this network's CAMs.
        heads_need_norm: whether its activations are so unlike in size that heads on several taps
            need group normalisation.
        has_field_of_view: whether its last layers are those of DeepLab-LargeFOV, which
            `set_field_of_view` dilates; other backbones get them as the head of the segmenter.
        head_names: classification layers in files of weights, which no backbone has, as beginnings
            of names.
    """

    name: ClassVar[str]
    output_strides: ClassVar[tuple[int, ...]]
    default_normalisation: ClassVar[Normalisation] = IMAGENET
    default_frozen: ClassVar[tuple[str, ...]] = ()
    affinity_taps: ClassVar[tuple[str, str, str]]
    boundary_taps: ClassVar[tuple[str, ...]] = ()
    from_scratch: ClassVar[bool] = False
    cam_square_root: ClassVar[bool] = False
    heads_need_norm: ClassVar[bool] = False
    has_field_of_view: ClassVar[bool] = False
    head_names: ClassVar[tuple[str, ...]] = ()
    memory_format: torch.memory_format = torch.contiguous_format

    def __init__(self, output_stride: int | None) -> None:
        super().__init__()
        if output_stride is None:
            output_stride = self.output_strides[0]
        if output_stride not in self.output_strides:
            choices = ", ".join(map(str, sorted(self.output_strides)))
            raise ConfigError(
                f"backbone `{self.name}` has no output stride {output_stride}: choose of {choices}"
            )
        self.output_stride = output_stride
        self.normaliser = Normaliser(self.default_normalisation)
        self.tap_channels: dict[str, int] = {}
        self.tap_strides: dict[str, int] = {}

    @classmethod
    def own_name(cls, name: str) -> str:
        """The name of a tensor in a file of weights, as this network calls it."""
        return name

    @classmethod
    def layers_that_stay_new(cls, names: Iterable[str]) -> tuple[str, ...]:
        """Layers that a file of weights lacks and that may start from random values.

        Args:
            names: of its tensors, as the file calls them.
        """
        return ()

    @classmethod
    def published_normalisation(cls, tensors: Mapping[str, Tensor]) -> Normalisation:
        """What the publishers of weights with these names trained them with.

        Args:
            tensors: of the file, as it calls them.
        """
        return cls.default_normalisation

    @property
    def normalisation(self) -> Normalisation:
        """What its current weights expect; loading weights replaces it."""
        return self.normaliser.rule

    @normalisation.setter
    def normalisation(self, rule: Normalisation) -> None:
        device = self.normaliser.mean.device
        self.normaliser = Normaliser(rule).to(device)

    @property
    def final_tap(self) -> str:
        """Name of the last and deepest feature map."""
        return list(self.tap_channels)[-1]

    @property
    def out_channels(self) -> int:
        """Channels of the last feature map."""
        return self.tap_channels[self.final_tap]

    def forward(self, pixels: Tensor, inside: Tensor | None = None) -> dict[str, Tensor]:
        """Compute feature maps of images.

        Args:
            pixels: (B, 3, H, W) RGB in 0..255, uint8 or float.
            inside: (B or 1, 1, H, W) bool, which pixels show the image; the others get the mean
                colour. None: all of them.

        Returns:
            Tap name -> (B, tap_channels, ceil(H / tap_stride), ceil(W / tap_stride)).
        """
        return self.forward_normalised(self.normaliser(pixels, inside))

    def forward_normalised(self, x: Tensor) -> dict[str, Tensor]:
        """`forward` after normalisation: the part of the network that export traces."""
        return self.compute_taps(x.contiguous(memory_format=self.memory_format))

    def compute_taps(self, x: Tensor) -> dict[str, Tensor]:
        """Compute feature maps of normalised images; each architecture implements this."""
        raise NotImplementedError

    def freeze(self, prefixes: Sequence[str] | None = None) -> None:
        """Exclude layers from training.

        Args:
            prefixes: dotted beginnings of parameter names, none if empty; None stands for
                `default_frozen`.

        Raises:
            ConfigError: a prefix that no parameter has.
        """
        for prefix in self.default_frozen if prefixes is None else prefixes:
            frozen = [
                parameter
                for name, parameter in self.named_parameters()
                if f"{name}.".startswith(f"{prefix}.")
            ]
            if not frozen:
                parts = ", ".join(
                    f"`{name}`" for name, part in self.named_children() if [*part.parameters()]
                )
                raise ConfigError(
                    f"backbone `{self.name}` has no layer `{prefix}` to freeze, its parts: {parts}"
                )
            for parameter in frozen:
                parameter.requires_grad_(False)

    def mark_pretrained(self, layers_still_new: Sequence[str] = ()) -> None:
        """Declare that the layers hold trained weights, except those named."""
        mark_new(self, False)
        for name in layers_still_new:
            mark_new(self.get_submodule(name))

    def set_field_of_view(self, dilation_at_stride_8: int) -> None:
        """Set how far the last layers look; see `has_field_of_view`."""

    def _declare_taps(self, taps: Mapping[str, Tap]) -> None:
        self.tap_channels = {name: tap.channels for name, tap in taps.items()}
        self.tap_strides = {name: tap.stride for name, tap in taps.items()}


def initialise_convolutions(module: nn.Module) -> None:
    """He initialisation for networks of ReLUs (He et al., ICCV 2015), biases zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)

"""VGG16-LargeFOV: VGG16 (Simonyan and Zisserman, ICLR 2015) with its fully connected layers made
convolutions of 1024 channels and its last pools without stride (DeepLab, Chen et al., ICLR 2015).
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import (
    CAFFE_BGR,
    CAFFE_RGB,
    IMAGENET,
    Backbone,
    Normalisation,
    Tap,
    initialise_convolutions,
)
from .layers import BatchKeyedDropout2d

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _torchvision_names() -> dict[str, str]:
    """`features.N` -> `convS_P`: a ReLU follows each convolution and a pool each stage."""
    names = {}
    position = 0
    for stage, widths in enumerate(STAGES, 1):
        for index in range(1, len(widths) + 1):
            names[f"features.{position}"] = f"conv{stage}_{index}"
            position += 2
        position += 1
    return names


_TORCHVISION = _torchvision_names()


class Vgg16(Backbone):
    """Taps `conv2_2` (128), `conv3_3` (256), `conv4_3` (512), `conv5_3` (512) and `fc7` (1024),
    each behind ReLU.

    Output stride 8 is the published network; 16 gives pool4 its stride back. `fc6` looks
    `set_field_of_view` far: 1 for the classifier, 4 for AffinityNet, 12 for the segmenter.
    """

    name = "vgg16"
    output_strides = (8, 16)
    default_frozen = ("conv1_1", "conv1_2", "conv2_1", "conv2_2")
    affinity_taps = ("conv4_3", "conv5_3", "fc7")
    boundary_taps = ("conv2_2", "conv3_3", "conv4_3", "conv5_3", "fc7")
    cam_square_root = True
    heads_need_norm = True
    has_field_of_view = True
    head_names = ("classifier", "fc8")
    default_normalisation = CAFFE_BGR

    def __init__(self, output_stride: int | None = None) -> None:
        super().__init__(output_stride)
        in_channels = 3
        for stage, widths in enumerate(STAGES, 1):
            dilation = 16 // self.output_stride if stage == 5 else 1
            for position, out_channels in enumerate(widths, 1):
                convolution = nn.Conv2d(
                    in_channels, out_channels, 3, padding=dilation, dilation=dilation
                )
                self.add_module(f"conv{stage}_{position}", convolution)
                in_channels = out_channels
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=1)
        self.dropout6 = BatchKeyedDropout2d(0.5)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        # Stride 2 behind stages 1 to 3; pool4 has what is left; there is none behind conv5.
        self.pool_strides = (2, 2, 2, self.output_stride // 8)
        self._declare_taps(
            {
                "conv2_2": Tap(128, 2),
                "conv3_3": Tap(256, 4),
                "conv4_3": Tap(512, 8),
                "conv5_3": Tap(512, self.output_stride),
                "fc7": Tap(1024, self.output_stride),
            }
        )
        initialise_convolutions(self)

    @classmethod
    def own_name(cls, name: str) -> str:
        """torchvision's `features.N` become `convS_P`; the names of the Caffe model are ours."""
        layer, _, kind = name.rpartition(".")
        return f"{_TORCHVISION.get(layer, layer)}.{kind}"

    @classmethod
    def layers_that_stay_new(cls, names: Iterable[str]) -> tuple[str, ...]:
        """fc6 and fc7, which torchvision has in another width and under another name."""
        return ("fc6", "fc7") if any(name.startswith("features.") for name in names) else ()

    @classmethod
    def published_normalisation(cls, tensors: Mapping[str, Tensor]) -> Normalisation:
        """`CAFFE_BGR` under the names of the Caffe model; torchvision has weights of two kinds."""
        if not cls.layers_that_stay_new(tensors):
            return CAFFE_BGR
        # torchvision's IMAGENET1K_FEATURES come from Caffe, and their head is filled with NaN.
        heads = (tensor for name, tensor in tensors.items() if name.endswith("classifier.6.bias"))
        converted = any(not torch.isfinite(bias).all() for bias in heads)
        return CAFFE_RGB if converted else IMAGENET

    def set_field_of_view(self, dilation_at_stride_8: int) -> None:
        """Dilate fc6, by less where the grid is coarser."""
        dilation = max(1, dilation_at_stride_8 * 8 // self.output_stride)
        self.fc6.dilation = (dilation, dilation)
        self.fc6.padding = (dilation, dilation)

    def compute_taps(self, x: Tensor) -> dict[str, Tensor]:
        taps = {}
        for stage, widths in enumerate(STAGES, 1):
            for position in range(1, len(widths) + 1):
                x = F.relu(self.get_submodule(f"conv{stage}_{position}")(x), inplace=True)
            if stage >= 2:
                taps[f"conv{stage}_{len(widths)}"] = x
            if stage <= 4:
                x = F.max_pool2d(x, 3, self.pool_strides[stage - 1], padding=1)
        x = self.dropout6(F.relu(self.fc6(x), inplace=True))
        taps["fc7"] = F.relu(self.fc7(x), inplace=True)
        return taps

"""MobileNetV2 1.0 (Sandler et al., CVPR 2018) with torchvision's parameter names."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import Backbone, Tap, initialise_convolutions, stage_geometry
from .layers import FrozenBatchNorm2d, convolve_normalised

# (expansion, channels, units, stride) of each stage, table 2 of the paper.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Position in `features` of the last unit before each stride, and of the last one of all.
TAP_POSITIONS = {
    "stride2": 1,
    "stride4": 3,
    "stride8": 6,
    "stride16": 13,
    "stride32": 17,
    "features18": 18,
}


class ConvNormRelu6(nn.Sequential):
    """Convolution, frozen BN and ReLU6, the first two computed as one."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.Conv2d(
                in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False
            ),
            FrozenBatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(convolve_normalised(self[0], self[1], x), inplace=True)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; added to the input where it fits."""

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, stride: int, dilation: int
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormRelu6(in_channels, hidden, kernel=1))
        layers += [
            ConvNormRelu6(hidden, hidden, stride=stride, dilation=dilation, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            FrozenBatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.adds_input = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, h, w) -> (B, out_channels, h', w')."""
        *expanding, projection, norm = self.conv
        branch = x
        for layer in expanding:
            branch = layer(branch)
        branch = convolve_normalised(projection, norm, branch)
        return x + branch if self.adds_input else branch


class MobileNetV2(Backbone):
    """Taps named after the stride they have in the classification network, and `features18`.

    `stride2` (16 channels), `stride4` (24), `stride8` (32), `stride16` (96) and `stride32` (320)
    are the linear bottlenecks before the next stride, `features18` the 1280 channels behind the
    last ReLU6.
    """

    name = "mobilenetv2"
    output_strides = (16, 8, 32)
    default_frozen = ("features.0", "features.1", "features.2", "features.3")
    affinity_taps = ("stride8", "stride16", "features18")
    boundary_taps = ("stride2", "stride4", "stride8", "stride16", "features18")
    head_names = ("classifier",)
    # On CPUs depthwise convolutions run about twice as fast in this layout.
    memory_format = torch.channels_last

    def __init__(self, output_stride: int | None = None) -> None:
        super().__init__(output_stride)
        geometry = stage_geometry([row[3] for row in STAGES], self.output_stride, stem_stride=2)
        layers: list[nn.Module] = [ConvNormRelu6(3, 32, stride=2)]
        taps = [Tap(32, 2)]
        in_channels = 32
        for (expansion, out_channels, num_units, _), stage in zip(STAGES, geometry, strict=True):
            for unit in range(num_units):
                stride = stage.stride if unit == 0 else 1
                dilation = stage.first_dilation if unit == 0 else stage.dilation
                layers.append(
                    InvertedResidual(in_channels, out_channels, expansion, stride, dilation)
                )
                taps.append(Tap(out_channels, stage.total_stride))
                in_channels = out_channels
        layers.append(ConvNormRelu6(in_channels, 1280, kernel=1))
        taps.append(Tap(1280, geometry[-1].total_stride))
        self.features = nn.Sequential(*layers)
        self._declare_taps({name: taps[position] for name, position in TAP_POSITIONS.items()})
        initialise_convolutions(self)

    def compute_taps(self, x: Tensor) -> dict[str, Tensor]:
        outputs = []
        for layer in self.features:
            x = layer(x)
            outputs.append(x)
        return {name: outputs[position] for name, position in TAP_POSITIONS.items()}

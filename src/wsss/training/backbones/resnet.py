"""ResNet50 and ResNet101 (He et al., CVPR 2016) in torchvision's layout: the stride stands on the
3x3 convolution, and the parameters have torchvision's names.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import (
    Backbone,
    StageGeometry,
    Tap,
    initialise_convolutions,
    stage_geometry,
)
from .layers import FrozenBatchNorm2d, convolve_normalised

EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, each followed by BN; ReLU behind the first two and behind the sum."""

    def __init__(self, in_channels: int, middle_channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        out_channels = EXPANSION * middle_channels
        self.conv1 = nn.Conv2d(in_channels, middle_channels, 1, bias=False)
        self.bn1 = FrozenBatchNorm2d(middle_channels)
        self.conv2 = nn.Conv2d(
            middle_channels, middle_channels, 3, stride, dilation, dilation, bias=False
        )
        self.bn2 = FrozenBatchNorm2d(middle_channels)
        self.conv3 = nn.Conv2d(middle_channels, out_channels, 1, bias=False)
        self.bn3 = FrozenBatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                FrozenBatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, h, w) -> (B, 4 * middle_channels, h', w')."""
        branch = F.relu(convolve_normalised(self.conv1, self.bn1, x), inplace=True)
        branch = F.relu(convolve_normalised(self.conv2, self.bn2, branch), inplace=True)
        branch = convolve_normalised(self.conv3, self.bn3, branch)
        if self.downsample is not None:
            x = convolve_normalised(self.downsample[0], self.downsample[1], x)
        return F.relu(branch + x, inplace=True)


class ResNet(Backbone):
    """Taps `stem` (behind its pooling) and `layer1` to `layer4`: 64, 256, 512, 1024, 2048
    channels."""

    output_strides = (16, 8, 32)
    default_frozen = ("conv1", "layer1", "layer2")
    affinity_taps = ("layer2", "layer3", "layer4")
    boundary_taps = ("stem", "layer1", "layer2", "layer3", "layer4")
    head_names = ("fc",)
    num_blocks: Sequence[int]

    def __init__(self, output_stride: int | None = None) -> None:
        super().__init__(output_stride)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = FrozenBatchNorm2d(64)
        stages = stage_geometry((1, 2, 2, 2), self.output_stride, stem_stride=4)
        taps = {"stem": Tap(64, 4)}
        in_channels = 64
        for index, (num_blocks, stage) in enumerate(zip(self.num_blocks, stages, strict=True)):
            middle_channels = 64 * 2**index
            name = f"layer{index + 1}"
            self.add_module(name, _stage(in_channels, middle_channels, num_blocks, stage))
            in_channels = EXPANSION * middle_channels
            taps[name] = Tap(in_channels, stage.total_stride)
        self._declare_taps(taps)
        initialise_convolutions(self)

    def compute_taps(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(convolve_normalised(self.conv1, self.bn1, x), inplace=True)
        x = F.max_pool2d(x, 3, 2, padding=1)
        taps = {"stem": x}
        for name in list(self.tap_channels)[1:]:
            x = self.get_submodule(name)(x)
            taps[name] = x
        return taps


def _stage(
    in_channels: int, middle_channels: int, num_blocks: int, stage: StageGeometry
) -> nn.Sequential:
    first = Bottleneck(in_channels, middle_channels, stage.stride, stage.first_dilation)
    rest = (
        Bottleneck(EXPANSION * middle_channels, middle_channels, 1, stage.dilation)
        for _ in range(1, num_blocks)
    )
    return nn.Sequential(first, *rest)


class ResNet50(ResNet):
    """ResNet with 50 layers: 3, 4, 6 and 3 blocks."""

    name = "resnet50"
    num_blocks = (3, 4, 6, 3)


class ResNet101(ResNet):
    """ResNet with 101 layers: 3, 4, 23 and 3 blocks."""

    name = "resnet101"
    num_blocks = (3, 4, 23, 3)

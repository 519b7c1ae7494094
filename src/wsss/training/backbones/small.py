"""A small residual network for demonstrations, trained from random weights on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import Backbone, Tap, initialise_convolutions, stage_geometry

STEM_CHANNELS = 24
CHANNELS = (32, 64, 96)
GROUP_SIZE = 8


class ResidualBlock(nn.Module):
    """3x3, 3x3, each behind group normalisation; ReLU after the first and after the sum."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        first_dilation: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, 3, stride, first_dilation, first_dilation, bias=False
        )
        self.norm1 = _group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, dilation, dilation, bias=False)
        self.norm2 = _group_norm(out_channels)
        # Parameters must not depend on the stride: weights serve every output stride.
        self.shortcut: nn.Module = nn.Identity() if stride == 1 else nn.MaxPool2d(1, stride)
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, h, w) -> (B, out_channels, h', w')."""
        branch = F.relu(self.norm1(self.conv1(x)), inplace=True)
        branch = self.norm2(self.conv2(branch))
        return F.relu(branch + self.shortcut(x), inplace=True)


class SmallNet(Backbone):
    """Taps `stem` (24 channels), `stride4` (32), `stride8` (64) and, both with 96, `middle` and
    `final`; each behind ReLU.

    Group normalisation makes an image's features independent of the rest of its batch, as frozen
    batch normalisation does for the pretrained backbones. The two blocks of the last stage have
    stride 2 each at output stride 32; below that, dilation.
    """

    name = "small"
    output_strides = (8, 16, 32)
    from_scratch = True
    affinity_taps = ("stride4", "stride8", "final")
    boundary_taps = ("stem", "stride4", "stride8", "middle", "final")
    memory_format = torch.channels_last

    def __init__(self, output_stride: int | None = None) -> None:
        super().__init__(output_stride)
        stage4, stage8, *last = stage_geometry((2, 2, 2, 2), self.output_stride, stem_stride=2)
        fine, middle, deep = CHANNELS
        self.stem = nn.Sequential(
            nn.Conv2d(3, STEM_CHANNELS, 3, 2, 1, bias=False), _group_norm(STEM_CHANNELS), nn.ReLU()
        )
        self.stride4 = nn.Sequential(
            ResidualBlock(STEM_CHANNELS, fine, stage4.stride), ResidualBlock(fine, fine)
        )
        self.stride8 = nn.Sequential(
            ResidualBlock(fine, middle, stage8.stride), ResidualBlock(middle, middle)
        )
        self.final = nn.Sequential(
            *(
                ResidualBlock(channels, deep, unit.stride, unit.first_dilation, unit.dilation)
                for channels, unit in zip((middle, deep), last, strict=True)
            )
        )
        self._declare_taps(
            {
                "stem": Tap(STEM_CHANNELS, 2),
                "stride4": Tap(fine, stage4.total_stride),
                "stride8": Tap(middle, stage8.total_stride),
                "middle": Tap(deep, last[0].total_stride),
                "final": Tap(deep, self.output_stride),
            }
        )
        initialise_convolutions(self)

    def compute_taps(self, x: Tensor) -> dict[str, Tensor]:
        first, last = self.final
        layers = (self.stem, self.stride4, self.stride8, first, last)
        taps = {}
        for name, layer in zip(self.tap_channels, layers, strict=True):
            x = layer(x)
            taps[name] = x
        return taps


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // GROUP_SIZE, channels)

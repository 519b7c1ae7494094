"""ResNet38: the wide pre-activation network "Model A1" of Wu, Shen and van den Hengel
(Wider or Deeper, Pattern Recognition 2019), as AffinityNet uses it (psa).
"""

import re

from torch import Tensor, nn
from torch.nn import functional as F

from .backbone import Backbone, Tap, initialise_convolutions
from .layers import BatchKeyedDropout2d, FrozenBatchNorm2d, convolve_normalised

_MXNET_STATISTICS = {
    "weight": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
}
_MXNET_NAME = re.compile(
    r"(?:arg:|aux:)?(?P<layer>conv1a|bn7|(?:res|bn)\d(?:a|b\d)_branch\w+?)_"
    rf"(?P<statistic>{'|'.join(_MXNET_STATISTICS)})"
)
_MXNET_BLOCK = re.compile(r"(?P<kind>res|bn)(?P<stage>\d)(?P<unit>a|b\d)_(?P<branch>branch\w+)")
_MXNET_HEAD = re.compile(r"(?:arg:|aux:)?linear1000_(weight|bias)")


def _convolution(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)


class PlainBlock(nn.Module):
    """BN, ReLU, 3x3, BN, ReLU, 3x3, add.

    The shortcut is the input itself, or a 1x1 convolution of the activated input where channels
    or size change.
    """

    def __init__(
        self,
        in_channels: int,
        middle_channels: int,
        out_channels: int,
        stride: int = 1,
        first_dilation: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        self.bn_branch2a = FrozenBatchNorm2d(in_channels)
        self.conv_branch2a = _convolution(
            in_channels, middle_channels, stride=stride, dilation=first_dilation
        )
        self.bn_branch2b1 = FrozenBatchNorm2d(middle_channels)
        self.conv_branch2b1 = _convolution(middle_channels, out_channels, dilation=dilation)
        self.keeps_shape = in_channels == out_channels and stride == 1
        if not self.keeps_shape:
            self.conv_branch1 = _convolution(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, h, w) -> output, and the activated input, which is a tap at some blocks."""
        activated = F.relu(self.bn_branch2a(x))
        branch = F.relu(convolve_normalised(self.conv_branch2a, self.bn_branch2b1, activated))
        shortcut = x if self.keeps_shape else self.conv_branch1(activated)
        return shortcut + self.conv_branch2b1(branch), activated


class BottleneckBlock(nn.Module):
    """1x1, dilated 3x3, 1x1, each behind BN and ReLU, with dropout before the last two."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int, dropout: float) -> None:
        super().__init__()
        quarter, half = out_channels // 4, out_channels // 2
        self.bn_branch2a = FrozenBatchNorm2d(in_channels)
        self.conv_branch2a = _convolution(in_channels, quarter, 1)
        self.bn_branch2b1 = FrozenBatchNorm2d(quarter)
        self.dropout_2b1 = BatchKeyedDropout2d(dropout)
        self.conv_branch2b1 = _convolution(quarter, half, dilation=dilation)
        self.bn_branch2b2 = FrozenBatchNorm2d(half)
        self.dropout_2b2 = BatchKeyedDropout2d(dropout)
        self.conv_branch2b2 = _convolution(half, out_channels, 1)
        self.conv_branch1 = _convolution(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, F, h, w) -> output, and the activated input."""
        activated = F.relu(self.bn_branch2a(x))
        branch = F.relu(convolve_normalised(self.conv_branch2a, self.bn_branch2b1, activated))
        branch = self.dropout_2b1(branch)
        branch = F.relu(convolve_normalised(self.conv_branch2b1, self.bn_branch2b2, branch))
        branch = self.conv_branch2b2(self.dropout_2b2(branch))
        return self.conv_branch1(activated) + branch, activated


class ResNet38(Backbone):
    """Taps `conv2` (128), `conv3` (256), `conv4` (512), `conv5` (1024) and `conv6` (4096), each
    behind BN and ReLU.

    Output stride 8 is the published network; 16 puts the stride of b5 back and halves the
    dilations, as its authors' own builder does.
    """

    name = "resnet38"
    output_strides = (8, 16)
    default_frozen = ("conv1a", "b2", "b2_1", "b2_2")
    affinity_taps = ("conv4", "conv5", "conv6")
    boundary_taps = ("conv2", "conv3", "conv4", "conv5", "conv6")
    head_names = ("linear1000", "fc8")

    def __init__(self, output_stride: int | None = None) -> None:
        super().__init__(output_stride)
        # At stride 8 both strides of b5 and b6 have become dilation, at 16 only that of b6.
        b5_stride = self.output_stride // 8
        b5_dilation = 2 // b5_stride
        b6_dilation = 2 * b5_dilation
        self.conv1a = _convolution(3, 64)
        self._add_stage("b2", 3, 64, 128, 128, stride=2)
        self._add_stage("b3", 3, 128, 256, 256, stride=2)
        self._add_stage("b4", 6, 256, 512, 512, stride=2)
        self._add_stage("b5", 3, 512, 512, 1024, stride=b5_stride, dilation=b5_dilation)
        self.b6 = BottleneckBlock(1024, 2048, b6_dilation, dropout=0.3)
        self.b7 = BottleneckBlock(2048, 4096, b6_dilation, dropout=0.5)
        self.bn7 = FrozenBatchNorm2d(4096)
        self._declare_taps(
            {
                "conv2": Tap(128, 2),
                "conv3": Tap(256, 4),
                "conv4": Tap(512, 8),
                "conv5": Tap(1024, self.output_stride),
                "conv6": Tap(4096, self.output_stride),
            }
        )
        initialise_convolutions(self)

    def _add_stage(
        self,
        name: str,
        num_blocks: int,
        in_channels: int,
        middle_channels: int,
        out_channels: int,
        stride: int,
        dilation: int = 1,
    ) -> None:
        """Add blocks `name`, `name_1`, ...; only the second convolution of the first is dilated."""
        first = PlainBlock(in_channels, middle_channels, out_channels, stride, 1, dilation)
        self.add_module(name, first)
        for index in range(1, num_blocks):
            block = PlainBlock(out_channels, middle_channels, out_channels, 1, dilation, dilation)
            self.add_module(f"{name}_{index}", block)

    @classmethod
    def own_name(cls, name: str) -> str:
        """MXNet's names become those of psa, which are ours."""
        if head := _MXNET_HEAD.fullmatch(name):
            return f"linear1000.{head[1]}"
        match = _MXNET_NAME.fullmatch(name)
        if match is None:
            return name
        layer, statistic = match["layer"], _MXNET_STATISTICS[match["statistic"]]
        if block := _MXNET_BLOCK.fullmatch(layer):
            # Unit a of stage s is our `bs`, units b1, b2, ... are `bs_1`, `bs_2`, ...
            unit = "" if block["unit"] == "a" else f"_{block['unit'][1:]}"
            kind = "conv" if block["kind"] == "res" else "bn"
            layer = f"b{block['stage']}{unit}.{kind}_{block['branch']}"
        return f"{layer}.{statistic}"

    def compute_taps(self, x: Tensor) -> dict[str, Tensor]:
        activated_inputs: dict[str, Tensor] = {}
        x = self.conv1a(x)
        for name, block in self.named_children():
            if isinstance(block, (PlainBlock, BottleneckBlock)):
                x, activated_inputs[name] = block(x)
        return {
            "conv2": activated_inputs["b3"],
            "conv3": activated_inputs["b4"],
            "conv4": activated_inputs["b5"],
            "conv5": activated_inputs["b6"],
            "conv6": F.relu(self.bn7(x)),
        }

"""A backbone of patches, as a vision transformer has them: one grid of stride 14, and no other."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn import functional as F

from wsss.training.backbones.backbone import Backbone, Tap
from wsss.training.backbones.build import BACKBONES

PATCH = 14
CHANNELS = 32


class PatchNet(Backbone):
    """Patches become cells, which look at their neighbours three times."""

    name = "patch14"
    output_strides = (PATCH,)
    affinity_taps = ("first", "second", "third")
    from_scratch = True

    def __init__(self, output_stride: int | None = None) -> None:
        super().__init__(output_stride)
        self.patches = nn.Conv2d(3, CHANNELS, PATCH, PATCH)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.GroupNorm(4, CHANNELS), nn.ReLU()
            )
            for _ in self.affinity_taps
        )
        self._declare_taps({tap: Tap(CHANNELS, PATCH) for tap in self.affinity_taps})

    def compute_taps(self, x: Tensor) -> dict[str, Tensor]:
        x = self.patches(F.pad(x, (0, -x.shape[3] % PATCH, 0, -x.shape[2] % PATCH)))
        taps = {}
        for tap, block in zip(self.affinity_taps, self.blocks, strict=True):
            x = block(x)
            taps[tap] = x
        return taps


@contextmanager
def registered() -> Iterator[type[PatchNet]]:
    """The backbone under its name in recipes and checkpoints, meanwhile."""
    BACKBONES[PatchNet.name] = PatchNet
    try:
        yield PatchNet
    finally:
        del BACKBONES[PatchNet.name]

"""A small backbone of three convolutions with taps at strides 4, 8 and 8."""

from torch import Tensor, nn
from torch.nn import functional

from .backbone import Backbone, Tap

CHANNELS = (16, 32, 32)


class Stripes(Backbone):
    """Taps `fine` (16 channels, stride 4), `middle` and `deep` (32 channels, stride 8)."""

    name = "stripes"
    output_strides = (8,)
    affinity_taps = ("fine", "middle", "deep")
    from_scratch = True

    def __init__(self, output_stride: int | None = None) -> None:
        super().__init__(output_stride)
        fine, middle, deep = CHANNELS
        self.fine = nn.Conv2d(3, fine, 7, 4, 3)
        self.middle = nn.Conv2d(fine, middle, 3, 2, 1)
        self.deep = nn.Conv2d(middle, deep, 3, 1, 1)
        self._declare_taps(
            {"fine": Tap(fine, 4), "middle": Tap(middle, 8), "deep": Tap(deep, self.output_stride)}
        )

    def compute_taps(self, x: Tensor) -> dict[str, Tensor]:
        taps = {}
        for name in self.affinity_taps:
            x = functional.relu(self.get_submodule(name)(x))
            taps[name] = x
        return taps

"""What only SEC has (Kolesnikov and Lampert, ECCV 2016, and its released code)."""

from typing import Literal

from .segmenter import SegmenterSection


class SecSegmenterSection(SegmenterSection):
    """The network that is trained on the seeds, with the losses of SEC."""

    loss: Literal["cross_entropy", "sec"] = "sec"

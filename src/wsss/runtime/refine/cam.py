"""Multi-scale class activation maps with mirrored passes.

Source: Zhou et al., CVPR 2016; summation over scales and mirrors as in the released code of
AffinityNet (Ahn and Kwak, CVPR 2018). Deviation: images are resized bilinearly on the device
instead of bicubically, so that the same rule can stand inside an exported graph.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..io.score_maps import ScoreMaps
from .geometry import Align, grid_size, image_tensor, resize, scaled_size

CamNetwork = Callable[[Tensor], Tensor]
"""(B, 3, H, W) float RGB in 0..255 -> (B, C, h, w) activation, 0 or more, not normalised."""


def multi_scale_cam(
    network: CamNetwork,
    image: NDArray[np.uint8],
    *,
    scales: Sequence[float],
    flip: bool,
    map_stride: int,
    stride: int,
    align: Align,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Sum of activation maps over scales and mirrors.

    Args:
        image: (H, W, 3) uint8 RGB.
        map_stride: pixels per cell of the result.
        stride: pixels per cell of the network; sizes the input under `align="corners"`.

    Returns:
        (C, h, w) float32 on `device`, not normalised.
    """
    size = (image.shape[0], image.shape[1])
    target = grid_size(size, map_stride, align)
    pixels = image_tensor(image, device)
    total: Tensor | None = None
    for scale in scales:
        scaled = resize(pixels, scaled_size(size, scale, align, stride), align)
        batch = torch.cat([scaled, scaled.flip(-1)]) if flip else scaled
        maps = network(batch)
        if flip:
            maps = maps[:1] + maps[1:].flip(-1)
        summed = resize(maps.float(), target, align)[0]
        total = summed if total is None else total + summed
    if total is None:
        raise ValueError("at least one scale is needed")
    return total


def normalise_cam(activation: Tensor, classes: Sequence[int], size: tuple[int, int]) -> ScoreMaps:
    """Keep the given classes and divide each map by its maximum (plus 1e-5).

    Args:
        activation: (C, h, w), 0 or more.
        classes: 0-based indices of the classes in the image; may be empty.
        size: (height, width) of the image.
    """
    indices = sorted(classes)
    kept = activation[indices]
    if indices:
        kept = kept / (kept.amax(dim=(1, 2), keepdim=True) + 1e-5)
    return ScoreMaps(np.asarray(indices, np.int64), kept.cpu().numpy().astype(np.float32), size)

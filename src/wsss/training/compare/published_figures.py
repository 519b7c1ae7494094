"""mIoU that the authors of the methods report on PASCAL VOC 2012, to stand beside our own."""

from collections.abc import Sequence

from ..data.class_list import VOC_CLASSES
from ..methods.contract import Method, Published

_IMAGES = {"segmenter": 1449}
_TRAIN_IMAGES = 1464


def published_miou(
    method: Method, backbone: str, measured: str, classes: Sequence[str], images: int | None
) -> Published | None:
    """What the authors had of the same network; None where nothing was found, or not on VOC 2012.

    Args:
        measured: kind of `Method.measured`.
        classes, images: what our own figure is of; the number of images tells other lists.
    """
    is_voc = tuple(classes) == VOC_CLASSES and images == _IMAGES.get(measured, _TRAIN_IMAGES)
    return method.published.get((backbone, measured)) if is_voc else None

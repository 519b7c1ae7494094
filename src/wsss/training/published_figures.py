"""mIoU that the authors of the methods report on PASCAL VOC 2012, to stand beside our own."""

from collections.abc import Sequence

from .data.class_list import VOC_CLASSES

# By method and what was measured: on train (1,464 images) with image-level labels, but for
# segmenters, which are measured on val (1,449 images) without.
_MIOU = {
    # Ahn and Kwak, CVPR 2018: ResNet38; the walk is that of the released code
    ("affinitynet", "cam"): 48.0,
    ("affinitynet", "walk"): 61.0,
    ("affinitynet", "segmenter"): 61.7,
    # Ahn, Cho and Kwak, CVPR 2019: ResNet50, DeepLab v2; labels are not refined by a CRF
    ("irnet", "cam"): 48.3,
    ("irnet", "walk"): 66.5,
    ("irnet", "labels"): 66.5,
    ("irnet", "segmenter"): 63.5,
    # Fan et al., AAAI 2020: ResNet101, seeds with a saliency model
    ("cian", "segmenter"): 64.3,
    # Kolesnikov and Lampert, ECCV 2016: VGG16; as printed in the AffinityNet paper
    ("sec", "segmenter"): 50.7,
}


_IMAGES = {"segmenter": 1449}
_TRAIN_IMAGES = 1464


def published_miou(
    method: str, measured: str, classes: Sequence[str], images: int | None
) -> float | None:
    """Per cent; None where nothing was found, or the images are not those of VOC 2012.

    Args:
        measured: cam, walk, labels or segmenter.
        classes, images: what our own figure is of; the number of images tells other lists.
    """
    is_voc = tuple(classes) == VOC_CLASSES and images == _IMAGES.get(measured, _TRAIN_IMAGES)
    return _MIOU.get((method, measured)) if is_voc else None

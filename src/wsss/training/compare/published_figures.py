"""mIoU that the authors of the methods report on PASCAL VOC 2012, to stand beside our own."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.class_list import VOC_CLASSES


@dataclass(frozen=True)
class Published:
    """A figure of others.

    Attributes:
        miou: per cent.
        source: where it stands, and what is special to it.
    """

    miou: float
    source: str


_PSA_CODE = "readme of the released code"
_PSA_PAPER = "Ahn and Kwak, CVPR 2018"
_IRN_PAPER = "Ahn, Cho and Kwak, CVPR 2019"

# By method, backbone and what was measured: on train (1,464 images) with image-level labels, but
# for segmenters, which are measured on val (1,449 images) without. A walk stands beside the CAMs
# that it started from: the paper of AffinityNet has other CAMs (48.0) and another alpha (58.1).
_MIOU = {
    ("affinitynet", "resnet38", "cam"): Published(47.7, _PSA_CODE),
    ("affinitynet", "resnet38", "walk"): Published(61.0, _PSA_CODE),
    ("affinitynet", "resnet38", "segmenter"): Published(61.7, _PSA_PAPER),
    ("affinitynet", "vgg16", "cam"): Published(48.9, _PSA_CODE),
    ("affinitynet", "vgg16", "walk"): Published(59.6, _PSA_CODE),
    ("affinitynet", "vgg16", "segmenter"): Published(58.4, _PSA_PAPER),
    ("irnet", "resnet50", "cam"): Published(48.3, _IRN_PAPER),
    ("irnet", "resnet50", "walk"): Published(66.5, _IRN_PAPER),
    ("irnet", "resnet50", "labels"): Published(66.5, f"{_IRN_PAPER}; without CRF"),
    ("irnet", "resnet50", "segmenter"): Published(63.5, f"{_IRN_PAPER}; DeepLab v2"),
    ("cian", "resnet101", "segmenter"): Published(
        64.3, "Fan and others, AAAI 2020; seeds with a saliency model"
    ),
    ("sec", "vgg16", "segmenter"): Published(
        50.7, "Kolesnikov and Lampert, ECCV 2016, as Ahn and Kwak print it"
    ),
}
_IMAGES = {"segmenter": 1449}
_TRAIN_IMAGES = 1464


def published_miou(
    method: str, backbone: str, measured: str, classes: Sequence[str], images: int | None
) -> Published | None:
    """What the authors had of the same network; None where nothing was found, or not on VOC 2012.

    Args:
        measured: cam, walk, labels or segmenter.
        classes, images: what our own figure is of; the number of images tells other lists.
    """
    is_voc = tuple(classes) == VOC_CLASSES and images == _IMAGES.get(measured, _TRAIN_IMAGES)
    return _MIOU.get((method, backbone, measured)) if is_voc else None

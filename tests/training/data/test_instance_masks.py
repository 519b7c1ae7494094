"""Instances as truth: VOC's ids and COCO's annotations, and files that do not fit each other."""

import os
from pathlib import Path

import numpy as np
import pytest
from drawn_instances import LISTS, write_scenes
from small_image_sets import (
    HEIGHT,
    WIDTH,
    coco_document,
    rectangle,
    write_coco,
    write_folder,
    write_image,
    write_mask,
    write_text,
    write_voc,
)

from wsss.errors import DataError
from wsss.runtime.instances.files import encode_ids
from wsss.runtime.io.image_io import write_label_map
from wsss.training.data.image_set import Sample
from wsss.training.data.inspect import inspect
from wsss.training.data.readers import read_image_set

SHARED = Path(os.environ.get("WSSS_SHARED", Path(__file__).parents[4] / "shared"))
VOC_MINI = SHARED / "data" / "voc_mini"
CAT, ANT = 7, 9


def label_map_of(sample: Sample) -> np.ndarray:
    """What the instances say of classes, 255 where they are void."""
    truth = sample.load_instances()
    assert truth.ids.dtype == np.uint16 and truth.void.dtype == bool
    assert not truth.ids[truth.void].any()
    assert np.unique(truth.ids[truth.ids > 0]).tolist() == list(range(1, len(truth) + 1))
    return np.where(truth.void, 255, np.append(0, truth.classes + 1)[truth.ids])


def one(tmp_path: Path, ids: np.ndarray, mask: np.ndarray) -> Sample:
    """The image of a devkit with these two files."""
    write_voc(tmp_path, {"train": ["a"]}, {"a": ["cat"]})
    write_label_map(tmp_path / "SegmentationClass" / "a.png", mask.astype(np.uint8))
    (tmp_path / "SegmentationObject").mkdir(exist_ok=True)
    ids = ids.astype(np.uint16)
    data = encode_ids(np.where(ids == 255, 0, ids), ids == 255)
    (tmp_path / "SegmentationObject" / "a.png").write_bytes(data)
    (sample,) = read_image_set(tmp_path).samples
    return sample


def grid(*rows: list[int]) -> np.ndarray:
    found = np.zeros((HEIGHT, WIDTH), int)
    found[: len(rows), : len(rows[0])] = rows
    return found


def test_scenes_come_back(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path)
    images = read_image_set(tmp_path)
    assert len(images.samples) == sum(LISTS.values())
    for sample in images.samples:
        truth, (drawn, _) = sample.load_instances(), scenes[sample.name]
        np.testing.assert_array_equal(label_map_of(sample), sample.load_mask())
        assert truth.void[:, :2].all() and not truth.void[:, 2:].any()
        for r in range(len(truth)):
            (number,) = np.unique(drawn.ids[truth.ids == r + 1]).tolist()
            assert drawn.classes[number - 1] == truth.classes[r]
            np.testing.assert_array_equal(truth.ids[:, 2:] == r + 1, drawn.ids[:, 2:] == number)


def test_void_of_either_file_is_void(tmp_path: Path) -> None:
    sample = one(
        tmp_path,
        grid([9, 9, 255, 0, 4, 0], [9, 255, 0, 0, 4, 7]),
        grid([3, 255, 255, 2, 5, 0], [3, 3, 0, 2, 5, 255]),
    )
    truth = sample.load_instances()
    assert truth.ids[:2].tolist() == [[2, 0, 0, 0, 1, 0], [2, 0, 0, 0, 1, 0]]
    assert truth.classes.tolist() == [4, 2]  # in the order of their ids
    # A class without an id (2) says that there is an object, not which.
    assert np.argwhere(truth.void).tolist() == [[0, 1], [0, 2], [0, 3], [1, 1], [1, 3], [1, 5]]


def test_ids_of_16_bits(tmp_path: Path) -> None:
    sample = one(tmp_path, grid([300, 300, 1000]), grid([2, 2, 3]))
    truth = sample.load_instances()
    assert truth.ids[0, :4].tolist() == [1, 1, 2, 0] and truth.classes.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (grid([1, 1, 2]), grid([2, 3, 3]), "instance 1 of .* lies on the indices 2, 3 of its mask"),
        (grid([1, 1, 2]), grid([2, 0, 3]), "instance 1 of .* lies on the indices 0, 2 of its mask"),
        (grid([5, 5, 2]), grid([0, 0, 3]), "instance 5 of .* lies on the background of its mask"),
        (np.ones((2, 2)), grid([1]), "ids '.*' are 2 x 2, the mask of classes is 4 x 6"),
        (np.ones((2, 2)), np.ones((2, 2)), "mask of image 'a' is 2 x 2, its image .* is 4 x 6"),
        (grid([1]), grid([77]), "holds index 77, expected 0..20 or 255"),
    ],
)
def test_files_that_do_not_fit(
    ids: np.ndarray, mask: np.ndarray, message: str, tmp_path: Path
) -> None:
    sample = one(tmp_path, ids, mask)
    with pytest.raises(DataError, match=message):
        sample.load_instances()


def test_images_without_ids_or_without_mask(tmp_path: Path) -> None:
    write_voc(tmp_path, {"train": ["a", "b", "c"]}, {"a": ["cat"], "b": [], "c": []})
    for folder, name in (("Object", "a"), ("Class", "b"), ("Object", "c"), ("Class", "c")):
        write_mask(tmp_path / f"Segmentation{folder}" / f"{name}.png", 1)
    samples = read_image_set(tmp_path).samples
    assert [sample.instances is not None for sample in samples] == [False, False, True]
    with pytest.raises(DataError, match="image 'a' has no instance masks"):
        samples[0].load_instances()


def coco(tmp_path: Path, *items: tuple[int, object, int]) -> Sample:
    annotations = [
        {"image_id": 1, "category_id": category, "segmentation": shape, "iscrowd": crowd}
        for category, shape, crowd in items
    ]
    write_image(tmp_path / "a.jpg")
    write_coco(tmp_path / "instances.json", coco_document(["a.jpg"], annotations))
    (sample,) = read_image_set(tmp_path).samples
    return sample


def test_every_annotation_is_an_instance(tmp_path: Path) -> None:
    crowd = {"counts": [0, 2 * HEIGHT, 4 * HEIGHT], "size": [HEIGHT, WIDTH]}
    sample = coco(
        tmp_path,
        (CAT, [rectangle(0, 1, 1, 1)], 0),
        (ANT, [rectangle(0, 1, 2, 3)], 0),
        (CAT, [rectangle(0, 5, 4, 1)], 0),
        (CAT, crowd, 1),
    )
    truth = sample.load_instances()
    assert truth.ids[:3].tolist() == [
        [0, 3, 1, 1, 0, 2],
        [0, 1, 1, 1, 0, 2],
        [0, 0, 0, 0, 0, 2],
    ]  # the largest is drawn first
    assert truth.classes.tolist() == [1, 0, 0]
    assert np.argwhere(truth.void)[:, 1].max() == 1 and truth.void.sum() == 6
    np.testing.assert_array_equal(label_map_of(sample), sample.load_mask())


def test_hidden_annotations_and_classes_outside_of_the_list(tmp_path: Path) -> None:
    write_text(tmp_path / "classes.txt", "cat")
    write_image(tmp_path / "a.jpg")
    annotations = [
        {"image_id": 1, "category_id": category, "segmentation": [shape]}
        for category, shape in (
            (CAT, rectangle(0, 0, 4, 6)),
            (CAT, rectangle(2, 0, 2, 6)),
            (CAT, rectangle(2, 0, 2, 6)),  # hides the one before
            (ANT, rectangle(0, 0, 1, 1)),
        )
    ]
    write_coco(tmp_path / "instances.json", coco_document(["a.jpg"], annotations))
    (sample,) = read_image_set(tmp_path, strict=False).samples
    truth = sample.load_instances()
    assert len(truth) == 2 and truth.classes.tolist() == [0, 0]
    assert truth.ids[:, 1].tolist() == [1, 1, 2, 2] and truth.ids[0, 0] == 0
    np.testing.assert_array_equal(label_map_of(sample), sample.load_mask())


def test_boxes_alone_are_no_instances(tmp_path: Path) -> None:
    sample = coco(tmp_path, (CAT, None, 0))
    with pytest.raises(DataError, match="image 'a' has no instance masks"):
        sample.load_instances()


def test_folders_of_images_have_none(tmp_path: Path) -> None:
    root = write_folder(tmp_path, "file,labels\na,cat", ["a.png"])
    write_mask(root / "masks" / "a.png", 1)
    (sample,) = read_image_set(root).samples
    assert sample.mask is not None and sample.instances is None


def test_digest_knows_instances(tmp_path: Path) -> None:
    write_scenes(tmp_path)
    before = [read_image_set(tmp_path).digest(masks=masks) for masks in (True, False)]
    (tmp_path / "SegmentationObject" / "train_0.png").unlink()
    after = [read_image_set(tmp_path).digest(masks=masks) for masks in (True, False)]
    assert before[0] != after[0] and before[1] == after[1]


def test_inspection_counts_and_opens_them(tmp_path: Path) -> None:
    write_scenes(tmp_path)
    (tmp_path / "SegmentationObject" / "train_0.png").unlink()
    path = tmp_path / "SegmentationObject" / "train_1.png"
    path.write_bytes(path.read_bytes()[:-9])
    found = inspect(tmp_path)
    count = sum(LISTS.values())
    assert (found.masks, found.instance_masks) == (count, count - 1)
    assert [(each.kind, each.image) for each in found.findings] == [("bad mask", "train_1")]


@pytest.mark.skipif(not VOC_MINI.is_dir(), reason="needs data/voc_mini in WSSS_SHARED")
def test_voc_mini() -> None:
    """The counts of its README; its masks and instances agree pixel for pixel."""
    images = read_image_set(VOC_MINI)
    counts = {}
    for split, number in (("train_instances", 204), ("val_instances", 63)):
        samples = images.select(split).samples
        assert len(samples) == number
        counts[split] = sum(len(sample.load_instances()) for sample in samples)
        for sample in samples[::10]:
            np.testing.assert_array_equal(label_map_of(sample), sample.load_mask())
    assert counts == {"train_instances": 921, "val_instances": 310}

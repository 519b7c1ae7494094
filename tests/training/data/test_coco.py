"""COCO JSON: where files lie, labels, masks, and documents that are refused."""

from pathlib import Path

import numpy as np
import pytest
from small_image_sets import (
    HEIGHT,
    WIDTH,
    coco_document,
    rectangle,
    write_coco,
    write_image,
    write_text,
)

from wsss.errors import DataError
from wsss.training.data.readers import read_image_set

CAT, ANT = 7, 9


def item(image: int, category: int, segmentation: object, crowd: int = 0) -> dict[str, object]:
    return {
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "iscrowd": crowd,
    }


def test_lists_of_the_official_layout(tmp_path: Path) -> None:
    write_image(tmp_path / "train2017" / "1.jpg")
    write_image(tmp_path / "val2017" / "2.jpg")
    for part, name in (("train2017", "1.jpg"), ("val2017", "2.jpg")):
        document = coco_document([name], [item(1, ANT, [rectangle(0, 0, 2, 2)])])
        write_coco(tmp_path / "annotations" / f"instances_{part}.json", document)
    write_text(tmp_path / "annotations" / "captions_train2017.json", "{}")
    images = read_image_set(tmp_path)
    assert images.classes == ("cat", "ant")  # by category id
    assert [(s.name, s.splits, s.labels) for s in images.samples] == [
        ("1", ("train",), (1,)),
        ("2", ("val",), (1,)),
    ]


@pytest.mark.parametrize("folder", [".", "images"])
def test_a_single_file_without_list(tmp_path: Path, folder: str) -> None:
    write_image(tmp_path / folder / "a.jpg")
    write_image(tmp_path / folder / "deep" / "b.jpg")
    document = coco_document(["a.jpg", "deep/b.jpg"], [item(1, CAT, [rectangle(0, 0, 2, 2)])])
    write_coco(tmp_path / "annotations.json", document)
    images = read_image_set(tmp_path)
    assert [(s.name, s.labels) for s in images.samples] == [("a", (0,)), ("deep/b", ())]
    assert images.splits == ("train",)
    assert not images.samples[1].load_mask().any()


def test_files_in_the_folders_of_images(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        write_image(tmp_path / part / f"{part}.jpg")
        document = coco_document([f"{part}.jpg"], [item(1, CAT, [rectangle(0, 0, 1, 1)])])
        write_coco(tmp_path / part / "_annotations.coco.json", document)
    assert read_image_set(tmp_path).splits == ("train", "val")


def read_one(root: Path, *items: dict[str, object]) -> tuple[tuple[int, ...] | None, object]:
    write_image(root / "a.jpg")
    write_coco(root / "instances.json", coco_document(["a.jpg"], items))
    (sample,) = read_image_set(root).samples
    return sample.labels, None if sample.mask is None else sample.load_mask()


def test_small_objects_lie_on_large_ones_and_all_on_crowds(tmp_path: Path) -> None:
    labels, mask = read_one(
        tmp_path,
        item(1, ANT, [rectangle(1, 1, 1, 1)]),
        item(1, CAT, {"counts": [HEIGHT, HEIGHT, 4 * HEIGHT], "size": [HEIGHT, WIDTH]}, crowd=1),
        item(1, CAT, [rectangle(0, 1, 3, 2), rectangle(0, 4, 1, 1)]),
    )
    assert labels == (0, 1)
    np.testing.assert_array_equal(
        mask,
        [
            [0, 1, 1, 0, 1, 0],
            [0, 2, 1, 0, 0, 0],
            [0, 1, 1, 0, 0, 0],
            [0, 255, 0, 0, 0, 0],
        ],
    )


def test_a_crowd_is_a_label(tmp_path: Path) -> None:
    labels, mask = read_one(tmp_path, item(1, ANT, [rectangle(0, 0, HEIGHT, WIDTH)], crowd=1))
    assert labels == (1,)
    assert (np.asarray(mask) == 255).all()


def test_boxes_make_no_masks(tmp_path: Path) -> None:
    labels, mask = read_one(tmp_path, item(1, ANT, []), item(1, ANT, None))
    assert labels == (1,) and mask is None


@pytest.mark.parametrize("key", ["height", "width"])
def test_no_mask_without_a_size(tmp_path: Path, key: str) -> None:
    write_image(tmp_path / "a.jpg")
    document = coco_document(["a.jpg"], [item(1, ANT, [rectangle(0, 0, 1, 1)])])
    document["images"] = [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 6} | {key: None}]
    write_coco(tmp_path / "instances.json", document)
    images = read_image_set(tmp_path)
    assert images.samples[0].mask is None
    assert [found.kind for found in images.findings] == ["bad mask"]


def test_classes_txt_reorders_labels_and_masks(tmp_path: Path) -> None:
    write_text(tmp_path / "classes.txt", "ant", "cat")
    labels, mask = read_one(tmp_path, item(1, ANT, [rectangle(0, 0, HEIGHT, WIDTH)]))
    assert labels == (0,)
    assert (np.asarray(mask) == 1).all()


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/etc/passwd", "x/../../a.jpg", "..\\a.jpg", "", "a\0b"]
)
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "a.jpg")
    root = tmp_path / "set"
    write_image(root / "b.jpg")
    write_coco(root / "instances.json", coco_document(["b.jpg", name], []))
    with pytest.raises(DataError, match="expected a path below"):
        read_image_set(root)
    images = read_image_set(root, strict=False)
    assert [sample.name for sample in images.samples] == ["b"]
    assert [found.kind for found in images.findings] == ["refused name"]


def test_images_and_entries_must_agree(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    write_coco(tmp_path / "instances.json", coco_document(["a.jpg", "gone.jpg"], []))
    with pytest.raises(DataError, match=r"mentions image 'gone\.jpg'"):
        read_image_set(tmp_path)
    write_image(tmp_path / "extra.jpg")
    write_coco(tmp_path / "instances.json", coco_document(["a.jpg"], []))
    with pytest.raises(DataError, match=r"no annotation file mentions image 'extra\.jpg'"):
        read_image_set(tmp_path)
    found = read_image_set(tmp_path, strict=False).findings
    assert [finding.kind for finding in found] == ["unlabelled image"]
    write_coco(tmp_path / "instances.json", coco_document(["a.jpg", "extra.jpg"], [item(3, 7, [])]))
    with pytest.raises(DataError, match="annotates image 3"):
        read_image_set(tmp_path)


def broken(**changes: object) -> dict[str, object]:
    return coco_document(["a.jpg"], [item(1, ANT, [])]) | changes


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (broken(images={}), "no list 'images'"),
        (broken(images=[{"id": 1}]), "without id and file_name"),
        (broken(images=[{"id": 1, "file_name": 3}]), "file_name is no text"),
        (broken(images=[{"id": [], "file_name": "a.jpg"}]), "without id and file_name"),
        (broken(categories=[]), "uses category 9"),
        (broken(categories=[3]), "without id and name"),
        (broken(annotations=None), "no list 'annotations'"),
    ],
)
def test_broken_documents(tmp_path: Path, document: dict[str, object], reason: str) -> None:
    write_image(tmp_path / "a.jpg")
    write_coco(tmp_path / "instances.json", document)
    with pytest.raises(DataError, match=reason):
        read_image_set(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[1]", '"text"'])
def test_not_coco(tmp_path: Path, text: str) -> None:
    write_image(tmp_path / "a.jpg")
    write_text(tmp_path / "instances.json", text)
    with pytest.raises(DataError, match=r"is not JSON|has no list"):
        read_image_set(tmp_path)


def test_a_size_that_the_image_does_not_have(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    document = coco_document(["a.jpg"], [item(1, ANT, [rectangle(0, 0, 2, 2)])])
    document["images"] = [{"id": 1, "file_name": "a.jpg", "height": 8, "width": WIDTH}]
    write_coco(tmp_path / "instances.json", document)
    (sample,) = read_image_set(tmp_path).samples
    with pytest.raises(DataError, match=r"is 8 x 6, its image .* is 4 x 6"):
        sample.load_mask()

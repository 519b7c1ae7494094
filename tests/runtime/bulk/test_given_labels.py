"""Image-level labels are looked up, and found wanting, before any work."""

from pathlib import Path

import pytest

from wsss.errors import ConfigError, DataError
from wsss.runtime.bulk.image_list.given_labels import image_refs
from wsss.runtime.bulk.image_list.output_names import NamedImages
from wsss.runtime.bulk.inputs.images import ImageRef
from wsss.runtime.bulk.inputs.sources import Found
from wsss.runtime.io.image_labels import read_label_table

CLASSES = ["dog", "cat", "cow"]


def labelled(rows: str, names: list[str], folder: Path) -> list[tuple[int, ...] | None]:
    path = folder / "labels.csv"
    path.write_text("file,labels\n" + rows)
    table = read_label_table(path)
    with NamedImages([Found(name, f"/{name}") for name in names], folder) as named:
        return [ref.labels for ref in image_refs(named, table, CLASSES)]


def test_classes_are_ascending_indices(tmp_path: Path) -> None:
    rows = "a.jpg,cow;dog\nb.jpg,\nc,cat\nk/d.png,dog\n"
    names = ["a.jpg", "b.jpg", "c.webp", "k/d.jpg"]
    assert labelled(rows, names, tmp_path) == [(0, 2), (), (1,), (0,)]


def test_without_a_table_there_are_none(tmp_path: Path) -> None:
    found = Found("k/a.jpg", "/in/k/a.jpg", (1, 2), (3, 4))
    with NamedImages([found], tmp_path) as named:
        assert list(image_refs(named, None, CLASSES)) == [
            ImageRef("k/a.jpg", "/in/k/a.jpg", "k/a", (1, 2), (3, 4), None)
        ]


def test_a_bare_name_counts_where_no_other_image_has_it(tmp_path: Path) -> None:
    assert labelled("x.png,cat\n", ["one/x.png"], tmp_path) == [(1,)]
    with pytest.raises(DataError, match=r"does not mention image 'one/x\.png'"):
        labelled("x.png,cat\n", ["one/x.png", "two/x.png"], tmp_path)
    rows = "x.png,cat\none/x.png,dog\ntwo/x.png,cow\n"
    assert labelled(rows, ["one/x.png", "two/x.png"], tmp_path) == [(0,), (2,)]


def test_a_bare_name_that_the_table_contradicts_itself_about(tmp_path: Path) -> None:
    rows = "x.png,cat\nx.jpg,dog\n"
    with pytest.raises(DataError, match=r"different rows for 'x\.webp'"):
        labelled(rows, ["k/x.webp"], tmp_path)
    assert labelled(rows + "k/x.webp,cow\n", ["k/x.webp"], tmp_path) == [(2,)]


def test_all_faults_are_counted_and_ten_are_shown(tmp_path: Path) -> None:
    names = [f"{number:02}.jpg" for number in range(25)]
    rows = "".join(f"{name},cat\n" for name in names[:5]) + "05.jpg,horse\n"
    with pytest.raises(ConfigError) as caught:
        labelled(rows, names, tmp_path)
    message = str(caught.value)
    assert message.startswith("labels of 20 images do not fit: label 'horse' of image '05.jpg' is")
    assert "'14.jpg'" in message and "'15.jpg'" not in message and "\n" not in message
    assert "dog, cat, cow" in message
    with pytest.raises(DataError, match=r"^the label file does not mention image '06\.jpg': give"):
        labelled(rows.replace("horse", "cow"), names[:7], tmp_path)

"""Label files in every accepted form say the same; contradictions and guesses are refused."""

from pathlib import Path

import pytest

from wsss.errors import DataError
from wsss.runtime.io.image_labels import LabelEntry, LabelTable, read_label_table


def table_of(folder: Path, text: str, name: str = "labels.csv", **options: object) -> LabelTable:
    path = folder / name
    path.write_bytes(text.encode())
    return read_label_table(path, **options)


EXPECTED = {
    "a.jpg": LabelEntry(("cat", "dog")),
    "b.jpg": LabelEntry(()),
    "c.jpg": LabelEntry(("dog",)),
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "file,labels\na.jpg,cat;dog\nb.jpg,\nc.jpg,dog\n"),
        ("l.csv", "\ufefffile,labels\r\na.jpg,cat;dog\r\nb.jpg,\r\nc.jpg,dog\r\n"),
        ("l.csv", "image,classes\na.jpg,cat|dog\nb.jpg,\nc.jpg,dog\n"),
        ("l.csv", "id,classes\na.jpg,cat dog\nb.jpg,\nc.jpg,dog\n"),
        ("l.csv", 'NAME,Labels\na.jpg,"cat, dog"\nb.jpg,background\n\nc.jpg,dog\n'),
        ("l.csv", 'file;labels\na.jpg;"cat;dog"\nb.jpg;\nc.jpg;dog\n'),
        ("l.tsv", "file\tlabels\na.jpg\tcat;dog\nb.jpg\t\nc.jpg\tdog\n"),
        ("l.csv", "file,cat,dog\na.jpg,1,1\nb.jpg,0,0\nc.jpg,,true\n"),
        ("l.json", '{"a.jpg": ["cat", "dog"], "b.jpg": [], "c.jpg": ["dog"]}'),
        ("l.json", '{"a.jpg": "cat;dog", "b.jpg": "", "c.jpg": {"labels": ["dog"]}}'),
        (
            "l.json",
            '[{"file": "a.jpg", "labels": ["cat", "dog"]}, {"image": "b.jpg", "classes": []},'
            ' {"id": "c.jpg", "labels": ["dog", "dog"]}]',
        ),
    ],
)
def test_all_forms_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    assert dict(table_of(tmp_path, text, name).entries) == EXPECTED


def test_names_with_spaces(tmp_path: Path) -> None:
    table = table_of(tmp_path, "file,labels\na,traffic light;car\nb,traffic light\n")
    assert table.class_names == ("car", "traffic light")
    table = table_of(tmp_path, "file,labels\na,traffic light\n", classes=["traffic light"])
    assert table.class_names == ("traffic light",)
    table = table_of(tmp_path, "file,label\na,traffic light\n")
    assert table.class_names == ("traffic light",)


def test_split_and_source(tmp_path: Path) -> None:
    table = table_of(tmp_path, "id,split,source,classes\na,train,web,cat\nb,,,cat\n")
    assert table.entries["a"] == LabelEntry(("cat",), "train", "web")
    assert table.entries["b"] == LabelEntry(("cat",), None, None)


def test_lookup_with_and_without_extension(tmp_path: Path) -> None:
    table = table_of(
        tmp_path, "file,labels\nsub/a.JPG,cat\nv1.2,dog\nwin\\c.png,cow\ncafe\u0301,cup\n"
    )
    assert table.find("sub/a") == table.find("sub/a.jpg") == LabelEntry(("cat",))
    assert table.find("v1.2.jpg") == table.find("v1.2") == LabelEntry(("dog",))
    assert table.find("win/c.jpg") == LabelEntry(("cow",))
    assert table.find("caf\u00e9.jpg") == LabelEntry(("cup",))
    assert table.find_key("sub/a") == "sub/a.JPG"
    assert table.find("a") is None and table.find("v1") is None


def test_same_stem_in_two_formats(tmp_path: Path) -> None:
    table = table_of(tmp_path, "file,labels\na.jpg,cat\na.png,dog\nb.jpg,cat\nb.png,cat\n")
    assert table.find("a.png") == LabelEntry(("dog",))
    assert table.find("b") == LabelEntry(("cat",))
    with pytest.raises(DataError, match=r"a\.jpg.*a\.png"):
        table.find("a")


def test_equal_duplicates_pass_unequal_ones_do_not(tmp_path: Path) -> None:
    assert len(table_of(tmp_path, "file,labels\na,cat\na,cat\n").entries) == 1
    for name, text in (
        ("l.csv", "file,labels\na,cat\na,dog\n"),
        ("l.json", '{"a": ["cat"], "a": ["dog"]}'),
    ):
        with pytest.raises(DataError, match="two different entries for 'a'"):
            table_of(tmp_path, text, name)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "", "columns"),
        ("l.csv", "file,labels\n", "lists no image"),
        ("l.csv", "photo,labels\na,cat\n", "columns photo, labels, expected one named file"),
        ("l.csv", "file\na\n", "expected one named labels"),
        ("l.csv", "file,cat\na,2\n", "'2' in column 'cat', expected 0 or 1"),
        ("l.csv", "file,labels\na,cat,dog\n", "row 2, has 3 cells, expected 2"),
        ("l.csv", "file,labels\n,cat\n", "without an image name"),
        ("l.csv", 'file,labels\na,"cat\n', "not a CSV file"),
        ("l.csv", "file,labels\na," + "x" * 200_000, "not a CSV file"),
        ("l.json", "{", "not JSON"),
        ("l.json", "[" * 100_000, "not JSON"),
        ("l.json", "3", "neither an object nor a list"),
        ("l.json", '{"a": 3}', "no list of class names for 'a'"),
        ("l.json", '{"a": [3]}', "no list of class names for 'a'"),
        ("l.json", '[{"labels": ["cat"]}]', "item without a name"),
        ("l.json", "[3]", "item without a name"),
        ("l.json", '{"a": {"labels": [], "split": 3}}', "must be strings"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        table_of(tmp_path, text, name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_not_utf8_and_absent(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(b"file,labels\na,\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_label_table(tmp_path / "l.csv")
    with pytest.raises(DataError, match=r"none\.csv"):
        read_label_table(tmp_path / "none.csv")

"""Every image gets a name for its outputs that no other has, on any file system."""

import hashlib
import os
import random
import unicodedata
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsss.errors import DataError
from wsss.runtime.bulk.image_list.frozen_list import freeze, open_list
from wsss.runtime.bulk.image_list.given_labels import image_refs
from wsss.runtime.bulk.image_list.output_names import MAX_BYTES, SUFFIX_BYTES, NamedImages
from wsss.runtime.bulk.inputs.sources import Found

SUFFIXES = (".png", ".confidence.png")


def outputs(names: list[str], scratch: Path, beside: tuple[str, ...] = ()) -> list[str]:
    found = [Found(name, f"/in/{number}") for number, name in enumerate(names)]
    with NamedImages(found, scratch, beside=beside) as named:
        assert len(named) == len(names) and list(named.images()) == found
        return [each.output for each in named]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.jpg", "b/a.jpg"], ["a", "b/a"]),
        (["a.jpg", "a.png"], ["a.jpg", "a.png"]),
        (["a.jpg", "b/x.jpg", "A.png"], ["a.jpg", "b/x", "A.png"]),
        (["v1.2"], ["v1.2"]),  # not an extension of images
        (["x.jpg", "x/y.jpg"], ["x.jpg", "x/y"]),
        (["x.jpg", "x.png/y.jpg"], ["x.jpg", "x.png/y"]),  # else x.png would be file and folder
        (["X.jpg", "x.PNG/y.jpg"], ["X.jpg", "x.PNG/y"]),
        (["x.jpg", "xy.png/y.jpg"], ["x", "xy.png/y"]),
        (["x.jpg", "a/x.png/y.jpg"], ["x", "a/x.png/y"]),
        # x.confidence.png would come twice
        (["x.jpg", "x.confidence.jpg"], ["x.jpg", "x.confidence"]),
        (["x.jpg", "x.png", "x.jpg.png"], ["x.jpg.{x.jpg}", "x.png", "x.jpg"]),
        (["a.jpg", "A.jpg"], ["a.jpg.{a.jpg}", "A.jpg.{A.jpg}"]),
        (["ä.jpg", "a\u0308.jpg"], ["ä.jpg.{ä.jpg}", "a\u0308.jpg.{a\u0308.jpg}"]),
        (["A/x.jpg", "a/x.jpg"], ["A/x.jpg.{A/x.jpg}", "a/x.jpg.{a/x.jpg}"]),
        (["../x.jpg"], ["__/x.jpg.{../x.jpg}"]),
        (["/x.jpg"], ["_/x.jpg.{/x.jpg}"]),
        (["a/./x.jpg", "a//x.jpg"], ["a/_/x.jpg.{a/./x.jpg}", "a/_/x.jpg.{a//x.jpg}"]),
        (["C:x.jpg"], ["C_x.jpg.{C:x.jpg}"]),
        (["..\\x.jpg"], [".._x.jpg.{..\\x.jpg}"]),
        (["a\0.jpg"], ["a_.jpg.{a\0.jpg}"]),
        (["...jpg"], ["...jpg.{...jpg}"]),
        ([".."], ["__.{..}"]),
    ],
)
def test_names(names: list[str], expected: list[str], tmp_path: Path) -> None:
    def filled(text: str) -> str:
        if "{" not in text:
            return text
        head, _, name = text.rstrip("}").partition("{")
        return head + hashlib.sha256(name.encode()).hexdigest()[:8]

    expected = [filled(text) for text in expected]
    for order in permutations(range(len(names))):  # which does not count
        assert outputs([names[i] for i in order], tmp_path) == [expected[i] for i in order]


def test_long_names_are_cut_between_characters(tmp_path: Path) -> None:
    names = ["ü" * 125 + ".jpg", "ü" * 124 + "u.jpg", "\udcfc" * 250 + ".jpg", "日" * 90 + "/x.jpg"]
    found = outputs(names, tmp_path)
    for output in found:
        parts = [os.fsencode(part) for part in output.split("/")]
        assert max(map(len, parts)) <= MAX_BYTES - SUFFIX_BYTES
    for output in (found[0], found[1], found[3]):
        output.encode()  # no halves of characters
    assert len(set(found)) == 4


def test_the_same_name_twice_names_both_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'/in/1' and '/in/3' .* 'b/x': label them apart"):
        outputs(["a.jpg", "b/x.jpg", "c.jpg", "b/x.jpg"], tmp_path)


def test_the_same_image_twice_is_told_as_such(tmp_path: Path) -> None:
    found = [Found(name, f"/in/{name}") for name in ("a.jpg", "b.jpg", "a.jpg")]
    with pytest.raises(DataError, match=r"^'/in/a\.jpg' is given twice: give each image once$"):
        NamedImages(found, tmp_path)


def test_an_output_that_looks_like_a_hashed_one_is_refused(tmp_path: Path) -> None:
    hashed = outputs(["a.jpg", "A.jpg"], tmp_path)[0]
    with pytest.raises(DataError, match="label them apart"):
        outputs(["a.jpg", "A.jpg", f"{hashed}.jpg"], tmp_path)


def test_beside_outputs_that_exist(tmp_path: Path) -> None:
    old = ("a", "b/c.d", "e")
    assert outputs(["a.png", "b/c.jpg", "f.jpg"], tmp_path, old) == ["a.png", "b/c.jpg", "f"]
    assert outputs(["a.confidence.jpg", "b.jpg"], tmp_path, old) == ["a.confidence.jpg", "b.jpg"]
    for name in ("e/x.jpg", "E.png/x.jpg", "b/c.d.e/x.jpg"):
        with pytest.raises(DataError, match="need the folder"):
            outputs([name], tmp_path, old)


PIECES = [
    *("a", "A", "b", "x", "ß", "ss", "ä", "a\u0308", "Å", "\u212b", "İ", "ﬁ", "日本", "😀"),
    *(".", "..", " ", "\n", "\r", "\t", "'", '"', "*", "?", "%", "-", "~", "\\", "C:", ":", "{}"),
    *("\udcff", "\udce4", "\udc80", "\u200d", "\u202e", "\x7f", "\x01", "é", "e\u0301"),
    *(".jpg", ".JPG", ".png", ".jpeg", ".tar", ".confidence", ".png.png"),
    *("y" * 120, "ü" * 60, "日" * 40),
]
EXTENSIONS = [".jpg", ".JPG", ".png", ".jpeg", ".tif", ""]
PART = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)
NAME = st.tuples(st.lists(PART, max_size=2), PART, st.sampled_from(EXTENSIONS)).map(
    lambda parts: "/".join([*parts[0], parts[1] + parts[2]])
)


def check_all(names: list[str], folder: Path) -> None:
    """What a file system that holds the names of images holds those of their outputs as well."""
    folder.mkdir()
    found = outputs(names, folder)
    out = folder / "out"
    files = set()
    folders = {"."}
    for output in found:
        for suffix in SUFFIXES:
            path = out / (output + suffix)
            inside = os.path.relpath(path, out)
            assert not inside.startswith("../") and inside == output + suffix
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "xb"):  # fails where it exists
                pass
            files.add(comparable(inside))
            parents = list(Path(inside).parents)
            folders.update(comparable(str(parent)) for parent in parents)
    # On a file system that knows neither case nor forms of accents.
    assert len(files) == len(names) * len(SUFFIXES)
    assert not files & folders
    # Back again: each output tells its image.
    with NamedImages((Found(name, "/in/x") for name in names), folder) as named:
        refs = list(image_refs(named, None, ()))
    frozen = freeze(refs, folder / "inputs", 64)
    again = list(open_list(folder / "inputs", frozen.digest))
    assert again == refs
    assert {ref.output: ref.name for ref in again} == dict(zip(found, names, strict=True))


def comparable(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


@given(names=st.lists(NAME, min_size=1, max_size=40, unique=True))
def test_any_names_map_one_to_one(names: list[str], tmp_path_factory: pytest.TempPathFactory):
    check_all(names, tmp_path_factory.mktemp("names") / "folder")


def test_two_thousand_names_at_once(tmp_path: Path) -> None:
    generator = random.Random(5)

    def part() -> str:
        return "".join(generator.choices(PIECES, k=generator.randint(1, 4)))

    folders = [""] + [part() + "/" for _ in range(6)]
    names: dict[str, None] = {}
    while len(names) < 2000:
        folder = generator.choice(folders) + generator.choice(["", "", part() + "/"])
        names[folder + part() + generator.choice(EXTENSIONS)] = None
    assert any(len(os.fsencode(n)) > 255 for n in names)
    check_all(list(names), tmp_path / "folder")

"""Names as every format writes them: readable, valid everywhere, never two alike."""

import json
import os
import re
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from labelled_images import NAMES, make_job

from wsss.runtime.bulk.formats.contract import colour, compact_json, origin, origin_text, plain

any_text = st.text(st.characters(codec=None, exclude_categories=())) | st.sampled_from(NAMES)
# Pieces that might run together into an escape.
tricky_text = st.lists(
    st.sampled_from(["\\", "x", "u", "5c", "ff", "\udcff", "\x01", "d800", "\ud800", "n"])
).map("".join)


def unescaped(text: str) -> str:
    """The way back, which shows that nothing is lost."""

    def character(match: re.Match[str]) -> str:
        code = int(match[1] or match[2], 16)
        return chr(code + 0xDC00 if match[1] and code >= 0x80 else code)

    return re.sub(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4}))", character, text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a b/ß日😀.jpg", "a b/ß日😀.jpg"),
        ("line\nbreak\t\r", "line\nbreak\t\r"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("\x00\x1f", "\\x00\\x1f"),
        ("\ud800\udc05\ufffe", "\\ud800\\udc05\\ufffe"),
        ("C:\\new\\x.jpg", "C:\\new\\x.jpg"),
        ("a\\xe9", "a\\x5cxe9"),
    ],
)
def test_names(name: str, expected: str) -> None:
    assert plain(name) == expected


@given(any_text | tricky_text)
@example("\\\udcff\\x5c\udcff")
def test_names_are_fit_and_can_be_told_apart(name: str) -> None:
    fit = plain(name)
    fit.encode("utf-8")
    assert unescaped(fit) == name
    assert plain(fit) == fit or "\\" in name or fit != name
    assert json.loads(compact_json(fit)) == fit
    text = "".join(f"&#{ord(character)};" for character in fit)
    assert "".join(ElementTree.fromstring(f"<a>{text}</a>").itertext()) == fit


def test_origin_holds_classes_colours_and_provenance() -> None:
    job = make_job(["cat", "caf\udce9"])
    found = json.loads(origin_text(job))
    assert found == origin(job)
    assert found["classes"] == ["cat", "caf\\xe9"]
    assert found["palette"] == ["#000000", "#800000", "#008000"]
    assert found["model"] == "0" * 64 and found["settings"]["background_score"] == 0.25
    assert colour(job, 255) == "#e0e0c0"


def test_origin_is_one_sorted_line_of_ascii() -> None:
    text = origin_text(make_job(["größe\n"]))
    assert text.isascii() and "\n" not in text and ": " not in text
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_numbers_that_json_lacks_are_a_bug() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        compact_json(float("nan"))

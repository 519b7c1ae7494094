"""Which formats there are, and formats that other packages add."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from labelled_images import labelled, make_job, written

from wsss.errors import ConfigError
from wsss.runtime.bulk.formats.registry import open_writers, writer_class, writer_names

EXAMPLE = """
from wsss.runtime.bulk.formats.contract import Writer

class AreaWriter(Writer):
    def entry(self, image):
        return [image.ref.name, int((image.label == 1).sum())]

    def collect(self, entries):
        yield "areas.csv", (f"{name},{area}\\n".encode() for name, area in entries)

class NoWriter:
    pass
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a package with entry points where Python finds installed ones."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(package: str, source: str, **formats: str) -> None:
        module = package.replace("-", "_")
        monkeypatch.delitem(sys.modules, module, raising=False)
        (tmp_path / f"{module}.py").write_text(source)
        described = tmp_path / f"{module}-1.0.dist-info"
        described.mkdir()
        (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        points = "".join(f"{name} = {module}:{value}\n" for name, value in formats.items())
        (described / "entry_points.txt").write_text(f"[wsss.writers]\n{points}")

    return install


@pytest.fixture(autouse=True)
def forget_modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def _refusal(*names: str) -> str:
    with pytest.raises(ConfigError) as caught:
        open_writers(names, make_job())
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_writers_come_in_the_order_asked_for() -> None:
    writers = open_writers(["coco", "png"], make_job())
    assert [type(writer).__name__ for writer in writers] == ["CocoWriter", "PngWriter"]
    assert open_writers([], make_job()) == []


def test_what_costs_time_is_asked_for_by_four_formats_only() -> None:
    needs = {name: writer_class(name).needs for name in writer_names()}
    assert {name: set(wanted) for name, wanted in needs.items() if wanted} == {
        "confidence": {"confidence"},
        "scores": {"scores"},
        "instances": {"instances"},
        "coco-instances": {"instances"},
    }


def test_unknown_names_list_the_choices(install: Callable[..., None]) -> None:
    install("wsss-areas", EXAMPLE, areas="AreaWriter")
    message = _refusal("png", "jpg")
    assert message.startswith("unknown format 'jpg': choose among png, confidence, ")
    assert message.endswith("labelme, areas")


def test_a_name_given_twice() -> None:
    assert _refusal("png", "coco", "png") == "format 'png' is given 2 times: give it once"


def test_a_plugin_writes(install: Callable[..., None]) -> None:
    install("wsss-areas", EXAMPLE, areas="AreaWriter")
    assert writer_names()[-1] == "areas"
    (writer,) = open_writers(["areas"], make_job())
    images = [labelled(np.eye(size, dtype=np.uint8), name=f"{size}.jpg") for size in (2, 3)]
    assert written(writer, images) == {"areas.csv": b"2.jpg,2\n3.jpg,3\n"}


@pytest.mark.parametrize(
    ("source", "value", "reason"),
    [
        ("import no_such_module_anywhere", "AreaWriter", "ModuleNotFoundError: No module named"),
        ("raise RuntimeError('first line\\nsecond')", "AreaWriter", "RuntimeError: first line sec"),
        ("def broken(:", "AreaWriter", "SyntaxError: "),
        (EXAMPLE, "Absent", "AttributeError: "),
        (EXAMPLE, "NoWriter", "`wsss_areas:NoWriter` is no subclass of `Writer`"),
    ],
)
def test_a_broken_plugin_is_named(
    install: Callable[..., None], source: str, value: str, reason: str
) -> None:
    install("wsss-areas", source, areas=value)
    message = _refusal("areas")
    assert message.startswith(f"format 'areas' of package 'wsss-areas' cannot be used: {reason}")
    assert message.endswith(": mend or uninstall that package")


def test_a_broken_plugin_disturbs_no_other_format(install: Callable[..., None]) -> None:
    install("wsss-areas", "raise RuntimeError", areas="AreaWriter")
    assert len(open_writers(["png", "cvat"], make_job())) == 2


def test_a_name_offered_twice(install: Callable[..., None]) -> None:
    install("wsss-areas", EXAMPLE, areas="AreaWriter", png="AreaWriter")
    install("other-areas", EXAMPLE, areas="AreaWriter")
    message = _refusal("areas")
    assert "package 'wsss-areas'" in message and "package 'other-areas'" in message
    assert _refusal("png") == (
        "format 'png' is offered by wsss, package 'wsss-areas': uninstall all but one of them"
    )

"""Fifty small images, and jobs that labelled them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from local_model import REFUSED, write_images
from small_jobs import COUNT, label, results

from wsss.runtime.bulk.plan import Settings


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty images, of which one is refused by the model and one is no image."""
    folder = write_images(tmp_path_factory.mktemp("bulk") / "images", COUNT, {20: REFUSED})
    (folder / "3" / "image 007.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def expected(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    summary = label(images, out, settings=Settings(("png", "coco")))
    assert (summary.images, summary.labelled, summary.failed) == (COUNT, COUNT - 2, 2)
    return results(out)


@pytest.fixture
def finished(images: Path, tmp_path: Path) -> Iterator[Path]:
    label(images, tmp_path / "finished")
    return tmp_path / "finished"

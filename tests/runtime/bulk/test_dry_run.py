"""`--dry-run` tells what a job would do and refuses what it would refuse; it writes nothing."""

import os
from pathlib import Path
from typing import Any

import pytest
from local_model import LocalModel, write_images

from wsss.errors import ArtifactError, ConfigError, DataError, WsssError
from wsss.runtime.bulk import dry_run as module
from wsss.runtime.bulk.dry_run import DryRun, dry_run
from wsss.runtime.bulk.plan import Settings
from wsss.runtime.bulk.run import Shard, label_in_bulk

COUNT = 50


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two of the fifty cannot be read."""
    folder = write_images(tmp_path / "images", COUNT)
    (folder / "3" / "image 007.png").write_bytes(b"no image")
    (folder / "1" / "image 041.png").write_bytes(b"")
    return folder


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Names, times and sizes of all that is below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[os.fspath(path)] = (status.st_mtime_ns, status.st_size)
    return found


def looked(images: Path, out: Path, **options: Any) -> DryRun:
    before = everything(out.parent)
    found = dry_run([images], options.pop("model", LocalModel()), out, **options)
    assert everything(out.parent) == before
    return found


def test_a_new_job(images: Path, tmp_path: Path) -> None:
    found = looked(images, tmp_path / "out")
    assert (found.is_begun, found.images, found.units) == (False, COUNT, 7)
    assert (found.labelled, found.failed, found.with_labels) == (0, 0, None)
    assert (found.looked_at, found.bad) == (COUNT, 2)
    assert [(Path(each.image).name, each.code) for each in found.first_bad] == [
        ("image 041.png", "empty"),
        ("image 007.png", "not-an-image"),
    ]
    assert found.bytes_per_label_map is None and found.free_bytes > 0
    label_in_bulk([images], LocalModel(), tmp_path / "out", workers=0)
    assert looked(images, tmp_path / "out").units == found.units


def test_what_would_be_left_out(images: Path, tmp_path: Path) -> None:
    assert looked(images, tmp_path / "out").left_out == ""
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "link").symlink_to(images)
    source = [tmp_path / "others", images]
    found = dry_run([str(each) for each in source], LocalModel(), tmp_path / "out")
    assert found.left_out == f"left out: '{tmp_path}/others/link' (a link to a folder)"


def test_a_job_that_is_begun(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    label_in_bulk([images], LocalModel(), out, workers=0, shard=Shard(0, 2))
    found = looked(images, out)
    done = found.labelled + found.failed
    assert found.is_begun and (found.images, found.units) == (COUNT, 7)
    assert 0 < done < COUNT and found.looked_at == COUNT - done
    assert found.failed + found.bad == 2
    sizes = [path.stat().st_size for path in out.glob("masks/*/*.png")]
    assert found.bytes_per_label_map == sum(sizes) / len(sizes)
    label_in_bulk([images], LocalModel(), out, workers=0)
    found = looked(images, out)
    assert (found.labelled, found.failed, found.looked_at, found.bad) == (COUNT - 2, 2, 0, 0)


def test_images_with_labels(images: Path, tmp_path: Path) -> None:
    names = [path.relative_to(images).as_posix() for path in sorted(images.glob("*/*"))]
    table = tmp_path / "labels.csv"
    rows = [f"{name},{'cat;dog' if place % 5 else ''}" for place, name in enumerate(names)]
    table.write_text("\n".join(["file,labels", *rows]))
    assert looked(images, tmp_path / "out", labels_path=table).with_labels == 40
    table.write_text("\n".join(["file,labels", *rows[1:]]))
    with pytest.raises(DataError, match=r"does not mention image '0/image 000\.png'"):
        looked(images, tmp_path / "out", labels_path=table)
    table.write_text("\n".join(["file,labels", f"{names[0]},cow", *rows[1:]]))
    with pytest.raises(ConfigError, match="'cow'"):
        looked(images, tmp_path / "out", labels_path=table)


def test_what_a_job_refuses(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="unknown format 'no'"):
        looked(images, out, settings=Settings(("no",)))
    with pytest.raises(DataError, match="no such image or folder"):
        looked(tmp_path / "absent", out)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactError, match="is a file: choose a folder for `out`"):
        looked(images, tmp_path / "file")
    with pytest.raises(ArtifactError, match="is not empty"):
        looked(images, images)
    label_in_bulk([images], LocalModel(), out, workers=0)
    with pytest.raises(ConfigError, match="holds labels made otherwise"):
        looked(images, out, model=LocalModel("other"))
    with pytest.raises(ConfigError, match=r"holds labels made otherwise \(different images\)"):
        looked(images / "1", out)


class Unopenable(LocalModel):
    def open(self, threads: int | None) -> Any:
        raise WsssError("it does not open")


def test_the_model_is_opened(images: Path, tmp_path: Path) -> None:
    with pytest.raises(WsssError, match="it does not open"):
        looked(images, tmp_path / "out", model=Unopenable())


def test_headers_are_read_of_some_evenly(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOKED_AT", 10)
    found = looked(images, tmp_path / "out")
    assert found.images == COUNT and 5 <= found.looked_at <= 10

"""Damaged images end in one code each, whatever the damage; `benchmarks/bulk_fuzz_images.py` does
this with ten thousand of them."""

from pathlib import Path

from local_model import LocalModel
from mutated_images import SUFFIXES, write_mutated
from synthetic_jobs import list_of
from tiny_run import files_of

from wsss.runtime.bulk.run import label_in_bulk
from wsss.runtime.bulk.work.records import OK, read_images, recorded_units
from wsss.runtime.io.files import CODES
from wsss.runtime.io.image_io import read_label_map

COUNT = 400


def test_each_gets_a_label_map_or_a_reason(tmp_path: Path) -> None:
    images = write_mutated(tmp_path / "images", COUNT, seed=3)
    out, model = tmp_path / "out", LocalModel(provides=frozenset(), heeds_pixels=False)
    summary = label_in_bulk([images], model, out, workers=2)
    assert summary.images == COUNT and summary.remaining == 0
    frozen = list_of(out)
    records = [each for unit in recorded_units(out) for each in read_images(out, frozen, unit)]
    assert sorted(each.name for each in records) == sorted(files_of(images, "*/*"))
    for record in records:
        if record.is_ok:
            path = out / "masks" / f"{record.output}.png"
            assert read_label_map(path).shape == record.size
        else:
            assert record.code in CODES and record.code != "worker-died"
            assert record.reason.isprintable() and Path(record.name).name in record.reason
    labelled = {Path(each.name).suffix[1:] for each in records if each.is_ok}
    failed = {Path(each.name).suffix[1:] for each in records if not each.is_ok}
    assert labelled == failed == set(SUFFIXES.values())
    assert len({each.code for each in records} - {OK}) > 2
    assert len(files_of(out, "masks/*/*.png")) == summary.labelled


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    first, second, other = (
        files_of(write_mutated(tmp_path / name, 40, seed), "*/*")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == second and first != other

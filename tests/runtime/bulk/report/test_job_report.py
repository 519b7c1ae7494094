"""The report of a job: whole at any time, safe for any name, the same choice in any order."""

import base64
import json
import random
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from report_page import Page, read_page
from synthetic_jobs import write_job, write_units

from wsss.errors import ArtifactError
from wsss.runtime.bulk.image_list.frozen_list import FrozenList
from wsss.runtime.bulk.image_list.large_sets import name_hash
from wsss.runtime.bulk.inputs.images import ImageRef
from wsss.runtime.bulk.report import page as report_page
from wsss.runtime.bulk.report.page import write_job_report
from wsss.runtime.bulk.report.sampling import BACKGROUND_ALONE, choose
from wsss.runtime.bulk.summary import JobCounts, count_records
from wsss.runtime.bulk.timings import TIMINGS, measure_throughput
from wsss.runtime.bulk.work.records import OK, ImageRecord, unit_name
from wsss.runtime.io.image_io import encode_label_map, write_label_map
from wsss.runtime.report.pictures import encode_png

CLASSES = ("<b>cat</b>", "dog\udcff")
SIZE = (12, 16)


def _ref(folder: Path, index: int, name: str = "") -> ImageRef:
    name = name or f"image {index}.png"
    return ImageRef(name, str(folder / name), f"o{index}")


def _record(ref: ImageRef, index: int, **values: object) -> ImageRecord:
    default = {"pixels": {0: 100, 1: 92}, "confidence": 0.5, "change": None, "missing": ()}
    return ImageRecord(index, ref.name, ref.output, OK, size=SIZE, **{**default, **values})


def _write_image(ref: ImageRef) -> None:
    Path(ref.source).write_bytes(encode_png(np.full((*SIZE, 3), 90, np.uint8)))


def _mask() -> NDArray[np.uint8]:
    mask = np.zeros(SIZE, np.uint8)
    mask[:, 8:] = 1
    return mask


def _page(out: Path) -> Page:
    return read_page(write_job_report(out).read_text(encoding="utf-8"))


def _captions(page: Page) -> list[str]:
    return [text for text in page.texts if "confidence" in text]


def test_a_finished_job(tmp_path: Path) -> None:
    out, photos = tmp_path / "out", tmp_path / "photos"
    photos.mkdir()
    names = ["a.png", "<script>alert(1)<\udcff>\"'.png", "\u202egnp.png", "gone.png", "bad.png"]
    refs = [_ref(photos, index, name) for index, name in enumerate(names)]
    images = write_job(out, refs, CLASSES, 2, min_confidence=0.25)
    for ref in refs[:3]:
        _write_image(ref)
        write_label_map(out / "masks" / f"{ref.output}.png", _mask())
    records = [
        _record(refs[0], 0, confidence=0.9, change=0.125),
        _record(refs[1], 1, confidence=0.1, pixels={0: 10, 2: 30}, missing=(0,)),
        _record(refs[2], 2, confidence=0.7, pixels={0: 190, 255: 2}),
        _record(refs[3], 3, confidence=0.8),
        ImageRecord(4, names[4], "o4", "truncated", "cut <short>"),
    ]
    write_units(out, images, records)
    page = _page(out)
    assert page.texts.count("<script>alert(1)<\\xff>\"'.png") == 3  # its class, sure, missing
    assert page.texts.count("\\u202egnp.png") == 2  # background alone, and by confidence
    assert {"<b>cat</b>", "dog\\xff", "no statement", "cut <short>", "bad.png"} <= set(page.texts)
    # a: cat, sure, changed; script: dog, sure, missing; turned: alone, sure; two pictures each
    assert len(page.attributes("img")) == 2 * 8
    assert page.texts.count("the file is not there any more") == 2  # gone: cat, and by confidence
    assert "Labelling job, complete: 5 images." in page.texts
    assert tuple(page.texts[page.texts.index(key) + 1] for key in _COUNTS) == ("4", "1 (20 %)")
    assert "bundle 0123456789ab" in page.texts
    assert '"min_confidence": 0.25' in page.texts[page.texts.index("What made it") + 1]
    assert images.digest in page.texts[page.texts.index("What made it") + 1]
    sure = _captions(page)
    assert sum("changed 12.5 %" in text for text in sure) == 3
    assert "dog\\xff 75.0 %; without a pixel: <b>cat</b>; confidence 0.10" in sure
    assert "no statement 1.0 %; confidence 0.70" in sure


_COUNTS = ("Labelled", "Failed")


def test_what_is_unknown_gets_no_section(tmp_path: Path) -> None:
    refs = [_ref(tmp_path, 0)]
    images = write_job(tmp_path / "out", refs, CLASSES, 1)
    write_units(tmp_path / "out", images, [_record(refs[0], 0, confidence=None)])
    texts = _page(tmp_path / "out").texts
    headings = {"Failures", "Least sure", "Most changed by the walk", "Background alone"}
    assert not headings & set(texts)
    assert "A given class without a pixel" not in texts
    assert {"A sample of each class", "Classes", "Time"} <= set(texts)


def test_a_job_under_way_and_one_that_has_not_begun(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refs = [_ref(tmp_path, index) for index in range(10)]
    images = write_job(out, refs, CLASSES, 4)
    page = _page(out)
    assert "Labelling job under way or interrupted: 0 of 10 images, 0 of 3 units." in page.texts
    write_units(out, images, [_record(ref, i) for i, ref in enumerate(refs)], leave_out={1})
    page = _page(out)
    assert "Labelling job under way or interrupted: 6 of 10 images, 2 of 3 units." in page.texts
    assert "in 6 of 6 images" in page.texts


def test_a_unit_that_ends_meanwhile_is_counted_or_told_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    refs = [_ref(tmp_path, index) for index in range(2)]
    images = write_job(out, refs, CLASSES, 1)
    codes = ("truncated", "empty")
    records = [
        ImageRecord(index, ref.name, ref.output, code, f"it is {code}")
        for index, (ref, code) in enumerate(zip(refs, codes, strict=True))
    ]
    write_units(out, images, records, leave_out={1})

    def count(*arguments: Any) -> JobCounts:
        counts = count_records(*arguments)
        write_units(out, images, records)
        return counts

    monkeypatch.setattr(report_page, "count_records", count)
    texts = _page(out).texts
    assert "Labelling job under way or interrupted: 1 of 2 images, 1 of 2 units." in texts
    assert "it is truncated" in texts and "it is empty" not in texts
    assert "it is empty" in _page(out).texts


def test_masks_in_tars(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refs = [_ref(tmp_path, index) for index in range(2)]
    for ref in refs:
        _write_image(ref)
    images = write_job(out, refs, CLASSES, 1, formats=["png", "tar"])
    write_units(out, images, [_record(ref, index) for index, ref in enumerate(refs)])
    (out / "shards").mkdir()
    (tmp_path / "mask.png").write_bytes(encode_label_map(_mask()))
    with tarfile.open(out / "shards" / f"{unit_name(1)}.tar", "w") as tar:
        tar.add(tmp_path / "mask.png", "000000001.masks.png")
    page = _page(out)
    # Each in its class and by confidence; the tar of the first is not there.
    assert len(page.attributes("img")) == 2 * (1 + 2)
    assert sum("tar cannot be read" in text for text in page.texts) == 2


def test_without_masks_the_photographs_are_shown(tmp_path: Path) -> None:
    out = tmp_path / "out"
    refs = [_ref(tmp_path, index) for index in range(2)]
    for ref in refs:
        _write_image(ref)
    write_label_map(out / "masks" / "o1.png", np.zeros((3, 3), np.uint8))
    images = write_job(out, refs, CLASSES, 2)
    write_units(out, images, [_record(ref, index) for index, ref in enumerate(refs)])
    page = _page(out)
    assert len(page.attributes("img")) == 2 * 2
    assert page.texts.count("the mask has another size than the image") == 2
    write_job(tmp_path / "coco", refs, CLASSES, 2, formats=["coco"])
    write_units(tmp_path / "coco", images, [_record(ref, i) for i, ref in enumerate(refs)])
    assert _page(tmp_path / "coco").texts.count("the job writes no masks (format png)") == 4


def _instance_job(out: Path, **files: NDArray[np.uint8]) -> Page:
    """A job of one image, which has the pair of these `ids` and `classes`."""
    ref = _ref(out.parent, 0)
    _write_image(ref)
    images = write_job(out, [ref], CLASSES, 1, formats=["instances", "png"])
    write_label_map(out / "masks" / "o0.png", np.zeros(SIZE, np.uint8))
    for folder, name in (("SegmentationObject", "ids"), ("SegmentationClass", "classes")):
        if name in files:
            write_label_map(out / folder / "o0.png", files[name])
    write_units(out, images, [_record(ref, 0, instances={1: 2})])
    return _page(out)


def _instances_picture(page: Page) -> NDArray[np.uint8]:
    """The third of an image's pictures."""
    images = page.attributes("img")
    assert len(images) == 2 * 3  # in its class, and by confidence
    assert images[2]["alt"].startswith("instances of")
    data = base64.b64decode(images[2]["src"].split(",", 1)[1])
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))


def test_instances_are_parted_by_lines(tmp_path: Path) -> None:
    """Two objects of one class lie side by side: where they meet, there is a white column."""
    classes, ids = np.ones(SIZE, np.uint8), np.ones(SIZE, np.uint8)
    ids[:, 8:] = 2
    apart = _instances_picture(_instance_job(tmp_path / "two", ids=ids, classes=classes))
    whole = _instances_picture(_instance_job(tmp_path / "one", ids=classes, classes=classes))
    columns = apart.min(axis=2).mean(axis=0)
    assert apart.shape[:2] == SIZE and columns.argmax() == 7
    assert columns[7] > 200 > whole.max(axis=2).mean() + 50
    assert not (whole.min(axis=2) > 150).any()


def test_instances_that_are_not_there_are_told(tmp_path: Path) -> None:
    page = _instance_job(tmp_path / "none")
    assert len(page.attributes("img")) == 2 * 2
    assert page.texts.count("the file is not there any more") == 2
    other = np.ones((3, 3), np.uint8)
    page = _instance_job(tmp_path / "size", ids=other, classes=np.ones(SIZE, np.uint8))
    assert page.texts.count("the mask has another size than the image") == 2


def test_instances_are_counted(tmp_path: Path) -> None:
    refs = [_ref(tmp_path, index) for index in range(3)]
    images = write_job(tmp_path, refs, CLASSES, 2, formats=["coco-instances"])
    told = ({1: 2, 2: 1}, {}, {1: 3})
    records = [_record(ref, i, instances=told[i]) for i, ref in enumerate(refs)]
    write_units(tmp_path, images, records)
    assert count_records(tmp_path, images).instances == {1: 5, 2: 1}
    texts = _page(tmp_path).texts
    assert any(text.endswith("Instances: 6.") for text in texts)
    place = texts.index("instances")
    assert texts[place + 1 :][:11] == [
        *("background", "3", "52.08"),
        *("<b>cat</b>", "3", "47.92", "5"),
        *("dog\\xff", "0", "0.00", "1"),
    ]
    assert any("3 instances; confidence" in text for text in texts)


def test_without_instances_none_are_counted(tmp_path: Path) -> None:
    images = write_job(tmp_path, [_ref(tmp_path, 0)], CLASSES, 1)
    write_units(tmp_path, images, [_record(_ref(tmp_path, 0), 0)])
    assert count_records(tmp_path, images).instances is None
    texts = _page(tmp_path).texts
    assert "images" in texts and "instances" not in texts
    assert not [text for text in texts if "Instances:" in text or " instances;" in text]


def _drawn_job(out: Path, count: int) -> tuple[FrozenList, list[ImageRecord]]:
    draw = random.Random(7)
    refs = [_ref(out, index) for index in range(count)]
    images = write_job(out, refs, CLASSES, 64)
    records = [
        _record(
            ref,
            index,
            pixels={value: 9 for value in draw.sample((0, 1, 2, 255), draw.randint(1, 3))},
            confidence=draw.choice([None, round(draw.random(), 2)]),
            change=round(draw.random(), 2),
            missing=draw.choice([(), (), (1,)]),
        )
        for index, ref in enumerate(refs)
    ]
    write_units(out, images, records)
    return images, records


def test_the_choice_is_that_of_a_sort(tmp_path: Path) -> None:
    images, records = _drawn_job(tmp_path, 500)
    chosen = choose(tmp_path, images, range(images.num_units), len(CLASSES))

    def indices(some: list[ImageRecord]) -> list[int]:
        return [record.index for record in some]

    def shown(some: list) -> list[int]:
        return [each.record.index for each in some]

    by_hash = sorted(records, key=lambda record: name_hash(record.name))
    for value in (1, 2):
        expected = [record for record in by_hash if value in record.pixels][:8]
        assert shown(chosen.by_class[value]) == indices(expected)
    alone = [record for record in by_hash if not {1, 2} & record.pixels.keys()][:8]
    assert shown(chosen.by_class[BACKGROUND_ALONE]) == indices(alone)
    known = [record for record in records if record.confidence is not None]
    doubtful = sorted(known, key=lambda record: (record.confidence, record.index))[:24]
    assert shown(chosen.doubtful) == indices(doubtful)
    changed = sorted(records, key=lambda record: (-record.change, record.index))[:24]
    assert shown(chosen.changed) == indices(changed)
    missing = [record for record in by_hash if record.missing]
    assert (shown(chosen.missing), chosen.num_missing) == (indices(missing[:24]), len(missing))
    everything = [each.record.index for each in chosen.pictures()]
    assert everything == sorted(set(everything))
    backwards = choose(tmp_path, images, reversed(range(images.num_units)), len(CLASSES))
    assert backwards == chosen


def test_many_classes_share_a_bounded_number_of_pictures(tmp_path: Path) -> None:
    refs = [_ref(tmp_path, index) for index in range(40)]
    images = write_job(tmp_path, refs, [str(index) for index in range(254)], 64)
    everything = {value: 1 for value in range(1, 255)}
    records = [_record(ref, index, pixels=everything) for index, ref in enumerate(refs)]
    write_units(tmp_path, images, records)
    chosen = choose(tmp_path, images, [0], 254)
    assert {len(some) for some in chosen.by_class.values()} == {1}
    assert len(chosen.doubtful) == 24


@pytest.mark.parametrize(
    "values",
    [
        *({"name": 3}, {"output": None}, {"sha256": 7}, {"index": 5}, {"size": (1, -2)}),
        *({"size": "x"}, {"confidence": "high"}, {"confidence": 7}, {"change": -1}),
        *({"missing": ("x",)}, {"missing": 4}, {"instances": "many"}, {"instances": {1: -1}}),
        *({"instances": {1: 0.5}}, {"instances": {"x": 1}}),
    ],
)
def test_records_of_strangers_are_refused(tmp_path: Path, values: dict[str, object]) -> None:
    refs = [_ref(tmp_path, 0)]
    images = write_job(tmp_path, refs, CLASSES, 1)
    write_units(tmp_path, images, [replace(_record(refs[0], 0), **values)])
    with pytest.raises(ArtifactError, match=r"00000\.jsonl\.gz' is damaged \(.*\): remove it"):
        write_job_report(tmp_path)


@pytest.mark.parametrize("settings", [{"classes": "cat"}, {"formats": [1]}])
def test_jobs_of_strangers_are_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    write_job(tmp_path, [_ref(tmp_path, 0)], CLASSES, 1)
    job = json.loads((tmp_path / "job.json").read_text())
    job["settings"].update(settings)
    (tmp_path / "job.json").write_text(json.dumps(job))
    with pytest.raises(ArtifactError, match="is damaged: begin the job again"):
        write_job_report(tmp_path)


def _write_timings(out: Path, *lines: tuple[float, float, int]) -> None:
    text = "".join(
        json.dumps({"unit": 0, "images": images, "ended": end, "seconds": {"all": end - start}})
        + "\n"
        for start, end, images in lines
    )
    (out / TIMINGS).write_text(text)


def test_throughput_leaves_pauses_out_and_no_image(tmp_path: Path) -> None:
    day = 86_400.0
    _write_timings(tmp_path, (100, 110, 50), (105, 115, 50), (day, day + 5, 100))
    found = measure_throughput(tmp_path)
    assert found is not None
    assert (found.at_work, found.images, found.pauses) == (20, 200, 1)
    assert (found.first, found.last) == (100, day + 5)
    width = 20 / len(found.rates)
    assert sum(rate * width for rate in found.rates) == pytest.approx(200)
    assert found.seconds == pytest.approx([10 / 3, 10, 50 / 3])
    # 5 images a second from 100 on, 10 from 105, 5 from 110 to 115; then 20.
    assert found.rates[0] * width == pytest.approx(25 + 10 * (width - 5))
    assert found.rates[2] * width == pytest.approx(100 + 5 * (width - 5))


def test_throughput_of_what_is_no_time(tmp_path: Path) -> None:
    assert measure_throughput(tmp_path) is None
    nonsense = [
        '{"unit": 0, "images": 1, "ended": NaN, "seconds": {"all": 1}}',
        '{"unit": 0, "images": 1, "ended": 5, "seconds": {"all": Infinity}}',
        '{"unit": 0, "images": -1, "ended": 5, "seconds": {"all": 1}}',
        '{"unit": 0, "images": 1e999, "ended": 5, "seconds": {"all": 1}}',
        '{"unit": 0, "images": 1, "ended": 5, "seconds": {}}',
        '{"unit": 0, "ima',
    ]
    (tmp_path / TIMINGS).write_text("\n".join(nonsense))
    assert measure_throughput(tmp_path) is None

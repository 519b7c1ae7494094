"""Records, lists and settings that are damaged, of strangers or of another job."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_jobs import label
from synthetic_jobs import list_of

from wsss.errors import ArtifactError
from wsss.runtime.bulk.run import finish_job
from wsss.runtime.bulk.work.records import pack_lines, read_images, read_lines


def test_a_damaged_record_is_told(images: Path, finished: Path) -> None:
    record = finished / "units" / "00003.jsonl.gz"
    whole = record.read_bytes()
    for data in (b"", whole[:50], b"no gzip", whole[:-20] + b"x" * 20):
        record.write_bytes(data)
        with pytest.raises(ArtifactError, match=r"00003\.jsonl\.gz' is damaged"):
            list(read_images(finished, list_of(finished), 3))
        with pytest.raises(ArtifactError, match=r"00003\.jsonl\.gz' is (damaged|empty)"):
            finish_job(finished)
    record.unlink()
    assert label(images, finished).labelled == 8
    assert record.read_bytes() == whole


@pytest.mark.parametrize(
    "values",
    [
        *({"name": 3}, {"output": None}, {"code": ["ok"]}, {"index": "24"}, {"index": 25}),
        *({"size": [1]}, {"size": [1, -1]}, {"size": None}, {"pixels": []}, {"pixels": {"x": 1}}),
        *({"pixels": {"0": "1"}}, {"pixels": {"0": 1.5}}, {"confidence": "1"}, {"confidence": 2}),
        *({"change": -1}, {"missing": 3}, {"missing": ["cat"]}, {"missing": [True]}),
    ],
)
def test_records_of_strangers_are_told(values: dict[str, Any], finished: Path) -> None:
    record = finished / "units" / "00003.jsonl.gz"
    head, first, *others = read_lines(record)
    without = {key: value for key, value in first.items() if key not in values}
    for hostile in ({**first, **values}, without):
        record.write_bytes(pack_lines([head, hostile, *others]))
        with pytest.raises(ArtifactError, match=r"00003\.jsonl\.gz' is damaged .* remove it and"):
            list(read_images(finished, list_of(finished), 3))


def test_records_that_are_not_of_this_job_are_told(images: Path, finished: Path) -> None:
    record = finished / "units" / "00003.jsonl.gz"
    head, *lines = read_lines(record)
    for other in ([head, *lines[1:]], [head, *lines, lines[-1]], [head], [head, lines[0], "x"]):
        record.write_bytes(pack_lines(other))
        with pytest.raises(ArtifactError, match=r"00003\.jsonl\.gz' is damaged"):
            list(read_images(finished, list_of(finished), 3))
    for values in ({"unit": 2}, {"codes": {"ok": 9}}, {"codes": {"ok": "8"}}, {"settings": None}):
        record.write_bytes(pack_lines([{**head, **values}, *lines]))
        for call in (lambda: label(images, finished), lambda: finish_job(finished)):
            with pytest.raises(ArtifactError, match=r"00003\.jsonl\.gz' is damaged"):
                call()
    # As a worker of an earlier job leaves one that outlives it.
    record.write_bytes(pack_lines([{**head, "settings": "0" * 64}, *lines]))
    for call in (lambda: label(images, finished), lambda: finish_job(finished)):
        with pytest.raises(ArtifactError, match=r"00003\.jsonl\.gz' was made by another model or"):
            call()
    record.unlink()
    assert label(images, finished).labelled == 8


@pytest.mark.parametrize("settings", ['{"classes": 3}', '{"formats": [1]}', '{"batch": 1e999}'])
def test_settings_of_strangers_are_told(settings: str, finished: Path) -> None:
    path = finished / "job.json"
    job = json.loads(path.read_text())
    job["settings"] |= json.loads(settings)
    path.write_text(json.dumps(job))
    with pytest.raises(ArtifactError, match=r"job\.json' is damaged: begin the job again"):
        finish_job(finished)


@pytest.mark.parametrize(
    "seconds", ['{"all": NaN}', '{"all": 1, "read": Infinity}', '{"all": 1e999}']
)
def test_times_that_are_none_hold_nothing_up(seconds: str, finished: Path) -> None:
    with (finished / "timings.jsonl").open("a") as file:
        file.write(f'{{"unit": 0, "images": 1, "ended": 5, "seconds": {seconds}}}\n')
    finish_job(finished)
    assert json.loads((finished / "summary.json").read_text())["time"]["images"] == 50


def test_a_list_that_was_exchanged_is_told(images: Path, finished: Path) -> None:
    part = finished / "inputs" / "00001.jsonl.gz"
    part.write_bytes((finished / "inputs" / "00002.jsonl.gz").read_bytes())
    (finished / "units" / "00001.jsonl.gz").unlink()
    with pytest.raises(ArtifactError, match=r"00001\.jsonl\.gz' is damaged or was exchanged"):
        label(images, finished)

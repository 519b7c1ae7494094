"""`wsss label --report`: the page of a job, without a model and while shards are missing."""

import json
from pathlib import Path

import pytest
from command_line import picture, wsss
from report_page import read_page
from synthetic_jobs import write_job, write_units

from wsss.runtime.bulk.inputs.images import ImageRef
from wsss.runtime.bulk.work.lock import whole_job
from wsss.runtime.bulk.work.records import OK, ImageRecord


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job of two units, of which one is done."""
    out = tmp_path / "out"
    refs = [ImageRef(f"{i}.png", str(tmp_path / f"{i}.png"), str(i)) for i in range(2)]
    picture().save(refs[0].source)
    images = write_job(out, refs, ("cat",), 1)
    records = [
        ImageRecord(i, ref.name, ref.output, OK, pixels={1: 9}) for i, ref in enumerate(refs)
    ]
    write_units(out, images, records, leave_out={1})
    return out


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_report_while_another_process_labels(job: Path, arguments: tuple[str, ...]) -> None:
    with whole_job(job):
        outcome = wsss("label", "--report", "--out", job, *arguments).succeeded()
    path = job / "report.html"
    assert path == Path(json.loads(outcome.out)["report"] if arguments else outcome.out.strip())
    page = read_page(path.read_text(encoding="utf-8"))
    assert "Labelling job under way or interrupted: 1 of 2 images, 1 of 2 units." in page.texts

"""`report.html` of a job from its folder, at any time: also while workers are at it."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....errors import ArtifactError
from ....version import __version__
from ...palette import voc_palette
from ..durable import WORK, write_durably
from ..frozen_list import FrozenList, open_list
from ..job import JOB, read_job
from ..plan import INPUTS
from ..records import recorded_units
from ..summary import count_records
from ..timings import add_timings
from ..writers.contract import JobView
from .chosen import choose
from .page import JobReport, render_job_report
from .throughput import measure_throughput
from .thumbnails import draw_thumbnails

REPORT = "report.html"
_MAX_CLASSES = 254


def write_job_report(out: Path) -> Path:
    """Write the report of the units that are done, however many those are.

    Its memory and size are bounded; its time grows with the records.

    Returns:
        Path of the page.

    Raises:
        ArtifactError: no job, a damaged one, or the disk does not take the file.
    """
    job = read_job(out)
    images = open_list(out / INPUTS, job["list"])
    view = _view(out, job["settings"])
    counts = count_records(out, images)
    units = sorted(recorded_units(out).intersection(range(images.num_units)))
    chosen = choose(out, images, units, len(view.classes))
    report = JobReport(
        out.resolve().name,
        counts,
        view,
        chosen,
        measure_throughput(out),
        add_timings(out),
        draw_thumbnails(out, images, view, chosen.pictures()),
        _provenance(job, images),
        f"Written by wsss {__version__} on {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC.",
    )
    path = out / REPORT
    write_durably(path, render_job_report(report).encode("utf-8"), out / WORK)
    return path


def _view(out: Path, settings: Mapping[str, Any]) -> JobView:
    classes, formats = settings.get("classes"), settings.get("formats")
    for texts in (classes, formats):
        if not (
            isinstance(texts, list)
            and len(texts) <= _MAX_CLASSES
            and all(isinstance(text, str) for text in texts)
        ):
            raise ArtifactError(f"'{out / JOB}' is damaged: begin the job again in another folder")
    return JobView(tuple(settings["classes"]), voc_palette(), dict(settings))


def _provenance(job: Mapping[str, Any], images: FrozenList) -> dict[str, Any]:
    return {
        "made_by": job.get("made_by"),
        "settings": job["settings"],
        "sources": job.get("sources"),
        "images": len(images),
        "list": images.digest,
    }

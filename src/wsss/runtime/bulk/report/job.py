"""`report.html` of a job from its folder, at any time: also while workers are at it."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....version import __version__
from ...io.progress import SILENT, Progress
from ...io.staging import WORK, write_durably
from ..image_list.frozen_list import FrozenList, open_list
from ..job import job_view, read_job
from ..plan import INPUTS
from ..summary import count_records
from ..timings import add_timings
from ..work.records import recorded_units
from .page import JobReport, render_job_report
from .sampling import choose
from .throughput import measure_throughput
from .thumbnails import draw_thumbnails

REPORT = "report.html"


def write_job_report(out: Path, progress: Progress = SILENT) -> Path:
    """Write the report of the units that are done, however many those are.

    Its memory and size are bounded; its time grows with the records.

    Returns:
        Path of the page.

    Raises:
        ArtifactError: no job, a damaged one, or the disk does not take the file.
    """
    job = read_job(out)
    images = open_list(out / INPUTS, job["list"])
    view = job_view(out, job["settings"])
    # Before they are counted: of a running job there are more by then, never fewer.
    units = sorted(recorded_units(out).intersection(range(images.num_units)))
    counts = count_records(out, images)
    with progress.task("report", sum(images.parts[unit].count for unit in units)) as task:
        chosen = choose(out, images, units, len(view.classes), task)
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


def _provenance(job: Mapping[str, Any], images: FrozenList) -> dict[str, Any]:
    return {
        "made_by": job.get("made_by"),
        "settings": job["settings"],
        "sources": job.get("sources"),
        "images": len(images),
        "list": images.digest,
    }

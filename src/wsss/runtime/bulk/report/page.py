"""`report.html` of a job from its folder, at any time: also while workers are at it."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....version import __version__
from ...io.files import CODES
from ...io.palette import IGNORE_INDEX
from ...io.progress import SILENT, Progress
from ...io.staging import WORK, write_durably
from ...report.charts import Chart, Curve, draw_shares
from ...report.document import (
    Page,
    bar_cell,
    chart_figure,
    fold_out,
    legend_items,
    picture_cell,
    render_page,
)
from ...report.text import escaped, format_count, format_number, format_seconds
from ..formats.contract import JobView, plain
from ..image_list.frozen_list import FrozenList, open_list
from ..job import job_view, read_job
from ..plan import INPUTS
from ..summary import JobCounts, count_records
from ..timings import STAGES, Throughput, add_timings, measure_throughput
from ..work.records import ImageRecord, recorded_units
from .sampling import BACKGROUND_ALONE, Chosen, Shown, choose
from .thumbnails import Thumbnail, draw_thumbnails, shows_instances

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


@dataclass(frozen=True)
class JobReport:
    """What the page is made of.

    Attributes:
        times: see `add_timings`.
        thumbnails: index of an image -> its pictures, of all that were chosen.
        provenance: what made the job, JSON-compatible.
    """

    name: str
    counts: JobCounts
    view: JobView
    chosen: Chosen
    throughput: Throughput | None
    times: Mapping[str, Any]
    thumbnails: Mapping[int, Thumbnail]
    provenance: Mapping[str, Any]
    footer: str


def render_job_report(report: JobReport) -> str:
    """The page as text."""
    parts = [
        _failures(report.counts, report.chosen),
        _classes(report.counts, report.view),
        _times(report.throughput, report.times),
        _pictures(report),
        fold_out("What made it", plain(json.dumps(report.provenance, indent=2, sort_keys=True))),
    ]
    body = "\n".join(part for part in parts if part)
    page = Page(plain(report.name), _lead(report.counts), _facts(report), body, report.footer)
    return render_page(page)


def _lead(counts: JobCounts) -> str:
    through = counts.labelled + counts.failed
    if counts.is_complete:
        return f"Labelling job, complete: {format_count(counts.images)} images."
    return (
        f"Labelling job under way or interrupted: {format_count(through)} of "
        f"{format_count(counts.images)} images, {format_count(counts.units_done)} of "
        f"{format_count(counts.units)} units."
    )


def _facts(report: JobReport) -> list[tuple[str, str]]:
    counts, settings, throughput = report.counts, report.view.provenance, report.throughput
    model = settings.get("model")
    model = model if isinstance(model, dict) else {}
    digest = model.get("bundle")
    facts = [
        ("Labelled", format_count(counts.labelled)),
        ("Failed", f"{format_count(counts.failed)}{_share(counts.failed, counts.images)}"),
        ("Model", f"bundle {digest[:12]}" if isinstance(digest, str) else "run"),
        ("Mode", ", ".join(str(model[k]) for k in ("mode", "by", "backend") if model.get(k))),
        ("Image labels", "given" if settings.get("image_labels") else "found by the model"),
        ("Formats", ", ".join(str(name) for name in settings["formats"])),
    ]
    if settings.get("min_confidence") is not None:
        facts.append(("Least confidence", str(settings["min_confidence"])))
    if throughput is not None:
        rate = throughput.images / throughput.at_work
        facts.append(("Time at work", format_seconds(throughput.at_work)))
        facts.append(("Images a second", format_number(rate)))
    return [(name, plain(value)) for name, value in facts if value]


def _share(count: int, total: int) -> str:
    return f" ({100 * count / total:.2g} %)" if count else ""


def _failures(counts: JobCounts, chosen: Chosen) -> str:
    if not counts.failed:
        return ""
    codes = sorted(chosen.first_failures, key=lambda code: (-counts.codes.get(code, 0), code))
    rows = "".join(
        f'<tr><th>{escaped(code)}</th><td class="count">{format_count(counts.codes.get(code, 0))}'
        f"</td><td>{escaped(CODES.get(code, ''))}</td>"
        f"<td>{escaped(plain(first.name))}<br>{escaped(plain(first.reason))}</td></tr>\n"
        for code, first in ((code, chosen.first_failures[code]) for code in codes)
    )
    return f"""<h2>Failures</h2>
<p>By code, with the first image of each; when the job is through, failures.csv lists them all.</p>
<div class="card scroll"><table class="failures"><thead><tr><th>code</th><th>images</th>
<th>meaning</th><th>first of them</th></tr></thead>
<tbody>{rows}</tbody></table></div>"""


def _classes(counts: JobCounts, view: JobView) -> str:
    pixels = sum(counts.pixels.values())
    names = {0: "background"} | {place + 1: name for place, name in enumerate(view.classes)}
    if counts.pixels.get(IGNORE_INDEX):
        names[IGNORE_INDEX] = "no statement"
    rows = "".join(
        f"<tr><th>{escaped(plain(name))}</th>"
        + _count_cell(counts.images_of.get(value, 0), counts.labelled)
        + _percent_cell(counts.pixels.get(value, 0), pixels)
        + _instances_cell(counts.instances, value)
        + "</tr>\n"
        for value, name in names.items()
    )
    heading, told = "", ""
    if counts.instances is not None:
        heading = "<th>instances</th>"
        told = f" Instances: {format_count(sum(counts.instances.values()))}."
    return f"""<h2>Classes</h2>
<p>In how many of the {format_count(counts.labelled)} labelled images each occurs, and its share of
all pixels.{told}</p>
<div class="card scroll"><table class="bars few"><thead><tr><th></th><th>images</th>
<th>pixels %</th>{heading}</tr></thead>
<tbody>{rows}</tbody></table></div>"""


def _count_cell(count: int, total: int) -> str:
    return bar_cell(format_count(count), 100 * count / total if total else 0)


def _percent_cell(count: int, total: int) -> str:
    percent = 100 * count / total if total else 0
    return bar_cell(f"{percent:.2f}", percent)


def _instances_cell(instances: Mapping[int, int] | None, value: int) -> str:
    """Empty where the model tells none, and of what is no class."""
    if instances is None:
        return ""
    if value in (0, IGNORE_INDEX):
        return "<td></td>"
    return _count_cell(instances.get(value, 0), sum(instances.values()))


def _times(throughput: Throughput | None, times: Mapping[str, Any]) -> str:
    if throughput is None:
        return ""
    unit, length = ("hours", 3600) if throughput.at_work > 2 * 3600 else ("minutes", 60)
    pauses = f", without {throughput.pauses} pauses" if throughput.pauses else ""
    curve = Curve("images a second", [s / length for s in throughput.seconds], throughput.rates)
    chart = Chart("Throughput", f"{unit} at work{pauses}", [curve], from_zero=True)
    stages = times["stage_seconds"]
    outside = times["share_outside_network"]
    said = "" if outside is None else f"Nothing in the network: {100 * outside:.1f} % of the time."
    shares = draw_shares("Stages", [(name, stages.get(name, 0.0)) for name in STAGES])
    return f"""<h2>Time</h2>
<div class="charts">{chart_figure(chart)}
<figure class="card"><h3>Work of the stages</h3>{shares}
<p>Summed over all threads, without waiting. {said}</p></figure></div>"""


def _pictures(report: JobReport) -> str:
    chosen, classes = report.chosen, report.view.classes
    names = {BACKGROUND_ALONE: "background alone"}
    names |= {place + 1: name for place, name in enumerate(classes)}
    sample = "".join(
        f'<h3 class="group">{escaped(plain(names[value]))} '
        f"<small>{_number_of(report, value)}</small></h3>{_thumbs(report, some)}"
        for value, some in sorted(chosen.by_class.items())
        if value != BACKGROUND_ALONE
    )
    alone = chosen.by_class.get(BACKGROUND_ALONE, [])
    num_missing = format_count(chosen.num_missing)
    sections = [
        _section(
            "Least sure", "Lowest mean confidence of all images first.", report, chosen.doubtful
        ),
        _section(
            "Most changed by the walk",
            "Share of the cells of its grid to which the walk gave another label, largest first.",
            report,
            chosen.changed,
        ),
        _section(
            "A given class without a pixel",
            f"A sample of {num_missing} images.",
            report,
            chosen.missing,
        ),
        _section("Background alone", "A sample of images without any class.", report, alone),
    ]
    colours = [(plain(name), _rgb(report.view, place + 1)) for place, name in enumerate(classes)]
    legend = f'<ul class="legend">{legend_items(colours)}</ul>' if chosen.by_class else ""
    if legend and shows_instances(report.view):
        legend += "<p>The photograph, its labels, and its instances, with a line around each.</p>"
    heading = "<h2>A sample of each class</h2>" if sample else ""
    return f"{heading}{legend}{sample}" + "".join(sections)


def _number_of(report: JobReport, value: int) -> str:
    counts = report.counts
    found = format_count(counts.images_of.get(value, 0))
    return f"in {found} of {format_count(counts.labelled)} images"


def _section(title: str, text: str, report: JobReport, some: Sequence[Shown]) -> str:
    if not some:
        return ""
    return f"<h2>{title}</h2><p>{text}</p>{_thumbs(report, some)}"


def _thumbs(report: JobReport, some: Sequence[Shown]) -> str:
    figures = "".join(
        _thumb(shown.record, report.thumbnails[shown.record.index], report.view.classes)
        for shown in some
    )
    kind = "thumbs wide" if shows_instances(report.view) else "thumbs"
    return f'<div class="{kind}">{figures}</div>\n'


def _thumb(record: ImageRecord, thumbnail: Thumbnail, classes: Sequence[str]) -> str:
    name = plain(record.name)
    cells = picture_cell(thumbnail.photo, name)
    if thumbnail.labels is not None:
        cells += picture_cell(thumbnail.labels, f"labels of {name}")
    if thumbnail.instances is not None:
        cells += picture_cell(thumbnail.instances, f"instances of {name}")
    said = "; ".join(_captions(record, classes))
    return (
        f'<figure class="card"><div class="pair">{cells}</div>'
        f"<figcaption><b>{escaped(name)}</b>{escaped(plain(said))}</figcaption></figure>\n"
    )


def _captions(record: ImageRecord, classes: Sequence[str]) -> list[str]:
    total = sum(record.pixels.values()) or 1
    names = {place + 1: name for place, name in enumerate(classes)}
    names[IGNORE_INDEX] = "no statement"
    found = sorted(record.pixels.items(), key=lambda pair: -pair[1])
    shares = [
        f"{names[value]} {100 * count / total:.1f} %" for value, count in found if value in names
    ]
    lines = [", ".join(shares) or "background alone"]
    if record.missing:
        missing = (classes[index] for index in record.missing if 0 <= index < len(classes))
        lines.append(f"without a pixel: {', '.join(missing)}")
    if record.instances is not None:
        lines.append(f"{format_count(sum(record.instances.values()))} instances")
    if record.confidence is not None:
        lines.append(f"confidence {record.confidence:.2f}")
    if record.change is not None:
        lines.append(f"walk changed {100 * record.change:.1f} %")
    return lines


def _rgb(view: JobView, value: int) -> tuple[int, int, int]:
    red, green, blue = view.palette[value].tolist()
    return red, green, blue

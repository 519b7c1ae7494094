"""Goal 4: what it costs to go on with a job: of ten million images, and of 100,000 real outputs.

    python benchmarks/bulk_resume.py [--entries 10000000] [--outputs 100000] [--folder DIR]

Makes a list of synthetic images (no files behind them) with a record of every unit, and a job that
labels small images by a quick model; then calls both again with nothing left to do, as a killed job
is resumed, and with --dry-run. Each step is a process of its own that prints its seconds and peak
memory; `process_s` has the imports in it. The list takes about 40 bytes an image. What is made in
DIR stays there and is used again, with the figures of when it was made; else a temporary folder is
used and removed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import cv2
import numpy as np
from local_model import LocalModel

from wsss.runtime.bulk.dry_run import dry_run
from wsss.runtime.bulk.formats.contract import JobView
from wsss.runtime.bulk.image_list.frozen_list import freeze, open_list, unit_size_for
from wsss.runtime.bulk.image_list.given_labels import image_refs
from wsss.runtime.bulk.image_list.output_names import NamedImages
from wsss.runtime.bulk.inputs.sources import Found
from wsss.runtime.bulk.job import _write_job, read_job
from wsss.runtime.bulk.plan import INPUTS, Plan, Settings
from wsss.runtime.bulk.run import label_in_bulk
from wsss.runtime.bulk.summary import count_records, write_summary
from wsss.runtime.bulk.work.records import (
    OK,
    SUFFIX,
    UNITS,
    ImageRecord,
    UnitSummary,
    pack_lines,
    unit_name,
)
from wsss.runtime.io.palette import voc_palette
from wsss.runtime.io.staging import WORK

FOLDER_SIZE = 1000
MODEL = LocalModel(provides=frozenset(), heeds_pixels=False)
SOURCES = ["/data/photos"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--outputs", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(STEPS[arguments.step](arguments)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        (folder / "synthetic").mkdir(parents=True, exist_ok=True)
        found = {name: step(arguments, folder, name) for name in STEPS}
    found["load"], found["cores"] = os.getloadavg()[0], os.cpu_count()
    print(json.dumps(found, indent=1))


def step(arguments: argparse.Namespace, folder: Path, name: str) -> dict[str, Any]:
    made = folder / f"{name}.json"
    if made.is_file():
        return dict(json.loads(made.read_text()))
    command = [sys.executable, __file__, "--folder", str(folder), "--step", name]
    command += ["--entries", str(arguments.entries), "--outputs", str(arguments.outputs)]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - start
    found = {**json.loads(done.stdout), "process_s": round(seconds, 2)}
    if name.startswith("make_"):
        made.write_text(json.dumps(found))
    return found


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    found = work()
    return found, round(time.perf_counter() - start, 3)


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# --- ten million entries ---


def images(count: int) -> Iterator[Found]:
    for number in range(count):
        folder, place = divmod(number, FOLDER_SIZE)
        name = f"{folder // 1000:03}/{folder % 1000:03}/photo_{place:05}.jpg"
        stamp = (100_000 + number * 7919 % 200_000, 1_700_000_000_000_000_000 + number * 104_729)
        yield Found(name, f"/data/photos/{name}", None, stamp)


def make_list(arguments: argparse.Namespace) -> dict[str, Any]:
    """Names of outputs, and the frozen list."""
    out = arguments.folder / "synthetic"
    plan = Plan(out, MODEL, Settings())
    start = time.perf_counter()
    with NamedImages(images(arguments.entries), out) as named:
        middle = time.perf_counter()
        size = unit_size_for(len(named))
        found = freeze(image_refs(named, None, ()), out / INPUTS, size)
    end = time.perf_counter()
    _write_job(plan, SOURCES, found)
    return {
        "entries": len(found),
        "units": found.num_units,
        "name_outputs_s": round(middle - start, 1),
        "freeze_s": round(end - middle, 1),
        "cpu_s": round(time.process_time(), 1),
        "peak_mb": peak_mb(),
        "list_mb": round(sum(f.stat().st_size for f in (out / INPUTS).iterdir()) / 1e6),
    }


def read_list(arguments: argparse.Namespace) -> dict[str, Any]:
    """The index alone, as a job is resumed, and one unit."""
    out = arguments.folder / "synthetic"
    found, open_s = timed(lambda: open_list(out / INPUTS, read_job(out)["list"]))
    unit, read_s = timed(lambda: found.unit(found.num_units // 2))
    return {
        "open_s": open_s,
        "read_unit_s": read_s,
        "images_of_unit": len(unit),
        "peak_mb": peak_mb(),
    }


def make_records(arguments: argparse.Namespace) -> dict[str, Any]:
    """One of every unit, and the summary of a job that is through."""
    out = arguments.folder / "synthetic"
    found = open_list(out / INPUTS, read_job(out)["list"])
    plan = Plan(out, MODEL, Settings())
    (out / UNITS).mkdir(exist_ok=True)
    pixels = {value: 10_000 * (value + 1) for value in range(5)}
    digest = plan.digest()
    # What the images of a unit are differs in names alone: packed once, behind each head.
    lines = [
        asdict(ImageRecord(place, ref.name, ref.output, OK, "", digest, (375, 500), pixels, 0.9))
        for place, ref in enumerate(found.unit(0))
    ]
    rest = pack_lines(lines)
    for unit, part in enumerate(found.parts):
        codes = {OK: part.count - 1, "truncated": 1}
        head = UnitSummary(unit, digest, codes, pixels, dict.fromkeys(pixels, part.count))
        (out / UNITS / f"{unit_name(unit)}{SUFFIX}").write_bytes(pack_lines([asdict(head)]) + rest)
    counts, count_s = timed(lambda: count_records(out, found))
    write_summary(out, counts, JobView(MODEL.classes, voc_palette(), plan.identity()))
    return {
        "records": counts.units_done,
        "records_mb": round(sum(f.stat().st_size for f in (out / UNITS).iterdir()) / 1e6),
        "count_s": count_s,
        "peak_mb": peak_mb(),
    }


# --- real outputs ---


def make_outputs(arguments: argparse.Namespace) -> dict[str, Any]:
    """Label small images."""
    folder = arguments.folder / "small"
    for number in range(arguments.outputs):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (number % 8 + 1, number // 8 % 8 + 1, 3), dtype=np.uint8)
        path = folder / f"{number // 1000:03}" / f"{number:06}.png"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    out = arguments.folder / "outputs"
    summary, seconds = timed(lambda: label_in_bulk([folder], MODEL, out, workers=2))
    maps = sum(len(files) for _, _, files in os.walk(out / "masks"))
    return {**summary.to_json(), "out": "outputs", "label_maps": maps, "label_s": seconds}


def again(name: str, sources: Callable[[Path], list[Any]]) -> Callable[[argparse.Namespace], Any]:
    """The same call with nothing left to do."""

    def step(arguments: argparse.Namespace) -> dict[str, Any]:
        out, given = arguments.folder / name, sources(arguments.folder)
        before = snapshot(out)
        summary, seconds = timed(lambda: label_in_bulk(given, MODEL, out, workers=2))
        assert (summary.labelled, summary.remaining) == (0, 0)
        found = {"images": summary.images, "kept": summary.kept, "resume_s": seconds}
        return {**found, "peak_mb": peak_mb(), "nothing_changed": snapshot(out) == before}

    return step


def looked_at(
    name: str, sources: Callable[[Path], list[Any]]
) -> Callable[[argparse.Namespace], Any]:
    """The same call with --dry-run."""

    def step(arguments: argparse.Namespace) -> dict[str, Any]:
        out, given = arguments.folder / name, sources(arguments.folder)
        found, seconds = timed(lambda: dry_run(given, MODEL, out))
        return {"images": found.images, "dry_run_s": seconds, "peak_mb": peak_mb()}

    return step


def snapshot(out: Path) -> dict[str, int]:
    """When what stands in a job's folder was changed."""
    names = (path for path in out.iterdir() if path.name != WORK)
    return {path.name: path.stat().st_mtime_ns for path in names}


def of_list(folder: Path) -> list[Any]:
    return SOURCES


def of_small(folder: Path) -> list[Any]:
    return [folder / "small"]


STEPS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "make_list": make_list,
    "read_list": read_list,
    "make_records": make_records,
    "resume_list": again("synthetic", of_list),
    "dry_run_list": looked_at("synthetic", of_list),
    "make_outputs": make_outputs,
    "resume_outputs": again("outputs", of_small),
    "dry_run_outputs": looked_at("outputs", of_small),
}


if __name__ == "__main__":
    main()

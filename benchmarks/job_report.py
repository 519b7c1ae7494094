"""Time and memory of `report.html` over a labelling job of many images.

    python benchmarks/job_report.py --images 1000000 --folder /tmp/job

Writes a job of records that were drawn, not labelled (its images do not exist, so the page says so
in the place of thumbnails), makes the report in a process of its own, and prints seconds, peak
resident memory and the size of the page as JSON.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from synthetic_jobs import write_job, write_units

from wsss.runtime.bulk.inputs.images import ImageRef
from wsss.runtime.bulk.report.page import REPORT, write_job_report
from wsss.runtime.bulk.work.records import OK, ImageRecord

CLASSES = tuple(f"class {index}" for index in range(20))
UNIT_SIZE = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--measure", action="store_true", help="of a folder that was written")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.folder)))
        return
    refs = (ImageRef(name(i), f"/nowhere/{name(i)}", f"f/{i}") for i in range(arguments.images))
    images = write_job(arguments.folder, refs, CLASSES, UNIT_SIZE)
    write_units(arguments.folder, images, draw_records(arguments.images))
    # The peak of this process would be that of writing.
    command = [sys.executable, __file__, "--measure", "--folder", str(arguments.folder)]
    subprocess.run(command, check=True)


def measure(folder: Path) -> dict[str, float]:
    """Make the report once."""
    started = time.perf_counter()
    path = write_job_report(folder)
    seconds = time.perf_counter() - started
    assert path.name == REPORT
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = path.stat().st_size / 2**20
    return {"seconds": round(seconds, 1), "peak_mib": round(peak), "page_mib": round(size, 2)}


def name(index: int) -> str:
    """Of an image."""
    return f"folder/{index // 1000:05d}/photograph_{index:08d}.jpg"


def draw_records(count: int) -> Iterator[ImageRecord]:
    """Records of one to four classes an image; one of a hundred images has failed."""
    draw = random.Random(0)
    for index in range(count):
        if draw.random() < 0.01:
            yield ImageRecord(index, name(index), f"f/{index}", "truncated", "cut short")
            continue
        values = draw.sample(range(1, len(CLASSES) + 1), draw.randint(1, 4))
        pixels = {0: 150_000} | {value: draw.randint(100, 20_000) for value in values}
        yield ImageRecord(
            index,
            name(index),
            f"f/{index}",
            OK,
            sha256="0" * 64,
            size=(375, 500),
            pixels=pixels,
            confidence=round(draw.random(), 6),
            change=round(draw.random(), 6),
            missing=(3,) if draw.random() < 0.02 else (),
        )


if __name__ == "__main__":
    main()

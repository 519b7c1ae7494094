"""Goal 4: what the list of a job of ten million images costs, to freeze and to open again.

    python benchmarks/bulk_resume.py [--entries 10000000] [--folder DIR]

Makes a list of synthetic images (no files behind them), each step in a process of its own, and
prints seconds and peak memory of: choosing the outputs' names, freezing, opening (the index alone,
as a resumed job does it), and reading one unit. The list takes about 40 bytes an image; DIR is a
temporary folder unless given, and what is made in it is removed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from wsss.runtime.bulk.frozen_list import freeze, open_list, unit_size_for
from wsss.runtime.bulk.given_labels import image_refs
from wsss.runtime.bulk.output_names import NamedImages
from wsss.runtime.bulk.sources import Found

FOLDER_SIZE = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--step", choices=("freeze", "open"), help=argparse.SUPPRESS)
    parser.add_argument("--digest", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "freeze":
        print(json.dumps(frozen(arguments.entries, arguments.folder)))
    elif arguments.step == "open":
        print(json.dumps(opened(arguments.folder, arguments.digest)))
    else:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            first = step(folder, "freeze", "--entries", str(arguments.entries))
            second = step(folder, "open", "--digest", first.pop("digest"))
        load = os.getloadavg()[0]
        print(json.dumps({**first, **second, "load": load, "cores": os.cpu_count()}, indent=1))


def step(folder: str, name: str, *options: str) -> dict:
    command = [sys.executable, __file__, "--folder", folder, "--step", name, *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def images(count: int) -> Iterator[Found]:
    for number in range(count):
        folder, place = divmod(number, FOLDER_SIZE)
        name = f"{folder // 1000:03}/{folder % 1000:03}/photo_{place:05}.jpg"
        stamp = (100_000 + number * 7919 % 200_000, 1_700_000_000_000_000_000 + number * 104_729)
        yield Found(name, f"/data/photos/{name}", None, stamp)


def frozen(count: int, folder: Path) -> dict:
    start = time.perf_counter()
    with NamedImages(images(count), folder) as named:
        middle = time.perf_counter()
        found = freeze(image_refs(named, None, ()), folder / "inputs", unit_size_for(len(named)))
    end = time.perf_counter()
    return {
        "entries": len(found),
        "units": found.num_units,
        "name_outputs_s": round(middle - start, 1),
        "freeze_s": round(end - middle, 1),
        "cpu_s": round(time.process_time(), 1),
        "freeze_peak_mb": peak_mb(),
        "list_mb": round(sum(f.stat().st_size for f in (folder / "inputs").iterdir()) / 1e6),
        "digest": found.digest,
    }


def opened(folder: Path, digest: str) -> dict:
    start = time.perf_counter()
    found = open_list(folder / "inputs", digest)
    middle = time.perf_counter()
    unit = found.unit(found.num_units // 2)
    end = time.perf_counter()
    return {
        "open_s": round(middle - start, 3),
        "read_unit_s": round(end - middle, 4),
        "images_of_unit": len(unit),
        "open_peak_mb": peak_mb(),
    }


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()

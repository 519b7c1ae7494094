"""Goal 6: a labelling job over thousands of damaged images.

    python benchmarks/bulk_fuzz_images.py [--images 10000] [--seed 0] [--keep DIR]

Small images of six formats are generated and damaged (bits, cuts, numbers of the header, splices,
blocks; see `tests/mutated_images.py`), then labelled by a job of two workers with a quick model in
place of a network. Prints one JSON object: what became of the images by code, which of them killed
a worker, which took longer than ten seconds by the marks of their unit, and the largest memory of a
worker. Exit code 1 if one was slow, or has no or an unknown code, or memory was not bounded.
"""

import argparse
import csv
import json
import multiprocessing
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

# Also where spawned workers look.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from local_model import LocalModel
from mutated_images import write_mutated

from wsss.runtime.bulk.image_list.frozen_list import FrozenList, open_list
from wsss.runtime.bulk.job import JOB, read_job
from wsss.runtime.bulk.plan import INPUTS
from wsss.runtime.bulk.run import label_in_bulk
from wsss.runtime.bulk.work.in_progress import under_way
from wsss.runtime.bulk.work.records import OK, read_images, recorded_units, unit_name
from wsss.runtime.io.files import CODES

WORKERS = 2
SLOW_S = 10.0
MAX_RSS_MIB = 1536
_LOOK_S = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="write images and job here, and leave them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.keep or Path(name)
        images = write_mutated(folder / "images", arguments.images, arguments.seed)
        found = {"images": arguments.images, "seed": arguments.seed, **labelled(images, folder)}
    print(json.dumps(found, indent=2))
    bounded = found["worker_peak_rss_mib"] < MAX_RSS_MIB
    return not (bounded and found["each_has_one_code"] and not found["slow"])


def labelled(images: Path, folder: Path) -> dict[str, Any]:
    out = folder / "out"
    model = LocalModel(provides=frozenset(), heeds_pixels=False)
    with Watch(out) as watch:
        started = time.monotonic()
        summary = label_in_bulk([images], model, out, workers=WORKERS)
        seconds = time.monotonic() - started
    codes, of_format, names = Counter[str](), dict[str, Counter[str]](), Counter[str]()
    frozen = open_list(out / INPUTS, read_job(out)["list"])
    for unit in recorded_units(out):
        for record in read_images(out, frozen, unit):
            names[record.name] += 1
            codes[record.code] += 1
            of_format.setdefault(Path(record.name).suffix[1:], Counter())[record.code] += 1
    maps = {path.relative_to(out / "masks").as_posix() for path in out.glob("masks/*/*.png")}
    files = {path.relative_to(images).as_posix() for path in images.glob("*/*")}
    is_known = codes.keys() <= {OK, *CODES} and summary.remaining == 0
    is_whole = names == Counter(dict.fromkeys(files, 1)) and len(maps) == codes[OK]
    return {
        "codes": dict(sorted(codes.items())),
        "codes_by_format": {name: dict(sorted(c.items())) for name, c in sorted(of_format.items())},
        "each_has_one_code": is_known and is_whole,
        "killed_a_worker": failed_by(out, "worker-died"),
        "workers_started": len(watch.workers),
        "slow": {name: round(seconds) for name, seconds in watch.slow.items()},
        "slow_means_s": SLOW_S,
        "worker_peak_rss_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,
        "seconds_on_a_busy_machine": round(seconds),
    }


def failed_by(out: Path, code: str) -> list[str]:
    path = out / "failures.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [row[0] for row in csv.reader(file) if row[1] == code]


class Watch:
    """Looks at the marks of the units under way, and tells images that stay there.

    Attributes:
        slow: name -> seconds for which it was seen.
        workers: their process ids.
    """

    def __init__(self, out: Path) -> None:
        self.slow: dict[str, float] = {}
        self.workers: set[int] = set()
        self._out, self._ends = out, threading.Event()
        self._since: dict[tuple[int, int], float] = {}
        self._thread = threading.Thread(target=self._loop)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _loop(self) -> None:
        images: FrozenList | None = None
        while not self._ends.wait(_LOOK_S):
            children = multiprocessing.active_children()
            self.workers.update(child.pid for child in children if child.pid is not None)
            if images is None and (self._out / JOB).is_file():
                images = open_list(self._out / INPUTS, read_job(self._out)["list"])
            if images is not None:
                self._look(images)

    def _look(self, images: FrozenList) -> None:
        now = time.monotonic()
        seen = {
            (unit, place)
            for unit in range(images.num_units)
            for place in under_way(self._out, unit_name(unit))
        }
        self._since = {mark: self._since.get(mark, now) for mark in seen}
        for (unit, place), since in self._since.items():
            if now - since > SLOW_S:
                name = images.unit(unit)[place].name
                if name not in self.slow:
                    print(f"{name} is under way for {now - since:.0f} s", file=sys.stderr)
                self.slow[name] = now - since


if __name__ == "__main__":
    sys.exit(main())

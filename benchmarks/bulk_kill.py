"""What labelling jobs survive: kills of all processes, of single workers, and at system calls.

    python benchmarks/bulk_kill.py --rounds 50 --kills 2 --workers-killed 20 --calls 200 --full 30

A quick model takes the place of a network, so that hundreds of jobs fit into minutes; everything
else is the real thing. Prints one JSON object. Needs `strace` for --calls.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Also where spawned workers look.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import cv2
import numpy as np
from local_model import LocalModel

from wsss.runtime.bulk.plan import Settings
from wsss.runtime.bulk.run import label_in_bulk

IMAGES, BAD = 120, 20
SECONDS = 0.005
"""That the model takes for an image."""
TOLD = {"timings.jsonl", "summary.json", "report.html"}
"""Files that tell of time."""
CALLS = "rename,renameat,renameat2,fsync,fdatasync,syncfs"


MODEL = LocalModel(seconds=SECONDS, heeds_pixels=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--kills", type=int, default=2, help="in each round")
    parser.add_argument("--workers-killed", type=int, default=20)
    parser.add_argument("--calls", type=int, default=200, help="system calls at which to kill")
    parser.add_argument("--full", type=int, default=30, help="... at which the disk is full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", nargs=3, metavar=("IMAGES", "OUT", "WORKERS"))
    arguments = parser.parse_args()
    if arguments.job:
        images, out, workers = arguments.job
        settings = Settings(("png", "coco", "confidence"))
        label_in_bulk([images], MODEL, Path(out), settings=settings, workers=int(workers))
        return
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = write_images(folder / "images", chance)
        for_all = folder / "expected"
        finish(images, for_all, 2)
        expected = results(for_all)
        found = {
            "images": IMAGES,
            "files": len(expected),
            "kills": group_kills(arguments, images, expected, folder, chance),
            "workers": worker_kills(arguments, images, expected, folder, chance),
            "calls": at_calls(arguments.calls, "signal=SIGKILL", images, expected, folder),
            "full_disk": at_calls(arguments.full, "error=ENOSPC", images, expected, folder),
        }
    print(json.dumps(found, indent=2))


def write_images(folder: Path, chance: random.Random) -> Path:
    bad = set(chance.sample(range(IMAGES), BAD))
    for number in range(IMAGES):
        rng = np.random.default_rng(number)
        size = ((48, 64), (40, 40), (64, 48))[number % 3]
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        data = cv2.imencode(".png", pixels)[1].tobytes()
        path = folder / f"{number % 5}" / f"image {number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[: len(data) // 2] if number in bad else data)
    return folder


def job(images: Path, out: Path, workers: int, *before: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*before, sys.executable, __file__, "--job", str(images), str(out), str(workers)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(images: Path, out: Path, workers: int) -> None:
    process = job(images, out, workers)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def results(out: Path) -> dict[str, bytes]:
    """Everything that a job gives, by its path; the locks, which stay, are left out."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in TOLD and path.suffix != ".lock"
    }


def differences(out: Path, expected: Mapping[str, bytes]) -> dict[str, int]:
    found = results(out)
    return {
        "lost": len(expected.keys() - found.keys()),
        "added": len(found.keys() - expected.keys()),
        "changed": sum(found[name] != expected[name] for name in found.keys() & expected.keys()),
        "temporary": len([path for path in out.rglob("*") if path.suffix in (".tmp", ".marks")]),
    }


def added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {key: sum(count[key] for count in counts) for key in counts[0]} if counts else {}


def group_kills(
    arguments: argparse.Namespace,
    images: Path,
    expected: Mapping[str, bytes],
    folder: Path,
    chance: random.Random,
) -> dict[str, Any]:
    """All processes of a job at once, at a random number of images."""
    counts, kills = [], 0
    for number in range(arguments.rounds):
        out = folder / "killed"
        for _ in range(arguments.kills):
            process = job(images, out, number % 3)
            await_masks(process, out, chance.randrange(IMAGES))
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
            process.communicate()
        finish(images, out, number % 3)
        counts.append(differences(out, expected))
        shutil.rmtree(out)
    return {"rounds": arguments.rounds, "kills": kills, **added(counts)}


def await_masks(process: "subprocess.Popen[str]", out: Path, count: int) -> None:
    """Until a job has written so many label maps, or is over."""
    while process.poll() is None and num_masks(out) < count:
        time.sleep(0.002)


def num_masks(out: Path) -> int:
    return sum(1 for _ in out.glob("masks/*/*.png"))


def worker_kills(
    arguments: argparse.Namespace,
    images: Path,
    expected: Mapping[str, bytes],
    folder: Path,
    chance: random.Random,
) -> dict[str, Any]:
    """One worker of a job that goes on, once or twice a job."""
    counts, kills, longest = [], 0, 0.0
    while kills < arguments.workers_killed:
        out = folder / "workers"
        started = time.monotonic()
        process = job(images, out, 2)
        for _ in range(2):
            await_masks(process, out, num_masks(out) + chance.randrange(1, IMAGES // 2))
            workers = children(process.pid)
            if process.poll() is None and workers:
                os.kill(chance.choice(workers), signal.SIGKILL)
                kills += 1
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        longest = max(longest, time.monotonic() - started)
        counts.append(differences(out, expected))
        shutil.rmtree(out)
    return {"kills": kills, "jobs": len(counts), "longest_job_s": longest, **added(counts)}


def children(pid: int) -> list[int]:
    """Workers of a job, not the process that keeps track of shared memory."""
    found = []
    try:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"spawn_main" in command:
                found.append(int(child))
    except OSError:  # it ended meanwhile
        pass
    return found


def at_calls(
    points: int, what: str, images: Path, expected: Mapping[str, bytes], folder: Path
) -> dict[str, Any]:
    """Something that happens at the n-th rename or flush of any thread of a job, for every n."""
    if not points or shutil.which("strace") is None:
        return {"points": 0, "why": "strace is not installed"} if points else {}
    counts, ended, said_so = [], 0, 0
    for number in range(1, points + 1):
        out = folder / "calls"
        inject = f"inject={CALLS}:{what}:when={number}"
        trace = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={CALLS}")
        process = job(images, out, 0, *trace, "-e", inject)
        _, said = process.communicate(timeout=300)
        ended += process.returncode != 0
        said_so += "No space left on device: free space" in said
        finish(images, out, 0)
        counts.append(differences(out, expected))
        shutil.rmtree(out)
    told = {"told": said_so} if "ENOSPC" in what else {}
    return {"points": points, "ended": ended, **told, **added(counts)}


if __name__ == "__main__":
    sys.exit(main())

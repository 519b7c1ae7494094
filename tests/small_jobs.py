"""Labelling jobs of a quick model, and what they leave."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from local_model import LocalModel
from tiny_run import files_of

from wsss.runtime.bulk.run import LabelSummary, label_in_bulk
from wsss.runtime.io.staging import WORK

COUNT = 50
TOLD = ("timings.jsonl", "summary.json", "report.html")
"""What a job tells of time, which is not the same twice."""


def label(images: Path, out: Path, model: LocalModel | None = None, **options: Any) -> LabelSummary:
    options.setdefault("workers", 0)
    return label_in_bulk([images], model or LocalModel(), out, **options)


def results(out: Path) -> dict[str, bytes]:
    """Everything that must be the same, however a job was run; nothing else may be left."""
    found = files_of(out, "**/*.*")
    assert not [name for name in found if name.endswith((".tmp", ".marks"))]
    locks = f"{WORK}/"
    return {
        name: data
        for name, data in found.items()
        if name not in TOLD and not name.startswith(locks)
    }


SCRIPT = """
import signal
import sys
from pathlib import Path
from local_model import LocalModel
from wsss.cli.exit_codes import termination_as_interrupt
from wsss.runtime.bulk.plan import Settings
from wsss.runtime.bulk.run import label_in_bulk

if __name__ == "__main__":
    images, out, seconds, workers = sys.argv[1:]
    # Shells let jobs in the background ignore Ctrl-C, also where these tests are such a job.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with termination_as_interrupt():
        label_in_bulk([images], LocalModel(seconds=float(seconds)), Path(out),
                      workers=int(workers), settings=Settings(("png", "coco")))
"""


def in_group(
    tmp_path: Path, images: Path, out: Path, workers: int, seconds: float = 0.02
) -> "subprocess.Popen[str]":
    """A job in a process group of its own."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), str(images), str(out), str(seconds), str(workers)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )

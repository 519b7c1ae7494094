"""Figures of a running training: `metrics.jsonl`, and TensorBoard events where it is installed."""

import importlib.util
import io
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from ...runtime.io.files import append_bytes, atomic_write_bytes


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All whole lines of a metrics file; [] where there is none."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break  # the line a killed process left unfinished; what follows is not trusted
    return rows


class MetricsWriter:
    """Appends one JSON object a step; continues after `resume_step` as if never interrupted.

    Raises:
        ArtifactError: disk full, no permission; also from `write`.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        self._path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self._path) if row.get("step", 0) <= resume_step]
        atomic_write_bytes(self._path, "".join(f"{json.dumps(row)}\n" for row in kept).encode())
        has_tensorboard = importlib.util.find_spec("tensorboard") is not None
        self._events = _EventFile(folder / "events", resume_step + 1) if has_tensorboard else None

    def write(self, step: int, **figures: float) -> None:
        """Record figures of one step (counted from 1)."""
        append_bytes(self._path, f"{json.dumps({'step': step, **figures})}\n".encode())
        if self._events is not None:
            self._events.write(step, figures)


class _EventFile:
    """TensorBoard's event file, written at once and in this thread.

    Its own writer has a thread, which on a full disk prints a traceback that nobody can catch.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._append(step=0, file_version="brain.Event:2")
        # Steps from here on that an interrupted training left in older files do not count.
        self._append(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, figures: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures.items()]
        self._append(step=step, summary=Summary(value=values))

    def _append(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
        append_bytes(self._path, record.getvalue())

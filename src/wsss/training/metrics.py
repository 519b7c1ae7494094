"""Figures of a running training: `metrics.jsonl`, and TensorBoard events where it is installed."""

import importlib.util
import json
from pathlib import Path
from types import TracebackType
from typing import Any

from ..runtime.files import atomic_write_bytes


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
    """Appends one JSON object a step; continues after `resume_step` as if never interrupted."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(path) if row.get("step", 0) <= resume_step]
        atomic_write_bytes(path, "".join(f"{json.dumps(row)}\n" for row in kept).encode())
        self._file = path.open("a", encoding="utf-8")
        self._events = _open_events(folder, resume_step)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()

    def write(self, step: int, **figures: float) -> None:
        """Record figures of one step (counted from 1)."""
        self._write_line({"step": step, **figures})
        if self._events is not None:
            for name, value in figures.items():
                self._events.add_scalar(name, value, step)

    def _write_line(self, row: dict[str, float]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()


def _open_events(folder: Path, resume_step: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "events"), purge_step=resume_step + 1)

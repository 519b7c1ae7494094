"""What works on this machine, found out by doing it; what `wsss doctor` shows."""

import importlib.metadata
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import MissingDependencyError, WsssError
from ..version import __version__
from .backends.registry import BACKENDS, ONNX, Backend, Device, open_graph
from .bulk.work.lock import are_kept
from .bundle.predictor import BundlePredictor
from .io.files import write_error
from .io.staging import Staging, write_durably
from .system import (
    machine_memory,
    memory_limit,
    open_files_limit,
    quota_of_cores,
    usable_cores,
)

State = Literal["ok", "absent", "broken"]
"""absent: an optional part that is not there; broken: what must be mended."""

_DEVELOPMENT = frozenset({"test", "dev", "oracle", "all"})
"""Extras that no user needs, or that only repeat others."""
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)[^;]*(?:;.*\bextra == \"([^\"]+)\")?")
_FEWEST_FILES = 256
_FEWEST_BYTES = 1 << 28
_IMAGE_SIZE = (375, 500)
"""Height and width of most VOC photographs."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        part: packages, backends, machine, disk or model.
        value: what was found.
        remedy: what would mend or add it; empty where nothing has to be done.
    """

    part: str
    name: str
    value: str
    state: State = "ok"
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings."""

    findings: tuple[Finding, ...]

    @property
    def is_well(self) -> bool:
        """Whether nothing is broken; optional parts may be absent."""
        return all(finding.state != "broken" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {"well": self.is_well, "findings": [asdict(finding) for finding in self.findings]}


def diagnose(out: Path | None = None, model: Path | None = None) -> Diagnosis:
    """Look at everything; whatever is wrong becomes a finding.

    Args:
        out: where files are to be written; it is not made. None: the current folder.
        model: bundle to label one image with.
    """
    findings = [*_packages(), *_backends(), *_machine(), *_disk(out or Path())]
    if model is not None:
        findings += _model(model)
    return Diagnosis(tuple(findings))


def _packages() -> Iterator[Finding]:
    yield Finding("packages", "wsss", __version__)
    yield Finding("packages", "python", platform.python_version())
    try:
        requirements = importlib.metadata.requires("wsss") or []
    except importlib.metadata.PackageNotFoundError:
        told = "not installed, so what it needs is not known"
        yield Finding("packages", "wsss", told, "absent", "pip install wsss")
        return
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    for requirement in requirements:
        found = _REQUIREMENT.match(requirement)
        assert found is not None  # of our own metadata
        name, extra = found.groups()
        if name == "wsss" or extra in _DEVELOPMENT:
            continue
        version = _version(name)
        if version is not None:
            yield Finding("packages", name, version)
        elif extra is None:
            yield Finding("packages", name, "not installed", "broken", "pip install wsss")
        elif not (both and name.startswith("onnxruntime")):  # the other one of the two is there
            remedy = f"pip install 'wsss[{extra}]'"
            yield Finding("packages", name, "not installed", "absent", remedy)
    if len(both) == 2:
        yield Finding(
            "packages",
            "onnxruntime",
            "installed twice, which share one folder",
            "broken",
            "uninstall both, then pip install --force-reinstall 'wsss[cpu]' or 'wsss[gpu]'",
        )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _backends() -> Iterator[Finding]:
    """Each backend on each device, by a graph that is run there."""
    with tempfile.TemporaryDirectory(prefix="wsss_doctor_") as folder:
        graph = Path(folder, "tiny.onnx")
        try:
            _write_tiny_graph(graph)
        except ImportError as error:
            yield Finding("backends", "onnx", str(error), "broken", "pip install wsss")
            return
        # Engines are compiled for one GPU, and models of a server are elsewhere: of these only the
        # packages are looked at.
        findings = [
            _backend(graph, name, device)
            for name, entry in BACKENDS.items()
            if entry.suffix == ONNX
            for device in entry.devices
        ]
    yield from findings
    if not any(finding.state == "ok" for finding in findings):
        remedy = "pip install 'wsss[cpu]', or 'wsss[gpu]' for an NVIDIA GPU"
        yield Finding("backends", "any", "none works", "broken", remedy)


def _write_tiny_graph(path: Path) -> None:
    """`y = x + x`."""
    from onnx import TensorProto, helper

    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    node = helper.make_node("Add", ["x", "x"], ["y"])
    graph = helper.make_graph([node], "tiny", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def _backend(path: Path, backend: Backend, device: Device) -> Finding:
    name = f"{backend} on {device}"
    values = np.arange(4, dtype=np.float32)
    try:
        graph = open_graph(path, backend=backend, device=device)
        try:
            found = graph.run({"x": values})["y"]
        finally:
            graph.close()
    except MissingDependencyError as error:
        return Finding("backends", name, "not to be had", "absent", str(error))
    except WsssError as error:
        return Finding("backends", name, "fails", "broken", str(error))
    if not np.array_equal(found, 2 * values):
        return Finding("backends", name, "computes wrongly", "broken", "install it again")
    return Finding("backends", name, "computes")


def _machine() -> Iterator[Finding]:
    quota = quota_of_cores()
    limited = "" if quota is None else f", for {quota:g} cores' worth of time"
    yield Finding("machine", "cores", f"{usable_cores()}{limited}")
    whole, limit = machine_memory("MemTotal"), memory_limit()
    free = machine_memory("MemAvailable")
    said = [
        f"{_gib(count)} {what}"
        for count, what in ((whole, "in all"), (free, "free"), (limit, "allowed"))
        if count is not None
    ]
    yield Finding("machine", "memory", ", ".join(said) or "unknown")
    files = open_files_limit()
    if files is not None and files < _FEWEST_FILES:
        remedy = f"ulimit -n {4 * _FEWEST_FILES}"
        yield Finding("machine", "open files", f"{files} at most", "broken", remedy)
    else:
        yield Finding("machine", "open files", "no limit" if files is None else f"{files} at most")
    yield _gpu()


def _gpu() -> Finding:
    command = [
        "nvidia-smi",
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return Finding("machine", "GPU", "none that nvidia-smi shows", "absent")
    return Finding("machine", "GPU", "; ".join(done.stdout.strip().splitlines()))


def _disk(out: Path) -> Iterator[Finding]:
    folder = out.resolve()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        yield Finding(
            "disk", str(folder), "cannot be used", "broken", str(write_error(folder, error))
        )
        return
    free = f"{_gib(usage.free)} at {folder}"
    if usage.free >= _FEWEST_BYTES:
        yield Finding("disk", "free space", free)
    else:
        yield Finding("disk", "free space", free, "broken", "free space, or write elsewhere")
    yield _attempt("disk", f"write in {folder}", lambda: _write(folder))


def _write(folder: Path) -> str:
    """Write as a unit of a job is written; milliseconds of its two flushes."""
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".wsss_doctor_", dir=folder))
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        locks = "" if are_kept(scratch) else "; no locks, so run one job in a folder at a time"
        staging = Staging(scratch, "unit")
        staging.put("masks/a.png", bytes(4096))
        started = time.perf_counter()
        staging.sync()
        synced = time.perf_counter()
        write_durably(scratch / "record", bytes(4096), staging.work)
        recorded = time.perf_counter()
        staging.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return f"files {_ms(synced - started)}, a record {_ms(recorded - synced)}{locks}"


def _model(folder: Path) -> Iterator[Finding]:
    height, width = _IMAGE_SIZE
    name = f"label an image of {height} x {width}"
    yield _attempt("model", name, lambda: _label_once(folder))


def _label_once(folder: Path) -> str:
    image = np.random.default_rng(0).integers(0, 256, (*_IMAGE_SIZE, 3), dtype=np.uint8)
    started = time.perf_counter()
    predictor = BundlePredictor(folder)
    try:
        mode, _ = predictor.choose(None, None, has_classes=False)
        predictor.predict_one(image, mode=mode)
        first = time.perf_counter()
        predictor.predict_one(image, mode=mode)
        again = time.perf_counter()
    finally:
        predictor.close()
    return f"mode {mode}: {first - started:.2f} s with opening, then {again - first:.2f} s"


def _attempt(part: str, name: str, action: Callable[[], str]) -> Finding:
    try:
        return Finding(part, name, action())
    except WsssError as error:
        return Finding(part, name, "fails", "broken", str(error))
    except OSError as error:
        return Finding(part, name, "fails", "broken", error.strerror or str(error))


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"

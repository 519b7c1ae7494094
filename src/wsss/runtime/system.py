"""What this process may use of its machine: cores, memory, open files; and its peak of memory.

Linux says it in `/proc` and in the files of control groups, also inside of a container; elsewhere
what is not known is None. Linux alone lets a process forget its peak.
"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
_NO_LIMIT = 1 << 60
"""Above it a figure of control groups (version 1) means that there is none."""


def usable_cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_cores() -> int:
    """As many processes as can compute side by side: the quota of a container counts, too."""
    quota = quota_of_cores()
    return usable_cores() if quota is None else max(1, min(usable_cores(), math.ceil(quota)))


def quota_of_cores(root: Path = _ROOT) -> float | None:
    """Cores' worth of time that a control group allows; None: as much as there is."""
    quotas = []
    for folder in _groups(root, "cpu"):
        words = _words(folder / "cpu.max")
        if not words:  # version 1
            words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit(root: Path = _ROOT) -> int | None:
    """Bytes that a control group allows; None: as much as there is."""
    limits = []
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limits += [int(word) for word in _words(folder / name) if word.isdigit()]
    return min((limit for limit in limits if limit < _NO_LIMIT), default=None)


def machine_memory(key: str, root: Path = _ROOT) -> int | None:
    """Bytes under a key of `/proc/meminfo`, such as `MemTotal` and `MemAvailable`."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == key and value.split()[:1]:
            return 1024 * int(value.split()[0])
    return None


def open_files_limit() -> int | None:
    """Files and sockets that this process may have open at once."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in: each limits those below it."""
    base = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        top = base / controller if controllers else base
        folder = top / place.lstrip("/")
        while folder != top and top in folder.parents:
            yield folder
            folder = folder.parent
        yield top


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> bool:
    """Let `peak_bytes` count from now on; False where the system cannot do that."""
    if sys.platform != "linux":
        return False
    try:
        _CLEAR.write_text("5")
    except OSError:  # some sandboxes
        return False
    return True


def resident_bytes() -> int:
    """What is in memory now; on Linux."""
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """The most that was in memory since `forget_peak`; on Linux."""
    return _status_bytes("VmHWM")


def _status_bytes(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {key} in {_STATUS}")

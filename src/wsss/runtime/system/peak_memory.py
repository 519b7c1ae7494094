"""This process's memory as the system counts it; Linux alone lets a process forget its peak."""

import sys
from pathlib import Path

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

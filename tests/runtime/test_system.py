"""Limits as the files of Linux say them, from folders that stand in for its own."""

from pathlib import Path

import pytest

from wsss.runtime.system import (
    machine_memory,
    memory_limit,
    open_files_limit,
    quota_of_cores,
    usable_cores,
)


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_version_2_the_tightest_group_counts(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/pod/memory.max": "1000\n",
            "sys/fs/cgroup/pod/box/memory.max": "max\n",
            "sys/fs/cgroup/pod/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/box/cpu.max": "150000 100000\n",
        },
    )
    assert memory_limit(root) == 1000
    assert quota_of_cores(root) == 1.5


def test_a_container_that_sees_its_group_as_the_root(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "77\n"}
    root = _write(tmp_path, files | {"sys/fs/cgroup/cpu.max": "50000 100000\n"})
    assert (memory_limit(root), quota_of_cores(root)) == (77, 0.5)


def test_version_1(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/box\n3:cpu,cpuacct:/box\n2:pids:/box\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "2048\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
        },
    )
    assert memory_limit(root) == 2048
    assert quota_of_cores(root) == 2


@pytest.mark.parametrize("text", ["", "0::/no/such/group\n", "nonsense\n", "0::/../../etc\n"])
def test_where_nothing_is_said_there_is_no_limit(tmp_path: Path, text: str) -> None:
    root = _write(tmp_path, {"proc/self/cgroup": text})
    assert memory_limit(root) is None
    assert quota_of_cores(root) is None
    assert memory_limit(tmp_path / "elsewhere") is None
    assert machine_memory("MemTotal", root) is None


def test_memory_of_the_machine(tmp_path: Path) -> None:
    root = _write(tmp_path, {"proc/meminfo": "MemTotal:  20 kB\nMemAvailable:  10 kB\nHuge: 3\n"})
    assert machine_memory("MemTotal", root) == 20 * 1024
    assert machine_memory("MemAvailable", root) == 10 * 1024
    assert machine_memory("SwapTotal", root) is None


def test_of_this_machine() -> None:
    assert usable_cores() >= 1
    files = open_files_limit()
    assert files is None or files > 0

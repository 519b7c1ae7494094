"""Bulk labelling by Ray beside local processes: CPU time, and what lost actors and nodes cost.

    python benchmarks/bulk_ray.py IMAGES --model BUNDLE --count 120

Needs `wsss[cpu,ray]` and Linux. Each case labels the first `count` images of a folder by two
workers of one thread each. CPU time is that of all processes of a case, those of Ray included. In
the cases of a cluster, two nodes of one core each stand on this machine; every actor killed, and
the node lost, was at work. All cases must give the same bytes.
"""

import argparse
import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
OBJECT_STORE_BYTES = 100 << 20
KILLS = 3
SAMPLE_S = 0.2
TICKS = os.sysconf("SC_CLK_TCK")
FEW = 8
"""Images of a run that is nearly all start."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        run_in_cluster(arguments.case, arguments.images, arguments.model, arguments.out)
        return
    # Orphans become children of this process, so that their CPU time is counted.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments, Path(folder)), indent=1))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Figures of all cases."""
    paths = sorted(arguments.images.rglob("*.jpg"))[: arguments.count]
    every, few = listed(folder / "every.txt", paths), listed(folder / "few.txt", paths[:FEW])
    figures: dict[str, list[dict[str, float]]] = {}
    digests = set()
    for round_ in range(arguments.rounds):
        for engine in ("local", "ray"):
            for name, images in (("few", few), ("all", every)):
                out = folder / f"{engine}-{name}-{round_}"
                options = ["--workers", "2", "--mode", "segmenter", "--engine", engine]
                command = ["wsss", "label", str(images), "--out", str(out)]
                figure = timed([*command, "--model", str(arguments.model), *options])
                figures.setdefault(f"{engine}, {name}", []).append(figure)
                if name == "all":
                    digests.add(digest(out))
        for case in ("no fault", f"{KILLS} actors killed", "node lost"):
            out = folder / f"{case}-{round_}"
            command = [str(Path(__file__).resolve()), str(every), "--model", str(arguments.model)]
            figure = timed([*command, "--case", case, "--out", str(out)])
            figure["labelling_s"] = json.loads((folder / f"{out.name}.json").read_text())
            figures.setdefault(f"cluster, {case}", []).append(figure)
            digests.add(digest(out))
    best = {
        name: {key: min(each[key] for each in some) for key in some[0]}
        for name, some in figures.items()
    }
    marginal = {
        engine: best[f"{engine}, all"]["cpu_s"] - best[f"{engine}, few"]["cpu_s"]
        for engine in ("local", "ray")
    }
    return {
        "images": len(paths),
        "seconds": best,
        "same_bytes": len(digests) == 1,
        "cpu_ray_per_local": best["ray, all"]["cpu_s"] / best["local, all"]["cpu_s"],
        "cpu_ray_per_local_without_start": marginal["ray"] / marginal["local"],
    }


def listed(path: Path, images: list[Path]) -> Path:
    """A list file of images."""
    path.write_text("".join(f"{image.resolve()}\n" for image in images), encoding="utf-8")
    return path


def timed(words: list[str]) -> dict[str, float]:
    """Wall and CPU seconds of a command and all that it leaves behind."""
    command = ["-m", *words] if words[0] == "wsss" else words
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=sys.stderr)
    seconds: dict[tuple[int, str], float] = {}
    while process.poll() is None:
        seconds |= cpu_seconds()
        time.sleep(SAMPLE_S)
    wall = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    while True:
        seconds |= cpu_seconds()
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(SAMPLE_S)
        except ChildProcessError:
            break
    return {"wall_s": round(wall, 2), "cpu_s": round(sum(seconds.values()), 2)}


def cpu_seconds() -> dict[tuple[int, str], float]:
    """CPU seconds, until now, of each process that this one or its descendants started.

    Looked up again and again, because the system adds up nothing for the children of raylets.
    """
    parents, found = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        parents[pid] = int(fields[1])
        # utime and stime; the time of start tells two processes of one number apart.
        found[pid] = (pid, fields[19]), (int(fields[11]) + int(fields[12])) / TICKS
    return dict(found[pid] for pid in found if is_below(pid, parents))


def is_below(pid: int, parents: dict[int, int]) -> bool:
    """Whether a process was started by this one, or by what this one started."""
    while pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False


def digest(out: Path) -> str:
    """Of label maps and records, with their names."""
    total = hashlib.sha256()
    for part in ("masks", "units"):
        for path in sorted((out / part).rglob("*")):
            if path.is_file():
                total.update(str(path.relative_to(out)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def run_in_cluster(case: str, images: Path, model: Path, out: Path) -> None:
    """Label on a cluster of two nodes, with what is to happen meanwhile."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    from wsss.opening import open_model
    from wsss.runtime.bulk.predictor_spec import job_spec
    from wsss.runtime.bulk.run import label_in_bulk

    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        other = cluster.add_node(**node)
        cluster.wait_for_nodes()
        faults: dict[str, Callable[[], None]] = {
            "no fault": lambda: None,
            f"{KILLS} actors killed": lambda: kill_actors(out),
            "node lost": lambda: lose_node(out, lambda: cluster.remove_node(other, False)),
        }
        fault = threading.Thread(target=faults[case])
        fault.start()
        started = time.perf_counter()
        summary = label_in_bulk(
            [images],
            job_spec(open_model(model), mode="segmenter"),
            out,
            engine="ray",
            ray_address=cluster.address,
        )
        seconds = time.perf_counter() - started
        fault.join()
        assert summary.remaining == summary.failed == 0
        (out.parent / f"{out.name}.json").write_text(json.dumps(round(seconds, 2)))
    finally:
        cluster.shutdown()


def kill_actors(out: Path) -> None:
    """One after the other, each while it labels."""
    for killed in range(1, KILLS + 1):
        wait_for_units(out, 2 * killed)
        os.kill(actors()[0], signal.SIGKILL)


def lose_node(out: Path, lose: Callable[[], None]) -> None:
    """While both nodes label."""
    wait_for_units(out, 2)
    assert len(actors()) == 2
    lose()


def wait_for_units(out: Path, count: int) -> None:
    """Until so many have their record."""
    while not (out / "units").is_dir() or len(list((out / "units").iterdir())) < count:
        time.sleep(0.05)


def actors() -> list[int]:
    """Processes of this cluster that label."""
    found = []
    for pid, _ in cpu_seconds():
        try:
            if b"ray::_Labeller" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:  # it has ended
            continue
    return found


if __name__ == "__main__":
    main()

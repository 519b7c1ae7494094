"""Goal 7: checkpoints and bundles of strangers, damaged at random or made to do harm.

    python benchmarks/fuzz_models.py [--checkpoints 1000] [--bundles 1000] [--seed 0]

Small models are generated and damaged (`tests/mutated_models.py`), among them bundles that are
sealed again, so that onnx and onnxruntime get to see what is in them; then come files that are made
to run code, read outside of their folder, or take all time or memory (`tests/hostile_models.py`),
and a bundle for every field of the manifest and every kind of wrong value. Each is opened as
training and labelling do, and its graphs get one small image, in a process with ten seconds and
2 GiB (`tests/guarded_opening.py`), all of them under strace where that works. Prints one JSON
object; exit code 1 if a file was more than refused in one line, or ran code, or read what is not
its own. onnxruntime says more on stderr of what it cannot allocate.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Also where spawned processes look.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from guarded_opening import MORE_MEMORY, SLOW_S, Kind, Outcome, outcomes
from hostile_models import Outside, write_hostile, write_outside
from mutated_models import (
    mutated_checkpoint,
    write_mutated_bundle,
    write_small_bundle,
    write_wrong_fields,
)
from untrained_run import untrained_recipe, write_untrained_run

import wsss

PROCESSES = 2
CALLS = "open,openat,openat2,execve,execveat"
WITHOUT = "not known: strace does not work here"
OWN = tuple(
    f"{path}/"
    for path in (
        *("/usr", "/lib", "/lib64", "/etc", "/proc", "/sys"),
        *(sys.prefix, sys.base_prefix, Path(wsss.__file__).resolve().parent),
        *(Path(__file__).resolve().parents[1] / name for name in ("benchmarks", "tests")),
    )
)
"""Where a program looks for what it is made of."""


File = tuple[str, str, Kind, str]
"""Group, name, kind and path."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=1000)
    parser.add_argument("--bundles", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--open", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.open:
        open_all(*arguments.open)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        outside = write_outside(folder)
        files = list(write_all(folder / "files", outside, arguments))
        run(folder, list(write_good(folder / "good")))
        usual = audit(folder, outside)
        found = opened(files, run(folder, files))
        found["code_executed"] = outside.canary.exists()
        found["read_outside"] = WITHOUT if usual is None else sorted(audit(folder, outside) - usual)
    print(json.dumps({"seed": arguments.seed, **found}, indent=2))
    return not (
        not found["code_executed"]
        and not found["not_refused_in_one_line"]
        and found["read_outside"] in ([], WITHOUT)
    )


def write_all(folder: Path, outside: Outside, arguments: argparse.Namespace) -> Iterator[File]:
    chance = random.Random(arguments.seed)
    run = write_untrained_run(folder / "run", untrained_recipe())
    stages = ("cam", "affinity", "segmenter")
    whole = [(run / stage / "weights.safetensors").read_bytes() for stage in stages]
    for number in range(arguments.checkpoints):
        path = folder / f"{number:04}.safetensors"
        path.write_bytes(mutated_checkpoint(chance, chance.choice(whole)))
        yield "mutated checkpoint", path.name, "checkpoint", str(path)
    for number in range(arguments.bundles):
        path = folder / f"{number:04}"
        how = write_mutated_bundle(chance, path)
        yield f"mutated bundle: {how}", path.name, "bundle", str(path)
    for key, path in write_wrong_fields(folder / "fields"):
        yield "wrong field of a manifest", key, "bundle", str(path)
    (folder / "hostile").mkdir()
    for name, (kind, path) in write_hostile(folder / "hostile", outside, whole[0]).items():
        yield "hostile", name, kind, str(path)


def write_good(folder: Path) -> Iterator[File]:
    """Models of which nothing is wrong: what they make a program open is what it opens always."""
    run = write_untrained_run(folder / "run", untrained_recipe())
    weights = str(run / "cam" / "weights.safetensors")
    yield "good", "checkpoint", "checkpoint", weights
    yield "good", "weights", "weights", weights
    yield "good", "bundle", "bundle", str(write_small_bundle(folder / "bundle"))


def run(folder: Path, files: list[File]) -> dict[str, Outcome]:
    """What became of the files, by path; opened by another process that is watched."""
    todo, done = folder / "todo.json", folder / "done.json"
    todo.write_text(json.dumps(files))
    command = [sys.executable, __file__, "--open", str(todo), str(done)]
    if shutil.which("strace"):
        # A filter in the kernel, so that other calls cost nothing.
        trace = ["strace", "-f", "--seccomp-bpf", "-qq", "-s", "4096", "-e", f"trace={CALLS}"]
        command = [*trace, "-o", str(folder / "trace"), *command]
    # Where Python tries whether it can make files.
    environment = {**os.environ, "TMPDIR": str(folder / "temporary")}
    (folder / "temporary").mkdir(exist_ok=True)
    subprocess.run(command, check=True, env=environment)
    return {path: Outcome(*outcome) for path, outcome in json.loads(done.read_text()).items()}


def opened(files: list[File], result: Mapping[str, Outcome]) -> dict[str, Any]:
    """Counts, and what should not have been."""
    groups: dict[str, Counter[str]] = {}
    failed, taken, grown = {}, [], 0
    for group, name, _, path in files:
        what, told, more = result[path]
        groups.setdefault(group, Counter())[what] += 1
        if what not in ("opened", "refused"):
            failed[f"{group}: {name}"] = f"{what}: {told[-1000:]}"
        if what == "opened" and group == "hostile":
            taken.append(name)
        grown = max(grown, more)
    return {
        "files": len(files),
        "outcomes": {group: dict(sorted(count.items())) for group, count in groups.items()},
        "not_refused_in_one_line": failed,
        "hostile_and_harmless": sorted(taken),
        "slow_means_s": SLOW_S,
        "memory_limit_mib": MORE_MEMORY >> 20,
        "most_memory_of_a_file_mib": grown >> 20,
    }


def open_all(todo: Path, done: Path) -> None:
    files = [(kind, Path(path)) for _, _, kind, path in json.loads(todo.read_text())]
    found = {str(path): outcome for path, outcome in outcomes(files, PROCESSES)}
    done.write_text(json.dumps(found))


def audit(folder: Path, outside: Outside) -> set[str] | None:
    """Paths that were opened and belong neither to the program nor to a file that was given, and
    other programs that were started; None without strace."""
    trace = folder / "trace"
    if not trace.is_file() or "execve(" not in trace.read_text(errors="replace"):
        return None
    found = set()
    given = (
        f"{folder}/{name}/" for name in ("files", "good", "temporary", "todo.json", "done.json")
    )
    own = (*OWN, *given, "/dev/shm/")
    with trace.open(errors="replace") as lines:
        for line in lines:
            call = re.search(
                r'\b(open|openat|openat2|execve|execveat)\((?:[\w-]+, )?"([^"]*)"', line
            )
            if call is None or (" = -1 " in line and str(outside.secret) not in line):
                continue
            path = os.path.normpath(call[2])
            is_own = path == sys.executable if call[1] == "exec" else f"{path}/".startswith(own)
            if not is_own:
                found.add(call[2])
    return found


if __name__ == "__main__":
    sys.exit(main())

"""Models of strangers are refused in one line or do no harm; `benchmarks/fuzz_models.py` does this
with thousands, and watches what is opened."""

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from guarded_opening import Kind, Outcome, outcomes
from hostile_models import write_hostile, write_outside
from mutated_models import mutated_checkpoint, write_mutated_bundle, write_small_bundle
from untrained_run import untrained_recipe, write_untrained_run

HARMLESS = {
    "bundle: a manifest of deep settings",
    "bundle: denormal weights",
    "bundle: infinite weights",  # a job says `model-failed` of each image
    "bundle: settings of a session",
    "checkpoint: format_version is 'True'",
    "checkpoint: normalisation.mean is [0, 0, 0]",
    "weights: checkpoint: not a number",  # in a layer that is not taken
}
"""These may be opened; so may a method of any name, which only reports show."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = write_untrained_run(tmp_path_factory.mktemp("run"), untrained_recipe())
    return (run / "cam" / "weights.safetensors").read_bytes()


def opened(files: list[tuple[Kind, Path]]) -> dict[Path, Outcome]:
    found = dict(outcomes(files, num_processes=2, slow_s=60))
    assert len(found) == len(files)
    return found


def test_whole_ones_open(checkpoint: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(checkpoint)
    weights = tmp_path / "b.safetensors"
    weights.write_bytes(checkpoint)
    bundle = write_small_bundle(tmp_path / "bundle")
    found = opened([("checkpoint", path), ("weights", weights), ("bundle", bundle)])
    assert [each.told for each in found.values() if each.what != "opened"] == []


def test_damaged_ones(checkpoint: bytes, tmp_path: Path) -> None:
    chance = random.Random(5)
    files: list[tuple[Kind, Path]] = []
    for number in range(120):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(mutated_checkpoint(chance, checkpoint))
        files.append(("checkpoint", path))
        bundle = tmp_path / f"bundle {number}"
        write_mutated_bundle(chance, bundle)
        files.append(("bundle", bundle))
    found = opened(files)
    failed = {
        path.name: each for path, each in found.items() if each.what not in ("opened", "refused")
    }
    assert not failed
    counts = Counter(outcome.what for outcome in found.values())
    assert counts["refused"] > 150 and counts["opened"] > 10


def test_hostile_ones(checkpoint: bytes, tmp_path: Path) -> None:
    outside = write_outside(tmp_path)
    (tmp_path / "files").mkdir()
    files = write_hostile(tmp_path / "files", outside, checkpoint)
    found = opened(list(files.values()))
    failed, taken = {}, set()
    for name, (_, path) in files.items():
        if found[path].what not in ("opened", "refused"):
            failed[name] = found[path]
        elif found[path].what == "opened" and ": method is " not in name:
            taken.add(name)
    assert not failed
    assert taken <= HARMLESS
    assert not outside.canary.exists()
    assert len(files) > 200


class Deed:
    """Takes the place of a path, and does something to the process that gets it."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def test_the_guard_itself(checkpoint: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(checkpoint)
    dies, hangs, fails = Deed(os._exit, 3), Deed(time.sleep, 600), Deed(int, 5)
    files: list[Any] = [("checkpoint", each) for each in (fails, path, dies, hangs)]
    found = dict(outcomes(files, slow_s=3))
    assert [found[each].what for _, each in files] == ["traceback", "opened", "crash", "hang"]
    assert found[dies].told == "exit 3" and "AttributeError" in found[fails].told

"""A whole run of a method in seconds: ten drawn images of two classes, and a recipe to fit.

Also what it takes to train in a process of its own that can be killed or have fellows. Nothing here
imports torch before it trains.
"""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from wsss.errors import WsssError
from wsss.runtime.io.image_io import write_label_map

if TYPE_CHECKING:
    from wsss.training.recipe.recipe import Recipe

CLASSES = ("disc", "bar")
COLOURS = ((220, 60, 40), (40, 80, 220))
NUM_TRAIN, NUM_VAL = 10, 3
TRAIN_NAMES = tuple(f"train_{index}" for index in range(NUM_TRAIN))
NETWORKS = ("cam", "affinity", "segmenter")
STAGES = ("cam", "seeds", "affinity", "labels", "segmenter")
METHODS = {
    "affinitynet": ("demo", NETWORKS),
    "irnet": ("demo_irnet", ("cam", "irnet", "segmenter")),
    "cian": ("demo_cian", ("cam", "cian", "segmenter")),
    "sec": ("demo_sec", ("cam", "segmenter")),
    "selfguided": ("demo_selfguided", ("cam", "segmenter")),
}
"""Recipe that the tiny one is made from, and the stages that train a network."""
WALK = ("walk.steps=8", "walk.radius=3", "walk.threshold=0.3")
TINY = {
    "affinitynet": (*WALK, "affinity.radius=3"),
    "irnet": (*WALK, "irnet.radius=3"),
    "cian": ("cian.channels=8", "cian.balance=0", "segmenter.balance=0", "cian.crf.iterations=0"),
    "sec": ("segmenter.sec.crf.iterations=2",),
    "selfguided": ("selfguided.scales=[1.0]", "selfguided.radius=3", "selfguided.steps=4"),
}
"""Settings of the tiny recipe that not all methods have."""

_START = multiprocessing.get_context("forkserver")
# torch.optim imports torch._dynamo when it is first used: a second for each process.
_START.set_forkserver_preload([__name__, "wsss.training.pipeline", "torch._dynamo"])


def write_images(root: Path) -> Path:
    """A VOC-like folder of 40 x 48 and 45 x 37 images: a disc, a bar or both.

    The last training image is background alone.
    """
    rows = ["file,labels"]
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        names = [f"{split}_{index}" for index in range(count)]
        for index, name in enumerate(names):
            present = ((0,), (1,), (0, 1))[index % 3]
            if split == "train" and index == count - 1:
                present = ()
            size = (45, 37) if index % 4 == 3 else (40, 48)
            generator = np.random.default_rng([len(split), index])
            image, mask = draw(generator, size, present)
            path = root / "JPEGImages" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
            write_label_map(root / "SegmentationClass" / f"{name}.png", mask)
            rows.append(f"{name}.png,{';'.join(CLASSES[label] for label in present)}")
        lists = root / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def draw(
    generator: np.random.Generator, size: tuple[int, int], present: Sequence[int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(H, W, 3) image and (H, W) mask of the classes, class 0 to the left of class 1."""
    height, width = size
    image = np.clip(generator.normal(120, 12, (height, width, 3)), 0, 255).astype(np.uint8)
    mask = np.zeros(size, np.uint8)
    for label in present:
        column = width // 4 + label * width // 2 + int(generator.integers(-2, 3))
        row = height // 2 + int(generator.integers(-4, 5))
        if label == 0:
            cv2.circle(mask, (column, row), 8, 1, -1)
        else:
            cv2.rectangle(mask, (column - 5, row - 11), (column + 5, row + 11), 2, -1)
        noise = generator.integers(-15, 16, (int((mask == label + 1).sum()), 3))
        image[mask == label + 1] = np.clip(np.asarray(COLOURS[label]) + noise, 0, 255)
    return image, mask


@cache
def tiny_recipe(*overrides: str, method: str = "affinitynet") -> "Recipe":
    """The recipe of the demo at the smallest crops and two epochs a stage.

    Read once: runs that are compared must not see different versions of the file.
    """
    from wsss.training.recipes import load_recipe

    base, networks = METHODS[method]
    settings = ["cam.scales=[1.0]", "seeds.crf.iterations=1", "cam.threshold=0.2", *TINY[method]]
    for stage in networks:
        settings += [
            f"{stage}.train.epochs=2",
            f"{stage}.train.batch_size=4",
            f"{stage}.train.augmentation.crop_size=33",
        ]
    return load_recipe(base, [*settings, *overrides])


def files_of(folder: Path, *patterns: str) -> dict[str, bytes]:
    """Content of the files that match, by their path below the folder."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in found if path.is_file()
    }


def results_of(run: Path) -> dict[str, bytes]:
    """Everything that a run has to reproduce to the bit."""
    return files_of(run, "*/weights.safetensors", "**/*.png", "*/scores/*.npz", "*/metrics.jsonl")


def assert_same_run(expected: Path, found: Path) -> None:
    """What an interrupted run has made is, bit by bit, what one run in one go has made."""
    wanted, results = results_of(expected), results_of(found)
    assert results.keys() == wanted.keys()
    assert [name for name in wanted if results[name] != wanted[name]] == []
    stages = [path.parent.name for path in expected.glob("*/stage.json")]
    assert stages
    for stage in stages:
        records = [
            json.loads((run / stage / "stage.json").read_text()) for run in (expected, found)
        ]
        assert records[0]["figures"] == records[1]["figures"], stage
        assert records[0]["digest"] == records[1]["digest"], stage


def copy_run(source: Path, target: Path, *, without: Sequence[str] = ()) -> Path:
    """A copy of a run that lacks some stages."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("events"))
    for stage in without:
        shutil.rmtree(target / stage)
    return target


def start_training(
    data: Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    method: str = "affinitynet",
    stages: Sequence[str] | None = None,
    save_every_step: bool = False,
    kill_at: int | None = None,
    kill_below: str = "",
    environment: Mapping[str, str] | None = None,
) -> ForkServerProcess:
    """Train the tiny recipe in a process of its own, on one thread.

    Its exit code is 0, 1 for an error whose line then stands in `error.RANK.txt` beside the run,
    or minus the signal that killed it. Each change of a file below the run is counted in
    `changes.txt` beside it.

    Args:
        kill_at: the process gets SIGKILL just before this change of a file, counted from 1.
        kill_below: only files below this part of the run are counted.
    """
    recipe = tiny_recipe(*overrides, method=method)
    arguments = (data, out, recipe, stages, save_every_step, kill_at, kill_below)
    process = _START.Process(target=_train, args=(*arguments, dict(environment or {})))
    process.start()
    return process


def train_apart(
    data: Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    method: str = "affinitynet",
    save_every_step: bool = False,
) -> None:
    """Train in a process of its own to the end."""
    process = start_training(data, out, overrides, method=method, save_every_step=save_every_step)
    process.join()
    assert process.exitcode == 0, errors_of(out)


def kill_training(
    data: Path,
    out: Path,
    below: str,
    at: int,
    overrides: Sequence[str] = (),
    *,
    method: str = "affinitynet",
    save_every_step: bool = True,
) -> None:
    """Train in a process of its own that dies just before change `at` of a file of `below`."""
    process = start_training(
        data,
        out,
        overrides,
        method=method,
        save_every_step=save_every_step,
        kill_at=at,
        kill_below=below,
    )
    process.join()
    assert process.exitcode == -signal.SIGKILL, errors_of(out)


def errors_of(out: Path) -> str:
    """What the processes that trained into this folder ended with."""
    return "; ".join(path.read_text() for path in sorted(out.parent.glob("error.*.txt")))


def _train(
    data: Path,
    out: Path,
    recipe: "Recipe",
    stages: Sequence[str] | None,
    save_every_step: bool,
    kill_at: int | None,
    kill_below: str,
    environment: Mapping[str, str],
) -> None:
    import torch

    from wsss.training.data.readers import read_image_set
    from wsss.training.engine import loop
    from wsss.training.pipeline import train

    os.environ.update(environment)
    os.fsync = lambda descriptor: None  # seconds on a busy disk; a killed process needs none
    torch.set_num_threads(1)
    if save_every_step:
        loop.CHECKPOINT_SECONDS, loop.MAX_SAVE_SHARE = 0.0, float("inf")
    _count_changes(out / kill_below, kill_at, out.parent / "changes.txt")
    try:
        train(recipe, read_image_set(data), out, stages=stages, device="cpu")
    except WsssError as error:
        name = f"error.{os.environ.get('RANK', '0')}.txt"
        (out.parent / name).write_text(f"{type(error).__name__}: {error}")
        sys.exit(1)


def _count_changes(folder: Path, kill_at: int | None, record: Path) -> None:
    """Count files that appear under their name or vanish, and die before number `kill_at`."""
    prefix, count = os.fspath(folder), 0

    def on_event(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event not in ("os.rename", "os.remove"):
            return
        path = arguments[1] if event == "os.rename" else arguments[0]
        if not os.fspath(path).startswith(prefix):  # type: ignore[call-overload]
            return
        if event == "os.remove" and not os.path.exists(path):  # type: ignore[arg-type]
            return
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if kill_at is None:
            record.write_text(str(count))

    sys.addaudithook(on_event)


def start_group(
    data: Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    method: str = "affinitynet",
    stages: Sequence[str] | None = None,
) -> list[ForkServerProcess]:
    """Two processes that train together as `torchrun` would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    return [
        start_training(
            data,
            out,
            overrides,
            method=method,
            stages=stages,
            environment=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]

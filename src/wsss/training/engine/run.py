"""A run on disk: its folder, what a stage gets to work with, and when a stage is up to date."""

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import ArtifactError
from ...runtime import system
from ...runtime.io.files import atomic_write_bytes, make_folder, replace_folder
from ...runtime.io.progress import Progress
from ..data.image_set import ImageSet
from ..recipe.recipe import AnyRecipe, Recipe, dump_recipe
from . import distributed
from .networks import NetworkSpec

STAGE_FORMAT = 3
"""Raised when a stage of the same settings would now give another result."""


@dataclass(frozen=True)
class Run:
    """Everything a stage may use.

    Attributes:
        folder: the run's folder; each stage owns `folder / stage`.
        images: the whole image set; `train_set` and `val_set` select the recipe's lists.
        weights_path: foreign backbone weights, or None.
        cams_path, seeds_path: folders that take the place of the CAM or the seed stage.
        reuse: folders of other runs, whose finished stages are taken over where they are equal.
    """

    folder: Path
    recipe: Recipe
    images: ImageSet
    weights_path: Path | None
    cams_path: Path | None
    seeds_path: Path | None
    device: torch.device
    progress: Progress
    reuse: tuple[Path, ...] = ()

    def weights(self, stage: str) -> Path:
        """Where a stage's trained network lies."""
        return self.folder / stage / "weights.safetensors"

    def recipe_of(self, kind: type[AnyRecipe]) -> AnyRecipe:
        """The recipe, for a stage that only some methods have."""
        if not isinstance(self.recipe, kind):
            raise TypeError(f"a {type(self.recipe).__name__} is no {kind.__name__}")
        return self.recipe

    @property
    def train_set(self) -> ImageSet:
        """Images that are learnt from and that get labels."""
        return self.images.select(self.recipe.data.train_split)

    @property
    def val_set(self) -> ImageSet | None:
        """Images that measure; None where the set has no such list."""
        split = self.recipe.data.val_split
        return self.images.select(split) if self._has_list(split) else None

    @property
    def figures_split(self) -> str:
        """List that `figures_set` is taken from: the recipe's, or the training list without it."""
        data = self.recipe.data
        return data.figures_split if self._has_list(data.figures_split) else data.train_split

    @property
    def figures_set(self) -> ImageSet | None:
        """Images with masks on which CAMs and labels are measured; None where there are none."""
        subset = self.images.select(self.figures_split)
        trained = {sample.name for sample in self.train_set.samples}
        usable = tuple(s for s in subset.samples if s.mask is not None and s.name in trained)
        return ImageSet(subset.root, subset.layout, subset.classes, usable) if usable else None

    def _has_list(self, split: str) -> bool:
        return any(split in sample.splits for sample in self.images.samples)


@dataclass(frozen=True)
class Stage:
    """One box of the method's figure.

    Attributes:
        settings: the recipe sections that shape the result.
        needs: stages whose result goes in.
        work: does it, inside `run.folder / name`; its third argument is the stage's digest.
        measure: figures of the finished stage; called by the main process only.
        measures_only: `section.key` of settings that shape nothing but the figures.
        text: what it does, for reports.
        network: (recipe, number of classes) -> what builds the network that it trains, whose
            weights it leaves in `weights.safetensors`; None: it trains none.
    """

    name: str
    settings: tuple[str, ...]
    needs: tuple[str, ...]
    work: Callable[[Run, Path, str], None]
    measure: Callable[[Run, Path], dict[str, float]]
    measures_only: tuple[str, ...] = ()
    text: str = ""
    network: Callable[[Any, int], NetworkSpec] | None = None


def no_figures(run: Run, folder: Path) -> dict[str, float]:
    """`Stage.measure` of a stage whose result can only be judged by what follows from it."""
    return {}


def claim_folder(run: Run, overwrite: bool) -> None:
    """Make the run's folder ours, or refuse one that holds something else.

    Raises:
        ArtifactError: the folder is not empty and not a run of this recipe, classes and images.
    """
    folder, identity_path = run.folder, run.folder / "run.json"
    identity = {
        "method": run.recipe.method,
        "recipe": run.recipe.name,
        "data": run.images.root.name,
        "classes": list(run.images.classes),
    }
    if overwrite and distributed.is_main() and identity_path.is_file():
        shutil.rmtree(folder)
    distributed.barrier()  # nobody looks at a folder that is half removed
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"'{folder}' is a file: choose a folder for `out`")
    if identity_path.is_file():
        try:
            found = json.loads(identity_path.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != identity:
            what = [k for k, v in identity.items() if not found or found.get(k) != v]
            raise ArtifactError(
                f"'{folder}' holds another run (different {', '.join(what)}): "
                "choose another `out`, or `overwrite` it"
            )
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ArtifactError(
            f"'{folder}' is not empty and holds no run: choose a new or empty folder for `out`"
        )
    distributed.barrier()
    if distributed.is_main():
        make_folder(folder)
        atomic_write_bytes(identity_path, json.dumps(identity, indent=2).encode())
        atomic_write_bytes(folder / "recipe.toml", dump_recipe(run.recipe).encode())
    distributed.barrier()


def run_stage(run: Run, stage: Stage, inputs: dict[str, str]) -> str:
    """Do a stage unless its result is there already; returns the digest of what it depends on.

    Where only the figures depend on what changed, they alone are made again.

    Args:
        inputs: digests of the stages it needs and of the files it reads.
    """
    folder = run.folder / stage.name
    settings = stage_settings(run.recipe, stage)
    digest = _digest([STAGE_FORMAT, stage.name, settings, inputs])
    shown = run.recipe.model_dump(mode="json", include={*stage.settings, "data"})
    measured = _digest([digest, shown, run.images.digest(masks=True)])
    if distributed.is_main() and read_stage(folder).get("digest") != digest:
        _take_over(run, stage, digest)
    distributed.barrier()
    record = read_stage(folder)
    distributed.barrier()  # all processes must decide by the same record
    is_done = record.get("digest") == digest
    if is_done and record.get("measured") == measured:
        run.progress.note(f"{stage.name}: up to date")
        return digest
    started = time.monotonic()
    memory = _MemoryPeak(run.device)
    if not is_done:
        if distributed.is_main():
            _prepare(folder, digest)
        distributed.barrier()
        stage.work(run, folder, digest)
        distributed.barrier()
    if distributed.is_main():
        figures = stage.measure(run, folder)
        seconds = round(time.monotonic() - started, 1)
        record = {
            "stage": stage.name,
            "format": STAGE_FORMAT,
            "digest": digest,
            "measured": measured,
            "inputs": inputs,
            "settings": settings,
            "figures": {k: v if math.isfinite(v) else None for k, v in figures.items()},
            "seconds": record["seconds"] if is_done else seconds,
            "memory": record["memory"] if is_done else memory.figures(),
            "device": str(run.device),
            "processes": distributed.world_size(),
        }
        atomic_write_bytes(folder / "stage.json", json.dumps(record, indent=2).encode())
    distributed.barrier()
    return digest


class _MemoryPeak:
    """The most memory of the main process from here on, its libraries and data included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._counts = system.forget_peak()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def figures(self) -> dict[str, int | None]:
        """MiB by place; None where the system does not tell."""
        figures = {"host_mib": system.peak_bytes() >> 20 if self._counts else None}
        if self._device.type == "cuda":
            figures["gpu_mib"] = torch.cuda.max_memory_allocated(self._device) >> 20
        return figures


def _take_over(run: Run, stage: Stage, digest: str) -> None:
    """Copy a stage that another run has finished, of the same settings and inputs, if there is."""
    for other in run.reuse:
        source, target = other / stage.name, run.folder / stage.name
        if read_stage(source).get("digest") == digest:
            work = Path(tempfile.mkdtemp(prefix=f".{stage.name}.", dir=run.folder))
            shutil.copytree(source, work, dirs_exist_ok=True)
            replace_folder(work, target)
            run.progress.note(f"{stage.name}: taken over from '{other}'")
            return


def read_stage(folder: Path) -> dict[str, Any]:
    """The record of a finished stage; {} where it has not finished."""
    try:
        record = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def stage_settings(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """Settings that shape a stage's result, JSON-compatible, by `section.key`."""
    values = recipe.model_dump(mode="json", include={*stage.settings, "seed"})
    flat: dict[str, Any] = {}
    for name, value in values.items():
        keys = {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else None
        flat |= keys or {name: value}
    return {key: value for key, value in flat.items() if key not in stage.measures_only}


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _prepare(folder: Path, digest: str) -> None:
    """Keep the unfinished work of the same digest; remove any other."""
    mark = folder / "unfinished"
    # First of all: a removal that is killed halfway must not leave a stage that looks finished.
    (folder / "stage.json").unlink(missing_ok=True)
    if folder.is_dir() and not (mark.is_file() and mark.read_text() == digest):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(mark, digest.encode())

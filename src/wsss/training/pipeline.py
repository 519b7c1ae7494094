"""Running a recipe: check everything first, then the stages in order, each only where needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, DataError
from ..runtime.io.files import file_digest
from ..runtime.io.image_io import image_size
from ..runtime.io.progress import SILENT, Progress
from .backbones.foreign_weights import check_weights_file
from .data.image_set import ImageSet
from .engine import distributed
from .engine.networks import choose_device
from .engine.run import (
    STAGE_FORMAT,
    Run,
    Stage,
    claim_folder,
    read_stage,
    run_stage,
    stage_settings,
)
from .methods import open_method
from .recipe.recipe import Recipe


@dataclass(frozen=True)
class TrainResult:
    """The folder of a run, and what its stages measured."""

    folder: Path
    """Folder of the run, for `open_model`, `evaluate` and `export`."""
    figures: dict[str, dict[str, float | None]]
    """Figures of each stage, such as `miou` in per cent; None if there was no pixel to count."""
    seconds: dict[str, float]
    """Duration of each stage, in seconds."""

    def to_json(self) -> dict[str, Any]:
        """JSON-compatible."""
        return {"run": str(self.folder), "figures": self.figures, "seconds": self.seconds}


def train(
    recipe: Recipe,
    images: ImageSet,
    out: str | Path,
    *,
    weights_path: str | Path | None = None,
    cams_path: str | Path | None = None,
    seeds_path: str | Path | None = None,
    reuse: Sequence[str | Path] = (),
    stages: Sequence[str] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> TrainResult:
    """Train a method on an image set, from CAMs to a segmenter.

    Finished stages are cached: calling the function again with the same arguments resumes an
    interrupted run, and a changed recipe repeats only the stages that it affects.

    Args:
        recipe: method and settings, from `load_recipe`.
        images: image set with image-level labels, from `read_image_set`.
        out: folder of the run; it is created.
        weights_path: ImageNet weights of the backbone, a .safetensors or torchvision .pth file;
            not needed if the recipe trains from scratch.
        cams_path: folder of NAME.npz score maps that replace the CAM stage.
        seeds_path: folder of NAME.png seeds (255 = undecided) that replace the seed stage.
        reuse: folders of other runs; their finished stages are copied if settings, images and
            weights are the same.
        stages: names of the stages to run, in the order of the method; the stages they need must
            be finished. Default: all.
        device: auto, cpu or cuda; auto takes a GPU if there is one.
        overwrite: delete another run in `out` first.
        progress: receives the progress; the default shows nothing.

    Returns:
        TrainResult: the folder of the run, and figures and seconds of each stage.

    Raises:
        ConfigError: the recipe does not fit the images, the weights or the other arguments.
        DataError: an image, a label or a mask cannot be used.
        ArtifactError: `out` holds something else, or a file of weights cannot be used.
        MissingDependencyError: CUDA was requested and torch finds none.
    """
    out = Path(out)
    chosen_device = choose_device(device)
    with distributed.process_group(chosen_device):
        run = Run(
            out,
            recipe,
            images,
            _path(weights_path),
            _path(cams_path),
            _path(seeds_path),
            chosen_device,
            progress if distributed.is_main() else SILENT,
            tuple(Path(other) for other in reuse),
        )
        method_stages = open_method(recipe.method).stages
        todo = _select_stages(method_stages, stages)
        kept = _kept_stages(method_stages, todo)
        if overwrite and kept:
            raise ConfigError(
                f"`overwrite` would remove '{kept[0].name}', which `stages` needs: leave one out"
            )
        check(run, [stage.name for stage in todo])
        for stage in kept:
            _require_finished(run, stage)
        claim_folder(run, overwrite)
        digests: dict[str, str] = {}
        for stage in method_stages:
            if stage in todo:
                inputs = _inputs(run, stage, digests)
                digests[stage.name] = run_stage(run, stage, inputs)
            elif stage in kept:
                digests[stage.name] = _kept_digest(run, stage, digests)
    records = {stage.name: read_stage(out / stage.name) for stage in method_stages}
    return TrainResult(
        out,
        {name: record["figures"] for name, record in records.items() if record},
        {name: record["seconds"] for name, record in records.items() if record},
    )


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def check(run: Run, stages: Sequence[str]) -> None:
    """Find what would stop the run later, before it starts.

    Raises:
        ConfigError, DataError, ArtifactError: one line each.
    """
    recipe = run.recipe
    train_set = run.train_set
    if not train_set.classes:
        raise DataError(f"image set '{train_set.root}' has no classes")
    _check_start(run, stages)
    for name, section in recipe.trainings().items():
        if name not in stages or (name == "cam" and run.cams_path is not None):
            continue
        batch_size = section.train.batch_size
        group_size = getattr(section, "group_size", 1)  # images that a step cannot part
        distributed.own_rows(batch_size, group_size)
        if batch_size > len(train_set.samples):
            raise ConfigError(
                f"{name}.train.batch_size is {batch_size}, but list "
                f"'{recipe.data.train_split}' has {len(train_set.samples)} images: set it to at "
                f"most {len(train_set.samples)}"
            )
    for sample in train_set.samples:
        sample.label_vector(len(train_set.classes))  # refuses an image without labels
        image_size(sample.image_path)


def _check_start(run: Run, stages: Sequence[str]) -> None:
    """Weights are given where they are needed, and networks can be built."""
    recipe = run.recipe
    backbone = recipe.backbone
    if backbone.from_scratch and run.weights_path is not None:
        raise ConfigError(
            f"recipe '{recipe.name}' trains from scratch: leave `weights_path` out, or set "
            "backbone.from_scratch=false"
        )
    needs_weights = any(_starts_from_weights(run, stage) for stage in stages)
    if needs_weights and not backbone.from_scratch and run.weights_path is None:
        raise ConfigError(
            f"recipe '{recipe.name}' starts from ImageNet weights of {backbone.name}: give "
            "them as `weights_path`"
        )
    if run.weights_path is not None:
        check_weights_file(run.weights_path)
    if run.seeds_path is not None and "seeds" not in {
        s.name for s in open_method(recipe.method).stages
    }:
        raise ConfigError(f"method {recipe.method} has no seeds of its own: leave `seeds_path` out")
    for other in run.reuse:
        if not (other / "recipe.toml").is_file():
            raise ConfigError(
                f"`reuse`: '{other}' is no run: give a folder that `wsss train` wrote"
            )
    _check_given(run, run.cams_path, "`cams_path`", ".npz")
    _check_given(run, run.seeds_path, "`seeds_path`", ".png")
    for name in stages:
        if run.cams_path is not None and _start(recipe, name) == "classifier":
            raise ConfigError(
                f"{name}.start is 'classifier', but `cams_path` leaves the classifier untrained: "
                f"leave it out, or set {name}.start=weights"
            )
    with torch.device("meta"):
        networks = open_method(recipe.method).networks(recipe, len(run.images.classes))
        for spec in networks.values():
            spec.build()


def _check_given(run: Run, folder: Path | None, option: str, suffix: str) -> None:
    """A folder that takes the place of a stage holds a file for every training image."""
    if folder is None:
        return
    if not folder.is_dir():
        raise DataError(
            f"{option}: no such folder: '{folder}': expected one with NAME{suffix} for every image "
            "to train on"
        )
    names = [f"{sample.name}{suffix}" for sample in run.train_set.samples]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{option} '{folder}' lacks files for {len(missing)} of {len(names)} images, for "
            f"example '{missing[0]}': add them, or leave {option} out"
        )


def _select_stages(all_stages: tuple[Stage, ...], names: Sequence[str] | None) -> list[Stage]:
    if names is None:
        return list(all_stages)
    known = [stage.name for stage in all_stages]
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown stage '{name}': choose of {', '.join(known)}")
    return [stage for stage in all_stages if stage.name in names]


def _inputs(run: Run, stage: Stage, digests: dict[str, str]) -> dict[str, str]:
    """Digests of what goes into a stage."""
    return {name: digests[name] for name in stage.needs} | _files(run, stage)


def _files(run: Run, stage: Stage) -> dict[str, str]:
    """Digests of the files that this call gives to a stage."""
    files = {"images": run.images.digest(masks=False)}
    if run.weights_path is not None and _starts_from_weights(run, stage.name):
        files["weights"] = file_digest(run.weights_path)
    if stage.name == "cam" and run.cams_path is not None:
        files["cams"] = file_digest(run.cams_path)
    if stage.name == "seeds" and run.seeds_path is not None:
        files["seeds"] = file_digest(run.seeds_path)
    return files


def _starts_from_weights(run: Run, stage: str) -> bool:
    """Whether a stage's network starts from foreign weights; none is trained by other stages."""
    if stage == "cam":
        return run.cams_path is None
    return _start(run.recipe, stage) == "weights"


def _start(recipe: Recipe, stage: str) -> str | None:
    """Where the network of a later stage starts; None for stages that train none."""
    return getattr(recipe.trainings().get(stage), "start", None)


def _kept_stages(all_stages: tuple[Stage, ...], todo: list[Stage]) -> list[Stage]:
    """Stages that those to do build on, directly or not, and that are not done again."""
    needed = {need for stage in todo for need in stage.needs}
    for stage in reversed(all_stages):
        if stage.name in needed and stage not in todo:
            needed |= set(stage.needs)
    return [stage for stage in all_stages if stage.name in needed and stage not in todo]


def _require_finished(run: Run, stage: Stage) -> None:
    """A stage that this call does not run is there, made as the recipe says.

    Raises:
        ConfigError: it has not finished, or was made of other images or by other settings.
    """
    record = read_stage(run.folder / stage.name)
    if record.get("format") != STAGE_FORMAT:
        raise ConfigError(
            f"`stages` needs '{stage.name}', which has not finished in '{run.folder}' (or by "
            "another version of wsss): add it"
        )
    made_by, wanted = record["settings"], stage_settings(run.recipe, stage)
    for key in sorted(made_by.keys() | wanted.keys()):
        if made_by.get(key) != wanted.get(key):
            raise ConfigError(
                f"stage '{stage.name}' of '{run.folder}' was made with {key} = "
                f"{made_by.get(key)}, the recipe says {wanted.get(key)}: add it to `stages`"
            )
    for name, digest in _files(run, stage).items():
        if record["inputs"].get(name) != digest:
            raise ConfigError(
                f"stage '{stage.name}' of '{run.folder}' was made of other {name}: add it to "
                "`stages`"
            )


def _kept_digest(run: Run, stage: Stage, digests: dict[str, str]) -> str:
    """Digest of a stage that this call does not run.

    Raises:
        ConfigError: a stage that it was made from has changed since.
    """
    record = read_stage(run.folder / stage.name)
    for name in stage.needs:
        if record["inputs"][name] != digests[name]:
            raise ConfigError(
                f"stage '{stage.name}' of '{run.folder}' was made from another '{name}': add it "
                "to `stages`"
            )
    return str(record["digest"])

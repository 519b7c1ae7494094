"""Running a recipe: check everything first, then the stages in order, each only where needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, DataError
from ..runtime.image_io import image_size
from ..runtime.progress import SILENT, Progress
from . import affinitynet, distributed
from .data.image_set import ImageSet
from .devices import choose_device
from .networks import affinitynet_architecture, classifier_architecture, segmenter_architecture
from .recipe import Recipe
from .run import Run, Stage, claim_folder, file_digest, read_stage, run_stage

METHODS: dict[str, tuple[Stage, ...]] = {"affinitynet": affinitynet.STAGES}


@dataclass(frozen=True)
class TrainResult:
    """Where a run lies and what its stages measured."""

    folder: Path
    figures: dict[str, dict[str, float]]
    seconds: dict[str, float]

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
    stages: Sequence[str] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> TrainResult:
    """Run a recipe on an image set.

    Args:
        out: the run's folder; a killed or changed run continues there.
        weights_path: backbone weights (.safetensors or torchvision-style .pth).
        cams_path: folder of score maps (npz) that takes the place of the CAM stage.
        seeds_path: folder of seed PNGs that takes the place of the seed stage.
        stages: only these, in the method's order; what they need must be there already.
        overwrite: remove another run from `out` first.

    Raises:
        WsssError: anything the user can mend; all checks that need no training come first.
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
        )
        todo = _select_stages(METHODS[recipe.method], stages)
        lost = {need for stage in todo for need in stage.needs} - {stage.name for stage in todo}
        if overwrite and lost:
            raise ConfigError(
                f"--overwrite would remove '{min(lost)}', which --stages needs: leave one out"
            )
        check(run, [stage.name for stage in todo])
        claim_folder(run, overwrite)
        digests: dict[str, str] = {}
        for stage in METHODS[recipe.method]:
            if stage in todo:
                inputs = _inputs(run, stage, digests)
                digests[stage.name] = run_stage(run, stage, inputs)
            elif digest := read_stage(out / stage.name).get("digest"):
                digests[stage.name] = digest
        distributed.barrier()
    records = {stage.name: read_stage(out / stage.name) for stage in METHODS[recipe.method]}
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
    learning = {
        "cam": recipe.cam.train,
        "affinity": recipe.affinity.train,
        "segmenter": recipe.segmenter.train,
    }
    for name, settings in learning.items():
        if name not in stages or (name == "cam" and run.cams_path is not None):
            continue
        batch_size = settings.batch_size
        distributed.own_rows(batch_size)
        if batch_size > len(train_set.samples):
            raise ConfigError(
                f"{name}.train.batch_size is {batch_size}, but list "
                f"'{recipe.data.train_split}' has {len(train_set.samples)} images: set it to at "
                f"most {len(train_set.samples)}"
            )
    for sample in train_set.samples:
        if sample.labels is None:
            raise DataError(
                f"image '{sample.name}' has no image-level labels: add it to the label file "
                "(an empty entry means background only)"
            )
        image_size(sample.image_path)


def _check_start(run: Run, stages: Sequence[str]) -> None:
    """Weights are given where they are needed, and networks can be built."""
    recipe = run.recipe
    if not recipe.backbone.from_scratch and run.weights_path is None:
        raise ConfigError(
            f"recipe '{recipe.name}' starts from ImageNet weights of {recipe.backbone.name}: give "
            "them by --weights FILE"
        )
    for folder, option in ((run.cams_path, "--cams"), (run.seeds_path, "--seeds")):
        if folder is not None and not folder.is_dir():
            raise DataError(f"{option}: no such folder: '{folder}'")
    starts = {"affinity": recipe.affinity.start, "segmenter": recipe.segmenter.start}
    for name, start in starts.items():
        if run.cams_path is not None and start == "classifier" and name in stages:
            raise ConfigError(
                f"{name}.start is 'classifier', but --cams leaves the classifier untrained: set "
                f"{name}.start=weights"
            )
    num_classes = len(run.images.classes)
    architectures = (
        classifier_architecture(recipe, num_classes),
        affinitynet_architecture(recipe),
        segmenter_architecture(recipe, num_classes),
    )
    with torch.device("meta"):
        for architecture in architectures:
            architecture.build()


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
    missing = [name for name in stage.needs if name not in digests]
    if missing:
        raise ConfigError(
            f"stage '{stage.name}' needs '{missing[0]}', which has not finished in "
            f"'{run.folder}': add it to --stages"
        )
    inputs = {name: digests[name] for name in stage.needs}
    inputs["images"] = run.images.digest()
    if "backbone" in stage.settings and run.weights_path is not None:
        inputs["weights"] = file_digest(run.weights_path)
    if stage.name == "cam" and run.cams_path is not None:
        inputs["cams"] = file_digest(run.cams_path)
    if stage.name == "seeds" and run.seeds_path is not None:
        inputs["seeds"] = file_digest(run.seeds_path)
    return inputs

"""What `wsss compare` is asked for: recipes to run and runs to take, checked before any work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import ArtifactError, ConfigError
from ...runtime.io.progress import SILENT
from ..backbones.build import BACKBONES
from ..data.image_set import ImageSet
from ..engine.networks import Network, start_network
from ..engine.run import Run, claim_folder
from ..methods import open_method
from ..pipeline import check
from ..predict.run_view import RunView, open_run
from ..recipe.recipe import Recipe
from ..recipes import load_recipe, shipped_recipes


@dataclass(frozen=True)
class Entry:
    """One run of a comparison.

    Attributes:
        name: of the recipe; of the folder, where a run is taken.
        folder: of the run.
        recipe: what is run there; None: the run is taken as it is.
        weights: backbone weights of the recipe; None where it starts from scratch.
    """

    name: str
    folder: Path
    recipe: Recipe | None = None
    weights: Path | None = None


def read_weights(given: Sequence[str]) -> dict[str, Path]:
    """`BACKBONE=FILE` or `FILE` as `compare` takes them.

    Raises:
        ConfigError: one backbone, or none, is named twice.
    """
    weights: dict[str, Path] = {}
    for text in given:
        backbone, separator, file = text.partition("=")
        if backbone not in BACKBONES:  # a path may have an equals sign in it
            backbone, separator, file = "", "", text
        if backbone in weights:
            what = f"of {backbone}" if separator else "of no named backbone"
            raise ConfigError(f"`weights` {what} is given twice: give one file for each backbone")
        weights[backbone] = Path(file)
    return weights


def read_entries(
    asked: Sequence[str],
    out: Path,
    *,
    weights: Mapping[str, Path],
    overrides: Sequence[str],
    reuse: Sequence[Path],
) -> list[Entry]:
    """Recipes and runs by the names that they get; see `compare` for the arguments.

    Raises:
        ConfigError: a fault of a recipe, neither a recipe nor a run, one of them twice, no weights
            for a recipe, or an option that nothing here makes use of.
    """
    found = [_recipe_or_run(text, overrides) for text in asked]
    folders = [out / entry.name if isinstance(entry, Recipe) else entry for entry in found]
    names = _names(found, folders)
    entries, used = [], set()
    for name, folder, entry in zip(names, folders, found, strict=True):
        if not isinstance(entry, Recipe):
            entries.append(Entry(name, folder))
        elif entry.backbone.from_scratch:
            entries.append(Entry(name, folder, entry))
        else:
            key = _weights_key(entry, weights)
            used.add(key)
            entries.append(Entry(name, folder, entry, weights[key]))
    for key in weights.keys() - used:
        raise ConfigError(
            f"`weights`{f' of {key}' if key else ''}: no recipe that is asked for starts from "
            "them: leave them out"
        )
    for option, values in (("`overrides`", overrides), ("`reuse`", reuse)):
        if values and not any(entry.recipe for entry in entries):
            raise ConfigError(
                f"{option} is for recipes, but runs alone are given, which are taken as they are: "
                "leave it out, or give a recipe"
            )
    return entries


def check_entries(
    entries: Sequence[Entry], images: ImageSet, *, reuse: Sequence[Path], device: torch.device
) -> None:
    """Find what would stop the comparison later; then make the folders of the recipes.

    Raises:
        WsssError: one line each; see `open_run`, `check`, `start_network` and `claim_folder`.
    """
    for entry in entries:
        if entry.recipe is None:
            _check_run(entry.folder, images)
    runs = [
        Run(e.folder, e.recipe, images, e.weights, None, None, device, SILENT, tuple(reuse))
        for e in entries
        if e.recipe is not None
    ]
    for run in runs:
        check(run, [stage.name for stage in open_method(run.recipe.method).stages])
    for run in runs:
        _require_fitting_weights(run)
    for run in runs:
        claim_folder(run, overwrite=False)


def _require_fitting_weights(run: Run) -> None:
    """Read them once: the first training does so before long, those of later recipes do not."""
    if run.weights_path is not None:
        networks = open_method(run.recipe.method).networks(run.recipe, len(run.images.classes))
        start_network(networks["cam"], seed=run.recipe.seed, weights_path=run.weights_path)


def _check_run(folder: Path, images: ImageSet) -> None:
    """A run can be measured on these images: made of them, and its networks can be view.

    Raises:
        ArtifactError: it cannot.
    """
    view = open_run(folder, images, "cpu", SILENT)
    _require_same_images(view)
    if view.predictor is not None:
        for stage in view.stages:
            if view.predictor.has(stage):
                view.predictor.network(stage, Network)


def _recipe_or_run(given: str, overrides: Sequence[str]) -> Recipe | Path:
    folder = Path(given)
    if (folder / "recipe.toml").is_file():
        return folder
    names = shipped_recipes()
    if given not in names and folder.suffix != ".toml":
        raise ConfigError(
            f"no recipe '{given}' and no run: expected a path to a .toml file or one of "
            f"{', '.join(names)}, or a folder that `wsss train` wrote"
        )
    return load_recipe(given, overrides)


def _names(found: Sequence[Recipe | Path], folders: Sequence[Path]) -> list[str]:
    """Of recipes their own, of runs the fewest last parts of their paths that tell them apart."""
    paths = [folder.resolve().parts for folder in folders]
    names = []
    for entry, path in zip(found, paths, strict=True):
        name = entry.name if isinstance(entry, Recipe) else path[-1]
        if paths.count(path) > 1:
            raise ConfigError(
                f"'{name}' is asked for twice: give each recipe or run once, and recipes that "
                "differ names of their own"
            )
        if isinstance(entry, Path):
            counts = range(1, len(path) + 1)
            tails = (path[-n:] for n in counts)
            tail = next(t for t in tails if sum(p[-len(t) :] == t for p in paths) == 1)
            name = "/".join(tail)
        names.append(name)
    return names


def _weights_key(recipe: Recipe, weights: Mapping[str, Path]) -> str:
    backbone = recipe.backbone.name
    key = next((key for key in (backbone, "") if key in weights), None)
    if key is None:
        raise ConfigError(
            f"recipe '{recipe.name}' starts from ImageNet weights of {backbone}: give them by "
            f"`weights` FILE, or `weights` {backbone}=FILE beside those of other backbones"
        )
    return key


def _require_same_images(view: RunView) -> None:
    """Stages were made of the images that are compared on, so that their figures are of these."""
    digest = view.run.images.digest(masks=False)
    for stage, record in view.finished.items():
        if record["inputs"].get("images") != digest:
            raise ArtifactError(
                f"stage '{stage}' of '{view.run.folder}' was made of other images than those of "
                f"'{view.run.images.root}': give its recipe instead, or the images it was made of"
            )

"""A run that looks trained: networks of random weights, in seconds and in any shape of recipe."""

from collections.abc import Sequence
from pathlib import Path

import torch

from wsss.training.engine.checkpoint import load_checkpoint, save_checkpoint
from wsss.training.engine.networks import save_network
from wsss.training.methods import open_method
from wsss.training.recipe.recipe import Recipe, dump_recipe
from wsss.training.recipes import load_recipe

CLASSES = ("disc", "bar", "ring")


def untrained_recipe(*overrides: str) -> Recipe:
    """The `demo` recipe with a short walk and small squares for the classifier."""
    return load_recipe(
        "demo", ["walk.steps=8", "walk.radius=3", "cam.train.augmentation.crop_size=65", *overrides]
    )


def write_untrained_run(
    folder: Path, recipe: Recipe, classes: Sequence[str] = CLASSES, seed: int = 0
) -> Path:
    """A run folder with the networks and the recipe, and nothing else."""
    networks = open_method(recipe.method).networks(recipe, len(classes))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(dump_recipe(recipe))
    for number, (stage, spec) in enumerate(networks.items()):
        torch.manual_seed(seed + number)
        network = spec.build()
        save_network(folder / stage / "weights.safetensors", network, spec, classes, recipe.method)
    return folder


def share_backbone(run: Path) -> None:
    """Give IRNet the classifier's backbone, as a run has it that started from there."""
    source, _ = load_checkpoint(run / "cam" / "weights.safetensors")
    path = run / "irnet" / "weights.safetensors"
    tensors, header = load_checkpoint(path)
    backbone = {key: value for key, value in source.items() if key.startswith("backbone.")}
    save_checkpoint(path, tensors | backbone, header)

"""A tiny image set, and a run of it that the command has made."""

import shutil
from pathlib import Path

import pytest
from command_line import Outcome, picture, wsss
from tiny_run import tiny_recipe, write_images

from wsss.training.recipe import dump_recipe


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny image set; not to be changed."""
    return write_images(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture
def own_data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    shutil.copytree(tiny_data, tmp_path / "own data")
    return tmp_path / "own data"


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe as a user would write it."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(dump_recipe(tiny_recipe()))
    return path


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, recipe_file: Path
) -> tuple[Path, Outcome]:
    """Folder of a run with all stages, and what `wsss train --json` said."""
    run = tmp_path_factory.mktemp("trained") / "run"
    outcome = wsss("train", recipe_file, "--data", tiny_data, "--out", run, "--json")
    return run, outcome.succeeded()


@pytest.fixture(scope="session")
def run(trained: tuple[Path, Outcome]) -> Path:
    """Folder of the finished run; not to be changed."""
    return trained[0]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two small images to label."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(2):
        picture(number).save(folder / f"photo {number}.png")
    return folder

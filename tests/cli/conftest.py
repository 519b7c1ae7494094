"""A tiny image set, and a run of it that the command has made."""

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from command_line import Outcome, picture, wsss
from tiny_run import tiny_recipe, write_images
from traced_once import traced_once

from wsss.bench import machine
from wsss.training.recipe.recipe import dump_recipe

MEASURED = cache(machine.measure_machine)


@pytest.fixture(autouse=True)
def machine_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bench measures the machine first, for seconds."""
    monkeypatch.setattr(machine, "measure_machine", MEASURED)


@pytest.fixture(scope="session", autouse=True)
def networks_traced_once() -> Iterator[None]:
    """All that is exported here is one run."""
    with traced_once():
        yield


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


@pytest.fixture(scope="session")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A bundle of that run, and what `wsss export` said; not to be changed."""
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    out = tmp_path_factory.mktemp("bundles") / "bundle"
    return out, wsss("export", run, "--out", out).succeeded()


@pytest.fixture(scope="session")
def bundle(exported: tuple[Path, Outcome]) -> Path:
    """Folder of that bundle."""
    return exported[0]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two small images to label."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(2):
        picture(number).save(folder / f"photo {number}.png")
    return folder

"""One tiny image set and one finished run of it for all tests that only read or copy them."""

import os
from pathlib import Path

import pytest
from tiny_run import tiny_recipe, write_images

from wsss.training.data.image_set import ImageSet
from wsss.training.data.readers import read_image_set
from wsss.training.pipeline import train


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy disk takes seconds for hundreds of small files, and no test pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny image set; not to be changed."""
    return write_images(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="session")
def tiny_images(tiny_data: Path) -> ImageSet:
    return read_image_set(tiny_data)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_images: ImageSet) -> Path:
    """Folder of a run with all stages; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_recipe(), tiny_images, out, device="cpu")
    return out


@pytest.fixture(scope="session")
def finished_irnet_run(tmp_path_factory: pytest.TempPathFactory, tiny_images: ImageSet) -> Path:
    """Likewise of IRNet."""
    out = tmp_path_factory.mktemp("finished_irnet") / "run"
    train(tiny_recipe(method="irnet"), tiny_images, out, device="cpu")
    return out


@pytest.fixture(scope="session")
def finished_sec_run(tmp_path_factory: pytest.TempPathFactory, tiny_images: ImageSet) -> Path:
    """Likewise of SEC."""
    out = tmp_path_factory.mktemp("finished_sec") / "run"
    train(tiny_recipe(method="sec"), tiny_images, out, device="cpu")
    return out


@pytest.fixture(scope="session")
def finished_self_guided_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_images: ImageSet
) -> Path:
    """Likewise of the self-guided network."""
    out = tmp_path_factory.mktemp("finished_self_guided") / "run"
    train(tiny_recipe(method="selfguided"), tiny_images, out, device="cpu")
    return out


@pytest.fixture(scope="session")
def finished_cian_run(tmp_path_factory: pytest.TempPathFactory, tiny_images: ImageSet) -> Path:
    """Likewise of CIAN."""
    out = tmp_path_factory.mktemp("finished_cian") / "run"
    train(tiny_recipe(method="cian"), tiny_images, out, device="cpu")
    return out

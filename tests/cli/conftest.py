"""A run and a bundle that the commands have made."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
from command_line import Outcome, picture, wsss
from made_once import made_once

from wsss.bench import machine

MEASURED = cache(machine.measure_machine)


@pytest.fixture(autouse=True)
def machine_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bench measures the machine first, for seconds."""
    monkeypatch.setattr(machine, "measure_machine", MEASURED)


@pytest.fixture(scope="session", autouse=True)
def all_traced_once(networks_traced_once: None) -> None:
    """All that is exported here is one run."""


@pytest.fixture
def own_data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    shutil.copytree(tiny_data, tmp_path / "own data")
    return tmp_path / "own data"


@pytest.fixture(scope="session")
def run(trained: tuple[Path, Outcome]) -> Path:
    """Folder of the finished run; not to be changed."""
    return trained[0]


@pytest.fixture(scope="session")
def exported(
    run: Path, networks_traced_once: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """A bundle of that run, and what `wsss export` said; not to be changed."""
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")

    def make(place: Path) -> None:
        outcome = wsss("export", run, "--out", place / "bundle").succeeded()
        (place / "outcome.json").write_text(json.dumps(outcome))

    folder = made_once(tmp_path_factory, "exported", make)
    return folder / "bundle", Outcome(*json.loads((folder / "outcome.json").read_text()))


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

"""What tests of whole bundles share; each module gives its own `run`."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def exported(
    run: Path, networks_traced_once: None, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The bundle of the module's run; not to be changed."""
    from wsss.export.bundle import ExportSettings, export_run

    out = tmp_path_factory.mktemp("bundle") / "bundle"
    export_run(run, out, ExportSettings())  # refuses graphs that differ from torch
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of three drawn scenes of an odd size."""
    from wsss.training.demo.run import write_demo_scenes

    folder = tmp_path_factory.mktemp("scenes")
    write_demo_scenes(folder, train=2, val=1, seed=0, size=(97, 130))
    return folder / "JPEGImages"

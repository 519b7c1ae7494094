"""Runs and bundles that many tests read are made once, by whichever process needs them first."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that all processes of this test run share; not to be changed.

    It is below the run's own temporary folder, so that nothing outlives a change of the source.

    Args:
        name: names the folder; the same name always has the same content.
        make: fills the folder, which is empty; only the first process that asks calls it.
    """
    base = factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made_once"
    shared.mkdir(exist_ok=True)
    folder, finished = shared / name, shared / f"{name}.finished"
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with its process, however that ends
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that died
            folder.mkdir()
            make(folder)
            finished.touch()
    return folder

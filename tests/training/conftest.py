"""What all tests of training share."""

import os

import pytest


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy disk takes seconds for hundreds of small files, and no test pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

"""What the doctor finds, and what it calls broken."""

import fcntl
import importlib.metadata
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsss.errors import ArtifactError
from wsss.runtime import doctor
from wsss.runtime.doctor import Diagnosis, Finding, diagnose


def _named(diagnosis: Diagnosis) -> dict[str, Finding]:
    return {finding.name: finding for finding in diagnosis.findings}


def test_this_machine(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path / "not" / "there")
    found = _named(diagnosis)
    assert diagnosis.is_well
    assert found["numpy"].value == np.__version__
    assert found["onnxruntime on cpu"].value == found["onnxruntime on cpu"].value == "computes"
    assert found[f"write in {tmp_path}"].state == "ok"
    assert all(finding.remedy for finding in diagnosis.findings if finding.state == "broken")
    assert list(tmp_path.iterdir()) == []
    assert diagnosis.to_json()["well"] is True


def test_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    diagnosis = diagnose(tmp_path / "file")
    finding = _named(diagnosis)[f"write in {tmp_path / 'file'}"]
    assert not diagnosis.is_well
    assert (finding.state, finding.value) == ("broken", "fails")
    assert "one of the folders in it is a file" in finding.remedy


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"write in {tmp_path}"
    assert "locks" not in _named(diagnose(tmp_path))[name].value
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, kind: None)
    finding = _named(diagnose(tmp_path))[name]
    assert finding.value.endswith("; no locks, so run one job in a folder at a time")
    assert finding.state == "ok"


def test_a_model_that_is_none(tmp_path: Path) -> None:
    diagnosis = diagnose(tmp_path, tmp_path)
    finding = diagnosis.findings[-1]
    assert (finding.part, finding.state) == ("model", "broken")
    assert "bundle.json" in finding.remedy


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needed = ["numpy>=1", "rich>=1", 'torch>=2; extra == "train"', 'pytest; extra == "test"']
    needed += ['wsss[train]; extra == "all"', 'onnxruntime>=1; extra == "cpu"']
    needed += ['onnxruntime-gpu>=1; extra == "gpu"', 'q[a,b]<2,>=1; (m == "x") and extra == "e"']
    installed = {"numpy": "9.9", "onnxruntime-gpu": "1.2"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needed)
    monkeypatch.setattr(importlib.metadata, "version", version)
    found = {f.name: f for f in diagnose(tmp_path).findings if f.part == "packages"}
    assert set(found) == {"wsss", "python", "numpy", "rich", "torch", "onnxruntime-gpu", "q"}
    assert found["numpy"].value == "9.9"
    assert (found["rich"].state, found["rich"].remedy) == ("broken", "pip install wsss")
    assert found["torch"].remedy == "pip install 'wsss[train]'"
    assert (found["q"].state, found["q"].remedy) == ("absent", "pip install 'wsss[e]'")
    installed["onnxruntime"] = "1.3"
    twice = [f for f in diagnose(tmp_path).findings if f.state == "broken"]
    assert [finding.name for finding in twice] == ["rich", "onnxruntime"]
    assert "uninstall both" in twice[1].remedy


class _Graph:
    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": inputs["x"]}

    def close(self) -> None:
        pass


def test_a_backend_that_computes_wrongly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def open_graph(path: Path, *, backend: str, device: str) -> _Graph:
        if device == "cpu":
            return _Graph()
        raise ArtifactError(f"{path.name} does not open")

    monkeypatch.setattr(doctor, "open_graph", open_graph)
    found = _named(diagnose(tmp_path))
    assert found["onnxruntime on cpu"].value == "computes wrongly"
    assert found["onnxruntime on cuda"].remedy == "tiny.onnx does not open"
    assert found["any"].state == "broken"


@pytest.mark.parametrize(("limit", "state"), [(10, "broken"), (1024, "ok"), (None, "ok")])
def test_open_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: int | None, state: str
) -> None:
    monkeypatch.setattr(doctor, "open_files_limit", lambda: limit)
    assert _named(diagnose(tmp_path))["open files"].state == state


def test_without_onnx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    found = [finding for finding in diagnose(tmp_path).findings if finding.part == "backends"]
    assert [(finding.name, finding.state) for finding in found] == [("onnx", "broken")]

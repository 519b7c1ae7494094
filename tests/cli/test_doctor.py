"""`wsss doctor`: a table or JSON, and an exit code."""

import json
from pathlib import Path

import pytest
from command_line import wsss


def test_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = wsss("doctor").succeeded()
    assert outcome.out.splitlines()[-1] == "well"
    assert "onnxruntime on cpu" in outcome.out
    found = json.loads(wsss("doctor", "--json").succeeded().out)
    assert found["well"] is True
    assert {finding["part"] for finding in found["findings"]} == {
        "packages",
        "backends",
        "machine",
        "disk",
    }


def test_doctor_of_what_is_no_bundle(tmp_path: Path) -> None:
    outcome = wsss("doctor", "--out", tmp_path, "--model", tmp_path / "none", "--json")
    assert (outcome.code, outcome.err) == (1, "")
    found = json.loads(outcome.out)
    assert found["well"] is False
    assert [each["part"] for each in found["findings"] if each["state"] == "broken"] == ["model"]

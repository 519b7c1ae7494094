"""Options of `wsss label` that are of a server: refused before anything is opened."""

from pathlib import Path

import pytest
from command_line import wsss


def line(tmp_path: Path, *arguments: object) -> str:
    """What a job says that ends with exit code 1 and leaves nothing."""
    out = tmp_path / "out"
    found = wsss("label", tmp_path, "--model", tmp_path / "none", "--out", out, *arguments).line()
    assert not out.exists()
    return found


@pytest.mark.parametrize(
    "option",
    [
        *("--url a:1", "--in-flight 2", "--deadline 3", "--patience 3"),
        *("--shared-memory on", "--server-model label"),
    ],
)
@pytest.mark.parametrize("backend", ["auto", "onnxruntime"])
def test_a_server_without_its_backend(option: str, backend: str, tmp_path: Path) -> None:
    assert "give --backend triton" in line(tmp_path, "--backend", backend, *option.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "give --url http://HOST:PORT"),
        ("--url ftp://a", "'ftp://a' is no URL of a Triton server"),
        ("--url a:1 --in-flight 0", "`in_flight` is 0, expected 1 to 1024"),
        ("--url a:1 --deadline 0", "`deadline` is 0 s, expected 0.001 to 86400"),
        ("--url a:1 --patience -1", "`patience` is -1 s, must be 0 or more"),
        ("--url a:1 --server-model ../x", "'../x' is no name of a Triton model"),
    ],
)
def test_bad_values(options: str, message: str, tmp_path: Path) -> None:
    assert message in line(tmp_path, "--backend", "triton", *options.split())


def test_a_run_is_not_served(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--backend", "triton", "--url", "127.0.0.1:1", "--out", out)
    found = wsss("label", tmp_path, "--model", run, *arguments).line()
    assert "is no bundle" in found and "`wsss export` it" in found
    assert not out.exists()

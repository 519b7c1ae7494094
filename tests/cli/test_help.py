"""Help and usage: what every command offers, at once and without the heavy packages."""

import subprocess
import sys
from collections.abc import Mapping

import pytest

from wsss.version import __version__

OPTIONS = {
    "train": "--data --out --weights --cams --seeds --set --stages --device --overwrite --json",
    "eval": "--data --split --stage --image-labels --threshold --sweep --align --calibrate --out "
    "--coverage --device --json",
    "label": "--model --out --labels --by --device --report --overwrite --json",
    "data": "--json",
    "doctor": "--model --out --json",
    "demo": "--out --seed --device --overwrite --json",
}


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    environment: Mapping[str, str] = {"COLUMNS": "120", "PATH": "", "LANG": "C.UTF-8"}
    return subprocess.run(
        [sys.executable, "-m", "wsss", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_help_of_a_command(name: str) -> None:
    done = command(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    words = set(done.stdout.split())
    assert words >= set(OPTIONS[name].split())


@pytest.mark.parametrize("arguments", [["--help"], []])
def test_help_names_every_command(arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == (0 if arguments else 2)
    assert set((done.stdout + done.stderr).split()) >= OPTIONS.keys()


def test_version() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wsss {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["data", ".", "--colour"], "--colour"),
        (["paint"], "paint"),
        (["data"], "DIR"),
        (["train", "demo", "--out", "run"], "--data"),
        (["eval", ".", "--data", ".", "--threshold", "1.5"], "--threshold"),
    ],
)
def test_wrong_usage(arguments: list[str], named: str) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr and "Traceback" not in done.stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['wsss', 'train', '--help']\n"
        "from wsss.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    heavy = {'torch', 'cv2', 'numpy', 'PIL', 'safetensors'} & set(sys.modules)\n"
        "    sys.exit(','.join(heavy) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

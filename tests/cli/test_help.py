"""Help and usage: what every command offers, at once and without the heavy packages."""

import subprocess
import sys
from collections.abc import Mapping

import pytest
from command_line import wsss

from wsss.version import __version__

OPTIONS = {
    "train": "--data --out --weights --cams --seeds --set --stages --device --overwrite --json",
    "compare": "--data --out --weights --reuse --set --pictures --device --json",
    "eval": "--data --split --mode --image-labels --threshold --sweep --align --calibrate --out "
    "--coverage --device --json",
    "label": "--model --out --labels --mode --device --report --overwrite --json",
    "export": "--out --precision --graphs --tensorrt --triton --overwrite --json",
    "serve": "--host --http-port --environment --log --json",
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


BENCHES = ("walk", "crf", "cam", "label", "serve")


@pytest.mark.parametrize("name", ["", *OPTIONS, *(f"bench {name}" for name in BENCHES)])
@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_its_window(name: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text = wsss(*name.split(), "--help").succeeded().out
    assert max(map(len, text.splitlines())) <= columns
    assert "…" not in text


def test_options_of_label_stand_in_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What most calls need comes first, in a panel that is short."""
    monkeypatch.setenv("COLUMNS", "80")
    panels: dict[str, list[str]] = {}
    for line in wsss("label", "--help").succeeded().out.splitlines():
        words = line.strip("│ *").split()
        if line.startswith("╭"):
            panels[line.strip("╭╮─ ")] = options = []
        elif words and words[0].startswith("--") and line[:6].strip("│ *"):
            options.append(words[0])
    first = ["--out", "--model", "--labels", "--mode", "--format", "--instances"]
    assert panels["Options"] == [*first, "--min-confidence", "--dry-run", "--json", "--help"]
    assert "--url" in panels["Triton server (--backend triton)"]
    assert list(panels)[:2] == ["Arguments", "Options"] and len(panels) == 6
    assert max(map(len, panels.values())) <= 10


@pytest.mark.parametrize(("name", "former"), [("label", "--by"), ("eval", "--stage")])
def test_former_names_of_mode_are_taken_and_not_shown(name: str, former: str) -> None:
    assert f" {former} " not in wsss(name, "--help").succeeded().out
    places = ("--model", "x", "--out", "y") if name == "label" else ("--data", "x")
    line = wsss(name, "images", *places, former, "cam", "--mode", "walk").line()
    assert f"{former} is the former name of --mode: leave {former} out" in line


def test_version() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wsss {__version__}\n", "")


def test_wrong_usage() -> None:
    """As `user_mistakes.txt` has it, in a process of its own."""
    done = command("paint")
    told = "wsss: no such command 'paint'. Did you mean 'train': see `wsss --help`\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


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

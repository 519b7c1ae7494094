"""The library names parameters; the command line, and it alone, names options."""

import ast
import re
from pathlib import Path

import pytest
import typer

import wsss
from wsss.cli.exit_codes import in_options
from wsss.cli.main import app

PACKAGE = Path(wsss.__file__).parent
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*(?![\w=:-])")
"""As we write ours; `--name=` and `--camelCase` are written by other programs, `--w:` by CSS."""
COMMAND = re.compile(r"`(?:wsss|ray) [^`]*`|docker run [^`]*")
"""A whole command line, which a reader can run whatever language he uses."""
OF_PIP = {"--force-reinstall", "--upgrade"}
PARAMS = {name: command.params for name, command in typer.main.get_command(app).commands.items()}


def texts(path: Path) -> list[str]:
    """String literals of a module; docstrings left out, f-strings whole with X for values."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    left_out = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    found = []
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            left_out |= {id(part) for part in node.values}
            parts = (p.value if isinstance(p, ast.Constant) else "X" for p in node.values)
            found.append("".join(map(str, parts)))
    return found + [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in left_out
    ]


def options_in(text: str) -> set[str]:
    """Options that a text names outside of whole commands."""
    return set(OPTION.findall(COMMAND.sub("", text))) - OF_PIP


def test_options_are_recognised():
    assert options_in("choose another --out, or `wsss export --triton`") == {"--out"}
    assert options_in("--min-confidence is 2") == {"--min-confidence"}
    assert not options_in("--onnx=X") and not options_in("pip install --upgrade X")


def test_only_the_command_line_names_options():
    for module in sorted(PACKAGE.rglob("*.py")):
        place = module.relative_to(PACKAGE)
        if place.parts[0] == "cli" or place == Path("runtime/report/style.py"):
            continue
        for text in texts(module):
            found = options_in(text)
            assert not found, f"{place} names {sorted(found)}: name the parameter, in backticks"


@pytest.mark.parametrize(
    ("command", "text", "expected"),
    [
        (
            "train",
            "choose another `out`, or `overwrite` it",
            "choose another --out, or --overwrite it",
        ),
        ("train", "`cams_path` 'a' lacks files", "--cams 'a' lacks files"),
        ("train", "`overrides` are TOML", "--set are TOML"),
        ("label", "give `formats` png", "give --format png"),
        ("label", "the same `images`", "the same IMAGES"),
        ("label", "leave `crf` out", "leave --crf out"),
        ("label", "choose another `server.model`", "choose another --server-model"),
        ("export", "give an image set as `images`", "give an image set as --data"),
        ("export", "add it as `version` 2", "add it as --triton-version 2"),
        ("data", "leave `crf` out", "leave `crf` out"),
        ("train", "run `wsss export` or take `small`", "run `wsss export` or take `small`"),
    ],
)
def test_parameters_become_options_of_the_command(command, text, expected):
    assert in_options(text, PARAMS[command]) == expected


def test_without_a_command_the_parameters_stay():
    assert in_options("choose another `out`", []) == "choose another `out`"

"""What the README shows is executed, on a tiny image set."""

import re
import shlex
from pathlib import Path

import pytest
from command_line import wsss
from tiny_run import tiny_recipe, write_images

from wsss.training.recipe.recipe import dump_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    line.split("#")[0].strip()
    for language, text in BLOCKS
    if not language
    for line in text.splitlines()
    if line.startswith("wsss ")
]
RECIPE, IRNET = "affinitynet_mobilenetv2", "irnet_mobilenetv2"
WEIGHTS = "mobilenetv2.safetensors"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with everything that the README names, small; the recipe needs no weights."""
    write_images(tmp_path / "photos")
    write_images(tmp_path / "new_photos")
    first = next((tmp_path / "photos" / "JPEGImages").iterdir())
    (tmp_path / "new.jpg").write_bytes(first.read_bytes())
    (tmp_path / "tiny.toml").write_text(dump_recipe(tiny_recipe()), encoding="utf-8")
    (tmp_path / "irnet.toml").write_text(dump_recipe(tiny_recipe(method="irnet")), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_six_lines_of_python(place):
    (code,) = PYTHON
    assert len([line for line in code.splitlines() if line.strip()]) == 6
    code = code.replace(RECIPE, "tiny.toml").replace(
        f'weights_path="{WEIGHTS}"', "weights_path=None"
    )
    exec(compile(code, "README.md", "exec"), {})
    assert (place / "new.png").is_file()


def test_a_command_for_every_stage(place):
    shown = " ".join(COMMANDS)
    for command in (
        "data",
        "train",
        "compare",
        "eval",
        "export",
        "label",
        "serve",
        "demo",
        "bench",
    ):
        assert f"wsss {command} " in shown
    for command in COMMANDS:
        words = shlex.split(command.replace(RECIPE, "tiny.toml").replace(IRNET, "irnet.toml"))[1:]
        if "--weights" in words:
            position = words.index("--weights")
            del words[position : position + 2]
        # Minutes, or a server: `make demo` and tests of their own run them.
        if words[0] in ("demo", "bench", "serve") or "triton" in words:
            words += ["--help"]
        wsss(*words).succeeded()


def test_make_targets_that_the_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", "\n".join(text for _, text in BLOCKS), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
)
def test_modules_that_pages_name_exist(page):
    """Paths in backticks start at the root, `src` or `src/wsss`; bare names lie below `src`."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    named = {
        path
        for code in re.findall(r"`([^`]+)`", text)
        for path in re.findall(r"(?<!\S)\S+\.py(?!\S)", code)
    }
    places = (ROOT, ROOT / "src", ROOT / "src" / "wsss")
    absent = {
        path
        for path in named
        if not any((place / path).is_file() for place in places)
        and ("/" in path or not any((ROOT / "src").rglob(path)))
    }
    assert not absent

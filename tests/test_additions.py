"""What CONTRIBUTING.md says of additions: each is made in a copy of the package, and works.

The files in `additions/` are put into the folder, and the lines into the list, that the page names,
and nothing else is changed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from small_graphs import model, saved, value

import wsss

PACKAGE = Path(wsss.__file__).parent
ADDITIONS = Path(__file__).parent / "additions"
PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")

Run = Callable[..., str]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, which a test adds to."""
    ignored = shutil.ignore_patterns("__pycache__")
    copied = shutil.copytree(PACKAGE, tmp_path / "src" / "wsss", ignore=ignored)
    return Path(copied)


@pytest.fixture
def run(package: Path) -> Run:
    """Runs Python with the copy."""

    def runs(*arguments: object) -> str:
        environment = {**os.environ, "PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return runs


def add_line(path: Path, before: str, line: str) -> None:
    """Put a line in front of the one place where the text stands."""
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{path} has {before!r} {text.count(before)} times"
    path.write_text(text.replace(before, f"{line}{before}"), encoding="utf-8")


def named(path: Path, package: Path) -> str:
    """The path as CONTRIBUTING.md names it, which it must do."""
    name = path.relative_to(package).as_posix()
    assert f"`{name}`" in PAGE, f"CONTRIBUTING.md does not name {name}"
    return name


def tiny_recipe_of(base: Path, folder: Path, *changes: tuple[str, str]) -> Path:
    """A recipe for a few small images."""
    text = base.read_text(encoding="utf-8")
    for old, new in (
        (r'\nname = "demo\w*"', '\nname = "added"'),
        (r"epochs = \d+", "epochs = 1"),
        (r"batch_size = \d+", "batch_size = 4"),
        (r"crop_size = \d+", "crop_size = 33"),
        *changes,
    ):
        text, count = re.subn(old, new, text)
        assert count, f"{base} has no {old}"
    path = folder / "added.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def added_method(package: Path) -> Path:
    """Its demo recipe, after the method was added."""
    methods = package / "training" / "methods"
    shutil.copytree(ADDITIONS / "method" / "focal", methods / "focal")
    listed = methods / "__init__.py"
    text = listed.read_text(encoding="utf-8")
    listed.write_text(re.sub(r"(METHODS = \(.*?)\)", r'\1, "focal")', text), encoding="utf-8")
    named(listed, package)
    return Path(shutil.copy(ADDITIONS / "method" / "demo_focal.toml", package / "recipes"))


def test_a_method_is_known_everywhere(added_method: Path, run: Run) -> None:
    code = """
from wsss.training.demo.run import SCENES
from wsss.training.methods import METHODS, open_method
from wsss.training.recipes import load_recipe
method = open_method(METHODS[-1])
recipe = load_recipe(method.demo.recipe)
print(recipe.focal.gamma, list(method.networks(recipe, 3)), method.demo.scenes in SCENES)
"""
    assert run("-c", code).strip() == "1.5 ['cam', 'segmenter'] True"


@pytest.mark.slow
def test_a_method_is_a_folder_and_a_line(
    added_method: Path, run: Run, tiny_data: Path, tmp_path: Path
) -> None:
    """Trained, measured, exported, used for labels and compared."""
    recipe = tiny_recipe_of(added_method, tmp_path)
    out, bundle = tmp_path / "run", tmp_path / "bundle"
    command = ("-m", "wsss")
    options = ("--data", tiny_data, "--set", "focal.gamma=1.5", "--json")
    trained = json.loads(run(*command, "train", recipe, *options, "--out", out))
    assert set(trained["figures"]) == {"cam", "seeds", "segmenter"}
    assert (out / "report.html").is_file()
    run(*command, "eval", out, "--data", tiny_data, "--json")
    run(*command, "export", out, "--out", bundle, "--json")
    labels = json.loads(
        run(
            *command,
            "label",
            tiny_data / "JPEGImages",
            "--model",
            bundle,
            "--out",
            tmp_path / "l",
            "--json",
        )
    )
    assert labels["failed"] == 0 and labels["labelled"] > 0
    compared = json.loads(
        run(*command, "compare", out, "--data", tiny_data, "--out", tmp_path / "c", "--json")
    )
    assert {row["stage"] for row in compared["rows"]} == {"cam", "segmenter"}


def test_a_backbone_is_a_file_and_its_name_in_the_list(
    package: Path, run: Run, tiny_data: Path, tmp_path: Path
) -> None:
    folder = package / "training" / "backbones"
    shutil.copy(ADDITIONS / "backbone" / "stripes.py", folder)
    listed = folder / "build.py"
    add_line(listed, "from .vgg16 import Vgg16\n", "from .stripes import Stripes\n")
    add_line(listed, "SmallNet)\n", "Stripes, ")
    named(listed, package)
    demo = package / "recipes" / "demo.toml"
    recipe = tiny_recipe_of(demo, tmp_path, (r'name = "small"', 'name = "stripes"'))
    out = tmp_path / "run"
    run("-m", "wsss", "train", recipe, "--data", tiny_data, "--out", out, "--stages", "cam")
    code = f"import wsss; print(wsss.open_model({str(out)!r}).modes)"
    assert run("-c", code).strip() == "('cam',)"


def test_an_output_format_is_a_file_and_a_row(package: Path, run: Run) -> None:
    folder = package / "runtime" / "bulk" / "formats"
    shutil.copy(ADDITIONS / "format" / "shares.py", folder)
    listed = folder / "registry.py"
    add_line(listed, '\nPLUGIN_GROUP = "wsss.writers"\n', "from .shares import SharesWriter\n")
    add_line(listed, '    "yolo": YoloWriter,\n', '    "shares": SharesWriter,\n')
    named(listed, package)
    code = """
import numpy as np
from wsss.runtime.bulk.formats.contract import JobView
from wsss.runtime.bulk.formats.registry import open_writers
from wsss.runtime.bulk.inputs.images import ImageRef, LabelledImage
(writer,) = open_writers(["shares"], JobView(("dog", "cat"), np.zeros((256, 3), np.uint8), {}))
label = np.array([[0, 1], [2, 2]], np.uint8)
image = LabelledImage(ImageRef("a.png", "/a.png", "a"), 0, np.zeros((2, 2, 3), np.uint8), label)
for name, pieces in writer.collect([writer.entry(image)]):
    print(name, b"".join(pieces).decode().split())
"""
    assert run("-c", code).strip() == "shares.csv ['image,dog,cat', 'a,25.0,50.0']"


def test_a_backend_is_a_file_and_a_row(package: Path, run: Run, tmp_path: Path) -> None:
    folder = package / "runtime" / "backends"
    shutil.copy(ADDITIONS / "backend" / "reference_backend.py", folder)
    listed = folder / "registry.py"
    row = (
        '    "reference": BackendEntry(\n'
        '        "reference_backend:open_reference", ("cpu",), "onnx", "export", ONNX\n'
        "    ),\n"
    )
    add_line(listed, '    "tensorrt": BackendEntry(', row)
    named(listed, package)
    sides = [value(name, np.float32, [1]) for name in "xy"]
    path = saved(
        model([helper.make_node("Add", ["x", "x"], ["y"])], *([side] for side in sides)), tmp_path
    )
    code = f"""
from pathlib import Path
import numpy as np
from wsss.runtime.backends.registry import open_graph
graph = open_graph(Path({str(path)!r}), backend="reference")
print(graph.describe().backend, graph.run({{"x": np.array([1.5], np.float32)}})["y"].tolist())
"""
    assert run("-c", code).strip() == "reference [3.0]"
    assert "reference" in run("-m", "wsss", "label", "--help")

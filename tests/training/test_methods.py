"""A method is a place: its name stands in its folder and in one list."""

import ast
import re
from pathlib import Path

import pytest

import wsss
from wsss.training.methods import METHODS, open_method
from wsss.training.recipes import load_recipe, shipped_recipes

PACKAGE = Path(wsss.__file__).parent
OUTSIDE = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if not path.is_relative_to(PACKAGE / "training/methods")
    and path != PACKAGE / "models.py"  # the public face, which names networks
)
NAME = re.compile(rf"(?i)(?<![a-z])({'|'.join(METHODS)})(?![a-z])")


def names_in(tree: ast.AST) -> list[tuple[int, str]]:
    """Identifiers and strings of a module, with their lines; docstrings and comments cite papers.

    Identifiers are taken apart: `IRNetRecipe`, `irnet_model`.
    """
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    prose = {
        id(node.value)
        for owner in ast.walk(tree)
        if isinstance(owner, documented)
        for node in owner.body
        if isinstance(node, ast.Expr)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in prose:
                found.append((node.lineno, node.value))
            continue
        for field in ("id", "attr", "name", "arg", "module", "asname"):
            text = getattr(node, field, None)
            if isinstance(text, str):
                parts = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", text).replace("_", " ")
                found.append((getattr(node, "lineno", 0), parts))
    return found


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_outside_its_folder_knows_a_method(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known = [f"line {line}: {text!r}" for line, text in names_in(tree) if NAME.search(text)]
    assert not known, f"{path} knows a method: {known}"


@pytest.mark.parametrize(
    "text",
    [
        'x == "irnet"',
        "from .irnet.network import IRNet",
        "isinstance(x, IRNetRecipe)",
        "def irnet_model(): pass",
        'f"a bundle of irnet"',
        "recipe.cian.scales",
    ],
)
def test_the_search_finds_what_it_is_for(text: str) -> None:
    assert any(NAME.search(name) for _, name in names_in(ast.parse(text)))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_whole(name: str) -> None:
    method = open_method(name)
    stages = {stage.name for stage in method.stages}
    assert method.name == name and all(stage.text for stage in method.stages)
    assert len(stages) == len(method.stages)
    for measured in method.measured:
        assert measured.stage in stages
    assert len({measured.kind for measured in method.measured}) == len(method.measured)
    for needed in method.modes.values():
        assert set(needed) <= {stage.name for stage in method.stages if stage.network}
    before: set[str] = set()
    for stage in method.stages:
        assert set(stage.needs) <= before, f"{stage.name} needs what comes later"
        before.add(stage.name)
    assert any(load_recipe(each).method == name for each in shipped_recipes())

"""Who may import whom, and what must not be loaded where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import wsss

PACKAGE = Path(wsss.__file__).parent
ALLOWED = {
    "runtime": {"runtime"},
    "training": {"training", "runtime"},
    "export": {"export", "training", "runtime"},
    "bench": {"bench", "export", "training", "runtime"},
    "cli": {"cli", "opening", "labelling", "bench", "training", "export", "runtime"},
}
SHARED = {"errors", "version"}


def imported_parts(path: Path) -> set[str]:
    """First names below `wsss` that a module imports, at its top or inside functions."""
    package = path.relative_to(PACKAGE.parent).with_suffix("").parts
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: -node.level] if node.level else ()
            target = (*base, *(node.module or "").split("."))
            assert node.level or target[0] != "wsss", f"{path}: absolute import of wsss"
            if target[0] == "wsss" and len(target) > 1:
                parts.add(target[1])
    return parts


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_arrows_point_down_only(part):
    modules = sorted((PACKAGE / part).rglob("*.py"))
    assert modules
    for module in modules:
        beyond = imported_parts(module) - ALLOWED[part] - SHARED - {""}
        assert not beyond, f"{module} imports {sorted(beyond)}"


def modules() -> dict[str, Path]:
    """All modules of the package by their dotted names."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if "stand_ins" not in path.parts:
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports_of(name: str, known: dict[str, Path]) -> set[str]:
    """Modules of the package that a module imports, at its top or inside functions."""
    parts, found = name.split("."), set()
    package = parts if known[name].name == "__init__.py" else parts[:-1]
    for node in ast.walk(ast.parse(known[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            inner = {f"{target}.{alias.name}" for alias in node.names}
            found |= (inner & known.keys()) or {target} & known.keys()
    return found - {name}


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """The places of a circle, in order; [] without one."""
    done: set[str] = set()

    def search(place: str, path: list[str]) -> list[str]:
        if place in path:
            return [*path[path.index(place) :], place]
        if place not in done:
            for target in sorted(graph.get(place, ())):
                if found := search(target, [*path, place]):
                    return found
            done.add(place)
        return []

    return next((found for place in sorted(graph) if (found := search(place, []))), [])


def test_there_is_no_circle_of_modules_or_rooms():
    known = modules()
    graph = {name: imports_of(name, known) for name in known}
    assert sum(map(len, graph.values())) > 1000  # the search found imports at all
    assert circle_in(graph) == []
    for depth in (3, 4):  # rooms of a part; rooms within rooms, such as the folders of methods
        rooms: dict[str, set[str]] = {}
        for name, targets in graph.items():
            own = ".".join(name.split(".")[:depth])
            others = {".".join(target.split(".")[:depth]) for target in targets} - {own}
            rooms.setdefault(own, set()).update(others)
        assert circle_in(rooms) == []


def test_the_search_finds_a_circle():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_only_the_command_line_prints_or_exits():
    for part in ("runtime", "training", "export", "bench"):
        for module in (PACKAGE / part).rglob("*.py"):
            for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    called = ast.unparse(node.func)
                    assert called not in ("print", "sys.exit", "exit"), f"{module}: {called}"


BLOCKER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ImportError(f'{{name}} is blocked')
sys.meta_path.insert(0, Blocked())
"""


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runtime_needs_neither_torch_nor_typer_nor_onnx():
    blocked = ("torch", "typer", "onnx", "onnxruntime", "tensorrt", "rich", "pydantic", "fsspec")
    run_python(
        BLOCKER.format(blocked=blocked)
        + "import wsss, wsss.runtime\n"
        + "from wsss import read_image, write_label_map\n"
        + "from wsss.runtime import bulk\n"
        + "from wsss.runtime.io import image_labels, score_maps, palette\n"
        + "from wsss.runtime.bulk import job, run\n"
        + "from wsss.runtime.bulk.work import pool\n"
        + "from wsss.runtime import doctor\n"
        + "from wsss.runtime.instances import instance_map, segments, settings\n"
    )


def test_package_and_help_leave_torch_alone():
    printed = run_python(
        "import sys\n"
        "import wsss\n"
        "from typer.testing import CliRunner\n"
        "from wsss.cli.main import app\n"
        "names = ('train', 'eval', 'export', 'label', 'data', 'demo', 'doctor')\n"
        "for arguments in ([], *([name] for name in names)):\n"
        "    result = CliRunner().invoke(app, [*arguments, '--help'])\n"
        "    assert result.exit_code == 0, result.output\n"
        "print([name for name in ('torch', 'cv2', 'numpy') if name in sys.modules])\n"
    )
    assert printed.strip() == "[]"

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
    "cli": {"cli", "opening", "bench", "training", "export", "runtime"},
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
        + "from wsss.runtime import doctor, predictor\n"
        + "from wsss import Prediction, Predictor, open_model\n"
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


def test_public_names_exist():
    for name in wsss.__all__:
        assert getattr(wsss, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        wsss.nothing  # noqa: B018

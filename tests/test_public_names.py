"""The public face: what it holds, what it loads, and what docs/api.md says of it."""

import ast
import dataclasses
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import wsss
from wsss import models
from wsss.errors import ArtifactError, ConfigError, ShapeError

DOCS = Path(__file__).parents[1] / "docs"
NAMES = [name for name in wsss.__all__ if name != "__version__"]


def _api_page():
    spec = importlib.util.spec_from_file_location("build_api_page", DOCS / "build_api_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = _api_page()


def run_python(code: str) -> str:
    """What Python prints that has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", [wsss, models])
def test_lazy_names_are_those_that_type_checkers_see(module):
    tree = ast.parse(inspect.getsource(module))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom) and statement.level == 1
        for alias in statement.names:
            assert alias.asname is None
            seen[alias.name] = f".{statement.module or alias.name}"
    # The package can be called, and calls this function; see its docstring.
    assert seen.pop("export", ".export.bundle") == ".export.bundle"
    homes = {name: home for name, home in module._HOMES.items() if home != ".export"}
    assert seen == homes
    assert set(module._HOMES) | {"__version__"} == set(module.__all__) | {"__version__"}
    assert module.__all__ == sorted(module.__all__)
    assert dir(module) == sorted(module.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_public_names_exist(name):
    assert getattr(wsss, name) is not None


def test_names_of_models_exist():
    for name in models.__all__:
        assert getattr(models, name).__name__ == name
    assert wsss.models is models


@pytest.mark.parametrize("module", [wsss, models])
def test_other_names_are_refused(module):
    with pytest.raises(AttributeError, match=f"'{module.__name__}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_importing_loads_no_framework():
    heavy = "('torch', 'onnx', 'onnxruntime', 'numpy', 'cv2', 'pydantic', 'typer', 'numba')"
    for code in ("import wsss", "import wsss.models", "from wsss import models, WsssError, export"):
        assert (
            run_python(f"import sys; {code}; print([n for n in {heavy} if n in sys.modules])")
            == "[]"
        )


@pytest.mark.parametrize(
    "imports",
    [
        "import wsss; f = wsss.export",
        "from wsss import export as f",
        "import wsss.export.bundle; import wsss; f = wsss.export",
        "import wsss; f = wsss.export; import wsss.export.triton.options",
        "from wsss.export.bundle import ExportSettings; from wsss import export as f",
        "import wsss.export.bundle as b; import wsss; f = wsss.export; assert b is f.bundle",
        "import wsss.cli.main, wsss.cli.export; import wsss; f = wsss.export",
    ],
)
def test_export_is_the_same_in_every_order_of_imports(imports):
    code = (
        f"{imports}\n"
        "import inspect, wsss, wsss.export.bundle as bundle\n"
        "assert f is wsss.export and bundle is wsss.export.bundle\n"
        "assert inspect.signature(f) == inspect.signature(bundle.export)\n"
        "bundle.export = lambda *args, **kwargs: (args, kwargs)\n"
        "print(f('run', 'out', precision='fp16'))\n"
    )
    assert run_python(code) == "(('run', 'out'), {'precision': 'fp16'})"


def test_export_refuses_what_is_no_run(tmp_path):
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    with pytest.raises(ArtifactError, match="no run"):
        wsss.export(tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match="give an image set as `images`"):
        wsss.export(str(tmp_path), str(tmp_path / "out"), precision="int8")
    assert not (tmp_path / "out").exists()


def test_api_page_is_current():
    committed = (DOCS / "api.md").read_text(encoding="utf-8")
    assert committed == PAGE.render(), "run `python docs/build_api_page.py`"


def test_api_page_has_every_name():
    grouped = [name for names in PAGE.GROUPS.values() for name in names]
    assert sorted([*grouped, "WsssError", "models"]) == sorted(NAMES)


def _require_described(called, doc: str, *, result: bool) -> None:
    parsed = PAGE.parse(inspect.cleandoc(doc))
    assert parsed.summary.endswith(".") and "\n" not in parsed.summary
    parameters = [name for name in inspect.signature(called).parameters if name != "self"]
    assert list(parsed.entries("Args")) == parameters
    assert all(parsed.entries("Args").values())
    if result:
        assert (
            inspect.signature(called).return_annotation in (None, "None")
            or parsed.sections["Returns"]
        )
    assert all(parsed.entries("Raises").values())


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("models", "WsssError")])
def test_public_names_are_described(name):
    item = PAGE.public_object(name)
    if not inspect.isclass(item):
        _require_described(item, item.__doc__, result=True)
        assert PAGE.parse(inspect.cleandoc(item.__doc__)).sections["Raises"]
        return
    if dataclasses.is_dataclass(item):
        assert all(text.split(". ", 1)[1] for text in PAGE.fields_of(item).values())
    elif inspect.isfunction(item.__init__):  # else `open_model` makes it
        _require_described(item.__init__, item.__doc__, result=False)
    for key in PAGE.methods_of(item):
        method = inspect.getattr_static(item, key)
        if inspect.isfunction(method):
            _require_described(method, method.__doc__, result=True)


@pytest.mark.parametrize("name", models.__all__)
def test_networks_are_described(name):
    item = getattr(models, name)
    called = item.__init__ if inspect.isclass(item) else item
    _require_described(called, item.__doc__, result=not inspect.isclass(item))
    if inspect.isclass(item):
        assert "(B, " in item.forward.__doc__


def test_results_are_described():
    found = {
        kind
        for name in NAMES
        if name in wsss._HOMES
        for kind in PAGE.results_of(PAGE.public_object(name))
    }
    assert {"TrainResult", "EvalReport", "LabelSummary"} <= {kind.__name__ for kind in found}
    for kind in found:
        for field, text in PAGE.fields_of(kind).items():
            assert text.split("`. ", 1)[1], f"{kind.__name__}.{field}"


def test_a_seed_from_cams_alone():
    cams = np.zeros((1, 2, 4), np.float32)
    cams[0, :, 0], cams[0, :, 1] = 1, 0.5
    image = np.zeros((2, 4, 3), np.uint8)
    seed = wsss.make_seed(image, cams, [6], rule="constant", foreground=0.6, background=0.2)
    assert seed.tolist() == [[7, 255, 0, 0]] * 2
    assert not wsss.make_seed(image, np.zeros((0, 2, 4), np.float32), []).any()
    with pytest.raises(ConfigError, match="unknown `rule` 'linear': choose one of power, constant"):
        wsss.make_seed(image, cams, [6], rule="linear")
    with pytest.raises(ShapeError, match=r"`cams` are \(1, 2, 4\), expected \(2, h, w\)"):
        wsss.make_seed(image, cams, [6, 7])

"""Which backend is taken, and that no other one is imported for it."""

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
from onnx import helper
from pytest import fixture, importorskip, mark, raises
from small_graphs import model, saved, value

from wsss.errors import ConfigError, MissingDependencyError
from wsss.runtime.backends import contract, onnxruntime_backend, registry
from wsss.runtime.backends.registry import BACKENDS, BackendEntry, open_graph

importorskip("onnxruntime", reason="needs onnxruntime")


@fixture
def path(tmp_path):
    node = helper.make_node("Exp", ["x"], ["y"])
    ends = [value(name, "float32", ["n"]) for name in "xy"]
    return saved(model([node], ends[:1], ends[1:]), tmp_path)


@fixture
def plans(monkeypatch):
    """Paths that the tensorrt backend was asked to open."""
    opened = []

    def open_plan(path, *, device, threads, allow_host_code):
        opened.append((path, allow_host_code))

    module = ModuleType("tensorrt_backend")
    module.open_plan = open_plan
    monkeypatch.setitem(sys.modules, "wsss.runtime.backends.tensorrt_backend", module)
    return opened


@mark.parametrize("backend", ["auto", "onnxruntime"])
def test_backend(path, backend):
    graph = open_graph(path, backend=backend, device="cpu")
    assert graph.describe().backend == "onnxruntime"
    np.testing.assert_array_equal(graph.run({"x": np.zeros(2, np.float32)})["y"], [1, 1])


@mark.parametrize("backend", ["auto", "onnxruntime"])
def test_nothing_is_installed(path, backend, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = r"onnxruntime cannot be imported .*'wsss\[cpu\]', or 'wsss\[gpu\]' for"
    with raises(MissingDependencyError, match=message):
        open_graph(path, backend=backend)


@mark.parametrize(
    ("device", "finds_gpu", "expected"),
    [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"), ("cuda", False, "cuda")],
)
def test_device(path, device, finds_gpu, expected, monkeypatch):
    asked = []

    def session(onnxruntime, path, where, threads):
        asked.append((where, threads))
        raise LookupError

    def on_gpu(onnxruntime, path, wanted, threads):
        session(onnxruntime, path, [wanted], threads)

    monkeypatch.setattr(onnxruntime_backend, "has_cuda", lambda: finds_gpu)
    monkeypatch.setattr(onnxruntime_backend, "_session", session)
    monkeypatch.setattr(onnxruntime_backend, "_session_on_gpu", on_gpu)
    with raises(LookupError):
        open_graph(path, device=device, threads=2)
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[expected]
    assert asked == [([provider], 2)]


def test_a_backend_is_a_file_and_a_row(path, monkeypatch):
    """Every row opens by its own function, and only files with its own ending."""
    asked = []
    module = ModuleType("new_backend")
    module.open_new = lambda path, **options: asked.append((path.name, options))
    monkeypatch.setitem(sys.modules, "wsss.runtime.backends.new_backend", module)
    row = BackendEntry("new_backend:open_new", ("cpu",), "new", "new", ".new")
    monkeypatch.setitem(BACKENDS, "new", row)
    open_graph(Path("a.new"))
    open_graph(Path("b.new"), backend="new", device="cpu", threads=3, allow_host_code=True)
    assert asked == [
        ("a.new", {"device": "auto", "threads": None, "allow_host_code": False}),
        ("b.new", {"device": "cpu", "threads": 3, "allow_host_code": True}),
    ]
    assert open_graph(path, device="cpu").describe().backend == "onnxruntime"
    with raises(ConfigError, match=r"'new' opens files that end in \.new, not .*\.onnx: choose"):
        open_graph(path, backend="new")
    with raises(ConfigError, match=r"a\.new on device 'cuda': choose one of auto, cpu"):
        open_graph(Path("a.new"), device="cuda")


def test_every_row_names_a_function_that_opens_files():
    opened = list(inspect.signature(contract.OpenFile.__call__).parameters)[1:]
    for name, entry in BACKENDS.items():
        assert bool(entry.open) == bool(entry.suffix), name
        if entry.open:
            module, _, function = entry.open.partition(":")
            found = getattr(import_module(f"{registry.__package__}.{module}"), function)
            assert list(inspect.signature(found).parameters) == opened


@mark.parametrize("backend", ["auto", "tensorrt"])
@mark.parametrize("device", ["auto", "cuda"])
def test_plan_goes_to_tensorrt(plans, backend, device):
    open_graph(Path("engine.plan"), backend=backend, device=device)
    assert plans == [(Path("engine.plan"), False)]
    open_graph(Path("engine.plan"), backend=backend, device=device, allow_host_code=True)
    assert plans[-1] == (Path("engine.plan"), True)


@mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.onnx", {"backend": "trt"}, "'trt': choose one of auto, onnxruntime, tensorrt, triton"),
        (
            "a.onnx",
            {"backend": "torch"},
            r"`torch` no longer computes bundles: .*'wsss\[cpu\]'",
        ),
        ("a.onnx", {"backend": "triton"}, "'triton' opens no file but a model on a server"),
        ("a.onnx", {"device": "gpu"}, "unknown device 'gpu': choose one of auto, cpu, cuda"),
        ("a.onnx", {"threads": 0}, "`threads` is 0, must be at least 1"),
        ("a.onnx", {"backend": "tensorrt"}, r"a\.onnx: choose auto or onnxruntime"),
        ("a.plan", {"backend": "onnxruntime"}, r"in \.onnx, not a\.plan: choose auto or tensorrt"),
        (
            "a.plan",
            {"device": "cpu"},
            "does not run a.plan on device 'cpu': choose one of auto, cu",
        ),
    ],
)
def test_wrong_choices_are_refused(plans, name, options, message):
    with raises(ConfigError, match=message):
        open_graph(Path(name), **options)
    assert not plans


def modules_after(code, *arguments):
    """Which libraries a fresh Python has loaded after some lines."""
    libraries = ("torch", "onnx", "onnxruntime", "tensorrt")
    code += f"\nprint(*(name for name in {libraries} if name in sys.modules))"
    command = [sys.executable, "-c", f"import sys\n{code}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_choosing_imports_no_library():
    assert modules_after("import wsss.runtime.backends.registry") == []


def test_a_backend_imports_its_own_library_only(path):
    code = (
        "from pathlib import Path\n"
        "from wsss.runtime.backends.registry import open_graph\n"
        "open_graph(Path(sys.argv[1]), device='cpu')"
    )
    assert modules_after(code, path) == ["onnxruntime"]


def test_tensorrt_within_onnxruntime_is_no_fallback(path):
    with raises(MissingDependencyError, match=r"asked for TensorrtExecutionProvider and gave"):
        open_graph(path, backend="onnxruntime", device="tensorrt")

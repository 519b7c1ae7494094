"""Which backend is taken, and that no other one is imported for it."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
from onnx import helper
from pytest import fixture, importorskip, mark, raises
from small_graphs import model, saved, value

from wsss.errors import ConfigError, MissingDependencyError
from wsss.runtime.backends import onnxruntime_backend, torch_backend
from wsss.runtime.backends import registry as choose
from wsss.runtime.backends.registry import open_graph

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
    module = ModuleType("tensorrt_backend")
    module.open_plan = lambda path, *, allow_host_code: opened.append((path, allow_host_code))
    monkeypatch.setitem(sys.modules, "wsss.runtime.backends.tensorrt_backend", module)
    return opened


def install(monkeypatch, *names):
    monkeypatch.setattr(choose, "find_spec", lambda name: name if name in names else None)


@mark.parametrize(
    ("installed", "backend", "expected"),
    [
        (["onnxruntime", "torch"], "auto", "onnxruntime"),
        (["torch"], "auto", "torch"),
        (["onnxruntime", "torch"], "torch", "torch"),
        (["onnxruntime", "torch"], "onnxruntime", "onnxruntime"),
    ],
)
def test_backend(path, installed, backend, expected, monkeypatch):
    install(monkeypatch, *installed)
    graph = open_graph(path, backend=backend, device="cpu")
    assert graph.describe().backend == expected
    np.testing.assert_array_equal(graph.run({"x": np.zeros(2, np.float32)})["y"], [1, 1])


@mark.parametrize(
    ("backend", "message"),
    [
        ("auto", r"no backend.*'wsss\[cpu\]', or 'wsss\[gpu\]' .* 'wsss\[train\]'"),
        ("torch", r"torch is not installed: pip install 'wsss\[train\]'"),
    ],
)
def test_nothing_is_installed(path, backend, message, monkeypatch):
    install(monkeypatch)
    with raises(MissingDependencyError, match=message):
        open_graph(path, backend=backend)


@mark.parametrize(
    ("device", "finds_gpu", "expected"),
    [("auto", False, "cpu"), ("auto", True, "cuda"), ("cpu", True, "cpu"), ("cuda", False, "cuda")],
)
@mark.parametrize(
    ("backend", "module", "name"),
    [("torch", torch_backend, "open_torch"), ("onnxruntime", onnxruntime_backend, "open_onnx")],
)
def test_device(backend, module, name, device, finds_gpu, expected, monkeypatch):
    monkeypatch.setattr(module, "has_cuda", lambda: finds_gpu)
    monkeypatch.setattr(module, name, lambda path, **options: options)
    options = open_graph(Path("graph.onnx"), backend=backend, device=device, threads=2)
    assert options == {"device": expected, "threads": 2}


@mark.skipif(torch_backend.has_cuda(), reason="needs a machine on which torch finds no GPU")
def test_torch_without_a_gpu_says_so(path):
    with raises(MissingDependencyError, match="torch finds no CUDA device: install a CUDA build"):
        open_graph(path, backend="torch", device="cuda")


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
        ("a.onnx", {"backend": "trt"}, "'trt': choose one of auto, torch, onnxruntime, tensorrt"),
        ("a.onnx", {"device": "gpu"}, "unknown device 'gpu': choose one of auto, cpu, cuda"),
        ("a.onnx", {"threads": 0}, "`threads` is 0, must be at least 1"),
        ("a.onnx", {"backend": "tensorrt"}, "a.onnx is an ONNX file, choose auto or onnxruntime"),
        ("a.plan", {"backend": "torch"}, "a.plan is an engine, choose auto or tensorrt"),
        ("a.plan", {"backend": "onnxruntime"}, "a.plan is an engine, choose auto or tensorrt"),
        ("a.plan", {"device": "cpu"}, "a.plan is a TensorRT engine, choose auto or cuda"),
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


@mark.parametrize(
    ("backend", "loaded"), [("onnxruntime", ["onnxruntime"]), ("torch", ["torch", "onnx"])]
)
def test_a_backend_imports_its_own_library_only(path, backend, loaded):
    code = (
        "from pathlib import Path\n"
        "from wsss.runtime.backends.registry import open_graph\n"
        "open_graph(Path(sys.argv[1]), backend=sys.argv[2], device='cpu')"
    )
    assert modules_after(code, path, backend) == loaded


def test_tensorrt_within_onnxruntime_is_no_fallback(path):
    with raises(MissingDependencyError, match=r"asked for TensorrtExecutionProvider and gave"):
        open_graph(path, backend="onnxruntime", device="tensorrt")
    with raises(ConfigError, match="device 'tensorrt' is onnxruntime's"):
        open_graph(path, backend="torch", device="tensorrt")

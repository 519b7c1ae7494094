"""What onnxruntime itself would do without a word: other providers, half an installation."""

import subprocess
import sys
from types import ModuleType, SimpleNamespace

import onnx
from onnx import helper
from pytest import fixture, importorskip, mark, raises
from small_graphs import model, saved, value

from wsss.errors import ArtifactError, ConfigError, MissingDependencyError
from wsss.runtime.backends import onnxruntime_backend
from wsss.runtime.backends.onnxruntime_backend import has_cuda, open_onnx

onnxruntime = importorskip("onnxruntime", reason="needs onnxruntime")

PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


@fixture
def path(tmp_path):
    node = helper.make_node("Exp", ["x"], ["y"])
    ends = [value(name, "float32", ["n"]) for name in "xy"]
    return saved(model([node], ends[:1], ends[1:]), tmp_path)


@mark.skipif(has_cuda(), reason="needs a machine on which onnxruntime finds no GPU")
@mark.parametrize("device", PROVIDERS)
def test_provider_that_is_not_obtained_is_an_error(path, device):
    with raises(MissingDependencyError) as caught:
        open_onnx(path, device=device)
    line = str(caught.value)
    assert f"was asked for {PROVIDERS[device]} and gave " in line
    assert "pip install 'wsss[gpu]'" in line and "choose the device cpu" in line
    assert "\n" not in line


@mark.skipif(has_cuda(), reason="needs a machine on which onnxruntime finds no GPU")
def test_nothing_is_printed_beside_the_error(path):
    code = (
        "import sys, pathlib\n"
        "from wsss.errors import WsssError\n"
        "from wsss.runtime.backends.onnxruntime_backend import open_onnx\n"
        "for device in ('cuda', 'tensorrt'):\n"
        "    try:\n"
        "        open_onnx(pathlib.Path(sys.argv[1]), device=device)\n"
        "    except WsssError:\n"
        "        pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def session_with(*providers):
    return lambda *arguments, **options: SimpleNamespace(get_providers=lambda: list(providers))


@mark.parametrize("device", PROVIDERS)
def test_first_provider_of_the_session_counts(path, device, monkeypatch):
    """As with onnxruntime-gpu on a machine without CUDA: it lists the provider, then falls back."""
    listed = [*PROVIDERS.values(), "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session_with("CPUExecutionProvider"))
    with raises(MissingDependencyError, match=f"{PROVIDERS[device]} and gave CPUExecutionProvider"):
        open_onnx(path, device=device)


def test_provider_that_stops_the_session_is_not_blamed_on_the_file(path, monkeypatch):
    """As with onnxruntime-gpu on a machine without TensorRT."""
    session = onnxruntime.InferenceSession

    def stopped(*arguments, providers, **options):
        if providers[0][0] != "CPUExecutionProvider":
            raise RuntimeError("Please install TensorRT libraries")
        return session(*arguments, providers=providers, **options)

    listed = [*PROVIDERS.values(), "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", stopped)
    with raises(MissingDependencyError, match=r"gave none \(Please install TensorRT libraries\)"):
        open_onnx(path, device="tensorrt")
    path.write_bytes(b"damaged")
    with raises(ArtifactError, match="cannot open"):
        open_onnx(path, device="tensorrt")


@mark.parametrize("device", PROVIDERS)
def test_options_of_a_gpu_session(path, device, monkeypatch):
    """What onnxruntime is asked for: no fallback, no settings from the file, all of a float32."""
    asked = {}

    def session(*arguments, **options):
        asked.update(options)
        none = {f"get_{kind}": list for kind in ("inputs", "outputs", "overridable_initializers")}
        return SimpleNamespace(get_providers=lambda: [PROVIDERS[device]], **none)

    listed = [*PROVIDERS.values(), "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    graph = open_onnx(path, device=device)
    assert (graph.describe().backend, graph.describe().device) == ("onnxruntime", "cuda")
    names = [name for name, _ in asked["providers"]]
    order = ["tensorrt", "cuda"] if device == "tensorrt" else ["cuda"]
    assert names == [*(PROVIDERS[name] for name in order), "CPUExecutionProvider"]
    assert dict(asked["providers"])["CUDAExecutionProvider"] == {"use_tf32": "0"}
    assert (asked["enable_fallback"], asked["read_config_from_model"]) == (0, 0)


def test_unknown_device_is_refused(path):
    with raises(ConfigError, match="unknown device 'tpu': choose one of auto, cpu, cuda, "):
        open_onnx(path, device="tpu")


@mark.parametrize("threads", [None, 1, 3])
def test_number_of_threads(path, threads, monkeypatch):
    seen = []
    session = onnxruntime.InferenceSession

    def watched(file, options, **rest):
        seen.append(options.intra_op_num_threads)
        return session(file, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    open_onnx(path, threads=threads)
    assert seen == [threads or 0]  # 0: onnxruntime's own choice


def test_absent_package(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for call in (has_cuda, lambda: open_onnx(path)):
        with raises(MissingDependencyError, match=r"pip install 'wsss\[cpu\]', or 'wsss\[gpu\]'"):
            call()


def test_package_of_which_half_was_uninstalled(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    for call in (has_cuda, lambda: open_onnx(path)):
        with raises(MissingDependencyError, match=r"in part.*--force-reinstall 'wsss\[cpu\]'"):
            call()


def device_of(provider, kind):
    return SimpleNamespace(ep_name=provider, device=SimpleNamespace(type=kind))


@mark.parametrize(
    ("provider", "kind", "expected"),
    [("CUDA", "GPU", True), ("CUDA", "CPU", False), ("WebGpu", "GPU", False)],
)
def test_gpu_is_one_that_the_cuda_provider_names(provider, kind, expected, monkeypatch):
    kind = getattr(onnxruntime.OrtHardwareDeviceType, kind)
    found = [device_of(f"{provider}ExecutionProvider", kind)]
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: found)
    assert has_cuda() is expected


def test_old_onnxruntime_that_lists_no_devices_has_no_gpu(monkeypatch):
    monkeypatch.delattr(onnxruntime, "get_ep_devices")
    assert not has_cuda()


def test_what_the_loader_prints_is_logged_and_told(path, monkeypatch, caplog, capsys):
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("no libcublas\nread the docs"))
    with (
        caplog.at_level("DEBUG", onnxruntime_backend.__name__),
        raises(MissingDependencyError, match=r"gave CPUExecutionProvider \(no libcublas\)"),
    ):
        open_onnx(path, device="cuda")
    assert caplog.messages == ["onnxruntime: no libcublas", "onnxruntime: read the docs"]
    assert capsys.readouterr().out == ""


def test_inputs_that_are_no_tensors_are_refused(tmp_path):
    node = helper.make_node("SequenceAt", ["many", "which"], ["y"])
    element = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [None])
    many = helper.make_value_info("many", helper.make_sequence_type_proto(element))
    made = model([node], [many, value("which", "int64", [])], [value("y", "float32", [None])])
    with raises(
        ArtifactError, match=r"`many` is a seq\(tensor\(float\)\), expected a tensor of nu"
    ):
        open_onnx(saved(made, tmp_path))


def test_file_of_onnxruntimes_own_format_is_refused(path, tmp_path):
    disguised = tmp_path / "graph.ort"
    path.rename(disguised)
    assert open_onnx(disguised).describe().outputs[0].name == "y"
    disguised.write_bytes(b"\0\0\0\0ORTM" + disguised.read_bytes())
    with raises(ArtifactError, match="cannot open"):
        open_onnx(disguised)

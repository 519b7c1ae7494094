"""Our use of TensorRT against its real Python bindings, where its libraries are absent.

The bindings are a wheel of 1.3 MB without the libraries, which `tensorrt_stub.c` stands in for.
They say which names, arguments and types exist, and with the stub our code runs through them. That
an engine is built or computes anything right is not shown here, see `test_tensorrt_real.py`.
"""

import json
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import onnx
from pytest import fixture, mark, skip

import wsss
from wsss.export.graphs.walk import walk_model

from .tensorrt_uses import OBJECTS, uses_of

BINDINGS = "tensorrt-cu13-bindings==11.4.0.106"
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
HERE, PACKAGE = Path(__file__).parent, Path(wsss.__file__).parent
MODULES = [
    PACKAGE / "export" / "tensorrt.py",
    PACKAGE / "runtime" / "backends" / "tensorrt_backend.py",
]


@fixture(scope="module")
def bindings(request, tmp_path_factory):
    """Folder with the bindings above the stub. The wheel is not ours to ship: pip fetches it."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        skip("the stub of TensorRT's libraries is for Linux on x86-64")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        skip("needs a C compiler for the stub of TensorRT's libraries")
    folder = tmp_path_factory.mktemp("bindings")
    zipfile.ZipFile(fetched_wheel(request.config)).extractall(folder)
    for name in LIBRARIES:
        # One of them has it all, the others only have to be there.
        source = HERE / "tensorrt_stub.c" if name == LIBRARIES[0] else Path("/dev/null")
        target = folder / "tensorrt_bindings" / f"{name}.so.11"
        options = ["-shared", "-fPIC", f"-Wl,-soname,{target.name}", "-o", target]
        subprocess.run([compiler, *options, "-x", "c", source], check=True)
    return folder


def fetched_wheel(config):
    """The wheel of the bindings, kept in pytest's cache."""
    folder = config.cache.mkdir("tensorrt_bindings")
    python = "cp{}{}".format(*sys.version_info)
    pattern = f"tensorrt_cu13_bindings-{BINDINGS.rpartition('=')[2]}-{python}-*.whl"
    if not list(folder.glob(pattern)):
        options = ["--disable-pip-version-check", "--no-deps", "--retries=0", "--timeout=20"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, BINDINGS]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            skip(f"pip cannot fetch {BINDINGS}: {done.stderr.strip().splitlines()[-1]}")
    (wheel,) = folder.glob(pattern)
    return wheel


def run_program(name, *arguments, given=""):
    command = [sys.executable, HERE / name, *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(bindings, source):
    return run_program("tensorrt_uses.py", bindings, given=json.dumps(uses_of(source)))


@mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_everything_that_we_use_exists_in_the_bindings(bindings, module):
    assert check(bindings, module.read_text("utf-8")) == []


def test_no_object_of_the_bindings_escapes_the_check():
    """Each class in the table is used somewhere; a renamed variable would drop out unseen."""
    uses = [use for module in MODULES for use in uses_of(module.read_text("utf-8"))]
    assert {use["root"] for use in uses} == {*OBJECTS.values(), "trt"}
    assert len(uses) > 60
    methods = {use["path"][-1] for use in uses if use["root"] != "trt"}
    assert {"execute_async_v3", "infer_shapes", "set_timing_cache", "node_operator"} <= methods


PLANTED = {
    "config.set_flag(trt.BuilderFlag.FP16)": "trt.BuilderFlag.FP16 does not exist",
    "self._context.execute_async_v2(stream)": "IExecutionContext.execute_async_v2 does not exist",
    "builder.max_batch_size = 1": "Builder.max_batch_size does not exist",
    "network.num_inputs = 2": "INetworkDefinition.num_inputs cannot be set",
    "config.set_timing_cache(cache)": "ITimingCache, ignore_mismatch: bool) -> bool",
    "config.set_timing_cache(cache, mismatch=False)": "set_timing_cache is not called so",
    "config.set_timing_cache(cache, ignore_mismatch=None)": "set_timing_cache is not called so",
    "config.set_flag(trt.MemoryPoolType.WORKSPACE)": "set_flag is not called so",
    "context.set_input_shape('x')": "set_input_shape is not called so",
    "runtime.deserialize_cuda_engine(b'', 1)": "deserialize_cuda_engine is not called so",
    "parser = trt.OnnxParser(network)": "trt.OnnxParser is not called so",
    "engine = builder.build_serialized_network(network, config)": "gives IHostMemory, not ICudaEng",
}


def test_planted_mistakes_are_found(bindings):
    found = check(bindings, "\n".join(PLANTED))
    assert len(found) == len(PLANTED)
    for number, (finding, message) in enumerate(zip(found, PLANTED.values(), strict=True), 1):
        assert finding.startswith(f"line {number}: ")
        assert message in finding


def test_right_uses_are_not_found(bindings):
    lines = [
        "parser = trt.OnnxParser(network, log)",
        "network = builder.create_network()",
        "config.set_flag(trt.BuilderFlag.TF32)",
        "config.set_timing_cache(cache, ignore_mismatch=False)",
        "context = engine.create_execution_context()",
        "config.avg_timing_iterations = 4",
    ]
    assert check(bindings, "\n".join(lines)) == []


def test_without_a_device_an_error_says_so(bindings, tmp_path):
    """The real logger and version, and what our code makes of the bindings' null pointers."""
    found = run_program("tensorrt_stand_in.py", bindings, "start", tmp_path)
    assert found["version"] == "11.4.0"
    assert found["messages"][0].endswith("for this TensorRT; TensorRT: no driver")
    assert found["told"] == ["old driver"]
    assert found["dims"] == [-1, 2, 3]
    assert found["kinds"] == 6


def test_build_reaches_tensorrt_as_meant(bindings, tmp_path):
    """`build_engine` through the real bindings; numbers of enumerations are those of 11.4."""
    onnx.save(walk_model(steps=2), tmp_path / "walk.onnx")
    (tmp_path / "timing.cache").write_text("old timings")
    found = run_program("tensorrt_stand_in.py", bindings, "build", tmp_path)
    shapes = [("scores", 3), ("affinity", 34)]
    sizes = [(1, 8, 8), (2, 16, 24), (4, 32, 32)]
    assert found["calls"] == [
        ["create_network", 1 << 0],  # strongly typed
        ["parse_from_file", str(tmp_path / "walk.onnx")],
        ["num_inputs"],
        ["get_input", 0],
        ["is_shape_tensor"],
        ["create_builder_config"],
        ["pool", 0, 3 << 20],  # workspace
        ["level", 5],
        ["set_flag", 12],  # version compatible
        ["hardware", 1],  # Ampere and later
        ["clear_flag", 6],  # TF32
        ["create_optimization_profile"],
        *(
            ["set_shape", name, selector, [batch, planes, height, width]]
            for name, planes in shapes
            for selector, (batch, height, width) in enumerate(sizes)
        ),
        ["add_optimization_profile"],
        ["create_timing_cache", "old timings"],
        ["set_timing_cache", 0],  # a mismatch is not ignored
        ["build"],
        ["get_timing_cache"],
        ["serialize"],
    ]
    assert found["file"] == "walk.ampere_plus.trt11.4.0.plan"
    assert (found["plan"], found["cache"]) == ("the plan", "new timings")
    assert found["refusal"] == ("TensorRT cannot take 'walk.onnx': Unique 'a/node': no such thing")


def test_run_reaches_tensorrt_as_meant(bindings, tmp_path):
    """`open_plan` and `run` through the real bindings, on the CPU's memory."""
    found = run_program("tensorrt_stand_in.py", bindings, "run", tmp_path)
    calls = found["calls"]
    addresses = [call.pop() for call in calls if call[0] == "address"]
    assert calls[:2] == [["allow", 1], ["deserialize", "a plan", 6]]
    assert [call for call in calls if call[0] == "profile"] == [
        ["profile", "image", 0, selector] for selector in range(3)
    ]
    start = calls.index(["create_execution_context"]) + 1
    steps = [call for call in calls[start:] if call != ["num_io_tensors"]]
    assert steps == [
        ["set_shape", "image", [2, 3]],
        ["address", "image"],
        ["infer_shapes"],
        ["shape_now", "label"],
        ["address", "label"],
        ["execute", 77],
    ]
    assert all(addresses)
    assert len(set(addresses)) == 2
    assert found["shapes"] == {
        "image": ["uint8", "image_0", 3],
        "label": ["float32", "label_0", 3],
    }
    assert found["results"] == {"label": ["float32", 2, 3]}
    assert found["failure"] == "TensorRT failed to run the plan; TensorRT: out of memory"

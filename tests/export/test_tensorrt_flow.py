"""Control flow around TensorRT: errors, files, order of steps.

`StandIn` takes the place of TensorRT for that alone. It is written after the documentation and
accepts what it is given: that calls and types are right is what `test_tensorrt_contract.py` shows,
and that engines work needs a GPU, see `test_tensorrt_real.py`.
"""

import ctypes
import sys
import threading
import time
from enum import Enum
from types import SimpleNamespace

import numpy as np
import onnx
from onnx import TensorProto, helper
from pytest import fixture, mark, raises

from wsss.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    MissingDependencyError,
    ShapeError,
    WsssError,
)
from wsss.export.tensorrt import EngineInfo, EngineSettings, build_engine
from wsss.runtime.backends.contract import TensorSpec
from wsss.runtime.backends.tensorrt_backend import DTYPES, open_plan
from wsss.runtime.io.progress import Progress

from .tensorrt_stand_in import pretend_cuda

PROFILE = {"image": ((1, 3), (2, 3), (4, 3))}


class Logger:
    """Base of our logger; the real one does no more, seen from Python."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Module(SimpleNamespace):
    """Names of enumerations are made up when they are asked for."""

    def __getattr__(self, name):
        value = f"{self.__dict__['title']}.{name}"
        self.__dict__[name] = value
        return value


class StandIn:
    """Not TensorRT: a stand-in for control flow only, that fails where a test says so."""

    def __init__(self):
        self.steps, self.log = [], None
        self.parser_errors, self.say = [], {}
        self.plan, self.profile_index, self.profile_error = b"plan bytes", 0, None
        self.cache_fits, self.is_shape_tensor = True, False
        self.engine_opens, self.context_opens, self.runs = True, True, True
        self.missing, self.shape_error, self.takes_shape = [], None, True
        self.tensors = {"image": ("INPUT", "FLOAT", (-1, 3)), "label": ("OUTPUT", "INT64", (-1, 3))}
        self.location, self.addresses, self.shapes = "DEVICE", {}, {}

    def module(self, version="11.4.0.106"):
        """What `import tensorrt` gives."""
        enums = ["MemoryPoolType", "BuilderFlag", "HardwareCompatibilityLevel", "DataType"]
        enums += ["TensorIOMode", "TensorLocation"]
        return SimpleNamespace(
            __version__=version,
            ILogger=Logger,
            NetworkDefinitionCreationFlag=Enum("Flag", {"STRONGLY_TYPED": 0}, type=int),
            Builder=self.start("builder", self.builder()),
            Runtime=self.start("runtime", self.runtime()),
            OnnxParser=lambda network, log: self.parser(),
            **{name: Module(title=name) for name in enums},
        )

    def start(self, name, thing):
        def call(log):
            self.log = log
            self.tell(name)
            if thing is None:
                raise TypeError("factory function returned nullptr")
            return thing

        return call

    def tell(self, step, *details):
        """Write a step down, and log what a test wants said there."""
        self.steps.append((step, *details))
        for severity, text in self.say.get(step, ()):
            self.log.log(severity, text)

    def builder(self):
        return SimpleNamespace(
            create_network=lambda flags: (
                self.tell("network", flags)
                or SimpleNamespace(num_inputs=1, get_input=lambda index: self.network_input())
            ),
            create_builder_config=self.config,
            create_optimization_profile=lambda: SimpleNamespace(set_shape=self.set_shape),
            build_serialized_network=lambda network, config: self.tell("build") or self.plan,
        )

    def network_input(self):
        return SimpleNamespace(name="image", is_shape_tensor=self.is_shape_tensor)

    def set_shape(self, name, *shapes):
        self.tell("set_shape", name, *shapes)
        if self.profile_error:
            raise ValueError(self.profile_error)

    def config(self):
        return SimpleNamespace(
            set_memory_pool_limit=lambda pool, size: self.tell("pool", pool, size),
            set_flag=lambda flag: self.tell("flag", flag),
            clear_flag=lambda flag: self.tell("no flag", flag),
            add_optimization_profile=lambda profile: self.tell("profile") or self.profile_index,
            create_timing_cache=lambda data: self.tell("cache", data) or "cache",
            set_timing_cache=lambda cache, ignore_mismatch: self.cache_fits,
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"new timings"),
        )

    def parser(self):
        errors = [
            SimpleNamespace(
                **{
                    name: lambda value=value: value
                    for name, value in zip(names, error, strict=True)
                }
            )
            for error in self.parser_errors
            for names in [("node", "node_operator", "node_name", "desc")]
        ]
        return SimpleNamespace(
            parse_from_file=lambda path: self.tell("parse", path) or self.parses,
            num_errors=len(errors),
            get_error=errors.__getitem__,
        )

    parses = True

    def runtime(self):
        return SimpleNamespace(deserialize_cuda_engine=self.deserialize)

    def deserialize(self, data):
        self.tell("deserialize", data)
        return self.engine() if self.engine_opens else None

    def engine(self):
        names = list(self.tensors)
        return SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=names.__getitem__,
            get_tensor_mode=lambda name: f"TensorIOMode.{self.tensors[name][0]}",
            get_tensor_dtype=lambda name: f"DataType.{self.tensors[name][1]}",
            get_tensor_shape=lambda name: self.tensors[name][2],
            get_tensor_location=lambda name: f"TensorLocation.{self.location}",
            get_tensor_profile_shape=lambda name, index: [list(shape) for shape in PROFILE[name]],
            create_execution_context=lambda: self.context() if self.context_opens else None,
        )

    def context(self):
        return SimpleNamespace(
            set_input_shape=self.set_input_shape,
            set_tensor_address=lambda name, place: (
                self.addresses.update({name: place}) or bool(place)
            ),
            infer_shapes=self.infer_shapes,
            get_tensor_shape=lambda name: self.output_shape(),
            execute_async_v3=self.execute,
        )

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return self.takes_shape

    def infer_shapes(self):
        if self.shape_error:
            raise RuntimeError(self.shape_error)
        return self.missing

    def output_shape(self):
        return self.shapes["image"]

    def execute(self, stream):
        """label = 2 * image, in the memory whose addresses were given."""
        self.tell("execute", stream)
        if self.runs:
            count = int(np.prod(self.shapes["image"]))
            image = (ctypes.c_float * count).from_address(self.addresses["image"])
            label = (ctypes.c_int64 * count).from_address(self.addresses["label"])
            for index in range(count):
                label[index] = int(2 * image[index])
        return self.runs


@fixture
def stand_in(monkeypatch):
    stand_in = StandIn()
    pretend_cuda(monkeypatch.setattr)
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in.module())
    return stand_in


@fixture
def graph(tmp_path):
    path = tmp_path / "label.onnx"
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3])
    label = helper.make_tensor_value_info("label", TensorProto.FLOAT, ["batch", 3])
    node = helper.make_node("Identity", ["image"], ["label"])
    onnx.save(helper.make_model(helper.make_graph([node], "g", [image], [label])), path)
    return path


@fixture
def plan(tmp_path):
    path = tmp_path / "label.plan"
    path.write_bytes(b"plan bytes")
    return path


def build(graph, profile=PROFILE, **settings):
    return build_engine(
        graph, graph.parent / "plans", profile=profile, settings=EngineSettings(**settings)
    )


def image(batch=2):
    return {"image": np.arange(batch * 3, dtype=np.float32).reshape(batch, 3)}


def test_build_writes_a_plan_named_after_graph_gpu_and_version(graph, stand_in):
    info = build(graph)
    path = graph.parent / "plans" / "label.sm90.trt11.4.0.plan"
    assert info == EngineInfo(path, 10, "sm90", "11.4.0", info.seconds)
    assert path.read_bytes() == b"plan bytes"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert ("network", 1) in stand_in.steps
    assert ("no flag", "BuilderFlag.TF32") in stand_in.steps
    assert not [step for step in stand_in.steps if step[0] == "flag"]


def test_settings_reach_tensorrt(graph, stand_in):
    info = build(
        graph,
        workspace_bytes=5 << 20,
        version_compatible=True,
        hardware_compatible=True,
        tf32=True,
    )
    assert info.path.name == "label.ampere_plus.trt11.4.0.plan"
    assert ("pool", "MemoryPoolType.WORKSPACE", 5 << 20) in stand_in.steps
    assert ("flag", "BuilderFlag.VERSION_COMPATIBLE") in stand_in.steps
    assert not [step for step in stand_in.steps if step[0] == "no flag"]


def test_warnings_are_told_and_errors_kept_for_the_message(graph, stand_in):
    class Notes(Progress):
        def note(self, text):
            notes.append(text)

    notes = []
    stand_in.say = {"build": [(Logger.WARNING, "slow\n  kernel"), (Logger.ERROR, "no\nkernel")]}
    stand_in.plan = None
    with raises(WsssError, match=r"could not build 'label.onnx'; TensorRT: no kernel$"):
        build_engine(graph, graph.parent, profile=PROFILE, progress=Notes())
    assert notes == ["slow kernel"]
    assert not list(graph.parent.glob("*.plan"))


def test_parser_errors_are_told_by_node_the_first_one_first(graph, stand_in):
    stand_in.parses = False
    stand_in.parser_errors = [
        (-1, "", "", "failed"),
        (7, "NonZero", "refine/node_16", "no\n  such type"),
        (2, "Unique", "node_3", "Plugin not found"),
    ]
    with raises(WsssError) as caught:
        build(graph)
    assert str(caught.value) == (
        "TensorRT cannot take 'label.onnx': Unique 'node_3': Plugin not found; "
        "NonZero 'refine/node_16': no such type; graph '': failed"
    )


def test_a_parser_that_gives_no_error_is_told_by_its_log(graph, stand_in):
    stand_in.parses, stand_in.say = False, {"parse": [(Logger.ERROR, "cannot open")]}
    with raises(WsssError, match="no reason given; TensorRT: cannot open"):
        build(graph)


def test_an_input_that_decides_over_shapes_is_refused(graph, stand_in):
    stand_in.is_shape_tensor = True
    with raises(WsssError, match="input `image` decides over shapes"):
        build(graph)


def test_a_bad_profile_is_refused_before_tensorrt_is_asked(graph, stand_in):
    with raises(ConfigError, match="min <= best <= max"):
        build(graph, {"image": ((4, 3), (2, 3), (1, 3))})
    assert stand_in.steps == []


def test_a_profile_that_tensorrt_refuses(graph, stand_in):
    stand_in.profile_index = -1
    with raises(ConfigError, match="TensorRT refuses the profile without a reason"):
        build(graph)
    stand_in.profile_error = "wrong\nshape"
    with raises(ConfigError, match="TensorRT refuses the profile: wrong shape"):
        build(graph)


def test_timing_cache_starts_empty_and_is_written_back(graph, stand_in):
    cache = graph.parent / "cache" / "timing.cache"
    build(graph, timing_cache=cache)
    assert ("cache", b"") in stand_in.steps
    assert cache.read_bytes() == b"new timings"
    build(graph, timing_cache=cache)
    assert ("cache", b"new timings") in stand_in.steps


def test_timing_cache_of_another_gpu_is_refused_and_kept(graph, stand_in):
    cache = graph.parent / "timing.cache"
    cache.write_bytes(b"theirs")
    stand_in.cache_fits = False
    with raises(ArtifactError, match=r"timing\.cache' was written with another GPU, driver or"):
        build(graph, timing_cache=cache)
    assert cache.read_bytes() == b"theirs"
    assert ("build",) not in stand_in.steps


def test_a_failed_build_leaves_the_timing_cache_alone(graph, stand_in):
    stand_in.plan = None
    with raises(WsssError, match="could not build"):
        build(graph, timing_cache=graph.parent / "timing.cache")
    assert not (graph.parent / "timing.cache").exists()


@mark.parametrize("version", ["8.6.1", "10.0.1", "10.11.0.33"])
def test_old_versions_are_refused(graph, plan, stand_in, monkeypatch, version):
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in.module(version))
    for attempt in (lambda: build(graph), lambda: open_plan(plan)):
        with raises(
            MissingDependencyError, match=rf"TensorRT {version} is too old, expected 10.12"
        ):
            attempt()


@mark.parametrize("version", ["10.12.0", "10.16.1.11", "11.0.0.114", "12.0.0"])
def test_later_versions_are_taken(graph, stand_in, monkeypatch, version):
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in.module(version))
    assert build(graph).tensorrt == ".".join(version.split(".")[:3])


def test_absent_packages_and_devices_are_named(graph, plan, stand_in, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for attempt in (lambda: build(graph), lambda: open_plan(plan)):
        with raises(MissingDependencyError, match="finds no CUDA device, "):
            attempt()
    monkeypatch.setitem(sys.modules, "torch", None)
    with raises(MissingDependencyError, match=r"torch is not installed, .*wsss\[tensorrt\]"):
        open_plan(plan)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for attempt in (lambda: build(graph), lambda: open_plan(plan)):
        with raises(MissingDependencyError, match=r"pip install 'wsss\[tensorrt\]'"):
            attempt()


def test_libraries_that_do_not_load_are_told(plan, monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "tensorrt":
                raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with raises(MissingDependencyError, match=r"cannot be loaded: libnvinfer\.so\.11: cannot open"):
        open_plan(plan)


def test_tensorrt_that_does_not_start(graph, plan, stand_in, monkeypatch):
    module = stand_in.module()
    module.Builder = module.Runtime = stand_in.start("start", None)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    stand_in.say = {"start": [(Logger.ERROR, "CUDA initialization failure with error: 35")]}
    for attempt in (lambda: build(graph), lambda: open_plan(plan)):
        with raises(WsssError, match=r"does not start: .*; TensorRT: CUDA initialization failure"):
            attempt()


def test_a_plan_describes_itself(plan, stand_in):
    description = open_plan(plan).describe()
    assert (description.backend, description.device) == ("tensorrt", "cuda")
    assert description.inputs == (TensorSpec("image", "float32", ("image_0", 3)),)
    assert description.outputs == (TensorSpec("label", "int64", ("label_0", 3)),)
    assert ("deserialize", b"plan bytes") in stand_in.steps


@mark.parametrize("kind", DTYPES)
def test_types_are_those_of_numpy_and_torch(plan, stand_in, kind):
    import torch

    stand_in.tensors["image"] = ("INPUT", kind, (2, 3))
    (spec,) = open_plan(plan).describe().inputs
    array = np.zeros(1, spec.dtype)
    assert torch.from_numpy(array).dtype == getattr(torch, spec.dtype)
    assert spec == TensorSpec("image", DTYPES[kind], (2, 3))


@mark.parametrize("kind", ["BF16", "FP8", "INT8"])
def test_other_types_are_refused(plan, stand_in, kind):
    stand_in.tensors["label"] = ("OUTPUT", kind, (2, 3))
    with raises(
        ArtifactError, match=f"tensor `label` is DataType.{kind}, this backend takes UINT8"
    ):
        open_plan(plan)


def test_plans_of_other_machines_are_refused(plan, stand_in):
    stand_in.engine_opens = False
    stand_in.say = {"deserialize": [(Logger.ERROR, "version tag does not match")]}
    with raises(ArtifactError) as caught:
        open_plan(plan)
    assert str(caught.value) == (
        "plan 'label.plan' cannot be opened: built for another GPU or TensorRT version than this "
        "one (11.4.0): build it again on this machine; if it is version-compatible and you trust "
        "it, allow its host code; TensorRT: version tag does not match"
    )
    with raises(ArtifactError, match=r"build it again on this machine; TensorRT"):
        open_plan(plan, allow_host_code=True)


@mark.parametrize("allowed", [False, True])
def test_host_code_runs_only_where_it_is_allowed(plan, stand_in, monkeypatch, allowed):
    module, runtime = stand_in.module(), stand_in.runtime()
    module.Runtime = lambda log: runtime
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    open_plan(plan, allow_host_code=allowed)
    assert runtime.engine_host_code_allowed is allowed


def test_files_that_cannot_be_opened(tmp_path, plan, stand_in):
    with raises(DataError, match="No such file"):
        open_plan(tmp_path / "absent.plan")
    stand_in.context_opens = False
    with raises(WsssError, match=r"plan 'label.plan' does not fit into the GPU's free memory"):
        open_plan(plan)
    stand_in.location = "HOST"
    with raises(ArtifactError, match="tensor `image` decides over shapes"):
        open_plan(plan)


def test_run_passes_memory_that_lives(plan, stand_in):
    opened = open_plan(plan)
    results = opened.run(image())
    assert list(results) == ["label"]
    assert results["label"].dtype == np.int64
    np.testing.assert_array_equal(results["label"], 2 * image()["image"].astype(np.int64))
    assert stand_in.steps[-1] == ("execute", 77)
    assert opened.run(image(), outputs=[]) == {}
    readonly = image(3)["image"][:, ::-1]
    readonly.flags.writeable = False
    np.testing.assert_array_equal(opened.run({"image": readonly})["label"], 2 * readonly)


def test_inputs_are_checked_before_tensorrt_is_asked(plan, stand_in):
    opened = open_plan(plan)
    with raises(DataError, match="input `image` is missing"):
        opened.run({})
    with raises(DataError, match="unknown output `scores`"):
        opened.run(image(), outputs=["scores"])
    with raises(DataError, match="input `image` is float64, expected float32"):
        opened.run({"image": np.zeros((2, 3))})
    with raises(ShapeError, match=r"is \(5, 3\), this plan takes \(1, 3\) to \(4, 3\): resize it"):
        opened.run(image(5))
    assert stand_in.addresses == {}


def test_what_tensorrt_refuses_while_it_runs(plan, stand_in):
    opened = open_plan(plan)
    stand_in.runs, stand_in.say = False, {"execute": [(Logger.INTERNAL_ERROR, "CUDA\n error")]}
    with raises(DataError, match="TensorRT failed to run the plan; TensorRT: CUDA error"):
        opened.run(image())
    stand_in.output_shape = lambda: (2, -1)
    with raises(WsssError, match=r"output `label` is \(2, -1\): its size depends on values, which"):
        opened.run(image())
    stand_in.missing = ["sizes"]
    with raises(DataError, match=r"lacks sizes beside `image` \(2, 3\)"):
        opened.run(image())
    stand_in.shape_error = "batch of\n cam"
    with raises(ShapeError, match=r"cannot take `image` \(2, 3\) together: batch of cam"):
        opened.run(image())
    stand_in.takes_shape = False
    with raises(ShapeError, match=r"input `image`: TensorRT refuses \(2, 3\)"):
        opened.run(image())


def test_memory_that_torch_cannot_give_is_about_these_inputs(plan, stand_in):
    opened = open_plan(plan)
    stand_in.output_shape = lambda: (1 << 50, 3)  # more than any machine has
    with raises(DataError, match=r"the plan failed: .*; take smaller images or batches"):
        opened.run(image())


def test_a_closed_graph_does_not_run(plan, stand_in):
    opened = open_plan(plan)
    opened.close()
    opened.close()
    with raises(RuntimeError, match="closed"):
        opened.run(image())


def test_calls_from_several_threads_take_turns(plan, stand_in):
    """Each call gets its own result, though all of them go through one context."""
    opened, inside, together = open_plan(plan), threading.Semaphore(1), []
    execute = stand_in.execute

    def alone(stream):
        together.append(not inside.acquire(blocking=False))
        time.sleep(1e-3)  # the others run meanwhile, as they do while a GPU computes
        done = execute(stream)
        inside.release()
        return done

    opened._context.execute_async_v3 = alone

    def call(number):
        feeds = {"image": np.full((number % 4 + 1, 3), number, np.float32)}
        for _ in range(5):
            results[number].append(opened.run(feeds)["label"])

    results = {number: [] for number in range(8)}
    threads = [threading.Thread(target=call, args=(number,)) for number in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == 40
    assert not any(together)
    for number, arrays in results.items():
        assert all(array.shape == (number % 4 + 1, 3) for array in arrays)
        assert all((array == 2 * number).all() for array in arrays)

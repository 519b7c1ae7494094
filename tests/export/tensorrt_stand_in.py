"""Our builder and runner on the real Python bindings of TensorRT, above `tensorrt_stub.c`.

Run as a program, in a process of its own: the bindings stay in what imports them. It prints JSON:
what was called in C++, with the arguments that arrived there. Nothing is built and nothing is
computed; that our calls reach C++ as meant is all that it shows.
"""

import ctypes
import json
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

BUILDER, RUNTIME, PARSER, NETWORK, CONFIG, PROFILE, CACHE = range(7)
PLAN, CACHE_BYTES, ENGINE, CONTEXT, ERROR, TENSOR = range(7, 13)


class _Shape(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int32), ("sizes", ctypes.c_int64 * 8))


class _Call(ctypes.Structure):
    _fields_ = (
        ("object", ctypes.c_int64),
        ("slot", ctypes.c_int64),
        ("arguments", ctypes.c_int64 * 4),
        ("text", ctypes.c_char * 256),
        ("shape", _Shape),
    )


class StandIn:
    """The stub library, taught by calling the bindings once and seeing where each call arrives."""

    def __init__(self, path):
        self._library = ctypes.CDLL(str(path))
        self._library.stub_object.restype = ctypes.c_void_p
        self._library.stub_num_calls.restype = ctypes.c_int64
        self._library.stub_call.restype = ctypes.POINTER(_Call)
        self._library.stub_call.argtypes = (ctypes.c_int64,)
        self._objects = [self._library.stub_object(index) for index in range(13)]
        self._names, self._kept, self._start = {}, [], 0

    def learn(self, name, call, *answers, shape=None, text=0, dims=0, numbers=()):
        """Give a name and answers, in turn, to what a call of the bindings reaches last.

        Answers are numbers, bytes, or [index] of an object, and `shape` where it returns one. The
        others are positions of arguments from 1: a text, a shape and numbers to report.
        """
        with suppress(ValueError, RuntimeError):  # the answer is 0 before it is taught
            call()
        self._learn(1, name, *answers, shape=shape, text=text, dims=dims, numbers=numbers)

    def _learn(self, back, name, *answers, shape=None, text=0, dims=0, numbers=()):
        call = self._library.stub_call(self._library.stub_num_calls() - back).contents
        where = ctypes.c_int64(call.object), ctypes.c_int64(call.slot)
        self._names[call.object, call.slot] = name, numbers
        values = (ctypes.c_int64 * 4)(*map(self._number, answers))
        self._library.stub_answers(*where, len(answers), values)
        self._library.stub_keep(*where, text, dims)
        if shape is not None:
            self._library.stub_shape(*where, len(shape), (ctypes.c_int64 * 8)(*shape))

    def _number(self, answer):
        if isinstance(answer, bytes):
            self._kept.append(ctypes.create_string_buffer(answer, len(answer) + 1))
            return ctypes.addressof(self._kept[-1])
        return self._objects[answer[0]] if isinstance(answer, list) else answer

    def learn_memory(self, memory, content):
        """Answers for the size, the type and the data of an `IHostMemory`."""
        self.learn("", lambda: memory.nbytes, len(content))
        self.learn("", lambda: memoryview(memory), content)  # asks for the type before
        self._learn(2, "", 2)  # whole numbers of a byte

    def forget(self):
        """Start the list of calls anew."""
        self._start = self._library.stub_num_calls()

    def say(self, severity, text):
        """Log a message, as TensorRT does from inside."""
        self._library.stub_say(severity, text.encode())

    def calls(self):
        """[name, what is known of the arguments...] of each call with a name, in order."""
        found = []
        for index in range(self._start, self._library.stub_num_calls()):
            call = self._library.stub_call(index).contents
            name, numbers = self._names.get((call.object, call.slot), ("", ()))
            if name:
                told = [call.text.decode()] if call.text else []
                told += [call.arguments[position - 1] for position in numbers]
                told += [list(call.shape.sizes[: call.shape.count])] if call.shape.count else []
                found.append([name, *told])
        return found


def pretend_cuda(set_attribute):
    """Make torch's CPU pass for a CUDA device, as far as our runner goes.

    Args:
        set_attribute: `setattr`, or pytest's, which takes it back.
    """
    import torch

    class Stream:
        cuda_stream = 77

        def __init__(self, device=None):
            self.device = device

        def synchronize(self):
            pass

    empty = torch.empty

    def empty_anywhere(*shape, device=None, pin_memory=False, **options):
        return empty(*shape, **options)

    set_attribute(torch, "empty", empty_anywhere)
    set_attribute(torch.cuda, "is_available", lambda: True)
    set_attribute(torch.cuda, "current_device", lambda: 0)
    set_attribute(torch.cuda, "get_device_capability", lambda: (9, 0))
    set_attribute(torch.cuda, "Stream", Stream)
    for name in ("stream", "device"):
        set_attribute(torch.cuda, name, lambda target: nullcontext())


def _teach_builder(trt, stub):
    log = trt.Logger()
    builder = trt.Builder(log)
    stub.learn("create_network", lambda: builder.create_network(1), [NETWORK], numbers=[1])
    stub.learn("create_builder_config", builder.create_builder_config, [CONFIG])
    stub.learn("create_optimization_profile", builder.create_optimization_profile, [PROFILE])
    network, config = builder.create_network(1), builder.create_builder_config()
    stub.learn("build", lambda: builder.build_serialized_network(network, config), [PLAN])
    stub.learn_memory(builder.build_serialized_network(network, config), b"the plan")
    parser = trt.OnnxParser(network, log)
    stub.learn("parse_from_file", lambda: parser.parse_from_file("x"), 1, text=1)
    stub.learn("num_inputs", lambda: network.num_inputs, 1)
    stub.learn("get_input", lambda: network.get_input(0), [TENSOR], numbers=[1])
    network_input = network.get_input(0)
    stub.learn("is_shape_tensor", lambda: network_input.is_shape_tensor, 0)
    _teach_config(trt, stub, config, builder.create_optimization_profile())
    return parser


def _teach_config(trt, stub, config, profile):
    def set_level():
        config.builder_optimization_level = 1

    def set_hardware():
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.NONE

    pool, flag, sizes = trt.MemoryPoolType.WORKSPACE, trt.BuilderFlag.TF32, (1, 2)
    stub.learn("level", set_level, numbers=[1])
    stub.learn("hardware", set_hardware, numbers=[1])
    stub.learn("pool", lambda: config.set_memory_pool_limit(pool, 1), numbers=[1, 2])
    stub.learn("set_flag", lambda: config.set_flag(flag), numbers=[1])
    stub.learn("clear_flag", lambda: config.clear_flag(flag), numbers=[1])
    stub.learn(
        "set_shape",
        lambda: profile.set_shape("x", sizes, sizes, sizes),
        1,
        text=1,
        numbers=[2],
        dims=3,
    )
    stub.learn("add_optimization_profile", lambda: config.add_optimization_profile(profile), 0)
    stub.learn("create_timing_cache", lambda: config.create_timing_cache(b"x"), [CACHE], text=1)
    cache = config.create_timing_cache(b"x")
    attach = config.set_timing_cache
    stub.learn("set_timing_cache", lambda: attach(cache, ignore_mismatch=True), 1, numbers=[2])
    stub.learn("get_timing_cache", config.get_timing_cache, [CACHE])
    stub.learn("serialize", cache.serialize, [CACHE_BYTES])
    stub.learn_memory(cache.serialize(), b"new timings")


def build(trt, stub, folder):
    """`build_engine`, with everything switched on."""
    from wsss.errors import WsssError
    from wsss.export.tensorrt import EngineSettings, build_engine

    parser = _teach_builder(trt, stub)
    graph, cache = folder / "walk.onnx", folder / "timing.cache"
    settings = EngineSettings(3 << 20, cache, True, True, 5)
    profile = {"scores": ((1, 3, 8, 8), (2, 3, 16, 24), (4, 3, 32, 32))}
    profile["affinity"] = tuple((batch, 34, *size) for batch, _, *size in profile["scores"])
    options = {"profile": profile, "settings": settings}
    stub.forget()
    info = build_engine(graph, folder / "out", **options)
    calls = stub.calls()
    stub.learn("parse_from_file", lambda: parser.parse_from_file("x"), 0)
    stub.learn("num_errors", lambda: parser.num_errors, 1)
    stub.learn("get_error", lambda: parser.get_error(0), [ERROR])
    error = parser.get_error(0)
    stub.learn("node", error.node, 4)
    texts = {"desc": b"no\n such  thing", "node_name": b"a/node", "node_operator": b"Unique"}
    for name, text in texts.items():
        stub.learn(name, getattr(error, name), text)
    try:
        build_engine(graph, folder / "out", **options)
    except WsssError as caught:
        refusal = str(caught)
    names = {"file": info.path.name, "target": info.target, "tensorrt": info.tensorrt}
    content = {"plan": info.path.read_bytes().decode(), "cache": cache.read_text()}
    return {"calls": calls, "refusal": refusal, **names, **content}


def _teach_runtime(trt, stub):
    runtime = trt.Runtime(trt.Logger())

    def allow():
        runtime.engine_host_code_allowed = True

    stub.learn("allow", allow, numbers=[1])
    load = runtime.deserialize_cuda_engine
    stub.learn("deserialize", lambda: load(b"plan"), [ENGINE], text=1, numbers=[2])
    engine = load(b"plan")
    stub.learn("num_io_tensors", lambda: engine.num_io_tensors, 2)
    modes = map(int, (trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT))
    kinds = map(int, (trt.DataType.UINT8, trt.DataType.FLOAT))
    stub.learn("mode", lambda: engine.get_tensor_mode("x"), *modes, text=1)
    stub.learn("dtype", lambda: engine.get_tensor_dtype("x"), *kinds, text=1)
    device = int(trt.TensorLocation.DEVICE)
    stub.learn("location", lambda: engine.get_tensor_location("x"), device, text=1)
    stub.learn("shape", lambda: engine.get_tensor_shape("x"), shape=(-1, 3), text=1)
    profile_shape = engine.get_tensor_profile_shape
    stub.learn("profile", lambda: profile_shape("x", 0), shape=(2, 3), text=1, numbers=[2, 3])
    stub.learn("create_execution_context", engine.create_execution_context, [CONTEXT])
    context = engine.create_execution_context()
    stub.learn("", lambda: context.engine, [ENGINE])
    stub.learn("infer_shapes", context.infer_shapes, 0)
    stub.learn("set_shape", lambda: context.set_input_shape("x", (2, 3)), 1, text=1, dims=2)
    stub.learn("shape_now", lambda: context.get_tensor_shape("x"), shape=(2, 3), text=1)
    address = context.set_tensor_address
    stub.learn("address", lambda: address("x", 8), 1, text=1, numbers=[2])
    stub.learn("execute", lambda: context.execute_async_v3(8), 1, numbers=[1])
    stub.learn("name", lambda: engine.get_tensor_name(0), b"image", b"label", numbers=[1])


def run(trt, stub, folder):
    """`open_plan`, its description and one run; then one that fails with a message."""
    import numpy as np

    from wsss.errors import WsssError
    from wsss.runtime.backends.tensorrt_backend import open_plan

    pretend_cuda(setattr)
    _teach_runtime(trt, stub)
    stub.forget()
    plan = folder / "label.plan"
    plan.write_bytes(b"a plan")
    graph = open_plan(plan, allow_host_code=True)
    feeds = {"image": np.ones((2, 3), np.uint8)}
    results = graph.run(feeds)
    calls = stub.calls()
    context = graph._context
    stub.learn("execute", lambda: context.execute_async_v3(8), 0)
    stub.say(0, "out of\n memory")
    stub.say(2, "a warning")
    try:
        graph.run(feeds)
    except WsssError as caught:
        failure = str(caught)
    graph.close()
    description = graph.describe()
    shapes = {
        spec.name: [spec.dtype, *spec.shape] for spec in (*description.inputs, *description.outputs)
    }
    arrays = {name: [str(array.dtype), *array.shape] for name, array in results.items()}
    return {"calls": calls, "failure": failure, "shapes": shapes, "results": arrays}


def start(trt, stub, folder):
    """What happens where TensorRT finds no device: here its library gives null pointers."""
    from wsss.errors import WsssError
    from wsss.runtime.backends.tensorrt_backend import (
        DTYPES,
        import_tensorrt,
        message_log,
        started,
        version_of,
    )

    told = []
    log = message_log(import_tensorrt(), told.append)
    log.log(trt.ILogger.ERROR, "no\n driver")
    log.log(trt.ILogger.WARNING, "old  driver")
    log.log(trt.ILogger.INFO, "hello")
    messages = []
    for kind in (trt.Builder, trt.Runtime):
        try:
            started(kind, log)
        except WsssError as caught:
            messages.append(str(caught))
    kinds = {getattr(trt.DataType, name): name for name in DTYPES}
    dims = trt.Dims((-1, 2, 3))
    found = {"messages": messages, "told": told, "dims": tuple(dims), "kinds": len(kinds)}
    return {**found, "version": version_of(trt)}


def import_bindings(folder):
    """The bindings of a folder, above the libraries that lie beside them."""
    sys.modules["tensorrt_libs"] = None  # installed libraries would be taken first
    sys.path.insert(0, folder)
    import tensorrt_bindings

    sys.modules["tensorrt"] = tensorrt_bindings  # the name that the full package gives them
    return tensorrt_bindings


if __name__ == "__main__":
    bindings, scenario, place = sys.argv[1:]
    trt = import_bindings(bindings)
    if scenario == "start":  # before the stub has any object to give
        answer = start(trt, None, Path(place))
    else:
        stub = StandIn(Path(bindings) / "tensorrt_bindings" / "libnvinfer.so.11")
        answer = {"build": build, "run": run}[scenario](trt, stub, Path(place))
    print(json.dumps(answer))

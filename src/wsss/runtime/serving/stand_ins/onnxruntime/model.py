"""Stand-in for Triton's ONNX Runtime backend, where only the Python backend is to be had.

It does with `model.onnx` what the real backend does on a CPU (its src/onnxruntime.cc, commit
02ffb9e, read and not copied): compares the configuration with the graph when it loads, joins
requests into one batch, runs all outputs, answers with those that were asked for. What the real
one refuses, this one refuses; what only a GPU has, it lacks. Runs inside of the server's Python.
"""

import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}
SHRINKAGE = "memory.enable_memory_arena_shrinkage"
OPTIMIZATION = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def dims_of(value):
    """Shape of a graph's tensor, with -1 where it varies."""
    return [axis if isinstance(axis, int) else -1 for axis in value.shape]


class TritonPythonModel:
    """One session; see the Python backend of Triton for when these methods are called."""

    @staticmethod
    def auto_complete_config(config):
        """Nothing is completed: our configurations are complete."""
        return config

    def initialize(self, args):
        """Open the graph and hold the configuration against it."""
        self.config = json.loads(args["model_config"])
        self.name = args["model_name"]
        self.max_batch_size = self.config["max_batch_size"]
        if args["model_instance_kind"] != "CPU":
            kind = args["model_instance_kind"]
            raise pb_utils.TritonModelException(f"'{self.name}': no instances of kind {kind} here")
        file = self.config.get("default_model_filename") or "model.onnx"
        path = os.path.join(args["model_repository"], str(args["model_version"]), file)
        if not os.path.isfile(path):
            raise pb_utils.TritonModelException(f"unable to find '{path}'")
        self.session = onnxruntime.InferenceSession(
            path, self.session_options(), providers=["CPUExecutionProvider"]
        )
        self.options_of_runs = self.run_options()
        self.check_inputs()
        self.check_outputs()
        self.outputs = [output["name"] for output in self.config["output"]]

    def session_options(self):
        """As the parameters of the configuration say."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors reach whoever asked
        parameters = self.config.get("parameters", {})
        for key in ("intra_op_num_threads", "inter_op_num_threads"):
            value = parameters.get(key.replace("num_threads", "thread_count"))
            if value and int(value["string_value"]) > 0:
                setattr(options, key, int(value["string_value"]))
        for key in ("enable_mem_arena", "enable_mem_pattern"):
            if key in parameters:
                is_on = parameters[key]["string_value"].lower() in ("1", "true")
                setattr(options, key.replace("mem_arena", "cpu_mem_arena"), is_on)
        level = self.config.get("optimization", {}).get("graph", {}).get("level", 0)
        if level in OPTIMIZATION:
            options.graph_optimization_level = OPTIMIZATION[level]
        return options

    def run_options(self):
        """Of every run: whether memory is given back at its end."""
        options = onnxruntime.RunOptions()
        value = self.config.get("parameters", {}).get(SHRINKAGE)
        if value:
            options.add_run_config_entry(SHRINKAGE, value["string_value"])
        return options

    def check_inputs(self):
        """Every input is configured, and an input with a default may be."""
        required = {value.name: value for value in self.session.get_inputs()}
        known = required | {
            value.name: value for value in self.session.get_overridable_initializers()
        }
        configured = self.config["input"]
        expected = sum(not each.get("optional", False) for each in configured)
        if len(required) != expected:
            raise pb_utils.TritonModelException(
                f"unable to load model '{self.name}', configuration expects {expected} inputs, "
                f"model provides {len(required)}"
            )
        for each in configured:
            if each.get("optional", False) and self.max_batch_size:
                raise pb_utils.TritonModelException(
                    f"unable to load model '{self.name}', optional input '{each['name']}' is not "
                    "supported for models that support batching"
                )
            self.check_tensor(each, known, "input", exact=False)

    def check_outputs(self):
        """The graph has every output that is configured."""
        known = {value.name: value for value in self.session.get_outputs()}
        for each in self.config["output"]:
            self.check_tensor(each, known, "output", exact=True)

    def check_tensor(self, each, known, kind, exact):
        """Name, type and dims; `exact`: what varies in the graph varies in the configuration."""
        name = each["name"]
        if name not in known:
            raise pb_utils.TritonModelException(
                f"unexpected inference {kind} '{name}', allowed {kind}s are: {', '.join(known)}"
            )
        found = TYPES.get(known[name].type, known[name].type)
        if found != each["data_type"]:
            raise pb_utils.TritonModelException(
                f"unable to load model '{self.name}', configuration expects datatype "
                f"{each['data_type']} for {kind} '{name}', model provides {found}"
            )
        dims = [int(dim) for dim in each["dims"]]
        dims, model = [-1, *dims] if self.max_batch_size else dims, dims_of(known[name])
        fits = len(dims) == len(model) and all(
            found == wanted or (found == -1 and not exact)
            for wanted, found in zip(dims, model, strict=True)
        )
        if not fits or (self.max_batch_size and model[0] != -1):
            raise pb_utils.TritonModelException(
                f"model '{self.name}', tensor '{name}': the model expects shape {model} but the "
                f"model configuration specifies {dims}"
            )

    def execute(self, requests):
        """One run for all requests, which the server groups by the shapes of their inputs."""
        try:
            answers = self.answers(requests)
        except Exception as error:  # the real backend answers every request of the batch with it
            failure = pb_utils.TritonError(f"onnx runtime error: {error}")
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]
        responses = []
        for request, values in zip(requests, answers, strict=True):
            wanted = set(request.requested_output_names())
            tensors = [
                pb_utils.Tensor(name, np.ascontiguousarray(value))
                for name, value in zip(self.outputs, values, strict=True)
                if name in wanted
            ]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses

    def answers(self, requests):
        """Values of all outputs for each request."""
        given = [
            {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            for request in requests
        ]
        if len(given) == 1:
            return [self.session.run(self.outputs, given[0], self.options_of_runs)]
        joined = {name: np.concatenate([each[name] for each in given]) for name in given[0]}
        ends = np.cumsum([len(next(iter(each.values()))) for each in given])[:-1]
        found = self.session.run(self.outputs, joined, self.options_of_runs)
        parts = [np.split(value, ends) for value in found]
        return list(zip(*parts, strict=True))

"""Requests to Triton over HTTP or gRPC, with one face and one kind of failure, from any thread."""

import contextlib
import importlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np

from ....errors import MissingDependencyError, one_line
from ..contract import Array
from .faults import Fault, FaultKind, answered_fault, fault_of
from .http import HttpAnswer, HttpClient
from .options import ServerUrl


@dataclass(frozen=True)
class SentInput:
    """An input of a request."""

    name: str
    datatype: str
    array: Array


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        arrays: the outputs; read-only, because they share the memory of the message.
        version: version of the model that computed them.
    """

    arrays: dict[str, Array]
    version: str


class Transport(Protocol):
    """A server, spoken to; every method raises `Fault` and ends within `deadline_s` seconds."""

    def metadata(self, model: str, version: str, deadline_s: float) -> dict[str, Any]:
        """The model's metadata in the form of JSON over HTTP."""

    def config(self, model: str, version: str, deadline_s: float) -> dict[str, Any]:
        """The model's configuration in the form of JSON over HTTP."""

    def served(self, deadline_s: float) -> list[str]:
        """Names of the models that are ready."""

    def statistics(self, model: str, version: str, deadline_s: float) -> dict[str, int]:
        """`inference_count` and `execution_count` of a model."""

    def infer(
        self,
        model: str,
        version: str,
        inputs: Sequence[SentInput],
        outputs: Sequence[str],
        deadline_s: float,
    ) -> Answer:
        """Run a model."""

    def close(self) -> None:
        """Drop all connections; requests under way fail."""


_HEADER_BYTES = "Inference-Header-Content-Length"
"""Header of HTTP: the bytes of JSON that stand in front of the tensors."""
_LARGEST_MESSAGE = 2**31 - 1
"""Bytes of a gRPC message, the most that protobuf can do; gRPC's default is 4 MiB."""
_GRPC = (
    ("grpc.max_send_message_length", _LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    # gRPC waits up to two minutes between two tries to connect, far longer than a restart lasts.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Otherwise a new graph would share the connection of a broken one, and its waiting.
    ("grpc.use_local_subchannel_pool", 1),
)


def connect(url: ServerUrl) -> Transport:
    """A transport for a URL; nothing is sent yet.

    Raises:
        MissingDependencyError: tritonclient is absent or broken.
    """
    try:
        module = importlib.import_module(f"tritonclient.{url.protocol}")
    except ImportError as error:
        raise MissingDependencyError(
            f"tritonclient cannot be imported ({one_line(error)}): pip install 'wsss[triton]'"
        ) from error
    return _Http(module, url) if url.protocol == "http" else _Grpc(module, url)


class _Common:
    """What both protocols do alike; the classes of the two modules have the same names."""

    def __init__(self, module: Any) -> None:
        self._module: Any = module

    def _request(
        self, inputs: Sequence[SentInput], outputs: Sequence[str]
    ) -> tuple[list[Any], list[Any]]:
        sent = []
        for given in inputs:
            tensor = self._module.InferInput(given.name, list(given.array.shape), given.datatype)
            tensor.set_data_from_numpy(given.array)
            sent.append(tensor)
        return sent, [self._module.InferRequestedOutput(name) for name in outputs]

    def _answer(
        self,
        result: Any,
        response: dict[str, Any],
        outputs: Sequence[str],
    ) -> Answer:
        shapes = {
            tensor["name"]: tuple(int(size) for size in tensor["shape"])
            for tensor in response["outputs"]
        }
        arrays = {}
        for name in outputs:
            if name not in shapes:
                raise Fault(FaultKind.FAILED, f"the answer lacks output '{name}'")
            arrays[name] = _array(result, name, shapes[name])
        return Answer(arrays, str(response.get("model_version", "")))


class _Http(_Common):
    """The messages are tritonclient's, the connections ours.

    Its own belong to one thread each, since they run on gevent, whose loops leave open files behind
    in every thread that ends.
    """

    def __init__(self, module: Any, url: ServerUrl) -> None:
        super().__init__(module)
        self._client = HttpClient(url)

    def metadata(self, model: str, version: str, deadline_s: float) -> dict[str, Any]:
        return dict(self._json("GET", _path(model, version), deadline_s))

    def config(self, model: str, version: str, deadline_s: float) -> dict[str, Any]:
        return dict(self._json("GET", f"{_path(model, version)}/config", deadline_s))

    def served(self, deadline_s: float) -> list[str]:
        return _ready(self._json("POST", "v2/repository/index", deadline_s))

    def statistics(self, model: str, version: str, deadline_s: float) -> dict[str, int]:
        return _summed(self._json("GET", f"{_path(model, version)}/stats", deadline_s))

    def infer(
        self,
        model: str,
        version: str,
        inputs: Sequence[SentInput],
        outputs: Sequence[str],
        deadline_s: float,
    ) -> Answer:
        client = self._module.InferenceServerClient
        sent, wanted = self._request(inputs, outputs)
        body, header_bytes = client.generate_request_body(
            sent, outputs=wanted, timeout=_microseconds(deadline_s)
        )
        headers = {} if header_bytes is None else {_HEADER_BYTES: str(header_bytes)}
        answer = self._send("POST", f"{_path(model, version)}/infer", deadline_s, body, headers)
        with _faults():
            length = answer.headers.get(_HEADER_BYTES)
            result = client.parse_response_body(
                answer.body, header_length=None if length is None else int(length)
            )
            return self._answer(result, result.get_response(), outputs)

    def close(self) -> None:
        self._client.close()

    def _json(self, method: str, path: str, deadline_s: float) -> Any:
        answer = self._send(method, path, deadline_s)
        try:
            return json.loads(answer.body)
        except ValueError:
            raise Fault(FaultKind.FOREIGN, "the answer is no JSON") from None

    def _send(
        self,
        method: str,
        path: str,
        deadline_s: float,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> HttpAnswer:
        with _faults():
            answer = self._client.send(method, path, deadline_s, body, headers)
        if answer.status != 200:
            try:
                text = str(json.loads(answer.body)["error"])
            except (ValueError, KeyError, TypeError):
                text = answer.reason or "no reason given"
            raise answered_fault(str(answer.status), text)
        return answer


class _Grpc(_Common):
    def __init__(self, module: Any, url: ServerUrl) -> None:
        super().__init__(module)
        self._client: Any = module.InferenceServerClient(
            url.address, ssl=url.is_encrypted, channel_args=list(_GRPC)
        )

    def metadata(self, model: str, version: str, deadline_s: float) -> dict[str, Any]:
        with _faults():
            return dict(
                self._client.get_model_metadata(
                    model, version, as_json=True, client_timeout=deadline_s
                )
            )

    def config(self, model: str, version: str, deadline_s: float) -> dict[str, Any]:
        with _faults():
            found = self._client.get_model_config(
                model, version, as_json=True, client_timeout=deadline_s
            )
            return dict(found["config"])

    def served(self, deadline_s: float) -> list[str]:
        with _faults():
            index = self._client.get_model_repository_index(as_json=True, client_timeout=deadline_s)
            return _ready(index.get("models", []))

    def statistics(self, model: str, version: str, deadline_s: float) -> dict[str, int]:
        with _faults():
            found = self._client.get_inference_statistics(
                model, version, as_json=True, client_timeout=deadline_s
            )
            return _summed(found)

    def infer(
        self,
        model: str,
        version: str,
        inputs: Sequence[SentInput],
        outputs: Sequence[str],
        deadline_s: float,
    ) -> Answer:
        sent, wanted = self._request(inputs, outputs)
        with _faults():
            result = self._client.infer(
                model,
                sent,
                version,
                outputs=wanted,
                timeout=_microseconds(deadline_s),
                client_timeout=deadline_s,
            )
            found = result.get_response()
            # Not as JSON, which would hold the bytes of all outputs in base64.
            response = {
                "model_version": found.model_version,
                "outputs": [{"name": t.name, "shape": list(t.shape)} for t in found.outputs],
            }
            return self._answer(result, response, outputs)

    def close(self) -> None:
        self._client.close()


def _array(result: Any, name: str, shape: tuple[int, ...]) -> Array:
    """An output, which must have all of its bytes: a server with a broken backend sends none."""
    try:
        array: Array | None = result.as_numpy(name)
    except ValueError:
        array = None
    if array is None or array.shape != shape:
        raise Fault(FaultKind.FAILED, f"output '{name}' of shape {shape} came without its bytes")
    return array


def _ready(index: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({entry["name"] for entry in index if entry.get("state") == "READY"})


def _summed(found: dict[str, Any]) -> dict[str, int]:
    """Inferences and executions over all versions of a model."""
    names = ("inference_count", "execution_count")
    return {name: sum(int(each.get(name, 0)) for each in found["model_stats"]) for name in names}


def _path(model: str, version: str) -> str:
    name = quote(model, safe="")
    return f"v2/models/{name}/versions/{version}" if version else f"v2/models/{name}"


def _microseconds(seconds: float) -> int:
    return max(1, int(np.ceil(seconds * 1e6)))


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Turn what tritonclient and the libraries below it raise into `Fault`."""
    try:
        yield
    except Fault:
        raise
    except Exception as error:
        found = fault_of(error)
        if found is None:
            raise
        raise found from error

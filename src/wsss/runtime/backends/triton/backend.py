"""A model on a Triton Inference Server behind the contract of `contract.py`.

Connections over HTTP or gRPC. Requests are repeated while the server is overloaded or away, and
only then; what comes back is always what one and the same model computed.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from ....errors import ConfigError, DeadlineError, ServerError, WsssError
from ..contract import Array, GraphDescription, check_inputs, closed
from .faults import (
    RETRIED,
    Fault,
    FaultKind,
    GaveUp,
    Retrier,
    RetryPolicy,
    failure,
    other_model,
    unknown_model,
)
from .model import ServedModel, read_model
from .options import ServerUrl, check_seconds, parse_url
from .transport import SentInput, Transport, connect

_RETRIED_IN_RUN = RETRIED | {FaultKind.UNKNOWN}
"""The model was there: a server that reloads it does not know it for a moment."""
_QUIET_S = 1.0
"""No server is replaced by another one in less time than this."""
_CHECK_S = 2.0
"""A model can be loaded anew under a busy client, too: it is looked at again this often."""
_MAX_LATE = 16
"""Requests in a row that came too late, after which the server counts as hanging."""
_COUNTED_STEP = "cam"
"""Of `label_ensemble`: the step that takes longest, and that makes batches first."""
_CLOSE_S = 10.0
"""Seconds for requests under way when the graph is closed."""
_OPEN_TOTAL_S = 5.0
"""A wrong URL should show soon, however much patience there is for an outage later on."""


def open_triton(
    url: str,
    model: str,
    *,
    version: str | None = None,
    deadline_s: float = 60.0,
    retries: int = 20,
    patience_s: float = 60.0,
) -> "TritonGraph":
    """Open a model on a server.

    Args:
        url: see `parse_url`.
        model: its name on the server.
        version: a number; None leaves it to the server, which usually takes the newest.
        deadline_s: seconds for one request, kept here and told to the server.
        retries: further tries of a request while the server is overloaded or away.
        patience_s: seconds that these may take together, the time of a last try not counted.

    Raises:
        ConfigError: a value that cannot be, or a model that the server does not have.
        MissingDependencyError: tritonclient is not installed.
        ServerError: no answer, or not from a Triton server that is ready.
        ArtifactError: the model has tensors that arrays cannot hold.
    """
    place = parse_url(url)
    check_seconds("deadline_s", deadline_s)
    if version is not None and not (version.isascii() and version.isdigit()):
        raise ConfigError(f"version '{version}' of model '{model}' is no number")
    policy = RetryPolicy(retries=retries, total_s=patience_s)
    transport = connect(place)
    try:
        return TritonGraph(transport, place, model, version, deadline_s, policy)
    except BaseException:
        transport.close()
        raise


class TritonGraph:
    """An `OpenGraph` on a server; several threads may run it at once.

    Attributes:
        served: what the server said of the model when it was opened.
    """

    def __init__(
        self,
        transport: Transport,
        url: ServerUrl,
        model: str,
        version: str | None,
        deadline_s: float,
        policy: RetryPolicy,
    ) -> None:
        self._transport, self._url, self._model = transport, url, model
        self._version, self._deadline_s = version or "", deadline_s
        self._gate = _Gate()
        self._retrier = Retrier(policy, self._gate.is_closed)
        self.served = self._first_look(policy)
        # Whether the model must be looked at again before its answers can be trusted.
        self._check_lock = threading.Lock()
        self._is_suspect = False
        self._seen_at = self._checked_at = time.monotonic()
        self._seen_version = ""
        self._num_late = 0

    def describe(self) -> GraphDescription:
        """Inputs, outputs and what computes them on the server.

        A server forgets the names of dynamic axes; `image_1` is axis 1 of `image`. `device` is cuda
        where the configuration asks for GPU instances; `backend` is that of the server.
        """
        return self.served.description

    def run(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Compute outputs, as `OpenGraph.run` says; they are read-only.

        Raises:
            ShapeError, DataError: the inputs do not fit, or the model fails on them.
            DeadlineError: no answer in time; such a request is not repeated.
            ServerError: the server is away or overloaded for longer than it was given.
            ArtifactError: the server has another model under this name now.
            RuntimeError: the graph is closed, or was while the request failed.
        """
        with self._gate.passing():
            check_inputs(self.served.description, inputs, outputs)
            if outputs is None:
                outputs = [spec.name for spec in self.served.description.outputs]
            if not outputs:
                return {}
            # Not ascontiguousarray, which gives a number without axes one.
            arrays = {name: np.require(array, requirements="C") for name, array in inputs.items()}
            wanted = list(dict.fromkeys(outputs))
            try:
                found = self._retrier.call(lambda: self._attempt(arrays, wanted), _RETRIED_IN_RUN)
            except GaveUp as outcome:
                raise self._failure(outcome, arrays) from outcome.fault
            self._num_late = 0
            return found

    def statistics(self) -> tuple[int, int]:
        """Inferences and executions since the server started; of an ensemble those of `cam`.

        Raises:
            ServerError: no answer.
        """
        model, version = self.served.name, self._version
        if _COUNTED_STEP in self.served.steps:
            model, version = _COUNTED_STEP, ""
        try:
            found = self._transport.statistics(model, version, self._deadline_s)
        except Fault as fault:
            outcome = GaveUp(fault, 1, 0.0)
            raise failure(outcome, self._url, model, self._deadline_s) from fault
        return found["inference_count"], found["execution_count"]

    def close(self) -> None:
        """Wait for requests under way, 10 s at most, and drop the connections.

        No pause between tries is waited for. Requests that are still under way fail.
        """
        self._gate.close(_CLOSE_S)
        self._transport.close()

    def _attempt(self, arrays: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        self._check_model()
        try:
            found, version = self._send(arrays, outputs)
        except Fault as fault:
            if fault.kind in (FaultKind.AWAY, FaultKind.LOST, FaultKind.UNKNOWN):
                self._is_suspect = True
            raise
        if version != self._seen_version:
            # Another version than before, as in a rolling update; or a first one that was not there
            # when the model was opened.
            known = self.served.digests()
            is_new = bool(known) and version not in known
            self._is_suspect = self._is_suspect or bool(self._seen_version) or is_new
            self._check_model()
            self._seen_version = version
        self._seen_at = time.monotonic()
        return found

    def _send(
        self, arrays: Mapping[str, Array], outputs: Sequence[str]
    ) -> tuple[dict[str, Array], str]:
        """Outputs, and the version of the model that computed them."""
        datatypes = self.served.datatypes
        sent = [SentInput(name, datatypes[name], array) for name, array in arrays.items()]
        answer = self._transport.infer(
            self.served.name, self._version, sent, outputs, self._deadline_s
        )
        return answer.arrays, answer.version

    def _first_look(self, policy: RetryPolicy) -> ServedModel:
        total = min(policy.total_s, _OPEN_TOTAL_S)
        retrier = Retrier(RetryPolicy(policy.retries, total), self._gate.is_closed)
        try:
            return retrier.call(self._read)
        except GaveUp as outcome:
            fault = outcome.fault
            if fault.kind is not FaultKind.UNKNOWN:
                raise failure(outcome, self._url, self._model, self._deadline_s) from fault
            try:
                ready = ", ".join(self._transport.served(self._deadline_s)) or "none"
            except Fault:
                ready = "unknown, the server does not list them"
            raise unknown_model(self._url, self._model, self._version, ready) from fault

    def _read(self) -> ServedModel:
        limit = self._deadline_s
        metadata = self._transport.metadata(self._model, self._version, limit)
        config = self._transport.config(self._model, self._version, limit)
        steps = (config.get("ensemble_scheduling") or {}).get("step", [])
        names = sorted({str(step["model_name"]) for step in steps})
        configs = [self._transport.config(name, "", limit) for name in names]
        return read_model(metadata, config, configs)

    def _check_model(self) -> None:
        """Compare the model with what was opened, if it may have been exchanged since.

        Raises:
            ArtifactError: it is another one.
            Fault: no answer.
        """
        if self._is_trusted():
            return
        with self._check_lock:
            if self._is_trusted():
                return  # another thread was faster
            now = self._read()
            if now.identity(self._version) != self.served.identity(self._version):
                raise other_model(self._url, self._model)
            self._is_suspect = False
            self._seen_at = self._checked_at = time.monotonic()

    def _is_trusted(self) -> bool:
        now = time.monotonic()
        is_recent = now - self._seen_at < _QUIET_S and now - self._checked_at < _CHECK_S
        return not self._is_suspect and is_recent

    def _failure(self, outcome: GaveUp, arrays: Mapping[str, Array]) -> WsssError:
        error = failure(outcome, self._url, self._model, self._deadline_s, arrays)
        if isinstance(error, DeadlineError):
            self._num_late += 1
            if self._num_late >= _MAX_LATE:
                # One image may be too much; so many in a row are not the images' fault.
                return ServerError(
                    f"Triton at {self._url} did not answer within {self._deadline_s:g} s, "
                    f"{self._num_late} times in a row: see what holds it up"
                )
        return error


class _Gate:
    """Let requests pass until somebody closes it and waits for those under way.

    It may be used from several threads.

    Attributes:
        is_closed: set as soon as somebody closes it; ends the pauses between tries.
    """

    def __init__(self) -> None:
        self.is_closed = threading.Event()
        self._changed = threading.Condition()
        self._num_inside = 0

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Around one request.

        Raises:
            RuntimeError: it is closed, or was closed before the request failed.
        """
        with self._changed:
            if self.is_closed.is_set():
                raise closed()
            self._num_inside += 1
        try:
            yield
        except Exception as error:
            # A client that is cut off, or memory that is gone, says anything.
            if self.is_closed.is_set():
                raise closed() from error
            raise
        finally:
            with self._changed:
                self._num_inside -= 1
                self._changed.notify_all()

    def close(self, seconds: float) -> bool:
        """Let nobody in, and wait for those inside; whether all of them have left in time."""
        with self._changed:
            self.is_closed.set()
            return self._changed.wait_for(lambda: self._num_inside == 0, seconds)

"""One request to a Triton server, its tensors in shared memory where that can be had."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ....errors import ServerError
from ..contract import Array
from ..triton_memory import NoMemoryError, Region, RegionPool, aligned
from .faults import SETTLED, Fault, FaultKind
from .messages import Answer, Place, SentInput, Transport, WantedOutput
from .model import ServedModel
from .options import ServerUrl, SharedMemory
from .retry import RETRIED

_MAX_KNOWN_SIZES = 1024

_log = logging.getLogger(__name__)


class Exchange:
    """Sends inputs and receives outputs; safe to use from several threads.

    The size of an output is known only when it came once as bytes; from then on the server puts it
    into shared memory for inputs of the same shapes.
    """

    def __init__(
        self,
        transport: Transport,
        url: ServerUrl,
        served: ServedModel,
        version: str,
        deadline_s: float,
    ) -> None:
        self._transport, self._url, self._served = transport, url, served
        self._version, self._deadline_s = version, deadline_s
        self._pool: RegionPool | None = None
        self._needs_memory = False
        self._is_closed = False
        self._sizes: dict[tuple[Any, ...], int] = {}

    def use_memory(self, how: SharedMemory) -> None:
        """Try shared memory, so that a refusal is known before any work.

        Raises:
            ServerError: `how` is on and it cannot be had.
            Fault: no connection.
        """
        self._needs_memory = how == "on"
        self._pool = RegionPool(self._transport)
        try:
            region = self._pool.take(1)
            try:
                self._register(self._pool, region)
            finally:
                self._pool.give_back(region)
        except NoMemoryError as error:
            self._give_up_memory(self._pool, str(error))

    def close(self) -> None:
        """Remove shared memory."""
        self._is_closed = True
        if self._pool is not None:
            self._pool.close()

    def send(
        self, arrays: Mapping[str, Array], outputs: Sequence[str]
    ) -> tuple[dict[str, Array], str]:
        """Outputs, and the version of the model that computed them.

        Args:
            arrays: contiguous.

        Raises:
            Fault: no answer.
            ServerError: shared memory was asked for and cannot be had.
        """
        # Twice the server may have a reason against the memory that sending again removes: it
        # forgot the region, and an output has outgrown its place.
        for _ in range(3):
            pool = self._pool
            if pool is None:
                break
            try:
                return self._send_by_memory(pool, arrays, outputs)
            except NoMemoryError as error:
                self._give_up_memory(pool, str(error))
            except Fault as fault:
                if fault.kind not in (FaultKind.NO_REGION, FaultKind.SMALL_REGION):
                    raise
        sent = [SentInput(name, self._served.datatypes[name], a) for name, a in arrays.items()]
        answer = self._infer(sent, [WantedOutput(name) for name in outputs])
        return {name: answer.arrays[name] for name in outputs}, answer.version

    def _send_by_memory(
        self, pool: RegionPool, arrays: Mapping[str, Array], outputs: Sequence[str]
    ) -> tuple[dict[str, Array], str]:
        """A request whose inputs, and outputs of known size, stand in shared memory."""
        shapes = tuple((name, array.shape) for name, array in arrays.items())
        offsets, end = {}, 0
        for name in arrays:
            offsets[name] = end
            end = aligned(end + arrays[name].nbytes)
        for name in outputs:
            if (size := self._sizes.get((name, shapes))) is not None:
                offsets[name] = end
                end = aligned(end + size)
        region = pool.take(end)
        is_settled = True
        try:
            self._register(pool, region)
            sent = []
            for name, array in arrays.items():
                region.write(offsets[name], array)
                place = Place(region.name, offsets[name], array.nbytes)
                sent.append(SentInput(name, self._served.datatypes[name], array, place))
            wanted = [
                WantedOutput(name, Place(region.name, offsets[name], self._sizes[name, shapes]))
                if name in offsets
                else WantedOutput(name)
                for name in outputs
            ]
            is_settled = False
            answer = self._infer(sent, wanted)
            is_settled = True
            return self._collect(region, answer, wanted, shapes), answer.version
        except Fault as fault:
            is_settled = is_settled or fault.kind in SETTLED
            if fault.kind is FaultKind.NO_REGION:
                region.is_registered = False
            if fault.kind is FaultKind.SMALL_REGION:
                for name in outputs:
                    self._sizes.pop((name, shapes), None)
            raise
        finally:
            if is_settled:
                pool.give_back(region)
            else:
                pool.retire(region)

    def _collect(
        self,
        region: Region,
        answer: Answer,
        outputs: Sequence[WantedOutput],
        shapes: tuple[Any, ...],
    ) -> dict[str, Array]:
        dtypes = {spec.name: spec.dtype for spec in self._served.description.outputs}
        found = {}
        for output in outputs:
            name, shape = output.name, answer.shapes[output.name]
            if output.place is not None:
                found[name] = region.read(output.place.offset, dtypes[name], shape)
            else:
                found[name] = answer.arrays[name]
                if len(self._sizes) >= _MAX_KNOWN_SIZES:
                    self._sizes.clear()
                self._sizes[name, shapes] = found[name].nbytes
        return found

    def _infer(self, sent: Sequence[SentInput], wanted: Sequence[WantedOutput]) -> Answer:
        return self._transport.infer(
            self._served.name, self._version, sent, wanted, self._deadline_s
        )

    def _register(self, pool: RegionPool, region: Region) -> None:
        if region.is_registered:
            return
        try:
            pool.register(region, self._deadline_s)
        except Fault as fault:
            if fault.kind in RETRIED or fault.kind is FaultKind.LATE:
                raise
            raise NoMemoryError(f"the server refuses it: {fault.text}") from fault

    def _give_up_memory(self, pool: RegionPool, reason: str) -> None:
        """Send bytes from now on.

        Raises:
            ServerError: shared memory was asked for.
            Fault: there is none because of `close`.
        """
        if self._is_closed:
            raise Fault(FaultKind.CANCELLED, "closed")
        if self._pool is not pool:
            return  # another thread was faster
        if self._needs_memory:
            raise ServerError(
                f"shared memory with Triton at {self._url} is not to be had ({reason}): give "
                "`shared_memory` auto or off"
            )
        self._pool = None
        _log.warning("no shared memory with Triton at %s, sending bytes: %s", self._url, reason)
        pool.close()

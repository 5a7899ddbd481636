"""A process's side of the hypervisor: hypercalls out, SynIC messages and events in.

A process that stands in for a virtual processor owns one :class:`VirtualProcessor`. Calls return futures of
``(status, output)``. Messages of one connection arrive in the order they were posted: :meth:`post` sends the
next one only when the hypervisor took the one before, and tries again, with a doubling delay, while the
receiving port's 16 buffers are in use (what Linux does, protocol sheet 2.3).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

import msgpack
import zmq

from vmbus_emu.loop import Loop
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Code, HvStatus, SynicMessage, control_word
from vmbus_emu.task import Future
from vmbus_emu.zmqport import Context, ZmqPort

Outcome = tuple[HvStatus, bytes]

_FIRST_RETRY_S = 0.0005
_LAST_RETRY_S = 0.1


class _Connection:
    """What waits to be posted on one connection."""

    __slots__ = ("busy", "delay", "queue")

    def __init__(self) -> None:
        self.queue: deque[tuple[int, bytes, Future[HvStatus]]] = deque()
        self.busy = False
        self.delay = _FIRST_RETRY_S


class VirtualProcessor:
    """``on_message(sint, message)`` and ``on_event(sint, flag)`` are the interrupt handlers."""

    def __init__(self, loop: Loop, context: Context) -> None:
        self._loop = loop
        self._pack = msgpack.Packer(autoreset=True).pack
        self._sequence = itertools.count(1)
        self._calls: dict[int, Future[Outcome]] = {}
        self._connections: dict[int, _Connection] = {}
        self._taken: dict[int, int] = {}
        self.on_message: Callable[[int, SynicMessage], Any] = lambda sint, message: None
        self.on_event: Callable[[int, int], Any] = lambda sint, flag: None
        #: Hypercalls made, messages received.
        self.hypercalls = self.messages = 0
        self._port = ZmqPort(loop, context, zmq.DEALER, self._received, max_message=hv.MAX_ENVELOPE, queue=4096)

    def connect(self, path: str) -> None:
        """Attach to the hypervisor's socket."""
        self._port.connect(path)

    # -- out ----------------------------------------------------------------------------------------

    def call(self, code: Code, block: bytes = b"") -> Future[Outcome]:
        """Make a hypercall; the future never fails, a dead hypervisor leaves it open."""
        sequence = next(self._sequence)
        future: Future[Outcome] = Future()
        self._calls[sequence] = future
        self.hypercalls += 1
        envelope = self._pack((hv.TO_HYPERVISOR_CALL, sequence, control_word(code), block))
        if not self._port.send(envelope):
            del self._calls[sequence]
            # Not at once: what waits behind it would be refused in a recursion as deep as the queue is long.
            self._loop.call_soon(future.resolve, (HvStatus.OPERATION_DENIED, b""))
        return future

    def post(self, connection: int, kind: int, payload: bytes) -> Future[HvStatus]:
        """Post a SynIC message of at most 240 bytes, after those posted before on the same connection."""
        outcome: Future[HvStatus] = Future()
        line = self._connections.setdefault(connection, _Connection())
        line.queue.append((kind, payload, outcome))
        if not line.busy:
            self._post_next(connection, line)
        return outcome

    def _post_next(self, connection: int, line: _Connection) -> None:
        line.busy = bool(line.queue)
        if line.queue:
            kind, payload, _ = line.queue[0]
            block = hv.POST_MESSAGE.pack(connection, 0, kind, len(payload)) + payload
            self.call(Code.POST_MESSAGE, block).then(lambda future: self._posted(connection, line, future.result()[0]))

    def _posted(self, connection: int, line: _Connection, status: HvStatus) -> None:
        if status is HvStatus.INSUFFICIENT_BUFFERS and line.queue:
            self._loop.call_later(line.delay, self._post_next, connection, line)
            line.delay = min(line.delay * 2, _LAST_RETRY_S)
            return
        if not line.queue:
            return  # disconnected meanwhile
        line.delay = _FIRST_RETRY_S
        _, _, outcome = line.queue.popleft()
        self._post_next(connection, line)
        outcome.resolve(status)

    def disconnect(self, connection: int) -> None:
        """Forget what still waits for ``connection``: nobody is there any more."""
        line = self._connections.pop(connection, None)
        if line is not None:
            while line.queue:
                line.queue.popleft()[2].resolve(HvStatus.INVALID_CONNECTION_ID)

    # -- in -----------------------------------------------------------------------------------------

    def _received(self, frames: list[zmq.Frame]) -> None:
        match msgpack.unpackb(frames[0].buffer, use_list=False):  # the hypervisor is trusted
            case (hv.TO_PARTITION_RESULT, int(sequence), int(result), bytes(output)):
                future = self._calls.pop(sequence, None)
                if future is not None:
                    future.resolve((HvStatus(result), output))
            case (hv.TO_PARTITION_MESSAGE, int(sint), bytes(raw)):
                message = SynicMessage.decode(raw)
                if message is not None:
                    self._take(message.port)
                    self.messages += 1
                    self.on_message(sint, message)
            case (hv.TO_PARTITION_EVENT, int(sint), int(flag)):
                self._port.send(self._pack((hv.TO_HYPERVISOR_EVENT_SEEN, sint, flag)))
                self.on_event(sint, flag)

    def _take(self, port: int) -> None:
        """Count the freed buffer; one EOM per port and round of the loop gives them all back."""
        if not self._taken:
            self._loop.call_soon(self._end_of_messages)
        self._taken[port] = self._taken.get(port, 0) + 1

    def _end_of_messages(self) -> None:
        taken, self._taken = self._taken, {}
        for port, count in taken.items():
            if port:
                self._port.send(self._pack((hv.TO_HYPERVISOR_EOM, port, count)))

    def close(self) -> None:
        self._port.close()

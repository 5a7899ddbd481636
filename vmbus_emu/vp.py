"""A process's side of the hypervisor: hypercalls out, SynIC messages and events in.

A process that stands in for a virtual processor owns one :class:`VirtualProcessor`. Calls return futures of
``(status, output)``. Messages of one connection arrive in the order they were posted: :meth:`post` sends the
next one only when the hypervisor took the one before, and tries again, with a doubling delay, while the
receiving port's 16 buffers are in use (what Linux does, protocol sheet 2.3).

A hypervisor that dies and comes back is met by :meth:`VirtualProcessor.reconnect`. Every call that has no answer is
sent again, with its old sequence number, by which the hypervisor knows whether it was executed. It delivers again what
was not acknowledged; the number of a message tells whether it was seen here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import zmq

from vmbus_emu.envelopes import MAX_MESSAGE, apart, together
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
    """``on_message(sint, message)``, ``on_event(sint, flag)`` and ``on_interrupt(vector)`` are the interrupt
    handlers."""

    def __init__(self, loop: Loop, context: Context) -> None:
        self._loop = loop
        self._context = context
        self._pack = msgpack.Packer(autoreset=True).pack
        self._sequence = 0                          # of the last call
        self._calls: dict[int, tuple[Future[Outcome], bytes]] = {}  # without an answer: what was sent, oldest first
        self._unsent: deque[int] = deque()          # those of them that could not be sent
        self._told = 1                              # the hypervisor knows that we have the answers before this one
        self._connections: dict[int, _Connection] = {}
        self._seen = 0                              # the number of the last message
        self._taken: dict[int, int] = {}            # port -> the last number of its messages, for the next EOM
        self._outbox: list[bytes] = []              # what leaves at the end of this round of the loop
        self._leaving: list[int] = []               # the calls in it
        self._flush_due = False
        #: Set for a hypervisor that comes back after its death: calls that cannot be sent wait for :meth:`reconnect`.
        #: Otherwise they are refused with OPERATION_DENIED.
        self.recoverable = False
        self.on_message: Callable[[int, SynicMessage], Any] = lambda sint, message: None
        self.on_event: Callable[[int, int], Any] = lambda sint, flag: None
        self.on_interrupt: Callable[[int], Any] = lambda vector: None
        #: Hypercalls made, accesses that trapped, messages received.
        self.hypercalls = self.intercepts = self.messages = 0
        self._path = ""
        self._attached = False
        self._abandoned = False
        self._port = self._make_port()

    def _make_port(self) -> ZmqPort:
        # Room for every call that may be under way, and as many envelopes of the other kinds.
        queue = 2 * hv.MAX_CALLS
        return ZmqPort(
            self._loop, self._context, zmq.DEALER, self._received, max_message=MAX_MESSAGE, queue=queue
        )

    def connect(self, path: str) -> None:
        """Attach to the hypervisor's socket; also in advance, before there is an identity to speak with. Of no effect
        if that has been done. An empty path: it does not listen now, and :meth:`reconnect` will say when it does."""
        self._attached = True
        if path == self._path:
            return
        if self._path:
            self._port.close()
            self._port = self._make_port()
        self._path = path
        if path:
            self._port.connect(path)

    def reconnect(self, path: str) -> None:
        """Attach to the socket of the hypervisor's next incarnation, which must be listening already. Of no effect on
        one that is not attached yet, which is told of the latest when it is to start; or is attached to that one: what
        it has sent us, nobody sends again."""
        if not self._attached or path == self._path:
            return
        self._path = path
        self._port.close()  # with what is still in it: it is asked for, or delivered, again
        self._outbox.clear()
        self._leaving.clear()
        self._port = self._make_port()
        self._port.connect(path)
        self._port.send(self._answered())  # also that we are here: what waits for us comes now
        self._unsent = deque(self._calls)
        self._send_waiting()

    # -- out ----------------------------------------------------------------------------------------

    def call(self, code: Code, block: bytes = b"") -> Future[Outcome]:
        """Make a hypercall; the future never fails, a dead hypervisor leaves it open."""
        self.hypercalls += 1
        return self._ask(hv.TO_HYPERVISOR_CALL, control_word(code), block)

    def trap(self, access: bytes) -> Future[Outcome]:
        """An access to a port, as ``protocol.intercept.TRAP`` has it; the output has the registers as they are when the
        processor goes on. It is one processor: who traps again meanwhile is refused."""
        self.intercepts += 1
        return self._ask(hv.TO_HYPERVISOR_TRAP, access)

    def _ask(self, kind: int, *what: Any) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        sequence = self._sequence + 1
        oldest = next(iter(self._calls), sequence)
        if self._abandoned or sequence - oldest >= hv.MAX_CALLS:
            return self._refuse(future)
        if oldest - self._told >= hv.CALLS_PER_ANSWERED:
            self._queue(self._answered())
        self._sequence = sequence
        envelope = self._pack((kind, sequence, *what))
        self._calls[sequence] = future, envelope
        if self._unsent:
            self._unsent.append(sequence)
        else:
            self._leaving.append(sequence)
            self._queue(envelope)
        return future

    def _queue(self, envelope: bytes) -> None:
        self._outbox.append(envelope)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what this round has brought. One end-of-message per port gives back all the buffers that it freed."""
        self._flush_due = False
        taken, outbox, leaving = self._taken, self._outbox, self._leaving
        self._taken, self._outbox, self._leaving = {}, [], []
        ends = [self._pack((hv.TO_HYPERVISOR_EOM, port, number)) for port, number in taken.items()]
        sent = 0
        for message, some in together(ends + outbox):
            if not self._port.send(message):
                break
            sent += len(some)
        if sent < len(ends):
            self._taken = taken     # with the next ones; what a dead hypervisor misses its successor delivers again
        if sent < len(ends) + len(outbox):
            left, calls = set((ends + outbox)[sent:]), self._calls
            self._did_not_leave([number for number in leaving if number in calls and calls[number][1] in left])

    def _did_not_leave(self, calls: Sequence[int]) -> None:
        if self.recoverable:
            self._unsent.extend(calls)
            return
        for sequence in calls:
            self._refuse(self._calls.pop(sequence)[0])

    def abandon(self) -> None:
        """The hypervisor is dead, and nothing replaces it: what it has not answered, and every further call, is
        refused with OPERATION_DENIED."""
        self._abandoned = True
        calls, self._calls = self._calls, {}
        self._unsent.clear()
        self._outbox.clear()
        self._leaving.clear()
        for future, _ in calls.values():
            self._refuse(future)

    def _refuse(self, future: Future[Outcome]) -> Future[Outcome]:
        # Not at once: what waits behind it would be refused in a recursion as deep as the queue is long.
        self._loop.call_soon(future.resolve, (HvStatus.OPERATION_DENIED, b""))
        return future

    def _answered(self) -> bytes:
        self._told = next(iter(self._calls), self._sequence + 1)
        packed: bytes = self._pack((hv.TO_HYPERVISOR_ANSWERED, self._told))
        return packed

    def _send_waiting(self) -> None:
        """What could not be sent before, in its order."""
        unsent = self._unsent
        while unsent and self._port.send(self._calls[unsent[0]][1]):
            unsent.popleft()

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
        if self._unsent:  # it is alive and was only slow
            self._send_waiting()
        for envelope in apart(frames[0].buffer):  # the hypervisor is trusted
            if not self._abandoned:
                self._one(envelope)

    def _one(self, envelope: Any) -> None:
        match envelope:
            case (hv.TO_PARTITION_RESULT, int(sequence), int(result), bytes(output)):
                answered = self._calls.pop(sequence, None)
                if answered is not None:
                    answered[0].resolve((HvStatus(result), output))
            case (hv.TO_PARTITION_MESSAGE, int(sint), bytes(raw), int(number)):
                message = SynicMessage.decode(raw)
                if message is not None:
                    self._take(message.port, number)
                    if number > self._seen:  # otherwise our EOM was lost with a hypervisor
                        self._seen = number
                        self.messages += 1
                        self.on_message(sint, message)
            case (hv.TO_PARTITION_EVENT, int(sint), int(flag)):
                self._queue(self._pack((hv.TO_HYPERVISOR_EVENT_SEEN, sint, flag)))
                self.on_event(sint, flag)
            case (hv.TO_PARTITION_INTERRUPT, int(vector)):
                self._queue(self._pack((hv.TO_HYPERVISOR_EOI, vector)))
                self.on_interrupt(vector)

    def _take(self, port: int, number: int) -> None:
        """Note the freed buffer."""
        self._taken[port] = number
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Nothing leaves any more; further calls are refused."""
        self.abandon()
        self._taken.clear()
        self._port.close()

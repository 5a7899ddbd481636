"""A spare rehearses what it will be asked for, so that nothing is done for the first time when guests wait.

A process that was borne by a zygote shares its memory until it writes there, and running code for the first time
writes: each page costs a fault and a copy. A storage VSP needs a millisecond for a guest's handshake, and a fifth of
that from the second time on. So a second component of the spare's own kind plays through a start, on a stage: its
hypervisor and its guest are scripts, its only disk is a memory file. It shares nothing with what the spare will serve.

The network is not rehearsed. NICs come after disks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgpack
import zmq

from partitions.parent.vsplink import CONTROL_PORT, FIRST_PARTITION_PORT, encode, encode_pages
from vmbus_emu.channel import ZmqChannel
from vmbus_emu.envelopes import MAX_MESSAGE, apart, together
from vmbus_emu.lifeline import Message
from vmbus_emu.memory import Region
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol import scsi, vstor
from vmbus_emu.protocol import vmbus as wire
from vmbus_emu.protocol.hypercall import PAGE, Code
from vmbus_emu.protocol.packets import COMPLETION_REQUESTED, GPA_DIRECT, IN_BAND
from vmbus_emu.protocol.vstor import Direction, Operation
from vmbus_emu.ring import RingReader, RingWriter, reset
from vmbus_emu.vmbus.gpadl import contiguous, encode_gpadl
from vmbus_emu.zmqport import ZmqPort

if TYPE_CHECKING:
    from partitions.parent.process import VspCarrier
    from vmbus_emu.node import Node

_DRIVER = "drivers.disk:ram_disk"
#: It ends by itself in some ten milliseconds; or, if it does not, after so many seconds.
_LONGEST_S = 0.5
#: After the end its requests are all refused; so long, and nothing is under way any more.
_LET_GO_S = 0.05
#: The guest's partition, and its I/O memory: two rings, and a page for data.
_GUEST, _GPA, _RING_PAGES = 2, 1 << 32, 13
_PAGES = 2 * _RING_PAGES + 1
_GPADL, _KEY, _OPEN_ID, _TICKET = 1, 1, 1, 1
_BLOCKS = PAGE // 512
#: Times that data is read and written.
_ROUNDS = 4


class _Stage:
    """What the component finds around itself instead of a :class:`~vmbus_emu.node.Node`: also inbox and lifeline."""

    def __init__(self, node: Node) -> None:
        self.loop = node.loop
        self.context = node.context
        self.name = node.name
        self.incarnation = node.incarnation
        self.max_sockets = 0
        self.poll = node.poll
        self.inbox = self.lifeline = self
        self._node = node
        #: Descriptors that the component may take: the I/O memory, its ends of the doorbells.
        self.kept: dict[str, int] = {}

    @property
    def poller(self) -> Any:
        return self._node.poller

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Nobody is told."""

    def log(self, text: str) -> None:
        """Nor of this."""

    def ready(self, component: str) -> None:
        """Nor of this."""

    def leave(self, status: int) -> None:
        """Not because of a rehearsal."""

    def take_memory(self, owner: int, gpa: int) -> int | None:
        return self.kept.pop("memory", None)

    def take_port(self, number: int) -> int | None:
        return self.kept.pop("port", None)

    def take_connection(self, number: int) -> int | None:
        return self.kept.pop("connection", None)

    def close(self) -> None:
        while self.kept:
            os.close(self.kept.popitem()[1])


class _Hypervisor:
    """Grants everything. ``posted(connection, payload)`` is called with what the component says."""

    def __init__(self, stage: _Stage, path: str, posted: Callable[[int, bytes], Any]) -> None:
        self._posted = posted
        self._route = b""
        self._number = 0
        self._port = ZmqPort(
            stage.loop, stage.context, zmq.ROUTER, self._received, max_message=MAX_MESSAGE, queue=hv.MAX_CALLS
        )
        self._port.bind(path)

    def _received(self, frames: list[zmq.Frame]) -> None:
        self._route = frames[0].bytes
        said, answers = [], []
        for envelope in apart(frames[1].buffer):
            if envelope[0] == hv.TO_HYPERVISOR_CALL:
                _, sequence, control, block = envelope
                code = hv.call_code(control)
                output = hv.PROPERTY_VALUE.pack(os.getpid()) if code == Code.GET_PARTITION_PROPERTY else b""
                answers.append(msgpack.packb((hv.TO_PARTITION_RESULT, sequence, 0, output)))
                if code == Code.POST_MESSAGE:
                    said.append((hv.POST_MESSAGE.unpack_from(block)[0], block[hv.POST_MESSAGE.size :]))
        for message, _ in together(answers):
            self._port.send(self._route, message)
        for connection, payload in said:
            self._posted(connection, payload)

    def deliver(self, kind: int, port: int, *payloads: bytes) -> None:
        """Messages for the component."""
        for payload in payloads:
            self._number += 1
            raw = hv.SynicMessage(kind, port, payload).encode()
            self._port.send(self._route, msgpack.packb((hv.TO_PARTITION_MESSAGE, hv.SINT_VMBUS, raw, self._number)))

    def close(self) -> None:
        self._port.close()


class _Socket:
    """The guest's end of the channel, on ``zmq``."""

    def __init__(self, stage: _Stage, path: str, answered: Callable[..., Any]) -> None:
        self._channel = ZmqChannel(stage.loop, stage.context)
        self._channel.on_packet = answered
        self._path = path

    def connect(self) -> None:
        self._channel.connect(self._path)

    def send(self, kind: int, number: int, packet: bytes | bytearray, data: bytes | None = None) -> None:
        self._channel.send(kind, COMPLETION_REQUESTED, number, packet, data)

    def close(self) -> None:
        self._channel.close()


class _Rings:
    """The same on ``ring``, and what is lent for it."""

    def __init__(self, stage: _Stage, answered: Callable[..., Any]) -> None:
        file = os.memfd_create("rehearsal")
        os.ftruncate(file, _PAGES * PAGE)
        self._loop = stage.loop
        self._answered = answered
        self._rang, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        rung, self._ring = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        stage.kept |= {"memory": os.dup(file), "connection": theirs, "port": rung}
        self._region = Region(file, _GPA, _PAGES)
        up, down = (self._region.ring(range(first, first + _RING_PAGES)) for first in (0, _RING_PAGES))
        reset(up)
        reset(down)
        self._writer, self._reader = RingWriter(up), RingReader(down)
        self._reader.sleep()
        self._data = self._region.page_list(2 * _RING_PAGES * PAGE, PAGE)
        self._loop.watch(self._rang, self._read)

    def connect(self) -> None:
        """Both ends have what they need."""

    def send(self, kind: int, number: int, packet: bytes | bytearray, data: bytes | None = None) -> None:
        self._writer.put(kind, COMPLETION_REQUESTED, number, packet, self._data if kind == GPA_DIRECT else b"")
        self._writer.publish()
        os.write(self._ring, b"\1")

    def _read(self, events: int) -> None:
        os.read(self._rang, PAGE)
        while self._reader.has_news():
            self._reader.read(1, self._answered, self._answered)
        self._reader.publish()

    def close(self) -> None:
        self._loop.unwatch(self._rang)
        os.close(self._rang)
        os.close(self._ring)
        self._region.close()


class Rehearsal:
    """Begins at once, and ends by itself; :meth:`end` ends it before, at any moment."""

    def __init__(self, kind: Callable[[Any], VspCarrier], node: Node, config: Message) -> None:
        """``kind`` is the component that ``node`` carries, ``config`` what it was told to prepare for, with a disk."""
        # Of a memory file that another driver would read in a worker, which nobody ends.
        disk = {**config["storvsp"]["disks"][0], "driver": _DRIVER}
        names = config["storvsp"]["channels"] + "r"
        folder = config["channels"]
        self._vm = disk["vm"]
        self._ring = config["transport"] == "ring"
        #: Packets that the guest has no answer to; -1: it has not come that far.
        self.unanswered = -1
        self._stage = _Stage(node)
        self._file = os.memfd_create("rehearsal")
        os.ftruncate(self._file, PAGE)
        socket = os.path.join(folder, f"{names}h")
        self._hypervisor = _Hypervisor(self._stage, socket, self._posted)
        path = os.path.join(folder, f"{names}{_KEY}.{_OPEN_ID:x}")
        self._guest = _Rings(self._stage, self._answered) if self._ring else _Socket(self._stage, path, self._answered)
        self._component: VspCarrier | None = kind(self._stage)
        medium = {"t": "medium", "name": disk["medium"], "info": {"block_count": _BLOCKS}}
        self._component.handle(medium, [self._file])
        region = {"vsp": "storvsp", "gpa": _GPA, "pages": _PAGES}
        self._component.start({
            **{name: value for name, value in config.items() if name not in ("netvsp", "ic")},
            "socket": socket, "components": [], "running": [(_GUEST, self._vm, "child")],
            "io_memory": {self._vm: [region]},
            "storvsp": {**config["storvsp"], "disks": [disk], "channels": names},
        })  # fmt: skip
        node.loop.call_later(_LONGEST_S, self.end)

    # -- the host's part, if that is elsewhere, and the guest's -----------------------------------------

    def _posted(self, connection: int, payload: bytes) -> None:
        if connection == CONTROL_PORT:
            self._as_provider(msgpack.unpackb(payload)[0])
        elif connection == FIRST_PARTITION_PORT + _GUEST:
            self._as_guest(wire.decode_from_host(payload, wire.NEWEST) if payload else None)

    def _as_provider(self, said: str) -> None:
        pages = range(_GPA // PAGE, _GPA // PAGE + 2 * _RING_PAGES)
        lent = _KEY, _GPADL, _TICKET, len(pages) * PAGE, 0, _GUEST, _GPA, _PAGES, encode_pages(pages)
        if said == "hello":
            asked = [encode("accept_gpadl", *lent)] if self._ring else []
            asked.append(encode("open", _KEY, _TICKET, os.getpid(), _OPEN_ID, 0, _GPADL, _RING_PAGES))
            self._hypervisor.deliver(hv.MESSAGE_CONTROL, CONTROL_PORT, *asked)
        elif said == "opened":
            self._talk()

    def _as_guest(self, heard: Any) -> None:
        said: list[bytes] = []
        match heard:
            case None:  # the parent is back
                said = [wire.InitiateContact(wire.NEWEST, 0, wire.contact_target(hv.SINT_VMBUS), 0, 0).encode()]
            case wire.VersionResponse():
                said = [wire.RequestOffers().encode()]
            case wire.OfferChannel(relid=relid):
                if self._ring:
                    said = encode_gpadl(relid, _GPADL, (contiguous(_GPA // PAGE, 2 * _RING_PAGES * PAGE),))
                said.append(wire.OpenChannel(relid, _OPEN_ID, _GPADL, 0, _RING_PAGES, b"").encode())
            case wire.OpenChannelResult():
                self._talk()
        self._hypervisor.deliver(hv.MESSAGE_VMBUS, FIRST_PARTITION_PORT + _GUEST, *said)

    def _talk(self) -> None:
        """The handshake, and some reading and writing."""
        self._guest.connect()
        version = next(iter(vstor.VERSIONS))
        packets: list[tuple[int, bytes | bytearray, bytes | None]] = [
            (IN_BAND, vstor.encode(operation, *values), None) for operation, *values in (
                (Operation.BEGIN_INIT,), (Operation.QUERY_PROTOCOL_VERSION, version, 0),
                (Operation.QUERY_PROPERTIES,), (Operation.END_INIT,),
            )
        ]  # fmt: skip
        for question in (scsi.inquiry(96), scsi.read_capacity_16(32), scsi.mode_sense_6(scsi.MODE_PAGE_ALL, 255),
                         scsi.inquiry(255, scsi.VPD_SERIAL_NUMBER)):  # fmt: skip
            packets.append((GPA_DIRECT, vstor.execute_srb(question, Direction.IN, PAGE), None))
        read = vstor.execute_srb(scsi.read_16(0, _BLOCKS), Direction.IN, PAGE)
        written = vstor.execute_srb(scsi.write_16(0, _BLOCKS), Direction.OUT, PAGE)
        packets += [(GPA_DIRECT, written, bytes(PAGE)), (GPA_DIRECT, read, None)] * _ROUNDS
        self.unanswered = len(packets)
        for number, (kind, packet, data) in enumerate(packets, 1):
            self._guest.send(kind, number, packet, data)

    def _answered(self, *packet: Any) -> None:
        self.unanswered -= 1
        if not self.unanswered:
            self._stage.loop.call_soon(self.end)

    # -- the end ------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        return self._component is None

    def end(self) -> None:
        component, self._component = self._component, None
        if component is None:
            return
        component.vp.close()
        # A provider listens to the first, a VSP to the second.
        component.handle({"t": "peer_died", "name": self._vm, "incarnation": 1, "partition": _GUEST}, [])
        component.vp.on_message(hv.SINT_VMBUS, hv.SynicMessage(hv.MESSAGE_PARENT_RESET, 0, b""))
        for vsp in component.vsps.values():
            vsp.partition_gone(_GUEST, self._vm)
        self._hypervisor.close()
        self._guest.close()
        self._stage.loop.call_later(_LET_GO_S, self._let_go)

    def _let_go(self) -> None:
        """Nobody uses what the component had, whatever it was in the middle of."""
        self._stage.close()
        os.close(self._file)

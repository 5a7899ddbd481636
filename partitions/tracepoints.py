"""Where the points of :mod:`vmbus_emu.witness.traces` are: in a guest, in whoever serves its disks, in the monolith.

Loaded in a process that is traced. Methods are wrapped on their classes before anything is made of these, so whoever
binds one gets the wrapped one. Nothing here imports them, for a process has the code of its own role alone. A channel
that is traced bears the disk it belongs to (``traced``), and when its process last began to look at it (``looked``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from vmbus_emu.device import BlockDevice, BlockRequest
from vmbus_emu.node import load
from vmbus_emu.witness.traces import COMPLETED, DONE, DRIVER, RECEIVE, SEND, SUBMIT, TraceFile, identity, now

Method = Callable[..., Any]


class Patches(Protocol):
    """:class:`vmbus_emu.trap.Patches`."""

    def wrap(self, owner: Any, name: str, around: Callable[[Method], Any]) -> None: ...


def install(trace: TraceFile, patches: Patches, config: Mapping[str, Any]) -> None:
    """Trace this process, which ``config`` says what to carry."""
    serves, guests = "storvsp" in config, config["guests"]
    if serves and guests:
        _calls(trace, patches)
    elif serves:
        _channels(trace, patches, config["transport"], "vmbus_emu.host_ring:HostRing")
        _server(trace, patches)
    elif guests:
        _channels(trace, patches, config["transport"], "vmbus_emu.guest_ring:GuestRing")
        _guest(trace, patches, guests[0]["name"])


# -- both ends of a channel -------------------------------------------------------------------------------------


def _channels(trace: TraceFile, patches: Patches, transport: str, ring: str) -> None:
    put, take = trace.put, trace.take
    zmq = transport == "zmq"

    def sending(send: Method) -> Method:
        def wrapped(
            channel: Any, packet_type: int, flags: int, number: int, message: Any, data: Any = None, room: Any = None
        ) -> bool:
            disk = getattr(channel, "traced", 0)
            begun = now()
            sent: bool = send(channel, packet_type, flags, number, message, data, room)
            if sent and disk:
                done = now()
                put(take(), SEND, 0, disk, number, begun, channel._port.handed if zmq else 0, done)
            return sent

        return wrapped

    def looking(drain: Method) -> Method:
        def wrapped(looker: Any) -> None:
            looker.looked = now()
            drain(looker)

        return wrapped

    def handing(send: Method) -> Method:
        def wrapped(port: Any, *frames: Any) -> Any:
            port.handed = now()
            return send(port, *frames)

        return wrapped

    def taking(received: Method) -> Method:
        def wrapped(channel: Any, frames: Any) -> None:
            channel.taken = now()
            channel.looked = channel._port.looked
            received(channel, frames)

        return wrapped

    if zmq:
        channel, port = load("vmbus_emu.channel:ZmqChannel"), load("vmbus_emu.zmqport:ZmqPort")
        patches.wrap(channel, "send", sending)
        patches.wrap(channel, "_received", taking)
        patches.wrap(port, "send", handing)
        patches.wrap(port, "_pump", looking)
    else:
        patches.wrap(load(ring), "send", sending)
        patches.wrap(load("vmbus_emu.ring_channel:RingChannel"), "drain", looking)


def _receiving(
    trace: TraceFile, before: Callable[[Any, int], Any] = lambda session, number: None
) -> Callable[[Method], Method]:
    """Around the method that a session, or a VSC, takes its packets with."""
    put, take = trace.put, trace.take

    def around(received: Method) -> Method:
        def wrapped(session: Any, packet_type: int, flags: int, number: int, message: Any, data: Any) -> None:
            channel = session._channel
            put(take(), RECEIVE, 0, channel.traced, number, channel.looked, getattr(channel, "taken", 0), now())
            before(session, number)
            received(session, packet_type, flags, number, message, data)

        return wrapped

    return around


# -- a guest ----------------------------------------------------------------------------------------------------


def _guest(trace: TraceFile, patches: Patches, vm: str) -> None:
    put, take = trace.put, trace.take
    vsc = load("partitions.child.storvsc:StorVsc")
    answered = [0, 0]       # disk and number of the completion that is being taken; 0: none

    def attaching(attach: Method) -> Method:
        def wrapped(disk: Any, channel: Any) -> Any:
            disk.traced = channel.traced = identity(vm, disk.name)
            return attach(disk, channel)

        return wrapped

    def submitting(submit: Method) -> Method:
        def wrapped(disk: Any, request: BlockRequest) -> None:
            put(take(), SUBMIT, request.op, disk.traced, disk._next_id, now(), 0, 0)
            submit(disk, request)

        return wrapped

    def answering(disk: Any, number: int) -> None:
        answered[:] = disk.traced, number

    def finishing(finish: Method) -> Method:
        def wrapped(request: BlockRequest, status: Any) -> None:
            disk, number = answered
            if number:  # else it ends within submit, or with its disk
                answered[1] = 0
                put(take(), COMPLETED, 0, disk, number, now(), 0, 0)
            finish(request, status)

        return wrapped

    patches.wrap(vsc, "attach", attaching)
    patches.wrap(vsc, "submit", submitting)
    patches.wrap(vsc, "_received", _receiving(trace, answering))
    patches.wrap(BlockRequest, "finish", finishing)


# -- who serves its disks ---------------------------------------------------------------------------------------


class _Driver:
    """A driver, as a session sees it that is traced. ``numbered``: disk and number of a request."""

    def __init__(self, driver: BlockDevice, trace: TraceFile, numbered: Callable[[Any], tuple[int, int]]) -> None:
        self._driver = driver
        self._put, self._take = trace.put, trace.take
        self._numbered = numbered

    def submit(self, request: BlockRequest) -> None:
        disk, number = self._numbered(request)
        self._put(self._take(), DRIVER, request.op, disk, number, now(), 0, 0)
        self._driver.submit(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)


def _server(trace: TraceFile, patches: Patches) -> None:
    put, take = trace.put, trace.take
    session = load("partitions.parent.storvsp:StorVspSession")

    def opening(open_session: Method) -> Method:
        def wrapped(vsp: Any, device: Any, channel: Any) -> None:
            channel.traced = identity(device.vm, device.name)
            open_session(vsp, device, channel)

        return wrapped

    def making(make: Method) -> Method:
        def wrapped(session: Any, channel: Any, disk: Any, **named: Any) -> None:
            key = channel.traced
            make(session, channel, _Driver(disk, trace, lambda request: (key, request.transaction_id)), **named)

        return wrapped

    def finishing(done: Method) -> Method:
        def wrapped(session: Any, request: Any) -> None:
            put(take(), DONE, 0, session._channel.traced, request.transaction_id, now(), 0, 0)
            done(session, request)

        return wrapped

    patches.wrap(load("partitions.parent.storage:StorageVsp"), "open_session", opening)
    patches.wrap(session, "__init__", making)
    patches.wrap(session, "_received", _receiving(trace))
    patches.wrap(session, "_done", finishing)


# -- the monolith -----------------------------------------------------------------------------------------------


def _calls(trace: TraceFile, patches: Patches) -> None:
    """A request has no number of its own here; it is given one, and disk 0."""
    put, take = trace.put, trace.take
    bound = load("partitions.boundary:BoundDisk")
    numbers = itertools.count(1)
    under_way: dict[Any, int] = {}

    def making(make: Method) -> Method:
        def wrapped(disk: Any, driver: BlockDevice, *others: Any) -> None:
            make(disk, _Driver(driver, trace, lambda request: (0, under_way[request])), *others)

        return wrapped

    def submitting(submit: Method) -> Method:
        def wrapped(disk: Any, request: BlockRequest) -> None:
            number = under_way[request] = next(numbers)
            put(take(), SUBMIT, request.op, 0, number, now(), 0, 0)
            submit(disk, request)

        return wrapped

    def finishing(finish: Method) -> Method:
        def wrapped(request: BlockRequest, status: Any) -> None:
            put(take(), DONE, 0, 0, under_way.get(request, 0), now(), 0, 0)
            finish(request, status)

        return wrapped

    def handing_back(hand_back: Method) -> Any:
        def wrapped(request: BlockRequest, done: Callable[[BlockRequest], Any]) -> None:
            put(take(), COMPLETED, 0, 0, under_way.pop(request, 0), now(), 0, 0)
            hand_back(request, done)

        return staticmethod(wrapped)

    patches.wrap(bound, "__init__", making)
    patches.wrap(bound, "submit", submitting)
    patches.wrap(bound, "_hand_back", handing_back)
    patches.wrap(BlockRequest, "finish", finishing)

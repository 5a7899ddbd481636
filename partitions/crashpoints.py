"""Where the steps of :mod:`vmbus_emu.crashpoints` are, in a process with the VMBus provider or VSPs, and in management.

Loaded when a step is armed. A hook wraps the methods that its step leads through, on classes: a process in the
microkernel carries both VSPs, and only the one that is meant has its own wrapped. Nothing here imports them, for a
process has the code of its own components alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from vmbus_emu.node import load
from vmbus_emu.protocol import ic, nvsp, vmbus
from vmbus_emu.protocol.hypercall import Code
from vmbus_emu.protocol.vstor import State
from vmbus_emu.vp import VirtualProcessor


class Trap(Protocol):
    """:class:`vmbus_emu.trap.Trap`."""

    def due(self) -> bool: ...
    def strike(self, *ignored: object) -> None: ...
    def reached(self) -> None: ...


Method = Callable[..., Any]


class Patches(Protocol):
    """:class:`vmbus_emu.trap.Patches`."""

    def wrap(self, owner: Any, name: str, around: Callable[[Method], Method]) -> None: ...
    def when_cleared(self, call: Callable[[], Any]) -> None: ...


_VSPS = {"storvsp": "partitions.parent.storage:StorageVsp", "netvsp": "partitions.parent.network:NetworkVsp"}
_SESSIONS = {
    "storvsp": "partitions.parent.storvsp:StorVspSession", "netvsp": "partitions.parent.netvsp:NetVspSession",
}  # fmt: skip


def install(step: str, trap: Trap, patches: Patches, role: str, process: Any) -> None:
    """Arm ``step`` of component ``role``. ``process``: the :class:`partitions.parent.process.VspCarrier` of it, or
    :class:`partitions.parent.management.Management`."""

    def listen_again() -> None:
        """The channels that are open hold the method that was there before."""
        vsp = process.vsps.get(role)
        for session in vsp._sessions.values() if vsp is not None else ():
            session._channel.on_packet = getattr(session, _WAYS_IN[role][0])

    if step == "fetch":
        patches.when_cleared(listen_again)
    HOOKS[role][step](trap, patches, role)
    if step == "fetch":
        listen_again()


def _always(*packet: Any) -> bool:
    return True


def _before(
    patches: Patches, owner: Any, name: str, call: Method, wanted: Callable[..., bool] = _always
) -> None:
    """``call()`` each time before ``owner.name(...)``, if ``wanted`` says so of its arguments."""

    def around(method: Method) -> Method:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if wanted(*arguments):
                call()
            return method(*arguments, **named)

        return wrapped

    patches.wrap(owner, name, around)


def _after(patches: Patches, owner: Any, name: str, call: Method) -> None:
    def around(method: Method) -> Method:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            result = method(*arguments, **named)
            call()
            return result

        return wrapped

    patches.wrap(owner, name, around)


# -- service ----------------------------------------------------------------------------------------------------


def _serving(session: Any, *packet: Any) -> bool:
    """Whether a storage session's handshake is over."""
    return bool(session._state is State.READY)


def _is_frame(session: Any, packet_type: int, flags: int, number: int, message: bytes, data: Any = None) -> bool:
    return (
        len(message) >= nvsp.PACKET_HEAD.size
        and nvsp.PACKET_HEAD.unpack_from(message)[:2] == (nvsp.RNDIS_PACKET, nvsp.DATA_CHANNEL)
    )  # fmt: skip


def _completes_frame(session: Any, flags: int, number: int, message: bytes) -> bool:
    return message in nvsp.COMPLETE.values() and session._connected


#: The method that a packet comes in by, and the one that its completion leaves by; which of those are service.
_WAYS_IN: dict[str, tuple[str, Callable[..., bool]]] = {
    "storvsp": ("_received", _serving), "netvsp": ("_packet", _is_frame),
}  # fmt: skip
_WAYS_OUT: dict[str, tuple[str, Callable[..., bool]]] = {
    "storvsp": ("_send", _serving), "netvsp": ("_complete", _completes_frame),
}  # fmt: skip


def _fetch(trap: Trap, patches: Patches, role: str) -> None:
    name, wanted = _WAYS_IN[role]
    _before(patches, load(_SESSIONS[role]), name, trap.reached, wanted)


def _submit(trap: Trap, patches: Patches, role: str) -> None:
    for name in ("_submit", "_run_chain") if role == "storvsp" else ("_transmit",):
        _before(patches, load(_SESSIONS[role]), name, trap.reached)


def _complete(trap: Trap, patches: Patches, role: str) -> None:
    name, wanted = _WAYS_OUT[role]
    _before(patches, load(_SESSIONS[role]), name, trap.reached, wanted)


def _signal(trap: Trap, patches: Patches, role: str) -> None:
    """On a ring: before the doorbell, or before the index moves if that comes first. ZeroMQ's own thread sends."""

    def arm(channel: Any) -> bool:
        if channel.shares_memory:
            channel._knock = channel.publish = trap.strike
        return not channel.shares_memory

    _around_way_out(trap, patches, role, arm, lambda channel: trap.strike())


def _signalled(trap: Trap, patches: Patches, role: str) -> None:
    """On a ring: after index and doorbell. On zmq: one turn of the loop later."""

    def arm(channel: Any) -> bool:
        if channel.shares_memory:
            ring_peer = channel.ring_peer

            def rung() -> None:
                ring_peer()
                trap.strike()

            channel.ring_peer = rung
        return not channel.shares_memory

    _around_way_out(trap, patches, role, arm, lambda channel: channel._port._loop.call_soon(trap.strike))


def _around_way_out(
    trap: Trap, patches: Patches, role: str, arm: Callable[[Any], bool], then: Callable[[Any], Any]
) -> None:
    """When it is time: ``arm(channel)`` before the completion goes in; if that says so, ``then(channel)`` after it."""
    name, wanted = _WAYS_OUT[role]

    def around(method: Method) -> Method:
        def wrapped(session: Any, *packet: Any) -> Any:
            channel = session._channel
            after = wanted(session, *packet) and trap.due() and arm(channel)
            method(session, *packet)
            if after:
                then(channel)

        return wrapped

    patches.wrap(load(_SESSIONS[role]), name, around)


# -- negotiation ------------------------------------------------------------------------------------------------


def _hello(trap: Trap, patches: Patches, role: str) -> None:
    _before(patches, load("partitions.parent.process:VspProcess"), "_say_hello", trap.reached)


def _vsp(name: str) -> Hook:
    def hook(trap: Trap, patches: Patches, role: str) -> None:
        _before(patches, load(_VSPS[role]), name, trap.reached)

    return hook


def _opened(trap: Trap, patches: Patches, role: str) -> None:
    _after(patches, load(_VSPS[role]), "open_session", trap.reached)


def _handshake(trap: Trap, patches: Patches, role: str) -> None:
    session = load(_SESSIONS[role])
    if role == "storvsp":
        _before(patches, session, "_negotiate", trap.reached)
        # Then SCSI's questions: what no driver answers.
        _before(patches, load("partitions.parent.storvsp:scsi_target"), "control", trap.reached)
    else:
        _before(patches, session, "_control", trap.reached)
        _before(patches, load("partitions.parent.rndis_device:RndisDevice"), "answer", trap.reached)


def _received_by_provider(kind: type) -> Hook:
    def hook(trap: Trap, patches: Patches, role: str) -> None:
        connection = load("vmbus_emu.vmbus.server:Connection")
        _before(patches, connection, "_handle", trap.reached, lambda self, message: type(message) is kind)

    return hook


#: The components' interfaces as an offer has them: nobody's service waits for these.
_COMPONENTS = frozenset(one.interface.bytes_le for one in ic.COMPONENTS.values())


def _by_provider(method: str, name: str) -> Hook:
    """A message of that name that comes by ``method`` of the provider, unless it is about an integration component."""
    (number,) = (row.number for row in vmbus.MESSAGES if row.name == name)

    def wanted(provider: Any, guest: Any, payload: bytes) -> bool:
        if int.from_bytes(payload[:4], "little") != number:
            return False
        if name == "OFFERCHANNEL":
            return payload[8:24] not in _COMPONENTS
        device = guest.devices.get(int.from_bytes(payload[8:12], "little"))
        return device is None or device.vsp != "ic"

    def hook(trap: Trap, patches: Patches, role: str) -> None:
        _before(patches, load("partitions.parent.provider:Provider"), method, trap.reached, wanted)

    return hook


def _sent_by_provider(name: str) -> Hook:
    return _by_provider("_send", name)


def _negotiate(trap: Trap, patches: Patches, role: str) -> None:
    _before(patches, VirtualProcessor, "call", trap.reached)
    _before(patches, VirtualProcessor, "_take", trap.reached)
    if role in _SESSIONS:
        _handshake(trap, patches, role)


# -- a VM's start ------------------------------------------------------------------------------------------------

#: Seconds after a call by which ZeroMQ's thread has sent it; the answer takes a process's birth.
_SENT_S = 0.001


def _created(trap: Trap, patches: Patches, role: str) -> None:
    _before(patches, load("partitions.parent.management:Management"), "_attach", trap.reached)


def _before_call(code: Code) -> Hook:
    def hook(trap: Trap, patches: Patches, role: str) -> None:
        _before(patches, VirtualProcessor, "call", trap.reached, lambda vp, called, *block: called is code)

    return hook


def _asked(trap: Trap, patches: Patches, role: str) -> None:
    def around(call: Method) -> Method:
        def wrapped(vp: VirtualProcessor, code: Code, *block: Any) -> Any:
            if code is Code.START_VIRTUAL_PROCESSOR and trap.due():
                vp._loop.call_later(_SENT_S, trap.strike)
            return call(vp, code, *block)

        return wrapped

    patches.wrap(VirtualProcessor, "call", around)


Hook = Callable[[Trap, Patches, str], None]
_SERVICE: dict[str, Hook] = {
    "fetch": _fetch, "submit": _submit, "complete": _complete, "signal": _signal, "signalled": _signalled,
}  # fmt: skip
_VSP: dict[str, Hook] = {
    **_SERVICE, "hello": _hello, "offer": _vsp("_offer"), "gpadl": _vsp("accept_gpadl"), "open": _vsp("open"),
    "opened": _opened, "handshake": _handshake, "resume": _submit, "negotiate": _negotiate,
}  # fmt: skip
#: Role -> step -> what arms it.
HOOKS: dict[str, dict[str, Hook]] = {
    "storvsp": _VSP,
    "netvsp": _VSP,
    "parent": {
        "contact": _received_by_provider(vmbus.InitiateContact),
        "connected": _sent_by_provider("VERSION_RESPONSE"),
        "offer": _sent_by_provider("OFFERCHANNEL"),
        "gpadl": _by_provider("_from_guest", "GPADL_HEADER"),
        "open": _by_provider("_from_guest", "OPENCHANNEL"),
        "opened": _sent_by_provider("OPENCHANNEL_RESULT"),
        "negotiate": _negotiate,
    },
    "management": {
        "create": _created,
        "attach": _before_call(Code.INITIALIZE_PARTITION),
        "initialize": _before_call(Code.START_VIRTUAL_PROCESSOR),
        "start": _asked,
    },
}

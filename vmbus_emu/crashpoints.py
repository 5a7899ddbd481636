"""The steps at which a component can be made to die (``kill --at STEP[:N]``), as data; and how one is written.

Two families. A step of *service* (``fetch`` … ``signalled``, and those of hypervisor and management) is armed in the
process that runs. A step of *negotiation* belongs to a process that begins: the one that runs is killed at once, and
the step is armed in its replacement before that is started. ``N`` counts how often the step is reached from the arming
on.

Where each step is in the code say :mod:`partitions.crashpoints` and :mod:`vmbus_emu.hypervisor.crashpoints`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_SERVING = ("storvsp", "netvsp")
_OFFERING = ("parent", *_SERVING)
_HYPERVISOR = ("hypervisor",)
_MANAGEMENT = ("management",)


class Step(NamedTuple):
    """``roles``: who comes by. ``next``: it is the replacement that does."""

    what: str
    roles: tuple[str, ...]
    next: bool


STEPS: Mapping[str, Step] = {
    "fetch": Step("a request was taken off the channel; nothing is done", _SERVING, False),
    "submit": Step("it is about to be handed to the driver, or a frame to the switch", _SERVING, False),
    "complete": Step("the driver has done it; its completion is not in the channel", _SERVING, False),
    "signal": Step("its completion is in the channel; the guest was not told", _SERVING, False),
    "signalled": Step("the guest was told", _SERVING, False),
    "hypercall": Step("a hypercall arrived; nothing is done", _HYPERVISOR, False),
    "execute": Step("it is done; nothing of that is written down or sent", _HYPERVISOR, False),
    "reply": Step("it is done and written down; the caller has no answer", _HYPERVISOR, False),
    "create": Step("a VM starts: it has a new partition, and nothing else", _MANAGEMENT, False),
    "attach": Step("its partition has the ports for VMBus", _MANAGEMENT, False),
    "initialize": Step("its partition is initialized; nobody was asked for its process", _MANAGEMENT, False),
    "start": Step("the hypervisor was asked for its process", _MANAGEMENT, False),
    "hello": Step("the VSP is about to speak to the provider for the first time", _SERVING, True),
    "contact": Step("INITIATE_CONTACT arrived", ("parent",), True),
    "connected": Step("VERSION_RESPONSE is about to be sent", ("parent",), True),
    "offer": Step("a device is about to be offered", _OFFERING, True),
    "gpadl": Step("a guest lends memory: a GPADL is to be taken", _OFFERING, True),
    "open": Step("a channel is to be opened", _OFFERING, True),
    "opened": Step("it is open; nobody knows yet", _OFFERING, True),
    "handshake": Step("a packet of the device's own handshake arrived (vstor, NVSP, RNDIS)", _SERVING, True),
    "resume": Step("the first request after that is about to reach the driver, or the switch", _SERVING, True),
    "negotiate": Step("any of it: a hypercall made, a SynIC message taken, a handshake packet", _OFFERING, True),
}
#: What the process can do at a step, of :data:`vmbus_emu.faults.ENDING`: what ends it there and then.
FAULTS = ("kill", "exit", "segv", "panic")
#: Role -> what arms a step in its process, by import path: ``install(step, trap, wrap, component)``.
INSTALLERS: Mapping[str, str] = {
    **dict.fromkeys((*_OFFERING, "management"), "partitions.crashpoints:install"),
    "hypervisor": "vmbus_emu.hypervisor.crashpoints:install",
}
_MOST = 1_000_000


class At(NamedTuple):
    """The ``number``-th time that ``step`` is reached."""

    step: str
    number: int

    def __str__(self) -> str:
        return f"{self.step}:{self.number}"


def parse(text: str) -> At:
    """A step as it is typed: ``fetch``, ``open:3``. ``ValueError`` says what is wrong."""
    step, colon, number = text.partition(":")
    if step not in STEPS:
        raise ValueError(f"there is no step {step!r}; the steps are {', '.join(STEPS)}")
    if not colon:
        return At(step, 1)
    if not (number.isascii() and number.isdecimal() and len(number) <= len(str(_MOST)) and 1 <= int(number) <= _MOST):
        raise ValueError(f"{text}: the number after {step} counts from 1, such as {step}:2")
    return At(step, int(number))


def fitting(role: str, arch: str = "", transport: str = "") -> list[str]:
    """The steps that a component of ``role`` comes by; on that placement and transport, where they are known."""
    return [step for step, row in STEPS.items() if role in row.roles and not _missing(step, role, arch, transport)]


def refusal(component: str, step: str, arch: str = "", transport: str = "") -> str:
    """Why ``component`` does not come by ``step``, and what to try; empty if it does. Components that come by any step
    have the names of their roles."""
    if component not in INSTALLERS:
        return f"it comes by none of the steps; try {', '.join(INSTALLERS)}"
    if component not in STEPS[step].roles:
        return f"it does not come by there; try {', '.join(fitting(component, arch, transport))}"
    missing = _missing(step, component, arch, transport)
    return f"{missing}; try {', '.join(fitting(component, arch, transport)) or 'kill without --at'}" if missing else ""


def _missing(step: str, role: str, arch: str, transport: str) -> str:
    if arch == "monolithic":
        return "in the monolith a request is a call, and nothing is negotiated"
    if step == "hello" and arch == "microkernel":
        return "in the microkernel placement VSP and provider share a process, and need no greeting"
    if step == "gpadl" and role == "storvsp" and transport == "zmq":
        return "on zmq nobody lends a disk memory"
    return ""

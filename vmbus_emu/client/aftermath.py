"""What a kill led to, read from the machine's events: what is still to come, and when each step happened.

Pure functions over events, so that a stored run is read the same way as a running one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Event = Mapping[str, Any]
#: A VM and the name of its device.
Device = tuple[str, str]

#: Policies after which there is another process in the place of the dead one.
REPLACED = ("restart", "standby", "recover")


class Expected(NamedTuple):
    """What a death should lead to."""

    host: str
    pid: int
    policy: str                         #: of that process; what cannot be replaced has ``halt``
    devices: Collection[Device]         #: of living VMs: they lose their channels
    along: Collection[str] = ()         #: whose processes end with it
    successor: str = ""                 #: who is ready when all of them are back, if that is not the host


def outstanding(expected: Expected, since: Sequence[Event], noticed: bool = True) -> list[str]:
    """What has not happened yet, in words, by the events since the kill; empty: it is over.

    ``noticed``: every device is expected to have lost its channel. It need not, where the news cannot reach its VM.
    """
    deaths = [event for event in since if event["event"] == "died"]
    if not any(death["pid"] == expected.pid for death in deaths):
        return [f"the end of {expected.host} (pid {expected.pid})"]
    last = next((event["event"] for event in reversed(since) if event["event"] in ("halted", "rebooting", "up")), "")
    if last == "halted":
        return []
    if last or expected.policy == "reboot":
        return [] if last == "up" else ["the machine's reboot"]
    dead = {name for death in deaths for name in (death["component"], *death["carried"])}
    waiting = [f"the end of {name}" for name in expected.along if name not in dead]
    successor = expected.successor or expected.host
    if expected.policy in REPLACED and not _is_ready(successor, since):
        waiting.append(f"a new {successor}")
    settled = {
        (event["component"], event["device"]): event["event"] != "detached"
        for event in since if event["event"] in ("attached", "detached", "given up")
    }
    waiting += [
        f"{vm}.{device}" for vm, device in expected.devices
        if vm not in dead and not settled.get((vm, device), not noticed)
    ]  # fmt: skip
    return waiting


def _is_ready(component: str, since: Iterable[Event]) -> bool:
    """Whether the component's last incarnation is alive and ready."""
    state = ""
    for event in since:
        if event["event"] in ("ready", "died") and event["component"] == component:
            state = event["event"]
    return state == "ready"


class Steps(NamedTuple):
    """When each step after a kill was seen, ns of CLOCK_MONOTONIC; ``None``: it was not."""

    died_ns: int | None
    starting_ns: int | None
    ready_ns: int | None
    attached_ns: int | None


def steps(kill: Mapping[str, Any], window: Sequence[Event]) -> Steps:
    """The steps after ``kill`` among the events up to the next one. A reboot is ready when all is up."""
    died = _first(window, lambda event: event["event"] == "died" and event["pid"] == kill["pid"])
    if died is None:
        return Steps(None, None, None, None)
    after = [event for event in window if event["ns"] >= died]
    host = kill["host"]
    starting = _last(after, lambda event: event["event"] == "starting" and event["component"] == host)
    if starting is None:
        starting = _first(after, lambda event: event["event"] == "rebooting")
    ready = _last(after, lambda event: event["event"] == "ready" and event["component"] == host)
    if ready is None:
        ready = _last(after, lambda event: event["event"] == "up")
        return Steps(died, starting, ready, None)
    lost = {(event["component"], event["device"]) for event in window if event["event"] == "detached"}
    attached = _last(
        after, lambda event: event["event"] == "attached" and (
            event["component"] == host or (event["component"], event["device"]) in lost
        )
    )
    return Steps(died, starting, ready, attached)


def signal_of(kill: Mapping[str, Any], window: Iterable[Event]) -> str | None:
    """The signal that ended the process, if one did."""
    deaths = (event for event in window if event["event"] == "died" and event["pid"] == kill["pid"])
    return next((death["signal"] for death in deaths), None)


def _first(events: Iterable[Event], wanted: Any) -> int | None:
    return min((event["ns"] for event in events if wanted(event)), default=None)


def _last(events: Iterable[Event], wanted: Any) -> int | None:
    return max((event["ns"] for event in events if wanted(event)), default=None)


def interrupted_ns(vm: str, device: str, window: Iterable[Event]) -> int | None:
    """When the service of a VM's devices of a kind (``disk`` or ``nic``) was interrupted; ``None``: not at all.

    A completion that comes before that was answered before the kill: it only was on its way.
    """
    times = [
        event["ns"] for event in window
        if (event["event"] == "detached" and event["component"] == vm and event["device"].startswith(device))
        or (event["event"] == "died" and vm in (event["component"], *event["carried"]))
    ]
    return max(times, default=None)


def windows(kills: Sequence[Mapping[str, Any]], events: Sequence[Event]) -> list[list[Event]]:
    """The events that belong to each kill: from it to the next one. Kills are in the order of time."""
    ends = [kill["killed_ns"] for kill in kills[1:]] + [None]
    return [
        [event for event in events if event["ns"] >= kill["killed_ns"] and (end is None or event["ns"] < end)]
        for kill, end in zip(kills, ends, strict=True)
    ]

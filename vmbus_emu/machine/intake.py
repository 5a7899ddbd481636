"""What processes and clients may tell the machine, as tables: which message, from whom, with fields of which types.

The machine is everybody's neighbour: a guest writes its console and its figures to it. So nothing that arrives is
believed before it was held against these tables (design: rule 12), and nobody speaks for somebody else. Types
are exact: a ``bool`` is no number.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from vmbus_emu.lifeline import CHUNK

Fields = Mapping[str, tuple[type, ...]]

_INT, _STR, _BYTES, _BOOL = (int,), (str,), (bytes,), (bool,)
#: The answer to the question what code a process has loaded.
_LOADED: Fields = {"id": _INT, "files": (dict,)}

#: From the processes of the machine itself, by the sender's role.
OWN: Mapping[str, Mapping[str, Fields]] = {
    "front": {
        "ready": {"component": _STR},
        "beat": {"id": _INT},
        "request": {"client": _BYTES, "pid": _INT, "request": (dict,)},
        "client_gone": {"client": _BYTES},
        "loaded": _LOADED,
    },
    "role": {
        "ready": {"component": _STR}, "not_started": {"component": _STR, "why": _STR}, "beat": {"id": _INT},
        "stats": {"id": _INT, "stats": (dict,)}, "loaded": _LOADED,
    },
    "zygote": {
        "ready": {"component": _STR}, "born": {"name": _STR, "incarnation": _INT, "pid": _INT}, "loaded": _LOADED,
    },
}
#: From every process that carries components.
ANYBODY: Mapping[str, Fields] = {
    "ready": {"component": _STR},
    "not_started": {"component": _STR, "why": _STR},
    "component_died": {"component": _STR, "why": _STR},
    "good": {"component": _STR},
    "beat": {"id": _INT},
    "device": {"component": _STR, "device": _STR, "what": _STR, "resent": _INT, "ns": _INT},
    "log": {"component": _STR, "text": _STR},
    "stats": {"id": _INT, "stats": (dict,)},
    "loaded": _LOADED,
    "shut_down": {"component": _STR, "unflushed": (list,)},
    "out": {"session": _INT, "stream": _INT, "data": _BYTES},
    "need": {"session": _INT, "chunks": _INT},
    "exit": {"session": _INT, "status": _INT},
}
#: It came to the step at which it was to die.
_STRUCK: Fields = {"component": _STR, "at": _STR, "ns": _INT}
#: Of the integration services, from whoever carries them.
_SERVICES: Mapping[str, Fields] = {
    "heartbeat": {"vm": _STR, "state": _STR},
    "integration_done": {"id": _INT, "ok": _BOOL, "why": _STR, "items": (list,)},
}
#: Besides, from the process with this role.
ROLES: Mapping[str, Mapping[str, Fields]] = {
    "hypervisor": {
        "struck": _STRUCK,
        "bound": {"pid": _INT},
        "power_on": {"partition": _INT, "vp": _INT, "name": _STR},
        "power_off": {"pids": (list,)},
        "partition_ended": {"name": _STR},     # from the monolith, where management is a call
        **_SERVICES,
    },
    **{
        role: {
            "lost": {"component": _STR, "vm": _STR, "device": _STR, "pid": _INT}, "struck": _STRUCK,
            "driver_bound": {"number": _INT, "device": _STR, "held_ms": (int, float), "why": _STR},
            **(_SERVICES if role == "parent" else {}),
        }
        for role in ("parent", "storvsp", "netvsp")
    },
    "management": {"struck": _STRUCK, "partition_ended": {"name": _STR}},
}
#: Roles that may report that somebody else's component did not start.
SPOKESMEN = frozenset(("management",))

#: Requests of clients, by verb; a field that is missing has the default that its reader gives it.
REQUESTS: Mapping[str, Fields] = {
    "info": {},
    "ps": {},
    "audit": {},
    "down": {},
    "watch": {"past": _BOOL},
    "kill": {"component": _STR, "fault": _STR, "at": _STR, "clear": _BOOL},
    "fault": {"component": _STR, "faults": (list,), "seconds": (int, float), "seed": _INT, "clear": _BOOL},
    "start": {"vm": _STR},
    "role": {"action": _STR, "role": _STR, "cpu_limit": (int, float), "port": _INT},
    "drain": {"grace_s": (int, float), "image": _STR, "drivers": (dict,)},
    "stop": {"vm": _STR, "force": _BOOL, "grace_s": (int, float)},
    "kvp": {"vm": _STR, "key": _STR, "value": _STR},
    "snapshot": {"vm": _STR, "disk": _STR, "path": _STR, "quiesce": _BOOL},
    "services": {"vm": _STR, "install": _BOOL},
    "vm": {"what": _STR, "vm": _STR, "spec": (dict,)},
    "driver": {"what": _STR, "driver": (dict,)},
    "exec": {"vm": _STR, "argv": (list,)},
    "stdin": {"session": _INT, "data": _BYTES, "end": _BOOL},
    "credit": {"session": _INT, "chunks": _INT},
    "cancel": {"session": _INT},
}

#: Requests' fields that are a time in seconds: from 0 to a day.
_TIMES = ("seconds", "grace_s")
_LONGEST_S = 86400.0
_MAX_INT = 1 << 63
#: Calls that one beat may name: one per VM, and some of I/O workers.
MOST_CALLS = 4096
_MAX_COUNTERS = 64
#: Files of code that a process may say it has loaded.
_MAX_FILES = 4096


class Refused(Exception):
    """``error, hint``: why a client's request is not carried out, and what to try."""


def _fits(message: Mapping[str, Any], fields: Fields) -> bool:
    return all(name in message and type(message[name]) in types for name, types in fields.items())


def accepts(role: str, carried: Collection[str], message: Mapping[str, Any]) -> bool:
    """Whether a process of ``role``, with the components ``carried``, may send ``message``."""
    kind = message["t"]
    if role in OWN:
        fields = OWN[role].get(kind)
        return fields is not None and _fits(message, fields)
    fields = ANYBODY.get(kind) or ROLES.get(role, {}).get(kind)
    if fields is None or not _fits(message, fields):
        return False
    if kind == "not_started" and role in SPOKESMEN:
        return True
    if kind == "beat":
        return long_calls(message) is not None
    if kind == "out":
        return message["stream"] in (1, 2) and len(message["data"]) <= CHUNK
    return "component" not in fields or message["component"] in carried


def long_calls(message: Mapping[str, Any]) -> set[tuple[int, int]] | None:
    """The calls of drivers that go on, by a beat: thread and number of each; ``None``: it is malformed."""
    calls = message.get("calls", [])
    if type(calls) is not list or len(calls) > MOST_CALLS:
        return None
    pairs = {tuple(call) for call in calls if type(call) is list and [type(part) for part in call] == [int, int]}
    return pairs if len(pairs) == len(calls) else None


def understood(request: Mapping[str, Any]) -> str:
    """What is wrong with a client's request; empty if nothing is."""
    verb = request.get("verb")
    fields = REQUESTS.get(verb) if isinstance(verb, str) else None
    if fields is None:
        return "this machine knows no verb " + (repr(verb[:40]) if isinstance(verb, str) else "of that type")
    for name, types in fields.items():
        if name in request and type(request[name]) not in types:
            return f"{verb}: {name} must be {' or '.join(t.__name__ for t in types)}"
    for name in _TIMES:
        if name in fields and not 0 <= request.get(name, 0) <= _LONGEST_S:  # nor is NaN
            return f"{verb}: {name} must be from 0 to {_LONGEST_S:.0f}"
    if verb == "exec" and not ("vm" in request and all(type(word) is str for word in request.get("argv", []))):
        return "exec: it takes a VM and words"
    if verb == "fault" and not all(type(one) is str for one in request.get("faults", [])):
        return "fault: faults must be words"
    return ""


def figures(stats: Mapping[Any, Any], carried: Collection[str]) -> dict[str, dict[str, Any]]:
    """Of what a process reports, what is about its own components and has the right shape."""
    return {name: _figures(stats[name]) for name in carried if isinstance(stats.get(name), dict)}


def files(reported: Mapping[Any, Any]) -> dict[str, list[str]] | None:
    """What a process says it has loaded, by folder; ``None`` if that has another shape."""
    if not all(type(folder) is str and type(paths) is list for folder, paths in reported.items()):
        return None
    if sum(map(len, reported.values())) > _MAX_FILES:
        return None
    if not all(type(path) is str for paths in reported.values() for path in paths):
        return None
    return dict(reported)


def _figures(reported: Mapping[Any, Any]) -> dict[str, Any]:
    clean: dict[str, Any] = {}
    for name, types in (("io", _INT), ("last_io", (int, float))):
        value = reported.get(name)
        if isinstance(value, types) and 0 <= value < _MAX_INT:
            clean[name] = value
    counters = reported.get("counters")
    if isinstance(counters, dict):
        plain = [(str(key)[:64], value) for key, value in counters.items() if _is_number(value)]
        clean["counters"] = dict(plain[:_MAX_COUNTERS])
    return clean


def _is_number(value: object) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))

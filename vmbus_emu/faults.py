"""Which fault fits which component, as data; and how a fault is written.

Two families. An *ending* fault is carried out once, by a signal of the machine or by the process on itself
(:mod:`vmbus_emu.wreck`), and most end the process. A *lasting* one is a driver that works badly until it is cleared
(:mod:`drivers.faulty`). What does not fit is refused with the reason and with what to try instead: a thread cannot be
killed by a signal, and real hardware contains a guest's crash.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from typing import NamedTuple

from vmbus_emu.placement import PLACEMENTS, ZYGOTES

ENDING: Mapping[str, str] = {
    "kill": "SIGKILL, sent by the machine",
    "stop": "SIGSTOP, sent by the machine: alive and silent",
    "segv": "a write to memory that is not there; the kernel ends the process",
    "oom": "allocate until a limit on memory is reached (64 MiB above what is in use; oom=SIZE for another)",
    "exit": "the process ends by itself, with status 3",
    "panic": "an exception that nobody catches; in a driver, at its next request",
    "hang": "the code never returns (hang=busy: and computes); in a driver, from its next request on",
    "scribble": "write over all shared memory and all guests' memory in reach, and go on",
}
LASTING: Mapping[str, str] = {
    "slow": "slow=TIME: every request or frame reaches the driver so much later",
    "error": "error=SHARE%: so many requests end with an I/O error; the medium is not touched",
    "drop": "drop=SHARE%: so many frames are lost in the switch, and counted",
}
#: What the machine sends; all other ending faults a process carries out on itself.
SIGNALS: Mapping[str, signal.Signals] = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

_PROCESS = frozenset(ENDING)
#: role -> what fits it, wherever it has a process of its own or shares one with the rest of the host.
FITS: Mapping[str, frozenset[str]] = {
    "machine": frozenset(("kill",)),
    "zygote": frozenset(SIGNALS),
    "hypervisor": _PROCESS,
    "parent": _PROCESS,
    "management": _PROCESS,
    "storvsp": _PROCESS | {"slow", "error"},
    "netvsp": _PROCESS | {"slow", "drop"},
    "role": _PROCESS,
    "child": _PROCESS,
    "worker": _PROCESS,
}
#: In the monolith a VM is a thread: only what its own code can do to itself is left.
FITS_THREAD = frozenset(("panic", "hang"))

_NO_SIGNAL = "a thread cannot be killed by a signal"
_CONTAINED = "real hardware contains a guest's crash, and in a thread it would end the whole host"
#: Why a fault does not fit a VM of the monolith.
_THREAD_REASONS: Mapping[str, str] = {
    "kill": _NO_SIGNAL,
    "stop": "a thread cannot be stopped by a signal: it would stop the whole process",
    "segv": _CONTAINED,
    "exit": "a thread has no exit of its own: the whole process would end",
    "oom": "a limit on memory is the process's, and the VM is one of its threads",
    "scribble": "real hardware keeps a guest to its own memory",
}
_THREAD_HINT = "try panic, which ends this VM alone, or the hypervisor, whose process carries it"


class Fault(NamedTuple):
    """``value``: seconds of slow, a share from 0 to 1 of error and drop, bytes of oom, ``"busy"`` of hang."""

    name: str
    value: float | int | str | None = None


def roles(arch: str) -> tuple[str, ...]:
    """Every role a machine of that architecture has, for which faults exist."""
    placed = PLACEMENTS[arch]
    zygotes = {name for role, name in ZYGOTES.items() if placed.get(role) == "*"}
    return tuple(role for role in FITS if role == "machine" or role in placed or role in zygotes)


def fitting(arch: str, role: str) -> tuple[str, ...]:
    """The faults that fit, in the order of the tables; none if there is no such role."""
    if role not in roles(arch):
        return ()
    fits = FITS_THREAD if _is_thread(arch, role) else FITS[role]
    return tuple(name for name in (*ENDING, *LASTING) if name in fits)


def refusal(arch: str, role: str, fault: str) -> str:
    """Why ``fault`` does not fit a component of ``role``, and what to try; empty if it does."""
    if fault not in ENDING and fault not in LASTING:
        return f"there is no fault {fault!r}; the faults are {', '.join((*ENDING, *LASTING))}"
    if role not in roles(arch):
        return f"nothing has the role {role} in the {arch} placement; there are {', '.join(roles(arch))}"
    if fault in fitting(arch, role):
        return ""
    if fault in LASTING:
        return _no_such_driver(role, fault)
    if role == "machine":
        return "the machine is the box itself: it can only lose its power; try kill, or another component"
    if role == "zygote":
        return "a zygote only waits and forks, and reads no orders; try kill or stop"
    return f"{_THREAD_REASONS[fault]}; {_THREAD_HINT}"


def _is_thread(arch: str, role: str) -> bool:
    return role == "child" and PLACEMENTS[arch][role] != "*"


def _no_such_driver(role: str, fault: str) -> str:
    if role == "storvsp":
        return "a disk owes every request an answer, it cannot drop one; try error=1%"
    if role == "netvsp":
        return "a network does not answer, so it has no errors to return; try drop=1%"
    able = " or ".join(name for name, fits in FITS.items() if fault in fits)
    return f"a {role} drives no device; try {able}"


# -- how a fault is written -----------------------------------------------------------------------------


_UNIT_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0}
_UNIT_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_LONGEST_S = 86400.0
_NUMBER = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)([a-zA-Z%]*)", re.ASCII)


def parse(text: str) -> Fault:
    """A fault as it is typed: ``kill``, ``slow=50ms``, ``error=1%``. ``ValueError`` says what is wrong."""
    name, equals, value = text.partition("=")
    if name not in ENDING and name not in LASTING:
        raise ValueError(f"{text}: there is no fault {name!r}; the faults are {', '.join((*ENDING, *LASTING))}")
    if name in LASTING and not equals:
        raise ValueError(f"{text}: it takes {'a time such as slow=50ms' if name == 'slow' else f'a share: {name}=1%'}")
    if not equals:
        return Fault(name)
    try:
        match name:
            case "slow":
                return Fault(name, duration(value))
            case "error" | "drop":
                return Fault(name, share(value))
            case "oom":
                return Fault(name, size(value))
            case "hang" if value == "busy":
                return Fault(name, value)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None
    raise ValueError(f"{text}: {'only hang=busy has a meaning' if name == 'hang' else f'{name} takes no value'}")


def duration(text: str) -> float:
    """Seconds of a time such as ``50ms``, ``5s`` or ``2m``: more than none, at most a day."""
    number, unit = _split(text)
    seconds = number * _UNIT_SECONDS.get(unit, 0.0)
    if not 0 < seconds <= _LONGEST_S:
        raise ValueError("it takes a time such as 50ms (us, ms, s, m; at most a day)")
    return seconds


def share(text: str) -> float:
    """From above 0 to 1, of a percentage such as ``0.5%``."""
    number, unit = _split(text)
    if unit != "%" or not 0 < number <= 100:
        raise ValueError("it takes a share such as 1% (more than 0, at most 100)")
    return number / 100


def size(text: str) -> int:
    """Bytes of a size such as ``64M`` or ``1GiB``."""
    number, unit = _split(text)
    factor = _UNIT_BYTES.get(unit.lower().removesuffix("b").removesuffix("i"))
    if factor is None or not 1 <= number * factor <= 1 << 40:
        raise ValueError("it takes a size such as 64M (k, M, G of 1024)")
    return int(number * factor)


def _split(text: str) -> tuple[float, str]:
    """A number and its unit; ``(0, "")`` if it is none."""
    found = _NUMBER.fullmatch(text)
    return (0.0, "") if found is None else (float(found[1]), found[2])

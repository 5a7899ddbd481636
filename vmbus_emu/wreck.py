"""How a process carries out an ending fault on itself. Loaded only when one is asked for.

What is done is real: a write to memory that is not there, allocations against a limit of the kernel, a loop that does
not return. Nothing here cleans up, and nothing above catches. SIGKILL and SIGSTOP are sent by the machine.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from vmbus_emu.scribble import scribble

#: What may be allocated before memory ends, beyond what is in use.
HEADROOM_BYTES = 64 << 20
_PIECE = 1 << 20
EXIT_STATUS = 3


class InjectedBug(Exception):
    """An exception that nobody expects."""


def carry_out(fault: str, value: Any = None) -> None:
    """Do it, on the calling thread; only ``scribble`` returns. ``value`` is that of :class:`vmbus_emu.faults.Fault`."""
    sys.stderr.write(f"*** fault injected: {fault}\n")
    sys.stderr.flush()
    _WRECKS[fault](value)


def _segv(value: Any) -> None:
    # The core would be everybody's memory who lives here.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    ctypes.memset(8, 0, 1)


def _oom(value: Any) -> None:
    with open("/proc/self/statm") as file:
        limit = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + int(value or HEADROOM_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    taken = []
    while True:
        # Touched, every page of it. A bytearray that cannot be had makes CPython 3.11 say more than that it cannot.
        taken.append(b"\1" * _PIECE)


def _exit(value: Any) -> None:
    os._exit(EXIT_STATUS)


def _panic(value: Any) -> None:
    raise InjectedBug("injected: nobody catches this")


def _hang(value: Any) -> NoReturn:
    while value == "busy":
        pass
    silent, _writer = os.pipe()
    while True:
        os.read(silent, 1)  # nobody ever writes


def _scribble(value: Any) -> None:
    reach = scribble()
    sys.stderr.write(f"scribbled over {reach.shared_bytes} shared bytes and {reach.guests} guests' memory\n")
    sys.stderr.flush()


_WRECKS: dict[str, Callable[[Any], None]] = {
    "segv": _segv, "oom": _oom, "exit": _exit, "panic": _panic, "hang": _hang, "scribble": _scribble,
}  # fmt: skip

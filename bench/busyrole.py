"""The role ``dns`` kept busy: a load beside it, and what both did meanwhile."""

from __future__ import annotations

import mmap
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

from bench.costs import costs
from bench.dnsload import COUNTERS
from bench.machines import Unmeasured
from vmbus_emu.client import Machine

ROLE = "dns"
#: Queries under way.
OUTSTANDING = 16
#: What the first answer may take.
_FIRST_S = 20.0
_LOOPBACK, _LARGEST = "127.0.0.1", 2048
_NS = 1_000_000_000


def lacking() -> str:
    """What is not installed that the load and the role need; empty: nothing."""
    return "" if find_spec("dns") else "dnspython"


class Busy(NamedTuple):
    """Over a stretch of time: answers per second, and the processor time of role and load, in cores."""

    queries_per_s: float
    role_cpu: float
    load_cpu: float


class Flood:
    """A load under way. ``role``: its server's pid."""

    def __init__(self, load: subprocess.Popen[bytes], counters: memoryview, role: int) -> None:
        self.pid = load.pid
        self._load = load
        self._counters = counters
        self._role = role

    def look(self) -> tuple[int, dict[str, int], dict[str, tuple[int, int]]]:
        """Now: for :meth:`since`. Raises :class:`Unmeasured` if the load has ended."""
        if self._load.poll() is not None:
            raise Unmeasured(f"the load on the role ended with status {self._load.returncode}")
        counted = dict(zip(COUNTERS, self._counters.tolist(), strict=True))
        return time.monotonic_ns(), counted, costs({self.pid: "load", self._role: ROLE})

    def since(self, before: tuple[int, dict[str, int], dict[str, tuple[int, int]]]) -> Busy:
        """Raises :class:`Unmeasured` if the role was not busy, or answered something else than it should."""
        (began, counted, used), (ended, now, uses) = before, self.look()
        if now["wrong"] > counted["wrong"]:
            raise Unmeasured(f"the role gave {now['wrong'] - counted['wrong']} wrong answers")
        answered, seconds = now["answered"] - counted["answered"], (ended - began) / _NS
        if not answered or not set(used) == set(uses) == {"load", ROLE}:
            raise Unmeasured(f"the role answered {answered} queries, so it was not busy")
        cores = {name: (uses[name][0] - used[name][0]) / (ended - began) for name in uses}
        return Busy(answered / seconds, cores[ROLE], cores["load"])


@contextmanager
def flooded(machine: Machine, role: dict[str, Any], outstanding: int = OUTSTANDING) -> Iterator[Flood]:
    """``role``: as ``machine.add_role`` gives it. The load is at work. Raises :class:`Unmeasured`."""
    port = int(role["listens"][0].rpartition(":")[2])
    query, answer = understood(machine, port)
    shared = os.memfd_create("dnsload", os.MFD_CLOEXEC)
    try:
        os.truncate(shared, 8 * len(COUNTERS))
        counters = memoryview(mmap.mmap(shared, 8 * len(COUNTERS))).cast("Q")
        load = subprocess.Popen(
            [sys.executable, "-m", "bench.dnsload", str(port), query.hex(), answer.hex(), str(outstanding),
             str(shared)],
            pass_fds=[shared], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    finally:
        os.close(shared)
    with load:
        try:
            assert load.stdout is not None
            first = select.poll()   # not select(), which knows the first 1,024 descriptors of a process alone
            first.register(load.stdout, select.POLLIN)
            if not first.poll(_FIRST_S * 1000) or not load.stdout.read(1):
                raise Unmeasured("the role answered no query of the load")
            yield Flood(load, counters, role["pid"])
        finally:
            load.kill()


def understood(machine: Machine, port: int) -> tuple[bytes, bytes]:
    """A query for vm1's address, and the answer, which was read and is right. Raises :class:`Unmeasured`."""
    import dns.exception
    import dns.message
    import dns.rcode

    query = dns.message.make_query(f"vm1.{machine.name}.vm", "A")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.settimeout(_FIRST_S)
        try:
            end.connect((_LOOPBACK, port))
            end.send(query.to_wire())
            answer = end.recv(_LARGEST)
            told = dns.message.from_wire(answer)
        except (OSError, dns.exception.DNSException) as error:
            raise Unmeasured(f"the role does not answer: {error}") from None
    addresses = [str(record) for rrset in told.answer for record in rrset]
    right = machine.topology is not None and addresses == [machine.topology.vms[0].address]
    if told.id != query.id or told.rcode() != dns.rcode.NOERROR or not right:
        raise Unmeasured(f"the role gave {addresses or told.rcode().name} for vm1's address")
    return query.to_wire(), answer

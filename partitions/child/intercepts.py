"""Register accesses of a VM without integration services: every one is an intercept.

The access leaves as an envelope on the VP's socket, suspends the VP in the hypervisor, and comes back with the
registers that the VM's worker has set. A processor stands still until then; here the guest's loop goes on, but it has
one processor: accesses go out one at a time, in the order in which they were made (docs/fidelity.md).
"""

from __future__ import annotations

from collections import deque

from vmbus_emu.protocol import intercept
from vmbus_emu.protocol.hypercall import HvStatus
from vmbus_emu.protocol.intercept import Trap
from vmbus_emu.task import Future
from vmbus_emu.vp import Outcome, VirtualProcessor

_REPEATED = intercept.STRING | intercept.REP


class InterceptedPorts:
    """A :class:`partitions.child.port_io.PortIo` over a VP. What the hypervisor refuses reads as all ones, or moves
    nothing: it does so when it is gone for good, and this VM with it."""

    def __init__(self, vp: VirtualProcessor) -> None:
        self._vp = vp
        self._waiting: deque[tuple[Trap, Future[int]]] = deque()
        self._outstanding: tuple[Trap, Future[int]] | None = None
        self._rip = 0

    def read(self, port: int, size: int) -> Future[int]:
        return self._access(Trap(port, size, 0))

    def write(self, port: int, size: int, value: int) -> Future[None]:
        written: Future[None] = Future()
        self._access(Trap(port, size, 1, rax=value)).then(lambda future: written.resolve(None))
        return written

    def read_string(self, port: int, size: int, count: int, address: int) -> Future[int]:
        return self._access(Trap(port, size | _REPEATED, 0, rcx=count, rdi=address))

    def write_string(self, port: int, size: int, count: int, address: int) -> Future[int]:
        return self._access(Trap(port, size | _REPEATED, 1, rcx=count, rsi=address))

    def _access(self, trap: Trap) -> Future[int]:
        future: Future[int] = Future()
        self._waiting.append((trap, future))
        if self._outstanding is None:
            self._next()
        return future

    def _next(self) -> None:
        trap, future = self._outstanding = self._waiting.popleft()
        trap = trap._replace(rip=self._rip)
        self._vp.trap(trap.encode()).then(lambda outcome: self._came_back(trap, future, outcome.result()))

    def _came_back(self, trap: Trap, future: Future[int], outcome: Outcome) -> None:
        status, output = outcome
        self._outstanding = None
        if self._waiting:
            self._next()
        if status is not HvStatus.SUCCESS:
            future.resolve(0 if trap.access & intercept.STRING else (1 << 8 * trap.size) - 1)
            return
        self._rip, rax, rcx, _, _ = intercept.REGISTERS.unpack(output)
        future.resolve(trap.rcx - rcx if trap.access & intercept.STRING else rax & (1 << 8 * trap.size) - 1)

"""How a guest's drivers reach registers: IN, OUT, and both with REP, as futures.

In a partition of its own every access is an intercept and takes a round trip through hypervisor and worker
(:mod:`partitions.child.intercepts`); a CPU would stand still meanwhile, and a driver here awaits. In the monolith the
device models are objects in reach, and an access is a call: :class:`DirectPorts`. Drivers cannot tell.
"""

from __future__ import annotations

from typing import Protocol

from vmbus_emu.task import Future


class PortIo(Protocol):
    """Sizes are 1, 2 or 4 bytes; ``address`` is guest-physical, in memory that the device may touch."""

    def read(self, port: int, size: int) -> Future[int]: ...
    def write(self, port: int, size: int, value: int) -> Future[None]: ...
    def read_string(self, port: int, size: int, count: int, address: int) -> Future[int]:
        """REP INS; how many elements were moved."""

    def write_string(self, port: int, size: int, count: int, address: int) -> Future[int]:
        """REP OUTS; how many elements were moved."""


class Accesses(Protocol):
    """The same as calls."""

    def read(self, port: int, size: int) -> int: ...
    def write(self, port: int, size: int, value: int) -> None: ...
    def read_string(self, port: int, size: int, count: int, address: int) -> int: ...
    def write_string(self, port: int, size: int, count: int, address: int) -> int: ...


class DirectPorts:
    """A :class:`PortIo` over device models in this process."""

    def __init__(self, models: Accesses) -> None:
        self._models = models
        #: Accesses made: what would be intercepts.
        self.accesses = 0

    def read(self, port: int, size: int) -> Future[int]:
        self.accesses += 1
        return _settled(self._models.read(port, size))

    def write(self, port: int, size: int, value: int) -> Future[None]:
        self.accesses += 1
        self._models.write(port, size, value)
        return _WRITTEN

    def read_string(self, port: int, size: int, count: int, address: int) -> Future[int]:
        self.accesses += 1
        return _settled(self._models.read_string(port, size, count, address))

    def write_string(self, port: int, size: int, count: int, address: int) -> Future[int]:
        self.accesses += 1
        return _settled(self._models.write_string(port, size, count, address))


def _settled(value: int) -> Future[int]:
    future: Future[int] = Future()
    future.resolve(value)
    return future


_WRITTEN: Future[None] = Future()
_WRITTEN.resolve(None)

"""Who has which address on the segment: the ARP table, and the packets that wait for an answer.

Owned by the IP stack, which sends what this asks it to send and tells it what it learned. Bounds:
:data:`TABLE_SIZE` neighbours known, :data:`MAX_RESOLVING` being asked for, :data:`QUEUE` packets waiting for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from vmbus_emu.loop import Loop, Timer

TABLE_SIZE = 1024
MAX_RESOLVING = 256
QUEUE = 16
#: Seconds between ARP requests for one neighbour, and how many are sent before it counts as unreachable.
ARP_INTERVAL = 1.0
ARP_TRIES = 3

#: Whoever waits with a packet, to be told if it cannot be sent.
Owner = TypeVar("Owner")


class _Resolving(Generic[Owner]):
    """A neighbour that is being asked for, and the packets that wait for it."""

    __slots__ = ("timer", "tries", "waiting")

    def __init__(self) -> None:
        self.tries = 0
        self.timer: Timer | None = None
        self.waiting: list[tuple[bytes, Owner]] = []

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


class Neighbours(Generic[Owner]):
    """``ask(address)`` sends an ARP request, ``send(mac, packet)`` a packet whose neighbour is known by now,
    ``unreachable(owner)`` says that nobody answered for a packet's address."""

    def __init__(
        self,
        loop: Loop,
        ask: Callable[[bytes], Any],
        send: Callable[[bytes, bytes], Any],
        unreachable: Callable[[Owner], Any],
    ) -> None:
        self._loop = loop
        self._ask = ask
        self._send = send
        self._unreachable = unreachable
        self.table: dict[bytes, bytes] = {}
        self._resolving: dict[bytes, _Resolving[Owner]] = {}

    def wait(self, address: bytes, packet: bytes, owner: Owner) -> bool:
        """Keep ``packet`` until ``address`` is known, asking for it. ``False``: one of the bounds is reached."""
        resolving = self._resolving.get(address)
        if resolving is not None:
            if len(resolving.waiting) >= QUEUE:
                return False
            resolving.waiting.append((packet, owner))
            return True
        if len(self._resolving) >= MAX_RESOLVING:
            return False
        resolving = self._resolving[address] = _Resolving()
        resolving.waiting.append((packet, owner))
        self._next_try(address, resolving)
        return True

    def _next_try(self, address: bytes, resolving: _Resolving[Owner]) -> None:
        """The next ARP request; after the last one, everything that waited is unreachable."""
        if resolving.tries == ARP_TRIES:
            del self._resolving[address]
            for _, owner in resolving.waiting:
                self._unreachable(owner)
            return
        resolving.tries += 1
        resolving.timer = self._loop.call_later(ARP_INTERVAL, self._next_try, address, resolving)
        self._ask(address)

    def learn(self, address: bytes, mac: bytes) -> None:
        """``address`` is at ``mac``: remember it, and send what waited for it."""
        table = self.table
        if table.get(address) != mac:
            table.pop(address, None)
            if len(table) >= TABLE_SIZE:
                del table[next(iter(table))]  # learned longest ago
            table[address] = mac
        resolving = self._resolving.pop(address, None)
        if resolving is not None:
            resolving.cancel()
            for packet, _ in resolving.waiting:
                self._send(mac, packet)

    def stop(self) -> None:
        """Nobody can be asked any more: forget what waits, without a word to its owners."""
        for resolving in self._resolving.values():
            resolving.cancel()
        self._resolving.clear()

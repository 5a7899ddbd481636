"""A learning Ethernet switch: the virtual switch of a machine, and the driver behind every network port.

:meth:`Switch.port` makes a port; a VSP, an uplink or (in the monolith) a guest plugs into it. Delivery is a
direct call of the far port's receiver: whoever is plugged in does the queueing, and refuses by returning
``False`` when it has no room, which is counted here.

A receiver may transmit while a frame is being delivered to it. Such a frame is copied to a bounded queue
and forwarded when the current one is done, so a storm of answers costs queue space and never stack depth.

The switch forwards what its ports are given. Whether a guest may use a source address is the VSP's check.
"""

from __future__ import annotations

import time
from collections import deque

from vmbus_emu.device import DEFAULT_MTU, MIN_FRAME, Buffer, CountingPort, PortInfo, Status

#: Addresses remembered; beyond that the one learned longest ago is forgotten.
TABLE_SIZE = 1024
#: Frames that may wait while another is being delivered.
PENDING_FRAMES = 4096


class SwitchPort(CountingPort):
    """A ``NetworkPort`` of a :class:`Switch`. Made by :meth:`Switch.port` only."""

    __slots__ = ("_switch", "name", "removed")

    def __init__(self, switch: Switch, name: str, info: PortInfo) -> None:
        super().__init__(info)
        self._switch = switch
        self.name = name
        self.removed = False

    def transmit(self, frame: Buffer) -> Status:
        """Put ``frame`` into the switch. Never BUSY: a frame that finds the queue full is dropped and counted."""
        if self.removed:
            return Status.GONE
        if not MIN_FRAME <= len(frame) <= self._info.max_frame:
            return Status.INVALID
        if self._switch.forward(self, frame):
            self._tx_frames += 1
            self._tx_bytes += len(frame)
        else:
            self._tx_drops += 1
        self._last_io = time.monotonic()
        return Status.OK

    def deliver(self, frame: Buffer) -> None:
        """Called by the switch: hand a frame to whoever is plugged in, and count how that went."""
        receiver = self._receiver
        if receiver is None or len(frame) > self._info.max_frame or not receiver(frame):
            self._rx_drops += 1
            return
        self._rx_frames += 1
        self._rx_bytes += len(frame)
        self._last_io = time.monotonic()


class Switch:
    """Ports, and a table of which address was last seen behind which of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._ports: dict[str, SwitchPort] = {}
        self._flood: tuple[SwitchPort, ...] = ()  # rebuilt on change, so that delivery iterates a constant
        self._table: dict[bytes, SwitchPort] = {}
        self._pending: deque[tuple[SwitchPort, bytes]] = deque()
        self._forwarding = False

    def port(self, name: str, mac: bytes, mtu: int = DEFAULT_MTU) -> SwitchPort:
        """A new port. ``mac`` is the address of who will plug in. ``ValueError`` if the name is taken or ``mac``
        is not six bytes of an individual address: both are the configuration's mistakes."""
        if name in self._ports:
            raise ValueError(f"switch {self.name} already has a port {name}")
        if len(mac) != 6 or mac[0] & 1:
            raise ValueError(f"{mac.hex(':')} is not an individual Ethernet address")
        port = self._ports[name] = SwitchPort(self, name, PortInfo(bytes(mac), mtu))
        self._flood = tuple(self._ports.values())
        return port

    def remove(self, port: SwitchPort) -> None:
        """Take a port away, with what was learned about it; frames waiting from it are lost. Idempotent."""
        if self._ports.get(port.name) is not port:
            return
        port.removed = True
        del self._ports[port.name]
        self._flood = tuple(self._ports.values())
        self._table = {mac: behind for mac, behind in self._table.items() if behind is not port}

    def table(self) -> dict[bytes, str]:
        """Address to port name, for display."""
        return {mac: port.name for mac, port in self._table.items()}

    def forward(self, source: SwitchPort, frame: Buffer) -> bool:
        """Called by a port: move one frame. ``False``: dropped, there was no room for it to wait."""
        if self._forwarding:
            if len(self._pending) >= PENDING_FRAMES:
                return False
            self._pending.append((source, bytes(frame)))
            return True
        self._forwarding = True
        try:
            self._move(source, frame)
            while self._pending:
                self._move(*self._pending.popleft())
        finally:
            self._forwarding = False
        return True

    def _move(self, source: SwitchPort, frame: Buffer) -> None:
        if source.removed:
            return
        origin = bytes(frame[6:12])
        if self._table.get(origin) is not source and not origin[0] & 1:
            self._learn(origin, source)
        target = None if frame[0] & 1 else self._table.get(bytes(frame[:6]))
        if target is not None:
            if target is not source:
                target.deliver(frame)
            return
        for port in self._flood:
            if port is not source and not port.removed:
                port.deliver(frame)

    def _learn(self, mac: bytes, port: SwitchPort) -> None:
        table = self._table
        table.pop(mac, None)  # a moved address counts as new: dicts keep the order of insertion
        if len(table) >= TABLE_SIZE:
            del table[next(iter(table))]
        table[mac] = port

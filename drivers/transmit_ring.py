"""A NIC's way of sending: descriptors that hold frames until the wire takes them. Both drivers here differ in how many
they have, and how long a frame may be; so does real hardware, among other things.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from vmbus_emu.device import MIN_FRAME, Buffer
from vmbus_emu.hardware import Wire


class TransmitRing:
    """An :class:`~vmbus_emu.hardware.Uplink`. ``descriptors``: frames that may wait; ``longest``: bytes of one."""

    def __init__(self, wire: Wire, receive: Callable[[bytes], Any], descriptors: int, longest: int) -> None:
        self._wire = wire
        self._receive = receive
        self._descriptors = descriptors
        self._longest = longest
        self._waiting: deque[bytes] = deque()
        wire.on_room = self._more

    def transmit(self, frame: Buffer) -> bool:
        if not MIN_FRAME <= len(frame) <= self._longest or len(self._waiting) >= self._descriptors:
            return False
        copy = bytes(frame)
        if self._waiting or not self._wire.send(copy):
            self._waiting.append(copy)
        return True

    def _more(self) -> None:
        while self._waiting and self._wire.send(self._waiting[0]):
            self._waiting.popleft()

    def arrived(self, frame: bytes) -> None:
        if MIN_FRAME <= len(frame) <= self._longest:
            self._receive(frame)

    def waiting(self) -> list[bytes]:
        left = list(self._waiting)
        self._waiting.clear()
        return left

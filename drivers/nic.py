"""A network card with a plug that leads back into it: every frame sent is received again.

The driver baseline of the benchmarks and a partner for tests: what lies between a workload and this card is
all that is measured. A receiver may transmit while it is handed a frame; such frames wait in a bounded
queue, so that a workload that answers itself does not recurse.
"""

from __future__ import annotations

import time
from collections import deque

from vmbus_emu.device import DEFAULT_MTU, MIN_FRAME, Buffer, CountingPort, PortInfo, Status

#: Frames that may wait while another is being delivered.
PENDING_FRAMES = 256


class LoopbackNic(CountingPort):
    """A ``NetworkPort`` that reflects each frame, unchanged, to its own receiver."""

    def __init__(self, mac: bytes, mtu: int = DEFAULT_MTU) -> None:
        super().__init__(PortInfo(bytes(mac), mtu))
        self._pending: deque[bytes] = deque()
        self._delivering = False

    def transmit(self, frame: Buffer) -> Status:
        """Reflect ``frame``, now or after the one being delivered."""
        if not MIN_FRAME <= len(frame) <= self._info.max_frame:
            return Status.INVALID
        if self._delivering and len(self._pending) >= PENDING_FRAMES:
            self._tx_drops += 1
            return Status.OK
        self._tx_frames += 1
        self._tx_bytes += len(frame)
        self._last_io = time.monotonic()
        if self._delivering:
            self._pending.append(bytes(frame))
            return Status.OK
        self._delivering = True
        try:
            self._reflect(frame)
            while self._pending:
                self._reflect(self._pending.popleft())
        finally:
            self._delivering = False
        return Status.OK

    def _reflect(self, frame: Buffer) -> None:
        if self._receiver is None or not self._receiver(frame):
            self._rx_drops += 1
            return
        self._rx_frames += 1
        self._rx_bytes += len(frame)

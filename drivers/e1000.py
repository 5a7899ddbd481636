"""Intel's e1000: 256 transmit descriptors (the Linux driver's default), and frames of up to 16,128 bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drivers.transmit_ring import TransmitRing
from vmbus_emu.hardware import BUILT_IN, NIC, Driver, Wire

DESCRIPTORS, LONGEST = 256, 16128


def attach(model: str, wire: Wire, receive: Callable[[bytes], Any]) -> TransmitRing:
    return TransmitRing(wire, receive, DESCRIPTORS, LONGEST)


DRIVER = Driver("e1000", "1.0", NIC, BUILT_IN["e1000"][1], attach)

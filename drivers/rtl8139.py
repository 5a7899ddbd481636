"""Realtek's 8139: four transmit descriptors, each with one buffer of 1,536 bytes; so it loses frames where others
queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drivers.transmit_ring import TransmitRing
from vmbus_emu.hardware import BUILT_IN, NIC, Driver, Wire

DESCRIPTORS, LONGEST = 4, 1536


def attach(model: str, wire: Wire, receive: Callable[[bytes], Any]) -> TransmitRing:
    return TransmitRing(wire, receive, DESCRIPTORS, LONGEST)


DRIVER = Driver("rtl8139", "1.0", NIC, BUILT_IN["rtl8139"][1], attach)

"""Packets of a VMBus channel's data path: their types and flags, on every transport (protocol sheet 3.3)."""

from __future__ import annotations

from typing import Final

#: Only these four types occur; anything else is corruption.
IN_BAND: Final = 6
TRANSFER_PAGES: Final = 7
GPA_DIRECT: Final = 9
COMPLETION: Final = 0xB
PACKET_TYPES: Final = frozenset((IN_BAND, TRANSFER_PAGES, GPA_DIRECT, COMPLETION))

#: Packet flag bit 0: the sender wants a COMPLETION with the same transaction id.
COMPLETION_REQUESTED: Final = 1

#: The largest device message in a packet (that of a pipe channel).
MAX_MESSAGE_BYTES: Final = 16384

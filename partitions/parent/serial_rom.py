"""The serial ROM of a network adapter, a 93C46: 64 words behind four pins, one bit at a time.

The driver raises the select pin, clocks in a one, the opcode and the address, and clocks out the word, its highest bit
first. Every edge is a register access of its own, so finding one's address out costs a guest hundreds of intercepts.
"""

from __future__ import annotations

from collections.abc import Sequence

from vmbus_emu.protocol import tulip

_COMMAND_BITS = 3 + tulip.ROM_ADDRESS_BITS


class SerialRom:
    """``words``: what is in it."""

    def __init__(self, words: Sequence[int]) -> None:
        self._words = words
        self._pins = 0
        self._shifted = self._bits = 0      # what came in since the select pin rose
        self._out = 0                       # what is left to go out, from bit 15 on

    def write(self, value: int) -> None:
        """The pins as the driver sets them."""
        rose = value & ~self._pins
        self._pins = value & (tulip.ROM_SELECT | tulip.ROM_CLOCK | tulip.ROM_DATA_IN | tulip.ROM_PINS)
        if not value & tulip.ROM_SELECT or not value & tulip.ROM_ENABLE:
            self._shifted = self._bits = self._out = 0
        elif rose & tulip.ROM_CLOCK:
            self._clock(int(bool(value & tulip.ROM_DATA_IN)))

    def _clock(self, bit: int) -> None:
        if self._bits == _COMMAND_BITS:
            self._out = self._out << 1 & 0x1FFFF
        elif self._bits or bit:             # zeros before the first one do not count
            self._shifted = self._shifted << 1 | bit
            self._bits += 1
            if self._bits == _COMMAND_BITS and self._shifted >> tulip.ROM_ADDRESS_BITS == tulip.ROM_OPCODE_READ:
                self._out = self._words[self._shifted & (tulip.ROM_WORDS - 1)]

    def read(self) -> int:
        """The pins, with the bit that is out."""
        out = tulip.ROM_DATA_OUT if self._out & 0x10000 else 0
        return self._pins & ~tulip.ROM_DATA_OUT | out

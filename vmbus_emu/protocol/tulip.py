"""The registers and descriptors of a 21140-style network adapter (protocol sheet 7).

Thirty-two-bit registers eight bytes apart, two rings of 16-byte descriptors in the guest's memory, and a serial ROM,
which has the address, behind four bits of one register. The guest's driver and the device model both read these tables.
"""

from __future__ import annotations

from struct import Struct

#: Where the n-th adapter's registers begin, how many ports they have, and its interrupt.
BASE_PORT = 0xEC00
PORTS_PER_ADAPTER = 0x80
IRQS = (11, 10, 9, 5)
MAX_ADAPTERS = len(IRQS)
CSR_STRIDE = 8

CSR_BUS_MODE, CSR_TX_POLL, CSR_RX_POLL, CSR_RX_LIST, CSR_TX_LIST, CSR_STATUS, CSR_MODE, CSR_INTERRUPTS = range(8)
CSR_MISSED, CSR_ROM = 8, 9
CSRS = 16

BUS_MODE_RESET = 1 << 0
#: CSR0 bits 6:2: doublewords between a descriptor's end and the next one's begin.
BUS_MODE_SKIP_SHIFT, BUS_MODE_SKIP_MASK = 2, 0x1F

# CSR5, and CSR7 which enables the same bits.
TX_DONE = 1 << 0
TX_STOPPED = 1 << 1
TX_NO_BUFFER = 1 << 2
RX_DONE = 1 << 6
RX_NO_BUFFER = 1 << 7
RX_STOPPED = 1 << 8
BUS_ERROR = 1 << 13
ABNORMAL = 1 << 15
NORMAL = 1 << 16
NORMAL_CAUSES = TX_DONE | TX_NO_BUFFER | RX_DONE
ABNORMAL_CAUSES = TX_STOPPED | RX_NO_BUFFER | RX_STOPPED | BUS_ERROR
#: Cleared by writing 1.
CLEARABLE = NORMAL_CAUSES | ABNORMAL_CAUSES | ABNORMAL | NORMAL

# CSR6.
MODE_RX = 1 << 1
MODE_PROMISCUOUS = 1 << 6
MODE_ALL_MULTICAST = 1 << 7
MODE_TX = 1 << 13

# CSR9: the serial ROM's pins.
ROM_SELECT, ROM_CLOCK, ROM_DATA_IN, ROM_DATA_OUT = 1 << 0, 1 << 1, 1 << 2, 1 << 3
ROM_ENABLE, ROM_READ = 1 << 11, 1 << 14
ROM_PINS = ROM_ENABLE | ROM_READ
#: A command is a one, two bits of opcode and the address.
ROM_OPCODE_READ = 0b110
ROM_ADDRESS_BITS = 6
ROM_WORDS = 1 << ROM_ADDRESS_BITS
#: Where the ROM has the address (as adapters of that time do), and, ours, the MTU.
ROM_MAC_WORD, ROM_MAC_WORDS, ROM_MTU_WORD = 10, 3, 13

#: A descriptor: status, control, and two buffers' addresses.
DESCRIPTOR = Struct("<IIII")
STATUS_WORD = Struct("<I")
OWN = 1 << 31               #: the adapter's; the driver's without

# Receive status.
RX_LAST, RX_FIRST, RX_MULTICAST = 1 << 8, 1 << 9, 1 << 10
RX_ERROR = 1 << 15
RX_LENGTH_SHIFT, RX_LENGTH_MASK = 16, 0x3FFF
#: What the length counts besides the frame: its check sequence, which nobody writes here (docs/fidelity.md).
FCS_BYTES = 4

# Control.
SIZE_MASK, SECOND_SIZE_SHIFT = 0x7FF, 11
CHAINED, END_OF_RING = 1 << 24, 1 << 25
TX_SETUP = 1 << 27
TX_FIRST, TX_LAST, TX_INTERRUPT = 1 << 29, 1 << 30, 1 << 31
TX_FILTER_TYPE = 1 << 22 | 1 << 28      #: a setup frame of sixteen addresses has neither
MAX_BUFFER = SIZE_MASK

SETUP_BYTES = 192
SETUP_ADDRESSES = 16
BROADCAST = b"\xff" * 6


def encode_setup(addresses: list[bytes]) -> bytes:
    """A setup frame with up to 16 addresses; the places left over repeat the first. Raises ``ValueError`` without one.

    Each address is three doublewords, two of its bytes in the lower half of each.
    """
    if not 1 <= len(addresses) <= SETUP_ADDRESSES:
        raise ValueError(f"a setup frame has 1 to {SETUP_ADDRESSES} addresses, not {len(addresses)}")
    places = addresses + addresses[:1] * (SETUP_ADDRESSES - len(addresses))
    return b"".join(place[index : index + 2] + bytes(2) for place in places for index in (0, 2, 4))


def decode_setup(raw: bytes) -> frozenset[bytes] | None:
    """The addresses of a setup frame; ``None`` if it has not its length."""
    if len(raw) != SETUP_BYTES:
        return None
    words = [raw[start : start + 2] for start in range(0, SETUP_BYTES, 4)]
    return frozenset(b"".join(words[start : start + 3]) for start in range(0, len(words), 3))


def rom_image(mac: bytes, mtu: int) -> list[int]:
    """The 64 words of an adapter's serial ROM."""
    words = [0] * ROM_WORDS
    for index in range(ROM_MAC_WORDS):
        words[ROM_MAC_WORD + index] = int.from_bytes(mac[2 * index : 2 * index + 2], "little")
    words[ROM_MTU_WORD] = mtu & 0xFFFF
    return words

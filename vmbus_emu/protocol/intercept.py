"""I/O port intercepts as data: what a VP's processor has at hand when an access traps, the message made of that, and
the registers that answer it.

Protocol sheet 1.3 and 1.8. The message has its real layout, and so have the parameter blocks. What a VP hands to the
hypervisor (:data:`TRAP`) is ours: real hardware leaves it in a structure that only the hypervisor sees.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

#: InstallIntercept: partition, access mask, type, parameter. Of a range of ports the parameter is the first port and,
#: 16 bits further, the last.
INSTALL = Struct("<QIIQ")
TYPE_IO_PORT_RANGE = 0x11
ACCESS_READ, ACCESS_WRITE = 1, 2
#: AssertVirtualInterrupt: partition, interrupt control, destination (a VP index), vector, VTL.
ASSERT_INTERRUPT = Struct("<QQQIB3x")
#: Vectors below are exceptions.
FIRST_VECTOR, LAST_VECTOR = 0x10, 0xFF
#: Interrupt line n of the PC raises this vector plus n, as Linux has it.
LEGACY_VECTOR = 0x30

#: SetVpRegisters: partition, VP, VTL; then for each register its name, two reserved words and 128 bits of value.
SET_REGISTERS = Struct("<QIB3x")
REGISTER = Struct("<I12xQ8x")
RAX, RCX, RSI, RDI, RIP = 0x00020000, 0x00020001, 0x00020006, 0x00020007, 0x00020010
INTERCEPT_SUSPEND = 0x00000001      #: written as zero, the VP runs again

# Access info: size in the low three bits.
SIZE_MASK, STRING, REP = 0x07, 0x08, 0x10
SIZES = (1, 2, 4)
#: Bytes of an instruction such as IN AL, DX, and of one with a REP before it.
_INSTRUCTION, _INSTRUCTION_REP = 1, 2

#: Port, access info, access type (0 read, 1 write); RIP, RAX, RCX, RSI, RDI.
TRAP = Struct("<HBB4xQQQQQ")
#: The same registers, as they are when the VP runs again.
REGISTERS = Struct("<QQQQQ")

_MESSAGE = Struct("<IBBH16sQQHBBIQ16s16s16sQQQ")
_SEGMENT = Struct("<QIHH")
_FLAT_CODE = _SEGMENT.pack(0, 0xFFFFFFFF, 0x08, 0xA09B)
_FLAT_DATA = _SEGMENT.pack(0, 0xFFFFFFFF, 0x10, 0xC093)
_RFLAGS = 0x202
_LONG_MODE = 0x0004                 #: execution state: the processor's mode


class Trap(NamedTuple):
    """An access that trapped. With ``STRING`` the element count is ``rcx`` and the memory's address ``rdi`` of an INS,
    ``rsi`` of an OUTS; without, an OUT's value is ``rax``."""

    port: int
    access: int
    write: int
    rip: int = 0
    rax: int = 0
    rcx: int = 0
    rsi: int = 0
    rdi: int = 0

    @property
    def size(self) -> int:
        return self.access & SIZE_MASK

    @property
    def length(self) -> int:
        """Of the instruction, in bytes."""
        return _INSTRUCTION_REP if self.access & REP else _INSTRUCTION

    def encode(self) -> bytes:
        return TRAP.pack(*self)


def encode_message(vp: int, trap: Trap) -> bytes:
    """HvMessageTypeX64IoPortIntercept: 128 bytes."""
    return _MESSAGE.pack(
        vp, trap.length, trap.write, _LONG_MODE, _FLAT_CODE, trap.rip, _RFLAGS, trap.port, trap.access, 0, 0, trap.rax,
        bytes(16), _FLAT_DATA, _FLAT_DATA, trap.rcx, trap.rsi, trap.rdi,
    )


def decode_message(payload: bytes) -> tuple[int, Trap] | None:
    """The VP and its trap; ``None`` if that is no intercept message."""
    if len(payload) != _MESSAGE.size:
        return None
    vp, _, write, _, _, rip, _, port, access, _, _, rax, _, _, _, rcx, rsi, rdi = _MESSAGE.unpack(payload)
    return vp, Trap(port, access, write, rip, rax, rcx, rsi, rdi)


def encode_registers(partition: int, vp: int, registers: dict[int, int]) -> bytes:
    """The block of a SetVpRegisters that sets ``registers`` and lets the VP run again."""
    block = SET_REGISTERS.pack(partition, vp, 0)
    for name, value in {**registers, INTERCEPT_SUSPEND: 0}.items():
        block += REGISTER.pack(name, value)
    return block


def decode_registers(block: bytes) -> dict[int, int] | None:
    """Names and values, out of the whole block; ``None`` if it does not end with a register, or has none."""
    listed = block[SET_REGISTERS.size :]
    if not listed or len(listed) % REGISTER.size:
        return None
    return dict(REGISTER.iter_unpack(listed))

"""A guest without integration services that boots like any other and has one command more: ``storm``, random accesses
to random ports, out of any order, over the very socket that its processor has."""

from __future__ import annotations

import random
from typing import Any

from partitions.child import commands
from partitions.child.console import Session
from partitions.child.emulated import EmulatedChildProcess
from vmbus_emu.node import Node
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol import intercept
from vmbus_emu.protocol.hypercall import Code
from vmbus_emu.protocol.intercept import Trap

HERE: dict[str, Any] = {}
PORTS = (0x1F0, 0x1F6, 0x1F7, 0x177, 0x3F6, 0xFFA0, 0xFFA4, 0xEC00, 0xEC08, 0xEC18, 0xEC20, 0xEC30, 0x80)
GPA = 1 << 28


class HostileEmulatedChild(EmulatedChildProcess):
    def __init__(self, node: Node) -> None:
        super().__init__(node)
        HERE["child"] = self


async def storm(session: Session, arguments: list[str]) -> int:
    """Many accesses, one after the other; and what a processor that stands still cannot do."""
    vp = HERE["child"]._vp
    rng = random.Random(7)
    for _ in range(1500):
        access = rng.choice((1, 1, 2, 4, 2 | 0x18, 4 | 0x18, 3, 0))
        value = rng.choice((0, 1, 9, 0x20, 0xC8, 0xCA, 0xE0, 0x2002, GPA, GPA + 4096, rng.getrandbits(64)))
        port = rng.choice(PORTS) if rng.random() < 0.9 else rng.randrange(1 << 16)
        trap = Trap(port, access, rng.randrange(2), 0, value, rng.choice((0, 1, 256, value)), value, value)
        await vp.trap(trap.encode())
    pair = [vp.trap(Trap(0x1F7, 1, 0).encode()) for _ in range(2)]
    await session.print((await pair[1])[0].name)
    for block in (b"", bytes(7), bytes(300)):
        await vp.trap(block)
    own = (
        (Code.SET_VP_REGISTERS, intercept.encode_registers(hv.PARTITION_SELF, 0, {intercept.RAX: 1})),
        (Code.INSTALL_INTERCEPT, intercept.INSTALL.pack(hv.PARTITION_SELF, 3, 0x11, 0x60 | 0x64 << 16)),
        (Code.ASSERT_VIRTUAL_INTERRUPT, intercept.ASSERT_INTERRUPT.pack(hv.PARTITION_SELF, 0, 0, 0x3E, 0)),
    )
    for code, block in own:
        await session.print((await vp.call(code, block))[0].name)
    return 0


commands.COMMANDS["storm"] = commands.Command("storm", "storm", "random accesses", storm)

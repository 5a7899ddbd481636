"""What the VMBus provider keeps: its guests, and the devices that VSPs have offered to them. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field

from vmbus_emu.vmbus import effects as fx
from vmbus_emu.vmbus.server import Connection


@dataclass(slots=True)
class Device:
    """One offer of a VSP."""

    vsp: str
    key: int
    vm: str
    offer: fx.Offer
    guest: Guest | None = None
    relid: int = 0
    #: Taken back by its VSP; kept until the guest has let go of the channel.
    revoked: bool = False


@dataclass(slots=True)
class Guest:
    """One child partition. ``pid`` is 0 until asked for; messages wait until it is known."""

    name: str
    partition: int
    connection: Connection
    devices: dict[int, Device] = field(default_factory=dict)
    pid: int = 0
    waiting: list[bytes] = field(default_factory=list)
    backlog: int = 0
    refused: int = 0

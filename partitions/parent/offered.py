"""What the VMBus provider keeps: its guests, and the devices that VSPs have offered to them. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

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
    asked_for: bool = False
    waiting: list[bytes] = field(default_factory=list)
    backlog: int = 0
    refused: int = 0
    #: Its partition's process ended; it is kept until every device has let go.
    gone: bool = False

    def has(self, instance: UUID) -> bool:
        """Whether it was offered this device, and the device has not been revoked since."""
        return any(device.offer.instance == instance for device in self.devices.values() if not device.revoked)


class Devices:
    """Every device that VSPs offer, by VSP and key, and by VM."""

    def __init__(self) -> None:
        self._devices: dict[tuple[str, int], Device] = {}
        self._of: dict[str, list[Device]] = {}

    def __len__(self) -> int:
        return len(self._devices)

    def find(self, vsp: str, key: int) -> Device | None:
        return self._devices.get((vsp, key))

    def of(self, vm: str) -> list[Device]:
        """Those of one VM."""
        return list(self._of.get(vm, ()))

    def offered_by(self, vsp: str) -> list[Device]:
        return [device for device in self._devices.values() if device.vsp == vsp]

    def add(self, device: Device) -> None:
        """``device`` takes the place of one that was taken back, if its VSP had one with that key."""
        older = self._devices.get((device.vsp, device.key))
        if older is not None:
            self._of[older.vm].remove(older)
        self._devices[device.vsp, device.key] = device
        self._of.setdefault(device.vm, []).append(device)

    def remove(self, device: Device) -> None:
        """Forget it, unless another one has taken its place."""
        if self._devices.get((device.vsp, device.key)) is device:
            del self._devices[device.vsp, device.key]
            self._of[device.vm].remove(device)

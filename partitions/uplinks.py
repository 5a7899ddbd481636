"""The physical NICs that link virtual switches with what is outside: a port of the switch, a driver, a cable.

A NIC without a cable has no carrier: it costs nothing. Used by the network VSP and by the monolith.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from partitions.driver_store import DriverFailed, DriverStore
from vmbus_emu.hardware import Uplink
from vmbus_emu.loop import Loop
from vmbus_emu.node import load

#: How the address of an uplink's port begins; its NIC's number follows. Nobody sends to it.
_MAC = bytes.fromhex("00155dff00")


class _Nic:
    """One NIC with a cable."""

    def __init__(self, name: str, port: Any, cable: Any, lock: AbstractContextManager[Any]) -> None:
        self.name = name
        self.port = port
        self.cable = cable
        self.lock = lock
        self.uplink: Uplink | None = None

    def arrived(self, frame: bytes) -> None:
        with self.lock:
            if self.uplink is not None:
                self.uplink.arrived(frame)


class Uplinks:
    """``nics`` by name as :func:`vmbus_emu.placement.devices` describes them; ``wires`` by name: the socket, and the
    path at the far end. ``lock_of(switch)`` is what calls of a switch are made under."""

    def __init__(
        self, loop: Loop, nics: Mapping[str, Mapping[str, Any]], wires: Mapping[str, tuple[int, str]],
        switches: Mapping[str, Any], log: Callable[[str], Any],
        lock_of: Callable[[str], AbstractContextManager[Any]] = lambda switch: nullcontext(),
    ) -> None:
        self.store = DriverStore(nics)
        self._nics: dict[str, _Nic] = {}
        for number, (name, (fd, far)) in enumerate(sorted(wires.items())):
            switch = nics[name]["switch"]
            port = switches[switch].port(f"hw.{name}", _MAC + bytes((number,)))
            nic = _Nic(name, port, None, lock_of(switch))
            nic.cable = load("drivers.cable:Cable")(loop, fd, far, nic.arrived)
            self._nics[name] = nic
            try:
                self._attach(nic)
            except DriverFailed as failed:
                log(str(failed))

    def _attach(self, nic: _Nic) -> None:
        driver = self.store.driver(nic.name)
        with nic.lock:
            try:
                made: Uplink = driver.attach(
                    self.store.devices[nic.name]["model"], _Locked(nic), lambda frame: nic.port.transmit(frame)
                )
            except Exception as error:
                raise DriverFailed(f"hw.{nic.name}: driver {driver.name} cannot drive it: {error!r}") from error
            left = nic.uplink.waiting() if nic.uplink is not None else []
            nic.uplink = made
            nic.port.connect(made.transmit)
            for frame in left:
                made.transmit(frame)

    def change(self, device: str, described: Mapping[str, Any]) -> tuple[float, str]:
        """Give a NIC another driver; how long frames were held, in ms, and why nothing has changed, or an empty
        text."""
        former = self.store.choose(device, described)
        begun = time.monotonic()
        try:
            if device in self._nics:
                self._attach(self._nics[device])
            else:
                self.store.driver(device)  # without a cable there is nothing to drive, but it loads
        except DriverFailed as failed:
            self.store.restore(device, former)
            return 0.0, str(failed)
        return (time.monotonic() - begun) * 1000, ""

    def counters(self) -> dict[str, int]:
        """For ``ps``; none without cables."""
        if not self._nics:
            return {}
        cables = [nic.cable for nic in self._nics.values()]
        return {
            "cable_out": sum(cable.sent for cable in cables),
            "cable_in": sum(cable.received for cable in cables),
            "cable_lost": sum(cable.lost for cable in cables),
        }


class _Locked:
    """The cable as the driver sees it: room is told under the lock of the NIC's switch."""

    def __init__(self, nic: _Nic) -> None:
        self._nic = nic
        self._on_room: Callable[[], Any] = lambda: None
        nic.cable.on_room = self._room

    def send(self, frame: bytes) -> bool:
        return bool(self._nic.cable.send(frame))

    @property
    def on_room(self) -> Callable[[], Any]:
        return self._on_room

    @on_room.setter
    def on_room(self, callback: Callable[[], Any]) -> None:
        self._on_room = callback

    def _room(self) -> None:
        with self._nic.lock:
            self._on_room()

"""storvsp as a component: every VM's disks, each a driver behind a VSP session on a channel of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from partitions.media import Disks
from partitions.parent.driver_change import DriverChange
from partitions.parent.storvsp import StorVspSession
from partitions.parent.vsp import Device, Vsp
from vmbus_emu.channel import Channel
from vmbus_emu.node import Node
from vmbus_emu.protocol import guids
from vmbus_emu.task import Future, Task


class StorageVsp(Vsp):
    NAME = "storvsp"
    INTERFACE = guids.SCSI

    def __init__(self, node: Node, config: dict[str, Any], disks: Disks) -> None:
        super().__init__(node, config)
        self._disks = disks
        self._sessions: dict[int, StorVspSession] = {}
        self._media: dict[int, str] = {}
        self._changing: dict[str, DriverChange] = {}       # by controller
        for disk in config["storvsp"]["disks"]:
            device = self.add(disk["vm"], disk["device"], disk["instance"])
            self._media[device.key] = disk["medium"]

    def add_vm(self, arrival: Mapping[str, Any]) -> None:
        """A VM came while this runs. The drivers of its disks are there."""
        for disk in arrival["disks"]:
            device = self.add_now(disk["vm"], disk["device"], disk["instance"])
            self._media[device.key] = disk["medium"]

    def take_out(self, device: Device) -> Callable[[], Any]:
        let_go = self._disks.take_out(self._media.pop(device.key))
        return lambda: (self._sessions.pop(device.key, None), let_go())

    def open_session(self, device: Device, channel: Channel) -> None:
        medium = self._media[device.key]
        session = StorVspSession(channel, self._disks.drivers[medium], on_good=self.good)
        self._sessions[device.key] = session
        if self._disks.controllers[medium] in self._changing:
            session.hold()

    def close_session(self, device: Device, closed: Callable[[], Any]) -> None:
        self._sessions[device.key].close().then(lambda future: closed())

    def changes(self, device: str) -> bool:
        """Whether ``device`` is a controller of this component's."""
        return device in self._disks.store.devices

    def change_driver(self, device: str, described: Mapping[str, Any], changed: Callable[[float, str], Any]) -> None:
        """Give a controller another driver. ``changed(ms, why)``: requests were held so long; it failed if there is a
        reason."""
        if device in self._changing:
            changed(0.0, f"hw.{device}: its driver is being changed already")
            return
        change = self._changing[device] = DriverChange(self._loop, self._disks, device, lambda: self._on(device))

        def ended(future: Future[tuple[float, str]]) -> None:
            del self._changing[device]
            changed(*future.result())

        Task(self._loop, change.run(described)).then(ended)

    def _on(self, controller: str) -> list[tuple[str, StorVspSession]]:
        return [
            (self._media[key], session) for key, session in self._sessions.items()
            if key in self._media and self._disks.controllers[self._media[key]] == controller
        ]

    def drivers(self) -> Mapping[str, Any]:
        """By medium."""
        return self._disks.drivers

    def stats(self) -> Mapping[str, Any]:
        sessions = [session.stats() for session in self._sessions.values()]
        return self._disks.stats() | {
            "counters": {
                "channels": sum(device.channel is not None for device in self._devices.values()),
                "requests": sum(s.requests for s in sessions),
                "outstanding": sum(s.outstanding for s in sessions),
                "busy": sum(s.busy for s in sessions),
                "errors": sum(s.errors for s in sessions),
                "refused": sum(s.refused for s in sessions),
                "protocol_errors": self._protocol_errors,
                **self._channels.counters(),
                "longest_stall_ms": round(self._node.loop.longest_stall * 1000, 3),
            }
        }

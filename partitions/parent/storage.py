"""storvsp as a component: every VM's disks, each a driver behind a VSP session on a channel of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from partitions.media import Disks
from partitions.parent.storvsp import StorVspSession
from partitions.parent.vsp import Device, Vsp
from vmbus_emu.channel import Channel
from vmbus_emu.node import Node
from vmbus_emu.protocol import guids


class StorageVsp(Vsp):
    NAME = "storvsp"
    INTERFACE = guids.SCSI

    def __init__(self, node: Node, config: dict[str, Any], disks: Disks) -> None:
        super().__init__(node, config)
        self._disks = disks
        self._sessions: dict[int, StorVspSession] = {}
        self._media: dict[int, str] = {}
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
        driver = self._disks.drivers[self._media[device.key]]
        self._sessions[device.key] = StorVspSession(channel, driver, on_good=self.good)

    def close_session(self, device: Device, closed: Callable[[], Any]) -> None:
        self._sessions[device.key].close().then(lambda future: closed())

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

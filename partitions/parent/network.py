"""netvsp as a component: the virtual switches, and a port for every VM's NIC behind a session on its own channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from partitions.parent.netvsp import NetVspSession
from partitions.parent.vsp import Device, Vsp
from vmbus_emu.channel import Channel
from vmbus_emu.device import NetworkPort
from vmbus_emu.node import Node, load
from vmbus_emu.protocol import guids

if TYPE_CHECKING:
    from partitions.cable import SwitchCable


class NetworkVsp(Vsp):
    NAME = "netvsp"
    INTERFACE = guids.NETWORK
    MAX_RANGES = 32

    def __init__(self, node: Node, config: dict[str, Any]) -> None:
        super().__init__(node, config)
        network = config["netvsp"]
        driver = load(network["driver"])
        self._switches = {name: driver(name) for name in network["switches"]}
        self._ports: dict[int, NetworkPort] = {}
        self._sessions: dict[int, NetVspSession] = {}
        #: Of VMs without integration services, whose adapters are in their workers.
        self._cables: dict[int, SwitchCable] = {}
        self._places: dict[tuple[str, str], int] = {}
        for port in network["ports"]:
            device = self.add(port["vm"], port["device"], port["instance"])
            self._places[port["vm"], port["device"]] = device.key
            switch = self._switches[port["switch"]]
            self._ports[device.key] = switch.port(f"{port['vm']}.{port['device']}", port["mac"])

    def plug(self, vm: str, device: str, fd: int) -> None:
        """Hang the cable to a VM's worker on its NIC's port, in place of what was there. Takes ``fd`` over."""
        key = self._places[vm, device]
        self._unplug(key)
        self._cables[key] = load("partitions.cable:SwitchCable")(self._node.loop, self._ports[key], fd)

    def _unplug(self, key: int) -> None:
        cable = self._cables.pop(key, None)
        if cable is not None:
            cable.close()

    def open_session(self, device: Device, channel: Channel) -> None:
        self._unplug(device.key)
        self._sessions[device.key] = NetVspSession(channel, self._ports[device.key], device.gpadls)
        self.good()

    def close_session(self, device: Device, closed: Callable[[], Any]) -> None:
        self._sessions[device.key].close()
        closed()

    def drivers(self) -> Mapping[str, Any]:
        """By switch."""
        return self._switches

    def stats(self) -> Mapping[str, Any]:
        ports = [port.stats() for port in self._ports.values()]
        sessions = [session.stats() for session in self._sessions.values()]
        return {
            "io": sum(p.tx_frames + p.rx_frames for p in ports),
            "last_io": max((p.last_io for p in ports), default=0.0),
            "counters": {
                "channels": sum(device.channel is not None for device in self._devices.values()),
                "frames_in": sum(p.tx_frames for p in ports),
                "frames_out": sum(p.rx_frames for p in ports),
                "drops": sum(p.tx_drops + p.rx_drops for p in ports),
                "addresses": sum(len(switch.table()) for switch in self._switches.values()),
                "spoofed": sum(s.tx_spoofed for s in sessions) + sum(c.spoofed for c in self._cables.values()),
                "invalid_rndis": sum(s.invalid_rndis for s in sessions),
                "protocol_errors": self._protocol_errors,
                **self._channels.counters(),
            },
        }

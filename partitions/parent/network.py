"""netvsp as a component: the virtual switches, and a port for every VM's NIC behind a session on its own channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from partitions.parent.netvsp import NetVspSession
from partitions.parent.vsp import Device, Vsp
from partitions.uplinks import Uplinks
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

    def __init__(self, node: Node, config: dict[str, Any], wires: Mapping[str, tuple[int, str]]) -> None:
        super().__init__(node, config)
        network = config["netvsp"]
        driver = load(network["driver"])
        self._switches = {name: driver(name) for name in network["switches"]}
        self._ports: dict[int, NetworkPort] = {}
        self._sessions: dict[int, NetVspSession] = {}
        #: Of VMs without integration services, whose adapters are in their workers.
        self._cables: dict[int, SwitchCable] = {}
        self._places: dict[tuple[str, str], int] = {}
        self._uplinks = Uplinks(node.loop, network["nics"], wires, self._switches, node.log)
        for port in network["ports"]:
            self._wire(self.add(port["vm"], port["device"], port["instance"]), port)

    def _wire(self, device: Device, port: Mapping[str, Any]) -> None:
        switch = self._switches[port["switch"]]
        self._places[device.vm, device.name] = device.key
        self._ports[device.key] = switch.port(f"{device.vm}.{device.name}", port["mac"])

    def add_vm(self, arrival: Mapping[str, Any]) -> None:
        """A VM came while this runs."""
        for port in arrival["ports"]:
            self._wire(self.add_now(port["vm"], port["device"], port["instance"]), port)

    def take_out(self, device: Device) -> Callable[[], Any]:
        self._unplug(device.key)
        del self._places[device.vm, device.name]
        port = self._ports.pop(device.key)
        for switch in self._switches.values():
            switch.remove(port)  # of no effect on those that it is not of
        return lambda: self._sessions.pop(device.key, None)

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

    def changes(self, device: str) -> bool:
        """Whether ``device`` is a NIC of this component's."""
        return device in self._uplinks.store.devices

    def change_driver(self, device: str, described: Mapping[str, Any], changed: Callable[[float, str], Any]) -> None:
        """Give a physical NIC another driver. ``changed(ms, why)``: frames were held so long; it failed if there is a
        reason."""
        changed(*self._uplinks.change(device, described))

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
                **self._uplinks.counters(),
                **self._channels.counters(),
            },
        }

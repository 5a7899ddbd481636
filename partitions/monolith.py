"""The monolithic placement: drivers, hypervisor and management in one address space, VMs as its threads.

The same components as elsewhere, reached by calls: management's hypercalls are calls of
:func:`vmbus_emu.hypervisor.calls.execute`, a guest's disk request is a call of the driver through the boundary. What
dies here is everything, except that an exception in guest code ends that VM alone, as real hardware would
contain it.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import resource
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import setproctitle

from partitions.boundary import BoundDisk, BoundPort, DeviceLock
from partitions.child.guest import Guest
from partitions.driver_store import DriverFailed, DriverStore
from partitions.long_calls import LongCalls
from partitions.media import Disks
from partitions.uplinks import Uplinks
from vmbus_emu.device import BlockDevice, NetworkPort
from vmbus_emu.hypervisor.calls import execute
from vmbus_emu.hypervisor.core import Hypervisor, PowerOn, Reply
from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop
from vmbus_emu.node import Node, load
from vmbus_emu.protocol import hypercall as hv
from vmbus_emu.protocol.hypercall import Code, HvStatus
from vmbus_emu.task import Task

if TYPE_CHECKING:
    from partitions.child.services import Services
    from partitions.emulated_guest import EmulatedGuest
    from partitions.faults import DriverFaults
    from partitions.monolith_services import MonolithServices


class GuestThread:
    """One VM: a thread with a loop of its own and the guest on it."""

    def __init__(self, monolith: Monolith, config: Message, partition: int) -> None:
        self.name: str = config["name"]
        self.partition = partition
        self.loop = Loop()
        self._monolith = monolith
        self.alive = True
        self.failed = False         # by a bug of its own
        self.gone = False           # it has ended, and nothing of it is left
        disks = {device: monolith.disk(self.name, device, self.loop) for device in config["disks"]}
        nics = {device: monolith.nic(self.name, device, self.loop) for device in config["nics"]}
        self.emulated: EmulatedGuest | None = None
        found: tuple[Mapping[str, BlockDevice], Mapping[str, NetworkPort]] = disks, nics
        if not config["integration_services"]:
            self.emulated = load("partitions.emulated_guest:EmulatedGuest")(
                self.loop, config["worker"], config, list(disks.values()), list(nics.values()), self._log
            )
            found = self.emulated.devices.disks, self.emulated.devices.nics
        self.guest = Guest(self.loop, config, *found, monolith.from_guest, self._log)
        if self.emulated is not None:
            ports = self.emulated.ports
            self.guest.without_services = "integration_services = true in its topology"
            self.guest.link_counters = lambda: {"accesses": ports.accesses}
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def let_go(self) -> None:
        """It has said its last word: wait for its very end, and give back what it had."""
        self._thread.join()
        self.loop.close()

    @property
    def services(self) -> Services:
        return self.guest.services

    def begin_shut_down(self, patience_s: float) -> None:
        Task(self.loop, self.shut_down(patience_s))

    async def shut_down(self, patience_s: float) -> None:
        """On this thread: end in order, and the thread with it."""
        unflushed = await load("partitions.child.power_off:power_off")(self.guest, patience_s)
        self.alive = False
        self._monolith.from_guest({"t": "shut_down", "component": self.name, "unflushed": unflushed})
        self.loop.stop()

    def _log(self, text: str) -> None:
        self._monolith.from_guest({"t": "log", "component": self.name, "text": text})

    def _run(self) -> None:
        setproctitle.setthreadtitle(self.name)  # top -H tells the VMs apart, and so does who places threads
        try:
            self.guest.announce_devices()
            self._monolith.from_guest({"t": "ready", "component": self.name})
            if self.emulated is not None:
                self._monolith.from_guest({"t": "ready", "component": self.guest.worker})
            self._monolith.up(self)
            self.loop.run()
        except Exception as error:  # guest code failed: this VM's end, and nobody else's
            self.alive, self.failed = False, True
            for line in traceback.format_exc().splitlines():
                self._log(line)
            self._monolith.from_guest({"t": "component_died", "component": self.name, "why": repr(error)})
        self._monolith.thread_ended(self)


class Monolith:
    """The one process."""

    has_drivers = True

    def __init__(self, node: Node) -> None:
        self._node = node
        self._disks = Disks(node.log)
        self._wires: dict[str, tuple[int, str]] = {}
        self._uplinks: Uplinks | None = None
        self._disk_locks: dict[str, DeviceLock] = {}
        self._switches: dict[str, Any] = {}
        self._switch_locks: dict[str, DeviceLock] = {}
        self._ports: dict[tuple[str, str], tuple[NetworkPort, DeviceLock]] = {}
        self._hypervisor = Hypervisor()
        self._calls = 0
        self._guests: dict[str, GuestThread] = {}
        self._configs: dict[str, Message] = {}
        self._leaving: set[str] = set()
        self._heartbeat_s = 0.0
        #: Answers whether everybody in here who runs a driver comes back from it.
        self.beat = LongCalls(node.loop, node.lifeline.send).answer

    # -- start --------------------------------------------------------------------------------------

    def start(self, config: Message) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a panic aborts; its core would be every guest's memory
        faulthandler.enable(all_threads=False)  # of a signal, too, the console shows where it happened
        disks = config["storvsp"]["disks"]
        self._disks.store = DriverStore(config["storvsp"]["controllers"])
        self._refuse_without_drivers(self._disks.store, DriverStore(config["netvsp"]["nics"]))
        self._build_disks(disks)
        self._build_network(config["netvsp"])
        self._configs = {guest["name"]: guest for guest in config["guests"]}
        self._heartbeat_s = config["heartbeat_s"]
        for component in ("hypervisor", "management", "storvsp", "netvsp"):
            self._node.ready(component)
        for name in self._configs:
            self._bring_up(name)

    def _refuse_without_drivers(self, *stores: DriverStore) -> None:
        """Its drivers are those of its image; with a device that has none, it does not boot."""
        try:
            for store in stores:
                for device in store.devices:
                    store.driver(device)
        except DriverFailed as failed:
            self._node.log(str(failed))
            self._node.leave(1)

    def _build_disks(self, disks: Sequence[Message]) -> None:
        self._disk_locks |= {disk["medium"]: DeviceLock(disk["medium"]) for disk in disks}
        self._disks.build(disks, lambda medium: self._disk_locks[medium])

    def _build_network(self, network: Message) -> None:
        driver = load(network["driver"])
        self._switches = {name: driver(name) for name in network["switches"]}
        self._switch_locks = {name: DeviceLock(name) for name in self._switches}
        self._uplinks = Uplinks(
            self._node.loop, network["nics"], self._wires, self._switches, self._node.log,
            lambda switch: self._switch_locks[switch].lock,
        )
        for port in network["ports"]:
            self._plug(port)

    def _plug(self, port: Message) -> None:
        place = (port["vm"], port["device"])
        lock = self._switch_locks[port["switch"]]
        with lock.lock:
            made = self._switches[port["switch"]].port(".".join(place), port["mac"])
        self._ports[place] = (made, lock)

    def disk(self, vm: str, device: str, loop: Loop) -> BoundDisk:
        medium = f"{vm}.{device}"
        return BoundDisk(self._disks.drivers[medium], self._disk_locks[medium], loop)

    def nic(self, vm: str, device: str, loop: Loop) -> BoundPort:
        port, lock = self._ports[vm, device]
        return BoundPort(port, lock, loop)

    # -- management: the same steps as partitions/parent/management.py, by calls ------------------------

    def _bring_up(self, name: str) -> None:
        status, output = self._call(Code.CREATE_PARTITION, hv.CREATE_PARTITION.pack(0, 0, 0, name.encode()))
        if status is HvStatus.SUCCESS:
            number = hv.PARTITION_ID.unpack_from(output)[0]
            status, _ = self._call(Code.INITIALIZE_PARTITION, hv.PARTITION_ID.pack(number))
        if status is HvStatus.SUCCESS:
            status, _ = self._call(Code.START_VIRTUAL_PROCESSOR, hv.START_VP.pack(number, 0, 0))
        if status is not HvStatus.SUCCESS:
            self._node.lifeline.send({"t": "not_started", "component": name, "why": status.name})

    # -- VMs come and go at run time --------------------------------------------------------------------

    def _add(self, arrival: Message) -> None:
        name: str = arrival["vm"]
        self._build_disks(arrival["disks"])
        for port in arrival["ports"]:
            self._plug(port)
        self._configs[name] = arrival["guest"]
        self._bring_up(name)

    def _end(self, name: str, patience_s: float) -> None:
        """Shut a VM down, and take its partition and devices away when its thread has ended. One that never returns
        to its loop keeps them."""
        thread = self._guests.get(name)
        if thread is None or not thread.alive:
            self._take_away(name)
            return
        self._leaving.add(name)
        thread.loop.call_soon_threadsafe(Task, thread.loop, thread.shut_down(patience_s))

    def thread_ended(self, thread: GuestThread) -> None:
        """On a guest's thread, as its last word."""
        self._node.loop.call_soon_threadsafe(self._ended, thread)

    def _ended(self, thread: GuestThread) -> None:
        """Of one that failed the rest stays as it is, until somebody takes it away."""
        if not thread.failed:
            self._let_go(thread)
        if thread.name in self._leaving:
            self._take_away(thread.name)

    def _let_go(self, thread: GuestThread) -> None:
        """Give back what a thread had, once; its VM may have another one by now."""
        if thread.gone:
            return
        thread.gone = True
        thread.let_go()
        if self._guests.get(thread.name) is thread:
            del self._guests[thread.name]
        self._call(Code.FINALIZE_PARTITION, hv.PARTITION_ID.pack(thread.partition))
        self._call(Code.DELETE_PARTITION, hv.PARTITION_ID.pack(thread.partition))

    def _take_away(self, name: str) -> None:
        self._leaving.discard(name)
        if name in self._guests:
            self._let_go(self._guests[name])
        config = self._configs.pop(name, None)
        if config is not None:
            for device in config["nics"]:
                port, lock = self._ports.pop((name, device))
                with lock.lock:
                    for switch in self._switches.values():
                        switch.remove(port)
            for device in config["disks"]:
                del self._disk_locks[f"{name}.{device}"]
                self._disks.take_out(f"{name}.{device}")()
        self._node.lifeline.send({"t": "partition_ended", "name": name})

    def _call(self, code: Code, block: bytes) -> tuple[HvStatus, bytes]:
        self._calls += 1
        effects = execute(self._hypervisor, (hv.PARTITION_ROOT, 0), self._calls, hv.control_word(code), block)
        answer = (HvStatus.OPERATION_DENIED, b"")
        while effects:
            match effects.pop(0):
                case Reply(_, _, status, output):
                    answer = (status, output)
                case PowerOn(partition, vp, name):
                    thread = self._guests[name] = GuestThread(self, self._configs[name], partition)
                    effects += self._hypervisor.powered((partition, vp), partition)
                    thread.start()
        return answer

    # -- to and from the machine ----------------------------------------------------------------------

    def from_guest(self, message: Message) -> None:
        """On a guest's thread: pass a message to the machine, from the thread that owns the lifeline."""
        self._node.loop.call_soon_threadsafe(self._node.lifeline.send, message)

    def up(self, thread: GuestThread) -> None:
        """On a guest's thread: it has started."""
        if self._configs[thread.name]["components"]:
            self._node.loop.call_soon_threadsafe(lambda: self._services.started(thread))

    def handle(self, message: Message, fds: list[int]) -> None:
        if message["t"] == "medium":
            self._disks.insert(message, fds)
        elif message["t"] == "wire":
            self._wires[message["name"]] = fds[0], message["far"]
        elif message["t"] == "fault":
            self._faults.handle(message)
        elif message["t"] == "vm_added":
            self._add(message)
        elif message["t"] == "end_partition":
            self._end(message["name"], message["patience_s"])
        elif message["t"] == "hosts":
            for thread in self._guests.values():
                thread.loop.call_soon_threadsafe(thread.guest.know, message["hosts"])
        elif message["t"] == "shut_down":
            if message["vm"] in self._guests:  # else it has shut down meanwhile
                thread = self._guests[message["vm"]]
                thread.loop.call_soon_threadsafe(thread.begin_shut_down, message["patience_s"])
        elif message["t"] == "integration":
            self._services.order(message)
        elif message["t"] == "start_vm":
            self._bring_up(message["vm"])
        elif "session" in message:
            for thread in [self._guests[message["vm"]]] if "vm" in message else self._guests.values():
                thread.loop.call_soon_threadsafe(thread.guest.console.handle, message)

    @cached_property
    def _services(self) -> MonolithServices:
        services: MonolithServices = load("partitions.monolith_services:MonolithServices")(
            self._node.loop, self._node.lifeline.send, self._guests, self._heartbeat_s
        )
        return services

    @cached_property
    def _faults(self) -> DriverFaults:
        faults: DriverFaults = load("partitions.faults:DriverFaults")(self._drivers, self._thread_of, self._node.log)
        return faults

    def _drivers(self, component: str) -> dict[str, Any]:
        if component == "storvsp":
            return {name: (made, self._disk_locks[name]) for name, made in self._disks.drivers.items()}
        if component == "netvsp":
            return {name: (made, self._switch_locks[name]) for name, made in self._switches.items()}
        return {}

    def _thread_of(self, vm: str) -> Loop | None:
        return self._guests[vm].loop if vm in self._guests else None

    def stats(self) -> dict[str, dict[str, Any]]:
        ports = [port.stats() for port, _ in self._ports.values()]
        hypervisor = dataclasses.asdict(self._hypervisor.stats())
        return {
            "hypervisor": {"counters": {**hypervisor, "switch_interval_us": sys.getswitchinterval() * 1e6}},
            "management": {"counters": {"started": len(self._guests), "hypercalls": self._calls}},
            "storvsp": self._disks.stats(),
            "netvsp": {
                "io": sum(p.tx_frames + p.rx_frames for p in ports),
                "last_io": max((p.last_io for p in ports), default=0.0),
                "counters": {
                    "drops": sum(p.tx_drops + p.rx_drops for p in ports),
                    **(self._uplinks.counters() if self._uplinks is not None else {}),
                },
            },
            **{
                thread.guest.worker: thread.emulated.stats()
                for thread in self._guests.values() if thread.alive and thread.emulated is not None
            },
            **{name: thread.guest.stats() for name, thread in self._guests.items() if thread.alive},
        }

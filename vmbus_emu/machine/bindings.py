"""Which driver each physical device has: ``driver list``, and ``driver add`` while VMs run.

Whoever asks for a driver has tried it in a process of its own before (:mod:`vmbus_emu.client.drivers`). Here it goes
to the process that carries the device's component, which loads it and puts it in the place of the former one. The
next incarnation of that process has it from the start. If the process dies over it, or refuses it, the former driver
is the device's again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vmbus_emu import hardware, placement
from vmbus_emu.lifeline import Message
from vmbus_emu.loop import Loop, Timer
from vmbus_emu.machine.events import Events
from vmbus_emu.machine.intake import Refused
from vmbus_emu.machine.recovery import Recovery
from vmbus_emu.machine.roster import Roster
from vmbus_emu.machine.supervisor import SPARE, Process, Supervisor

#: Seconds after which a process that has not answered is not waited for: it is busy, or hangs, which others see.
DEADLINE_S = 10.0
_VSP = {hardware.STORAGE: "storvsp", hardware.NIC: "netvsp"}
_FIELDS = ("name", "version", "entry", "path")


@dataclass(slots=True)
class _Order:
    """A driver that is to be loaded for some devices. ``waiting``: those whose process has not answered."""

    client: bytes
    number: int
    driver: Mapping[str, str]
    waiting: dict[str, Process]
    former: dict[str, Mapping[str, Any] | None]
    done: list[Message]
    timer: Timer | None = None


class Bindings:
    """Answers requests through ``reply(client, message)``."""

    def __init__(
        self, loop: Loop, roster: Roster, supervisor: Supervisor, recovery: Recovery, events: Events,
        reply: Callable[[bytes, Message], Any],
    ) -> None:
        self._loop = loop
        self._roster = roster
        self._supervisor = supervisor
        self._recovery = recovery
        self._events = events
        self._reply = reply
        self._orders: dict[int, _Order] = {}
        self._last = 0

    def devices(self) -> list[Message]:
        """Every physical device: ``device``, ``model``, ``driver``, ``version`` (``None``: not known before it is
        loaded), and the disks or the switch that need it."""
        topology = self._roster.topology
        listed = []
        for kind in hardware.KINDS:
            for name, described in placement.devices(topology, kind).items():
                if kind == hardware.STORAGE:
                    disks = placement.disks(topology)
                    users = [disk["medium"] for disk in disks if disk["controller"] == name]
                else:
                    users = [described["switch"]] if described.get("cable") else []
                driver = described["driver"] or {}
                listed.append({
                    "device": f"hw.{name}", "model": described["model"], "driver": driver.get("name"),
                    "version": driver.get("version") or None, "users": users, "cable": described.get("cable"),
                })
        return listed

    def carry_out(self, client: bytes, number: int, request: Message) -> None:
        """``what``: list, or add ``driver``. Raises :class:`Refused`."""
        if request.get("what") != "add":
            self._reply(client, {"id": number, "devices": self.devices()})
            return
        driver = _checked(request.get("driver"))
        topology = self._roster.topology
        if topology.arch == "monolithic":
            raise Refused(
                "the monolith's drivers are fixed when its image is built",
                "vmbus-emu image build --drivers makes a new one, vmbus-emu image install boots it",
            )
        kind, models = driver["kind"], driver["models"]
        there = placement.devices(topology, kind)
        fitting = [name for name, described in there.items() if described["model"] in models]
        if not fitting:
            have = ", ".join(f"hw.{name} ({described['model']})" for name, described in there.items())
            what = f"{driver['name']} drives {', '.join(models)}, and this machine has {have}"
            raise Refused(what, "vmbus-emu driver list shows which of them want one")
        host = self._roster.hosts[_VSP[kind]]
        process = self._supervisor.running.get(host)
        if process is None or host in self._recovery.restarting or self._recovery.power.booting:
            raise Refused(f"{host} is not there to load it", "try again in a moment; vmbus-emu ps shows its state")
        if any(device in order.waiting for order in self._orders.values() for device in fitting):
            raise Refused("another driver is being loaded for that device", "try again in a moment")
        self._load(client, number, {field: driver[field] for field in _FIELDS}, fitting, process)

    def install(self, request: Message) -> None:
        """A monolith is to boot from another image: ``image``, its path, and ``drivers``, those of it that its devices
        have then. Raises :class:`Refused`."""
        image, drivers = request.get("image", ""), request.get("drivers", {})
        topology = self._roster.topology
        if topology.arch != "monolithic":
            raise Refused("only a monolith boots from an image", "vmbus-emu driver add loads a driver while VMs run")
        there = {**hardware.DEFAULT_HARDWARE, **topology.hardware}
        right = all(
            device in there and type(driver) is dict and all(type(driver.get(field)) is str for field in _FIELDS)
            for device, driver in drivers.items()
        )
        if not image.startswith("/") or not right:
            raise Refused("that is no description of an image", "vmbus-emu image install makes one")
        following = replace(topology, image=image, drivers=drivers)
        missing = [f"hw.{device} ({model})" for device, model in placement.unsupported(following).items()]
        if missing:
            raise Refused(
                f"{image} has no driver for {', '.join(missing)}: the machine would not boot",
                "build an image with one; this machine runs on as it is",
            )
        self._roster.become(following)

    def _load(
        self, client: bytes, number: int, driver: Mapping[str, str], devices: list[str], process: Process
    ) -> None:
        self._last += 1
        there = placement.devices(self._roster.topology, hardware.kind_of(devices[0]) or "")
        former = {device: there[device]["driver"] for device in devices}
        order = _Order(client, number, driver, dict.fromkeys(devices, process), former, [])
        self._orders[self._last] = order
        order.timer = self._loop.call_later(DEADLINE_S, self._too_late, self._last)
        self._choose(dict.fromkeys(devices, driver))
        for device in devices:
            message = {"t": "driver", "number": self._last, "device": device, "driver": driver}
            process.line.send(message)
            spare = self._supervisor.running.get(process.name + SPARE)
            if spare is not None:  # its answer is nobody's
                spare.line.send({**message, "number": 0})

    def _choose(self, drivers: Mapping[str, Mapping[str, Any] | None]) -> None:
        chosen = dict(self._roster.topology.drivers)
        for device, driver in drivers.items():
            chosen.pop(device, None)
            if driver is not None and driver["path"] + driver["version"]:
                chosen[device] = driver
        self._roster.become(replace(self._roster.topology, drivers=chosen))

    def bound(self, process: Process, message: Message) -> bool:
        """A process says how it went. ``False``: nobody asked it."""
        number, device = message["number"], message["device"]
        order = self._orders.get(number)
        if order is None or order.waiting.get(device) is not process:
            return bool(number == 0)
        del order.waiting[device]
        self._note(order, device, message["held_ms"], message["why"])
        self._finish(number)
        return True

    def _note(self, order: _Order, device: str, held_ms: float, why: str) -> None:
        former = order.former[device]
        if why:
            self._choose({device: former})
        told: Message = {
            "device": f"hw.{device}", "driver": order.driver["name"], "version": order.driver["version"],
            "was": former["name"] if former is not None else None, "held_ms": round(held_ms, 3), "error": why or None,
        }  # fmt: skip
        order.done.append(told)
        self._events.emit("driver", component=told["device"], driver=told["driver"], error=told["error"])

    def _finish(self, number: int) -> None:
        order = self._orders[number]
        if not order.waiting:
            del self._orders[number]
            if order.timer is not None:
                order.timer.cancel()
            self._reply(order.client, {"id": order.number, "bound": order.done})

    def died(self, process: Process) -> None:
        """A process was reaped, whichever."""
        for number, order in list(self._orders.items()):
            for device in [device for device, asked in order.waiting.items() if asked is process]:
                del order.waiting[device]
                why = f"{process.name} was {process.ending} while it loaded the driver; the former one is back"
                self._note(order, device, 0.0, why)
            self._finish(number)

    def _too_late(self, number: int) -> None:
        order = self._orders[number]
        order.timer = None
        for device in list(order.waiting):
            process = order.waiting.pop(device)
            self._note(order, device, 0.0, f"{process.name} has not answered within {DEADLINE_S:.0f} s")
        self._finish(number)


def _checked(value: object) -> dict[str, Any]:
    """A driver as a client describes it; the client is not believed to be ours."""
    driver = dict(value) if isinstance(value, dict) else {}
    models = driver.get("models")
    right = (
        all(type(driver.get(field)) is str and len(driver[field]) < 1000 for field in (*_FIELDS, "kind"))
        and driver["kind"] in hardware.KINDS and ":" in driver["entry"]
        and type(models) is list and all(map(hardware.is_model, models))
    )
    if not right:
        raise Refused("that is no description of a driver", "vmbus-emu driver add makes one")
    return driver

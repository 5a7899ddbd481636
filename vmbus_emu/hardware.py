"""The machine's physical devices, and what a driver is that binds to one.

A physical device is ``storageN`` or ``nicN`` with a model, ``vendor:device`` in PCI's numbers. Every disk of a VM
hangs on a storage controller; a NIC is the uplink of a switch. A :class:`Driver` says which models it supports and
makes the device work. Drivers of other packages are found through the entry points of :data:`GROUP`: each names a
:class:`Driver`.

What a driver may rely on and owes (both kinds): it is used by one loop or under one lock, raises nothing for what a
medium or a guest did, and never blocks. VMs see nothing of it: the disk it makes has the very ``info`` of the disk it
was given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

GROUP = "vmbus_emu.drivers"
STORAGE, NIC = "storage", "nic"
KINDS = (STORAGE, NIC)
#: What a disk hangs on, and what a switch is linked by, if nobody says otherwise.
DEFAULT_CONTROLLER = "storage0"
DEFAULT_HARDWARE: Mapping[str, Mapping[str, Any]] = {
    DEFAULT_CONTROLLER: {"model": "1b36:0010"},
    "nic0": {"model": "8086:100e"},
}
#: Drivers of this package: name -> where it is, and the models that it supports.
BUILT_IN: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "nvme": ("drivers.nvme:DRIVER", ("1b36:0010", "144d:a808")),
    "ahci": ("drivers.ahci:DRIVER", ("8086:2922", "1022:7801")),
    "piix": ("drivers.piix:DRIVER", ("8086:7010", "8086:7111")),
    "e1000": ("drivers.e1000:DRIVER", ("8086:100e", "8086:10d3")),
    "rtl8139": ("drivers.rtl8139:DRIVER", ("10ec:8139",)),
}
_DEVICE = re.compile(r"(storage|nic)(0|[1-9][0-9]?)\Z")
_MODEL = re.compile(r"[0-9a-f]{4}:[0-9a-f]{4}\Z")
DEVICE_RULE = "a device is storage0, nic0 and so on, up to 99"
MODEL_RULE = 'a model is "vendor:device" in four lower-case hexadecimal digits each, like "8086:100e"'


def kind_of(device: object) -> str | None:
    """``storage`` or ``nic``; ``None`` if ``device`` does not name a physical device."""
    match = _DEVICE.match(device) if isinstance(device, str) else None
    return match[1] if match else None


def is_model(value: object) -> bool:
    return isinstance(value, str) and _MODEL.match(value) is not None


class Wire(Protocol):
    """The cable in a NIC's socket. Frames that come over it are given to :meth:`Uplink.arrived`."""

    def send(self, frame: bytes) -> bool:
        """``False``: the far end has no room now; ``on_room`` is called when it may have."""

    @property
    def on_room(self) -> Callable[[], Any]: ...
    @on_room.setter
    def on_room(self, callback: Callable[[], Any]) -> None: ...


class Uplink(Protocol):
    """A NIC with its driver: the far port of a switch."""

    def transmit(self, frame: Any) -> bool:
        """Put a frame of the switch on the wire, now or soon. ``False``: it is lost, there is no room."""

    def arrived(self, frame: bytes) -> None:
        """A frame came over the wire."""

    def waiting(self) -> list[bytes]:
        """Frames that are not on the wire yet, in order, for the driver that takes this one's place."""


#: The module of a package that brought a driver has this, in a process that loaded it: ``audit`` counts it as a driver.
BROUGHT = "__vmbus_emu_driver__"


@dataclass(frozen=True, slots=True)
class Driver:
    """What an entry point of :data:`GROUP` names.

    ``kind`` is ``storage`` or ``nic``. ``attach`` is called with the model of a device:

    * storage: ``attach(model, disk)`` for each disk on the controller; the :class:`~vmbus_emu.device.BlockDevice` that
      carries the disk's requests, with the same ``info``. ``disk`` is one, too, and takes every request that fits its
      ``info``.
    * nic: ``attach(model, wire, receive)``; the :class:`Uplink`. ``receive(frame)`` hands a frame to the switch.
    """

    name: str
    version: str
    kind: str
    models: tuple[str, ...]
    attach: Callable[..., Any]

    def fault(self) -> str:
        """What is wrong with how it describes itself; empty if nothing is."""
        if not (isinstance(self.name, str) and re.match(r"[a-z][a-z0-9_-]{0,31}\Z", self.name)):
            return "its name is none"
        if not (isinstance(self.version, str) and re.match(r"[\w.+-]{1,32}\Z", self.version)):
            return "its version is none"
        if self.kind not in KINDS:
            return f"it is for {self.kind!r}, not for storage or nic"
        if type(self.models) is not tuple or not self.models or not all(map(is_model, self.models)):
            return f"its models are none; {MODEL_RULE}"
        return "" if callable(self.attach) else "its attach is not callable"


def built_in(model: str) -> Mapping[str, Any] | None:
    """How this package's driver of a model is loaded, or ``None``."""
    for name, (entry, models) in BUILT_IN.items():
        if model in models:
            return {"name": name, "version": "", "entry": entry, "path": ""}
    return None


def bound(
    hardware: Mapping[str, Mapping[str, Any]], drivers: Mapping[str, Mapping[str, Any]], image: str | None
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any] | None]]:
    """Each physical device, what it is, and the driver that it has, or ``None``: that chosen for it, else one of this
    package. With an ``image`` there are none but those chosen out of it."""
    for device, described in hardware.items():
        driver = drivers.get(device)
        if driver is None and image is None:
            driver = built_in(described["model"])
        yield device, described, driver

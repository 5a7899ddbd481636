"""The driver store of a process with host components: which driver each physical device has, loaded by import path.

Whoever sends drivers here has tried them in a process of its own before. One that fails to load nevertheless is an
answer, not a death: that device has no driver then.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from vmbus_emu.hardware import BROUGHT, BUILT_IN, Driver
from vmbus_emu.node import load

_BUILT_IN = frozenset(entry for entry, _ in BUILT_IN.values())
#: What a device had before: how its driver was described, and the driver, if it was loaded.
Former = tuple[Mapping[str, Any] | None, Driver | None]


class DriverFailed(Exception):
    """Why a device has no driver, in one line."""


class DriverStore:
    """``devices`` by name, as :func:`vmbus_emu.placement.devices` describes them."""

    def __init__(self, devices: Mapping[str, Mapping[str, Any]]) -> None:
        self.devices = {name: dict(device) for name, device in devices.items()}
        self._loaded: dict[str, Driver] = {}

    def driver(self, device: str) -> Driver:
        """The driver of ``device``. Raises :class:`DriverFailed`."""
        if device not in self._loaded:
            self._loaded[device] = self._load(device)
        return self._loaded[device]

    def _load(self, device: str) -> Driver:
        described, model = self.devices[device]["driver"], self.devices[device]["model"]
        if described is None:
            raise DriverFailed(f"hw.{device}: no driver knows {model}; vmbus-emu driver add loads one")
        try:
            driver = _imported(described["entry"], described["path"])
        except Exception as error:
            raise DriverFailed(f"hw.{device}: driver {described['name']} cannot be loaded: {error!r}") from error
        if model not in driver.models:
            raise DriverFailed(f"hw.{device}: driver {driver.name} does not know {model}")
        return driver

    def choose(self, device: str, described: Mapping[str, Any]) -> Former:
        """From now on ``device`` is to have that driver, with the code that is there now. What :meth:`restore`
        takes."""
        former = self.devices[device]["driver"], self._loaded.pop(device, None)
        self.devices[device]["driver"] = dict(described)
        if described["path"]:
            _forget(_package(described["entry"]))
        return former

    def restore(self, device: str, former: Former) -> None:
        """The choice was a bad one."""
        self.devices[device]["driver"], driver = former
        self._loaded.pop(device, None)
        if driver is not None:
            self._loaded[device] = driver


def _imported(entry: str, path: str) -> Driver:
    # Where a driver comes from belongs to somebody else: nothing is written there.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    if path:
        sys.path.insert(0, path)
    try:
        driver = load(entry)
        if entry not in _BUILT_IN:
            setattr(sys.modules[_package(entry)], BROUGHT, True)
    finally:
        sys.dont_write_bytecode = writes
        if path:
            sys.path.remove(path)
    if not isinstance(driver, Driver) or driver.fault():
        raise TypeError(f"{entry} is no driver")
    return driver


def _package(entry: str) -> str:
    return entry.partition(":")[0].partition(".")[0]


def _forget(package: str) -> None:
    """An earlier driver may have had modules of that name; whoever uses it goes on with them."""
    for name in [name for name in sys.modules if name == package or name.startswith(package + ".")]:
        del sys.modules[name]
    importlib.invalidate_caches()

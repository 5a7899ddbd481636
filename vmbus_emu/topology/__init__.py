"""What to build: a topology from a TOML file, from flags, or from both. The one door to this package.

:func:`build` is what ``up`` and ``plan`` call, :func:`load` reads a file alone, :func:`parse` takes a mapping of
the file's shape. All of them report every fault at once (:class:`TopologyErrors`). Nothing is started and
nothing is changed on disk.

``data`` is what the rest of the project passes around; a machine loads that alone, without the code that reads
and checks files, since every module it loads delays its boot.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmbus_emu.topology.data import DiskSpec, NicSpec, SwitchSpec, Topology, TopologyErrors, VmSpec
    from vmbus_emu.topology.file import Overrides
    from vmbus_emu.topology.joining import newcomer
    from vmbus_emu.topology.limits import check_limits
    from vmbus_emu.topology.making import build, load, parse

__all__ = [
    "DiskSpec", "NicSpec", "Overrides", "SwitchSpec", "Topology", "TopologyErrors", "VmSpec",
    "build", "check_limits", "load", "newcomer", "parse",
]  # fmt: skip

_WHERE = {
    "build": "making", "load": "making", "parse": "making", "Overrides": "file", "check_limits": "limits",
    "newcomer": "joining",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"vmbus_emu.topology.{_WHERE.get(name, 'data')}"), name)

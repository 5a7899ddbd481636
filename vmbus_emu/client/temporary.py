"""Machines that a verb starts for itself, by a name of its own, and that are gone afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from vmbus_emu.client.errors import MachineError
from vmbus_emu.client.machine import Machine
from vmbus_emu.procfs import stat_fields
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.topology.data import Topology

#: In /proc/PID/stat, counted from the state.
_PARENT = 1


def refuse_if_running(name: str, who: str) -> None:
    """Raises :class:`MachineError` if a machine has that name, which ``who`` needs."""
    if RunFolder(name).holder() is not None:
        raise MachineError(f'"{name}" is already running, and {who} needs that name',
                           f"vmbus-emu down --name {name} ends it")  # fmt: skip


@contextmanager
def temporary(wanted: Topology) -> Iterator[Machine]:
    """A machine for as long as the block runs. Only one that we started is ended."""
    machine, folder = Machine(wanted), RunFolder(wanted.name)
    try:
        machine.up()
        yield machine
    finally:
        pid = folder.holder()
        if pid is not None and stat_fields(pid)[_PARENT : _PARENT + 1] == [str(os.getpid())]:
            machine.down()
        machine.close()

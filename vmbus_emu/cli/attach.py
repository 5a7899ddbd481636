"""Reaching a running machine: the checks that need no connection first, then the client.

The checks read the run folder, so "not running" and "no such VM" are told at once, and without ZeroMQ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vmbus_emu.cli.errors import Failure

if TYPE_CHECKING:
    from vmbus_emu.client import Machine
    from vmbus_emu.runfolder import RunFolder


def named(name: str) -> str:
    """The ``--name`` flag to type for this machine, with a leading blank; nothing for the default one."""
    return "" if name == "default" else f" --name {name}"


def running(name: str) -> RunFolder:
    """The folder of a machine that runs. Raises :class:`Failure`."""
    from vmbus_emu.runfolder import RunFolder, list_machines

    folder = RunFolder(name)
    if folder.holder() is not None:
        return folder
    if folder.exists():
        raise Failure(f'"{name}" is not running: its machine died and left files',
                      f"vmbus-emu down{named(name)} removes them, vmbus-emu up{named(name)} starts anew")
    others = [entry.name for entry in list_machines() if not entry.stale]
    hint = f"running: {', '.join(others)} (--name)" if others else f"start it with vmbus-emu up{named(name)}"
    raise Failure(f'"{name}" is not running', hint)


def running_vm(name: str, vm: str | None) -> str:
    """``vm`` if the running machine has it; its first VM if ``vm`` is ``None``. Raises :class:`Failure`."""
    vms = running(name).info().get("vms")
    if not isinstance(vms, list) or not vms:
        if vm is None:
            raise Failure("which VM?", "name one; vmbus-emu ps lists them")
        return vm  # the machine itself will know
    if vm is None:
        return str(vms[0])
    if vm not in vms:
        shown = ", ".join(vms[:12]) + (f", … ({len(vms)} in all)" if len(vms) > 12 else "")
        raise Failure(f'"{name}" has no VM "{vm}"', f"one of {shown}")
    return vm


@contextmanager
def attached(name: str) -> Iterator[Machine]:
    """The running machine ``name``, for as long as the block runs."""
    running(name)
    from vmbus_emu.client import Machine

    machine = Machine.attach(name)
    try:
        yield machine
    finally:
        machine.close()

"""The Python API. The CLI is a client of it; ``door`` is its connection, ``starter`` its hand on the power switch."""

from vmbus_emu.client.command import ExecResult
from vmbus_emu.client.errors import MachineError, NotRunning
from vmbus_emu.client.machine import Disk, Machine, Vm

__all__ = ["Disk", "ExecResult", "Machine", "MachineError", "NotRunning", "Vm"]

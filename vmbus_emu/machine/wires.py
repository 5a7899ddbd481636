"""The sockets of the machine's physical NICs, each with a cable to a NIC of another machine.

They are the box's, like the media: whichever process drives a NIC gets the socket, and what arrives while that
process is replaced waits in it.
"""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

from vmbus_emu.placement import devices
from vmbus_emu.runfolder import RunFolder
from vmbus_emu.topology.data import Topology


class WireError(Exception):
    """A cable cannot be plugged in; the text is one line for the user."""


class Plug(NamedTuple):
    """``far`` is the path of the socket at the other end; nobody need be there."""

    fd: int
    far: str


def plug_in(topology: Topology, folder: RunFolder) -> dict[str, Plug]:
    """Every NIC with a cable, by name. Raises :class:`WireError`."""
    try:
        return _plug_in(topology, folder)
    except OSError as error:
        raise WireError(f"the cables of physical NICs: {error.strerror or error}; leave out cable") from None


def _plug_in(topology: Topology, folder: RunFolder) -> dict[str, Plug]:
    plugs = {}
    for name, described in devices(topology, "nic").items():
        if described.get("cable") is not None:
            machine, _, far = described["cable"].partition(".")
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as end:
                path = folder.socket(f"hw.{name}")
                if os.path.lexists(path):  # of a machine that was killed
                    os.unlink(path)
                end.bind(path)
                plugs[name] = Plug(end.detach(), RunFolder(machine).socket(f"hw.{far}"))
    return plugs

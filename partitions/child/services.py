"""What a guest does for its integration components, by call; :mod:`partitions.child.components` has the messages.

In the monolith, which has no VMBus, management calls this object on the guest's thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from partitions.child.clock import GuestClock
from partitions.child.kvp_store import KvpStore
from partitions.child.writers import Writers
from vmbus_emu.node import load

if TYPE_CHECKING:
    from partitions.child.guest import Guest
    from partitions.child.quiesce import Quiesce


class Services:
    """``shut_down(seconds)`` makes the guest's carrier end it in order; the carrier sets it."""

    def __init__(self, guest: Guest, drift_ppm: float) -> None:
        self._guest = guest
        self.clock = GuestClock(drift_ppm)
        self.kvp = KvpStore(self._about)
        #: Who wants to be asked before the disks are held still.
        self.writers = Writers()
        self.shut_down: Callable[[float], Any] = lambda patience_s: None
        self._quiesce: Quiesce | None = None
        self._off = False

    def _about(self) -> Mapping[str, str]:
        """The pool ``auto``, with the keys that Windows and Linux guests have in it."""
        guest = self._guest
        return {
            "FullyQualifiedDomainName": guest.name,
            "IntegrationServicesVersion": "3.0",
            "NetworkAddressIPv4": guest.address if guest.ip is not None else "",
            "OSName": "vmbus-emu guest",
            "OSVersion": ".".join(map(str, sys.version_info[:3])),
            "OSMajorVersion": str(sys.version_info[0]),
            "OSMinorVersion": str(sys.version_info[1]),
            "ProcessorArchitecture": os.uname().machine,
        }

    def power_off(self, patience_s: float, text: str) -> bool:
        """End in order; ``False``: that is under way already."""
        if self._off:
            return False
        self._off = True
        self.thaw()
        self._guest.kernel_log(f"shutting down: {text}" if text else "shutting down")
        self.shut_down(patience_s)
        return True

    def freeze(self, then: Callable[[bool], Any]) -> None:
        """Have the writers rest, and hold the disks still (:class:`partitions.child.quiesce.Quiesce`)."""
        if self._quiesce is None:
            guest, quiesce = self._guest, load("partitions.child.quiesce:Quiesce")
            self._quiesce = quiesce(guest.loop, guest.disks, self.writers, guest.kernel_log)
        assert self._quiesce is not None
        self._quiesce.freeze(then)

    def thaw(self) -> bool:
        """``False``: they were not frozen."""
        return self._quiesce is not None and self._quiesce.thaw()

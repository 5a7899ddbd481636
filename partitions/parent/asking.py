"""What the VMBus provider asks of a VSP when a guest opens, closes, lends or takes back.

On ``zmq`` that is a call of the VSP. :mod:`partitions.parent.ring_asking` is the same on ``ring``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from partitions.parent.offered import Device, Guest
from partitions.parent.vsplink import ProviderSide, VspSide
from vmbus_emu.vmbus import effects as fx

#: A VSP by its component name, and the partition it lives in; ``None``: it is dead.
Place = Callable[[str], tuple[VspSide, int] | None]


class Asking:
    """``answers(vsp)`` is where a dead VSP's answers are given in its stead."""

    def __init__(self, place: Place, answers: Callable[[str], ProviderSide]) -> None:
        self._place = place
        self._answers = answers

    def doorbell(self) -> int:
        """The number of a new channel's doorbells: the connection id in its offer. 0: it has none."""
        return 0

    def carry_out(
        self, guest: Guest, effect: fx.OpenDevice | fx.CloseDevice | fx.AcceptGpadl | fx.TearDownGpadl
    ) -> None:
        device = guest.devices[effect.relid]
        found = self._place(device.vsp)
        match effect:
            case fx.OpenDevice():
                if found is not None:
                    self.open(found, guest, device, effect)
            case fx.AcceptGpadl():
                if found is not None:
                    self.accept(found, guest, device, effect)
            case fx.CloseDevice(_, ticket):
                if found is not None:
                    self.close(found, guest, device, ticket)
                else:
                    self._answers(device.vsp).closed(device.key, ticket)
            case fx.TearDownGpadl(_, gpadl, ticket):
                if found is not None:
                    self.tear_down(found, device, gpadl, ticket)
                else:
                    self._answers(device.vsp).gpadl_torn_down(device.key, gpadl, ticket)

    def ended(self, device: Device) -> None:
        """The channel was not opened, or is revoked: its VSP will not be asked to close it."""

    def gone(self, partition: int, vm: str, vsps: Sequence[VspSide]) -> None:
        """A guest's partition is no more: tell the VSPs, behind what they were asked about it."""
        for vsp in vsps:
            vsp.partition_gone(partition, vm)

    def open(self, found: tuple[VspSide, int], guest: Guest, device: Device, effect: fx.OpenDevice) -> None:
        found[0].open(device.key, effect.ticket, guest.pid, effect.request.open_id, 0, 0, 0)

    def accept(self, found: tuple[VspSide, int], guest: Guest, device: Device, effect: fx.AcceptGpadl) -> None:
        nbytes = sum(one.byte_count for one in effect.ranges)
        found[0].accept_gpadl(device.key, effect.gpadl, effect.ticket, nbytes, 0, 0, 0, 0, b"")

    def close(self, found: tuple[VspSide, int], guest: Guest, device: Device, ticket: int) -> None:
        found[0].close(device.key, ticket)

    def tear_down(self, found: tuple[VspSide, int], device: Device, gpadl: int, ticket: int) -> None:
        found[0].tear_down_gpadl(device.key, gpadl, ticket)

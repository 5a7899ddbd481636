"""The server's GPADLs of one connection: collects, numbers, bounds them, and walks them through their states.

Used by :class:`vmbus_emu.vmbus.server.Connection` alone, which has checked that the guest knows the channel.
The book knows which channels have lost their device (revoked): there nothing can be asked, and the guest's
clean-up is answered at once, so that it never hangs (protocol sheet 2.5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from vmbus_emu.protocol.vmbus import (
    STATUS_FAILED,
    STATUS_OK,
    GpadlBody,
    GpadlCreated,
    GpadlHeader,
    GpadlTeardown,
    GpadlTornDown,
)
from vmbus_emu.vmbus.channel_states import GPADL_STEPS, GpadlAction, GpadlEvent, GpadlState
from vmbus_emu.vmbus.effects import AcceptGpadl, Effect, Limits, Refused, Send, TearDownGpadl
from vmbus_emu.vmbus.gpadl import RangeCollector, Ranges

#: After these the device owes no answer to what it was asked before (a following action may ask anew).
_ENDS_QUESTION = frozenset((GpadlEvent.ACCEPTED, GpadlEvent.REJECTED, GpadlEvent.TORN_DOWN, GpadlEvent.REVOKE))

#: The device has it, or is asked to take it before anything that the guest asks for next.
_WITH_DEVICE = (GpadlState.OFFERED, GpadlState.ACCEPTED)


@dataclass(slots=True)
class _Gpadl:
    relid: int
    number: int
    qwords: int
    collector: RangeCollector | None
    state: GpadlState = GpadlState.IN_PROGRESS
    ranges: Ranges = ()
    ticket: int = 0         #: of the question the device owes an answer to; 0: none
    silent: bool = False    #: the guest that made it is gone: no message about it


class GpadlBook:
    """All GPADLs of one connection, by channel and id."""

    def __init__(self, limits: Limits, tickets: Iterator[int]) -> None:
        self._limits = limits
        self._tickets = tickets
        self._channels: dict[int, dict[int, _Gpadl]] = {}
        # Bodies carry no relid, so while bodies are missing the id is unique over the connection.
        self._in_progress: dict[int, _Gpadl] = {}
        self._without_device: set[int] = set()
        self._qwords = 0
        self.late_answers = 0

    def __len__(self) -> int:
        return sum(map(len, self._channels.values()))

    @property
    def qwords(self) -> int:
        """The announced sizes of all GPADLs together; at most ``Limits.gpadl_qwords``."""
        return self._qwords

    def ranges(self, relid: int, number: int) -> Ranges | None:
        """The ranges of a GPADL that the channel's device keeps, or was asked to; ``None`` if it is not one."""
        gpadl = self._channels.get(relid, {}).get(number)
        return gpadl.ranges if gpadl is not None and gpadl.state in _WITH_DEVICE else None

    def state(self, relid: int, number: int) -> GpadlState | None:
        gpadl = self._channels.get(relid, {}).get(number)
        return gpadl.state if gpadl is not None else None

    # -- from the guest ---------------------------------------------------------------------------

    def header(self, message: GpadlHeader) -> list[Effect]:
        collector = RangeCollector(message)
        fault = collector.fault or self._no_room(message, collector.qwords)
        if fault is not None:
            return refuse_gpadl(message.relid, message.gpadl, fault)
        gpadl = _Gpadl(message.relid, message.gpadl, collector.qwords, collector)
        self._channels.setdefault(gpadl.relid, {})[gpadl.number] = gpadl
        self._in_progress[gpadl.number] = gpadl
        self._qwords += gpadl.qwords
        return self._collected(gpadl)

    def _no_room(self, message: GpadlHeader, qwords: int) -> str | None:
        of_channel = self._channels.get(message.relid, {})
        if message.gpadl in of_channel or message.gpadl in self._in_progress:
            return "the id is in use"
        if len(of_channel) >= self._limits.gpadls_per_channel:
            return f"more than {self._limits.gpadls_per_channel} of one channel"
        if self._qwords + qwords > self._limits.gpadl_qwords:
            return f"more than {self._limits.gpadl_qwords} qwords of ranges"
        return None

    def body(self, message: GpadlBody) -> list[Effect]:
        gpadl = self._in_progress.get(message.gpadl)
        if gpadl is None or gpadl.collector is None:
            return [Refused(f"GPADL_BODY of unknown GPADL {message.gpadl:#x}")]  # it names no channel to answer for
        gpadl.collector.add(message.pfns)
        return self._collected(gpadl)

    def _collected(self, gpadl: _Gpadl) -> list[Effect]:
        collector = gpadl.collector
        if collector is None or not collector.complete:
            return []
        gpadl.collector = None
        del self._in_progress[gpadl.number]
        ranges = collector.ranges()
        if isinstance(ranges, str):
            self._remove(gpadl)
            return refuse_gpadl(gpadl.relid, gpadl.number, ranges)
        gpadl.ranges = ranges
        revoked = gpadl.relid in self._without_device
        return self._apply(gpadl, GpadlEvent.COMPLETE_REVOKED if revoked else GpadlEvent.COMPLETE)

    def teardown(self, message: GpadlTeardown) -> list[Effect]:
        gpadl = self._channels.get(message.relid, {}).get(message.gpadl)
        if gpadl is None:
            return [Refused(f"GPADL_TEARDOWN of unknown GPADL {message.gpadl:#x}")]
        revoked = gpadl.relid in self._without_device
        return self._apply(gpadl, GpadlEvent.TEARDOWN_REVOKED if revoked else GpadlEvent.TEARDOWN)

    # -- from the device --------------------------------------------------------------------------

    def accepted(self, relid: int, number: int, ticket: int, ok: bool) -> list[Effect]:
        return self._answered(relid, number, ticket, GpadlEvent.ACCEPTED if ok else GpadlEvent.REJECTED)

    def torn_down(self, relid: int, number: int, ticket: int) -> list[Effect]:
        return self._answered(relid, number, ticket, GpadlEvent.TORN_DOWN)

    def _answered(self, relid: int, number: int, ticket: int, event: GpadlEvent) -> list[Effect]:
        gpadl = self._channels.get(relid, {}).get(number)
        if gpadl is None or not ticket or gpadl.ticket != ticket:
            self.late_answers += 1
            return []
        return self._apply(gpadl, event)

    # -- from the channel -------------------------------------------------------------------------

    def revoke(self, relid: int) -> list[Effect]:
        """The channel's device is gone. Waiters are answered; to be called before RESCIND is sent."""
        self._without_device.add(relid)
        return self._apply_all(relid, GpadlEvent.REVOKE)

    def reset(self, relid: int) -> list[Effect]:
        """The guest has forgotten the channel's GPADLs: take them from the device, without a word to the guest."""
        if relid in self._without_device:
            self.forget(relid)
            return []
        for gpadl in self._channels.get(relid, {}).values():
            gpadl.silent = True
        return self._apply_all(relid, GpadlEvent.RESET)

    def forget(self, relid: int) -> None:
        """Neither the guest nor a device knows these any more."""
        self._without_device.discard(relid)
        for gpadl in tuple(self._channels.get(relid, {}).values()):
            self._remove(gpadl)

    def _apply_all(self, relid: int, event: GpadlEvent) -> list[Effect]:
        effects: list[Effect] = []
        for gpadl in tuple(self._channels.get(relid, {}).values()):
            effects += self._apply(gpadl, event)
        return effects

    # -- the table at work ------------------------------------------------------------------------

    def _apply(self, gpadl: _Gpadl, event: GpadlEvent) -> list[Effect]:
        step = GPADL_STEPS[event].get(gpadl.state)
        if step is None:
            return [Refused(f"{event.value} for GPADL {gpadl.number:#x}, which is {gpadl.state.value}")]
        if event in _ENDS_QUESTION:
            gpadl.ticket = 0
        if step.state is None:
            self._remove(gpadl)
        else:
            gpadl.state = step.state
        match step.action:
            case GpadlAction.NOTHING:
                return []
            case GpadlAction.ASK_ACCEPT:
                gpadl.ticket = next(self._tickets)
                return [AcceptGpadl(gpadl.relid, gpadl.number, gpadl.ticket, gpadl.ranges)]
            case GpadlAction.ASK_TEARDOWN:
                gpadl.ticket = next(self._tickets)
                return [TearDownGpadl(gpadl.relid, gpadl.number, gpadl.ticket)]
            case GpadlAction.SEND_CREATED:
                return [Send(GpadlCreated(gpadl.relid, gpadl.number, STATUS_OK).encode())]
            case GpadlAction.SEND_FAILED:
                return [Send(GpadlCreated(gpadl.relid, gpadl.number, STATUS_FAILED).encode())]
            case GpadlAction.SEND_TORNDOWN:
                return [] if gpadl.silent else [Send(GpadlTornDown(gpadl.number).encode())]
            case _:
                assert_never(step.action)

    def _remove(self, gpadl: _Gpadl) -> None:
        of_channel = self._channels[gpadl.relid]
        del of_channel[gpadl.number]
        if not of_channel:
            del self._channels[gpadl.relid]
        if self._in_progress.get(gpadl.number) is gpadl:
            del self._in_progress[gpadl.number]
        self._qwords -= gpadl.qwords


def refuse_gpadl(relid: int, number: int, reason: str) -> list[Effect]:
    """Answer a create with failure."""
    return [
        Send(GpadlCreated(relid, number, STATUS_FAILED).encode()),
        Refused(f"GPADL {number:#x} of relid {relid}: {reason}"),
    ]
